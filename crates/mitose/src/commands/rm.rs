//! `mitose rm`.

use super::{Context, side_by_side};
use crate::output::{self, Format};

/// Remove VMs with their own disks
///
/// Disk and memory layers that clones use stay with them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose rm web1
  mitose rm --force web1 w-1 w-2")]
pub struct Args {
    /// Names of the VMs
    #[arg(required = true)]
    names: Vec<String>,
    /// Also VMs that run
    #[arg(long, short)]
    force: bool,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let mut removed = Vec::new();
    let mut code = 0;
    // The end of a VM's process takes its time: several end side by side.
    for (name, result) in side_by_side(&args.names, |name| client.remove(name, args.force)) {
        match result {
            Ok(()) => removed.push(name),
            Err(error) => {
                eprintln!("error: {}", output::chain_line(&error.into()));
                code = 1;
            }
        }
    }
    if context.format == Format::Json {
        output::json(&removed)?;
    } else {
        for name in removed {
            output::text_line(name)?;
        }
    }
    Ok(code)
}
