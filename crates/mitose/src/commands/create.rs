//! `mitose create`.

use super::{Context, run};

/// Make a VM and leave it powered off
///
/// It has the options of 'mitose run'; 'mitose start' boots it.
// The options of 'run' are a group of that name already.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(after_help = "Examples:
  mitose create base --image debian --memory 1G
  mitose create db1 --image debian --folder lab/db --annotation 'primary' --net lan
  mitose create web9 --image tiny --cpus 2 --check -o json")]
pub struct Args {
    #[command(flatten)]
    run: run::Args,
}

/// Runs the command.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    let check = args.run.check;
    let mut request = run::request(args.run)?;
    request.powered_off = true;
    run::make(&request, check, None, context)
}
