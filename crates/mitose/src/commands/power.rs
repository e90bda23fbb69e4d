//! `mitose stop`, `start`, `pause`, `suspend`, `resume`, `reset`.

use api_types::{StopRequest, Vm};
use client::{Client, ClientError};

use super::{Context, side_by_side};
use crate::output::{self, Format};
use crate::progress::Waiting;

/// Power VMs off
///
/// The guest is asked to shut down; --force ends it at once, like pulling the plug.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose stop web1
  mitose stop web1 web2 --force
  mitose stop web1 --timeout 10")]
pub struct StopArgs {
    /// Names of the VMs
    #[arg(required = true)]
    names: Vec<String>,
    /// At once, without asking the guest
    #[arg(long)]
    force: bool,
    /// Seconds to wait for the guest
    #[arg(long, value_name = "SECONDS", conflicts_with = "force")]
    timeout: Option<u64>,
}

/// Boot powered-off VMs from their disks, let suspended ones go on
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  mitose start web1")]
pub struct StartArgs {
    /// Names of the VMs
    #[arg(required = true)]
    names: Vec<String>,
}

/// Stop the vCPUs of VMs
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  mitose pause web1")]
pub struct PauseArgs {
    /// Names of the VMs
    #[arg(required = true)]
    names: Vec<String>,
}

/// Suspend VMs to disk
///
/// Their memory goes to files and their processes end, so that they take no memory and outlive a
/// restart of the host. 'mitose start' lets them go on from there.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  mitose suspend web1")]
pub struct SuspendArgs {
    /// Names of the VMs
    #[arg(required = true)]
    names: Vec<String>,
}

/// Let paused or suspended VMs run on
///
/// A VM that found no space for a write tries that write again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  mitose resume web1")]
pub struct ResumeArgs {
    /// Names of the VMs
    #[arg(required = true)]
    names: Vec<String>,
}

/// Reset VMs: they boot again from their disks, at once
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  mitose reset web1")]
pub struct ResetArgs {
    /// Names of the VMs
    #[arg(required = true)]
    names: Vec<String>,
}

/// Runs `stop`.
pub fn stop(args: &StopArgs, context: &Context) -> anyhow::Result<u8> {
    let request = StopRequest {
        force: args.force,
        timeout_s: args.timeout,
    };
    each(&args.names, "shuts down", context, |client, name| {
        client.stop(name, &request)
    })
}

/// Runs `start`.
pub fn start(args: &StartArgs, context: &Context) -> anyhow::Result<u8> {
    each(&args.names, "boots", context, Client::start)
}

/// Runs `pause`.
pub fn pause(args: &PauseArgs, context: &Context) -> anyhow::Result<u8> {
    each(&args.names, "stops", context, Client::pause)
}

/// Runs `suspend`.
pub fn suspend(args: &SuspendArgs, context: &Context) -> anyhow::Result<u8> {
    each(&args.names, "goes to disk", context, |client, name| {
        client.suspend(name, |_| ())
    })
}

/// Runs `resume`.
pub fn resume(args: &ResumeArgs, context: &Context) -> anyhow::Result<u8> {
    each(&args.names, "goes on", context, Client::resume)
}

/// Runs `reset`.
pub fn reset(args: &ResetArgs, context: &Context) -> anyhow::Result<u8> {
    each(&args.names, "resets", context, Client::reset)
}

/// Does `act` to each VM; goes on after a failure.
fn each(
    names: &[String],
    what: &str,
    context: &Context,
    act: impl Fn(&Client, &str) -> Result<Vm, ClientError> + Sync,
) -> anyhow::Result<u8> {
    let client = context.client()?;
    let mut done = Vec::new();
    let mut code = 0;
    let waiting = Waiting::for_(format!("{} {what}", names.join(", ")));
    let results = side_by_side(names, |name| act(&client, name));
    drop(waiting);
    for (_, result) in results {
        match result {
            Ok(vm) => done.push(vm),
            Err(error) => {
                eprintln!("error: {}", output::chain_line(&error.into()));
                code = 1;
            }
        }
    }
    if context.format == Format::Json {
        output::json(&done)?;
    } else {
        for vm in &done {
            output::text_line(&format!("{} {}", vm.name, vm.state))?;
        }
    }
    Ok(code)
}
