//! `mitose folder`.

use api_types::{FolderRequest, ObjectRequest};
use clap::Subcommand;

use super::Context;
use crate::output::{self, Format, Table};

/// Folders of VMs
///
/// VMs lie in folders of any depth; a name is unique in its folder. 'mitose set VM --folder PATH'
/// moves a VM.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose folder create lab
  mitose folder create web --in lab
  mitose folder mv lab/web --to /
  mitose folder rename web frontends
  mitose folder rm frontends")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the folders
    #[command(after_help = "Example:\n  mitose folder ls -o json")]
    Ls,
    /// Make a folder
    #[command(after_help = "Example:\n  mitose folder create web --in lab")]
    Create {
        /// Its name
        name: String,
        /// Folder that it is to lie in
        #[arg(long = "in", value_name = "PATH")]
        parent: Option<String>,
    },
    /// Give a folder another name
    #[command(after_help = "Example:\n  mitose folder rename lab/web frontends")]
    Rename {
        /// Its path or id
        folder: String,
        /// Its new name
        name: String,
    },
    /// Move a folder with all that lies in it
    #[command(after_help = "Example:\n  mitose folder mv lab/web --to prod")]
    Mv {
        /// Its path or id
        folder: String,
        /// Folder that it is to lie in; / is the first one
        #[arg(long, value_name = "PATH")]
        to: String,
    },
    /// Remove an empty folder
    #[command(after_help = "Example:\n  mitose folder rm lab/web")]
    Rm {
        /// Its path or id
        folder: String,
    },
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let changed = match &args.command {
        Command::Ls => return list(context),
        Command::Create { name, parent } => client.make_folder(&FolderRequest {
            name: name.clone(),
            parent: parent.clone(),
        })?,
        Command::Rename { folder, name } => {
            let request = ObjectRequest {
                name: Some(name.clone()),
                ..ObjectRequest::default()
            };
            let id = client.folder(folder)?.object.id;
            client.change_object(&id, &request)?;
            client.folder(&id)?
        }
        Command::Mv { folder, to } => {
            let request = ObjectRequest {
                parent: Some(to.clone()),
                ..ObjectRequest::default()
            };
            let id = client.folder(folder)?.object.id;
            client.change_object(&id, &request)?;
            client.folder(&id)?
        }
        Command::Rm { folder } => {
            let found = client.folder(folder)?;
            client.remove_folder(&found.object.id)?;
            found
        }
    };
    if context.format == Format::Json {
        output::json(&changed)?;
    } else {
        output::text_line(&changed.path)?;
    }
    Ok(0)
}

fn list(context: &Context) -> anyhow::Result<u8> {
    let folders = context.client()?.folders()?;
    if context.format == Format::Json {
        output::json(&folders)?;
        return Ok(0);
    }
    let mut table = Table::new(&["PATH", "ID", "VMS", "FOLDERS", "ANNOTATION"]);
    for folder in folders {
        table.row(vec![
            folder.path,
            folder.object.id,
            folder.vms.to_string(),
            folder.folders.to_string(),
            folder.object.labels.annotation,
        ]);
    }
    table.print()?;
    Ok(0)
}
