//! `mitose daemon`.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Subcommand;

use super::Context;
use crate::output::{self, Format};

/// Longest wait for a daemon to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Look at the daemon, or end it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose daemon status
  mitose daemon start
  mitose daemon stop      VMs run on; the next command starts it again")]
pub struct Args {
    #[command(subcommand)]
    command: DaemonCommand,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum DaemonCommand {
    /// Show its state; exit code 1 where none runs
    Status,
    /// Start it where none runs
    Start,
    /// End it; VMs run on
    Stop,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let running = match args.command {
        DaemonCommand::Start => Some(context.client()?),
        DaemonCommand::Status | DaemonCommand::Stop => context.daemon.running()?,
    };
    let Some(client) = running else {
        if matches!(args.command, DaemonCommand::Stop) {
            return Ok(0);
        }
        bail!("no daemon runs for {}", context.daemon.home()?.display());
    };
    if matches!(args.command, DaemonCommand::Stop) {
        let process = format!("/proc/{}", client.status()?.pid);
        client.stop_daemon()?;
        if client.socket().is_none() {
            return Ok(0);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Path::new(&process).exists() {
            if Instant::now() > deadline {
                bail!(
                    "the daemon does not end within {} s",
                    STOP_TIMEOUT.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
        return Ok(0);
    }
    let status = client.status()?;
    if context.format == Format::Json {
        output::json(&status)?;
    } else {
        output::text_line(&format!(
            "mitosed {} (process {}) serves {}: {} VMs, {} running; {} of {} shells wait",
            status.version,
            status.pid,
            status.home,
            status.vms,
            status.vms_running,
            status.shells_ready,
            status.shells_wanted
        ))?;
    }
    Ok(0)
}
