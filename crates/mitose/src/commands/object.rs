//! `mitose object`.

use api_types::ObjectRequest;
use clap::Subcommand;

use super::Context;
use super::description::parse_attribute;
use crate::output::{self, Format, Table};

/// Objects of the inventory: what all of them have
///
/// Every object has a name, an annotation and custom attributes: datacenter, folders, hosts, resource
/// pools, datastores, networks, VMs and more.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose object ls
  mitose object set host-1 --annotation 'rack 7' --attribute owner=ana
  mitose object set network-2 --name lan")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List all objects
    #[command(after_help = "Example:\n  mitose object ls -o json")]
    Ls,
    /// Change name and words of an object
    #[command(after_help = "Example:\n  mitose object set datastore-1 --annotation 'fast disks'")]
    Set {
        /// Its id
        id: String,
        /// New name
        #[arg(long)]
        name: Option<String>,
        /// New annotation
        #[arg(long, value_name = "TEXT")]
        annotation: Option<String>,
        /// Custom attribute to set; may be repeated
        #[arg(long = "attribute", value_name = "KEY=VALUE", value_parser = parse_attribute)]
        attributes: Vec<(String, String)>,
        /// Custom attribute to remove; may be repeated
        #[arg(long = "remove-attribute", value_name = "KEY")]
        removed_attributes: Vec<String>,
    },
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let objects = match args.command {
        Command::Ls => client.objects()?,
        Command::Set {
            id,
            name,
            annotation,
            attributes,
            removed_attributes,
        } => {
            let set = attributes
                .into_iter()
                .map(|(key, value)| (key, Some(value)));
            let removed = removed_attributes.into_iter().map(|key| (key, None));
            let request = ObjectRequest {
                name,
                annotation,
                attributes: set.chain(removed).collect(),
                ..ObjectRequest::default()
            };
            vec![client.change_object(&id, &request)?]
        }
    };
    if context.format == Format::Json {
        output::json(&objects)?;
        return Ok(0);
    }
    let mut table = Table::new(&["ID", "KIND", "NAME", "PARENT", "VERSION", "ANNOTATION"]);
    for object in objects {
        table.row(vec![
            object.id,
            object.kind,
            object.name,
            object.parent.unwrap_or_else(|| "-".to_owned()),
            object.version.to_string(),
            object.labels.annotation,
        ]);
    }
    table.print()?;
    Ok(0)
}
