//! `mitose-vmm`: the process of one VM.
//!
//! Started by the daemon as root, it jails itself and waits on its control socket to be told what
//! to become: a cold boot or a clone. A VM that forks for the second time splits this process; the
//! children come back here and wait on control sockets of their own.

#![forbid(unsafe_code)]

mod agent;
mod allowance;
mod become_vm;
mod control;
mod holder;
mod outbox;
mod seed;
mod serial;
mod server;

use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use anyhow::{Context, bail};
use jail::{Jail, UidRange};

use crate::server::{Next, Server, Start};

const USAGE: &str = "usage: mitose-vmm shell|seed --uid ID --uid-range FIRST-LAST
The process of one VM, or the one of which such processes are born. The daemon starts it as root
with a control socket as its standard input; it is of no use by hand.";

/// What the process is started as.
#[derive(Clone, Copy, Debug)]
enum Role {
    /// Becomes one VM.
    Shell,
    /// Splits into shells.
    Seed,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let (role, jail) = match parse(&args) {
        Ok(parsed) => parsed,
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
    match run(role, jail) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads `shell --uid ID --uid-range FIRST-LAST`.
fn parse(args: &[String]) -> anyhow::Result<(Role, Jail)> {
    let mut args = args.iter().map(String::as_str);
    let role = match args.next() {
        Some("shell") => Role::Shell,
        Some("seed") => Role::Seed,
        _ => bail!("the first argument must be `shell` or `seed`"),
    };
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
    let jail = Jail {
        uid: uid.context("--uid is missing")?,
        range: range.context("--uid-range is missing")?,
    };
    Ok((role, jail))
}

fn run(role: Role, jail: Jail) -> anyhow::Result<()> {
    let control = jail::take_descriptor(vmm_protocol::CONTROL_FD)
        .context("standard input is not a control socket")?;
    let thread = seed::sole_thread()?;
    jail::ignore_children().context("cannot let the kernel reap clones")?;
    jail::spare_memory();
    // Threads that run vCPUs leave them again.
    linux_sys::take_short_slices(linux_sys::Hurry::VmProcess);
    // A fork is answered when its source was seen to run again.
    linux_sys::take_exact_timers();
    // Finds the kernel's fast clock while the process may still look for it.
    machine::monotonic_ns();
    let barrier = jail.enter().context("cannot build the jail")?;
    tracing::info!(uid = jail.uid, ?barrier, "jailed");
    let listener = match role {
        Role::Shell => {
            // It was started ahead of time: nobody waits for it.
            linux_sys::map_own_code();
            Some(control.into())
        }
        Role::Seed => seed::sow(control.into(), thread)?,
    };
    listener.map_or(Ok(()), serve)
}

/// Serves one VM after the other: a split leads back here in the child.
fn serve(listener: UnixListener) -> anyhow::Result<()> {
    let mut next = (listener, Start::Shell);
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
