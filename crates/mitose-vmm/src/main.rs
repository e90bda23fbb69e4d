//! `mitose-vmm`: the process of one VM.
//!
//! Started by the daemon as root, it jails itself and waits on its control socket to be told what
//! to become: a cold boot or a clone. A VM that forks for the second time splits this process; the
//! children come back here and wait on control sockets of their own.

#![forbid(unsafe_code)]

mod agent;
mod become_vm;
mod control;
mod holder;
mod outbox;
mod server;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use anyhow::{Context, bail};
use jail::{Jail, UidRange};

use crate::server::{Next, Server, Start};

const USAGE: &str = "usage: mitose-vmm shell --uid ID --uid-range FIRST-LAST
The process of one VM. The daemon starts it as root with a listening control socket as
descriptor 3; it is of no use by hand.";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let jail = match parse(&args) {
        Ok(jail) => jail,
        Err(error) => {
            eprintln!("error: {error:#}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .init();
    match run(jail) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads `shell --uid ID --uid-range FIRST-LAST`.
fn parse(args: &[String]) -> anyhow::Result<Jail> {
    let mut args = args.iter().map(String::as_str);
    if args.next() != Some("shell") {
        bail!("the first argument must be `shell`");
    }
    let (mut uid, mut range) = (None, None);
    while let Some(name) = args.next() {
        let value = args
            .next()
            .with_context(|| format!("{name} needs a value"))?;
        match name {
            "--uid" => uid = Some(value.parse::<u32>().context("--uid is no number")?),
            "--uid-range" => {
                let (first, last) = value
                    .split_once('-')
                    .context("--uid-range is not FIRST-LAST")?;
                let number = |text: &str| text.parse::<u32>().context("--uid-range is no number");
                range = Some(UidRange {
                    first: number(first)?,
                    last: number(last)?,
                });
            }
            other => bail!("unknown argument {other}"),
        }
    }
    Ok(Jail {
        uid: uid.context("--uid is missing")?,
        range: range.context("--uid-range is missing")?,
    })
}

fn run(jail: Jail) -> anyhow::Result<()> {
    let listener = jail::take_descriptor(vmm_protocol::CONTROL_FD)
        .context("descriptor 3 is not an open control socket")?;
    jail::ignore_children().context("cannot let the kernel reap clones")?;
    jail::spare_memory();
    // Finds the kernel's fast clock while the process may still look for it.
    machine::monotonic_ns();
    let barrier = jail.enter().context("cannot build the jail")?;
    tracing::info!(uid = jail.uid, ?barrier, "jailed");
    serve(listener)
}

/// Serves one VM after the other: a split leads back here in the child.
fn serve(listener: OwnedFd) -> anyhow::Result<()> {
    let mut next = (UnixListener::from(listener), Start::Shell);
    loop {
        let (listener, start) = next;
        match Server::start(listener, start)?.run() {
            Next::End => return Ok(()),
            Next::Newborn(newborn) => {
                next = (newborn.listener, Start::Newborn(newborn.inherited));
            }
        }
    }
}
