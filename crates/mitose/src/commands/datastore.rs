//! `mitose datastore`.

use std::path::PathBuf;

use anyhow::Context as _;
use api_types::{Datastore, DatastoreAddRequest, DatastoreChangeRequest, DatastoreState};
use clap::Subcommand;
use vm_spec::{format_size, parse_size};

use super::Context;
use crate::output::{self, Format, Table};

/// Add, list, change and remove datastores
///
/// A datastore is a directory on a file system, for the disks and homes of VMs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose datastore add fast --path /mnt/nvme/mitose
  mitose datastore ls
  mitose datastore info fast -o json
  mitose datastore set fast --reserve 20G
  mitose datastore maintenance fast
  mitose datastore rm fast")]
pub struct Args {
    #[command(subcommand)]
    command: DatastoreCommand,
}

#[derive(Debug, Subcommand)]
enum DatastoreCommand {
    /// Add a datastore in an existing, empty directory
    #[command(visible_alias = "create")]
    Add(AddArgs),
    /// List the datastores
    Ls,
    /// Show one datastore
    Info {
        /// Its name or id
        name: String,
    },
    /// Rename a datastore or change its limits
    Set(SetArgs),
    /// Let a datastore take no new disks
    Maintenance {
        /// Its name or id
        name: String,
        /// Let it take new disks again
        #[arg(long)]
        off: bool,
    },
    /// Remove a datastore that nothing is on; the directory stays
    Rm {
        /// Its name or id
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// Its name
    name: String,
    /// Its directory
    #[arg(long)]
    path: PathBuf,
    /// Free space below which it takes no new disks [default: 1 % of its size, at most 1G]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    reserve: Option<u64>,
    /// Free space below which an event warns [default: 5 % of its size, at most 10G]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    warn: Option<u64>,
}

#[derive(Debug, clap::Args)]
struct SetArgs {
    /// Its name or id
    name: String,
    /// A new name
    #[arg(long)]
    rename: Option<String>,
    /// Free space below which it takes no new disks
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    reserve: Option<u64>,
    /// Free space below which an event warns
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    warn: Option<u64>,
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    match args.command {
        DatastoreCommand::Add(args) => {
            let path = std::path::absolute(&args.path).context("--path")?;
            let store = client.add_datastore(&DatastoreAddRequest {
                name: args.name,
                path,
                reserve_bytes: args.reserve,
                warn_bytes: args.warn,
            })?;
            print_one(&store, context.format)?;
        }
        DatastoreCommand::Ls => print_all(&client.datastores()?, context.format)?,
        DatastoreCommand::Info { name } => print_one(&client.datastore(&name)?, context.format)?,
        DatastoreCommand::Set(args) => {
            let request = DatastoreChangeRequest {
                name: args.rename,
                reserve_bytes: args.reserve,
                warn_bytes: args.warn,
                ..DatastoreChangeRequest::default()
            };
            print_one(
                &client.change_datastore(&args.name, &request)?,
                context.format,
            )?;
        }
        DatastoreCommand::Maintenance { name, off } => {
            let request = DatastoreChangeRequest {
                maintenance: Some(!off),
                ..DatastoreChangeRequest::default()
            };
            print_one(&client.change_datastore(&name, &request)?, context.format)?;
        }
        DatastoreCommand::Rm { name } => client.remove_datastore(&name)?,
    }
    Ok(0)
}

fn print_one(store: &Datastore, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(store);
    }
    print_all(std::slice::from_ref(store), format)?;
    if let Some(reason) = &store.reason {
        output::text_line(reason)?;
    }
    Ok(())
}

fn print_all(stores: &[Datastore], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(&stores);
    }
    let headings = [
        "NAME", "ID", "STATE", "SIZE", "FREE", "RESERVE", "VMS", "PATH",
    ];
    let mut table = Table::new(&headings);
    for store in stores {
        table.row(vec![
            store.name.clone(),
            store.id.clone(),
            match store.state {
                DatastoreState::Accessible => "accessible",
                DatastoreState::Inaccessible => "inaccessible",
                DatastoreState::Maintenance => "maintenance",
            }
            .to_owned(),
            format_size(store.capacity_bytes),
            format_size(store.free_bytes),
            format_size(store.reserve_bytes),
            store.vms.to_string(),
            store.path.clone(),
        ]);
    }
    table.print()
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}
