//! `mitose wait`.

use api_types::WaitFor;

use super::Context;
use crate::output::{self, Format};
use crate::progress::Waiting;

/// Wait for what happens to a VM
///
/// Ends with an error when the time is over, or when the VM was powered off before.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose wait web1 --for frozen
  mitose wait web1 --for off --timeout 600")]
pub struct Args {
    /// Name of the VM
    name: String,
    /// frozen: its guest asked for it, see 'mitose-guest freeze' in the guest; ready: the guest agent
    /// says so; running; off
    #[arg(long = "for", value_name = "STATE", value_parser = parse_state)]
    state: WaitFor,
    /// Seconds to wait, at most 3600
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    let waiting = Waiting::for_(format!("{} is awaited", args.name));
    let vm = client.wait_for(&args.name, args.state, args.timeout);
    drop(waiting);
    let vm = vm?;
    if context.format == Format::Json {
        output::json(&vm)?;
    } else {
        output::text_line(&format!("{} {}", vm.name, vm.state))?;
    }
    Ok(0)
}

fn parse_state(text: &str) -> Result<WaitFor, String> {
    match text {
        "frozen" => Ok(WaitFor::Frozen),
        "ready" => Ok(WaitFor::Ready),
        "running" => Ok(WaitFor::Running),
        "off" => Ok(WaitFor::Off),
        _ => Err(format!("{text:?} is not frozen, ready, running or off")),
    }
}
