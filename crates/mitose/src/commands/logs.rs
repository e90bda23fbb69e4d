//! `mitose logs`.

use std::io;

use client::LogOptions;

use super::Context;
use crate::output::{self, Format};

/// Print a VM's serial output
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose logs web1
  mitose logs web1 --follow --tail 2000
  mitose logs web1 --process")]
pub struct Args {
    /// Name of the VM
    name: String,
    /// Go on with what is written later
    #[arg(short, long)]
    follow: bool,
    /// Only so many bytes from the end
    #[arg(long, value_name = "BYTES")]
    tail: Option<u64>,
    /// The log of the VM's process instead
    #[arg(long)]
    process: bool,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let options = LogOptions {
        tail_bytes: args.tail,
        follow: args.follow,
        process: args.process,
    };
    let client = context.client()?;
    if context.format == Format::Json && !args.follow {
        let mut bytes = Vec::new();
        client.log(&args.name, options, &mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        output::json(&serde_json::json!({ "name": args.name, "log": text }))?;
    } else {
        client.log(&args.name, options, &mut io::stdout().lock())?;
    }
    Ok(0)
}
