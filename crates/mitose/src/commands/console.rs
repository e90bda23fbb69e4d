//! `mitose console`.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, bail};
use api_types::ErrorKind;
use client::{Client, ClientError};

use super::Context;
use crate::terminal::RawMode;

/// Ctrl-], as virsh and telnet use.
const ESCAPE: u8 = 0x1d;

/// Attach to a VM's serial console
///
/// Shows the end of its output and what follows; what is typed goes to the guest. Ctrl-] leaves, and
/// so does a guest that powers off.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  mitose console web1")]
pub struct Args {
    /// Name of the VM
    name: String,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    let mut stream = context.client()?.console(&args.name)?;
    eprintln!("attached to {}; Ctrl-] leaves", args.name);
    let raw = RawMode::start()?;
    let typed = stream.try_clone().context("cannot share the connection")?;
    let is_terminal = raw.is_some();
    let left = Arc::new(AtomicBool::new(false));
    let leaves = Arc::clone(&left);
    thread::spawn(move || type_in(typed, is_terminal, &leaves));
    let mut buffer = vec![0; 16 << 10];
    let result = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                let mut output = io::stdout().lock();
                let written = output
                    .write_all(&buffer[..count])
                    .and_then(|()| output.flush());
                if let Err(error) = written {
                    break Err(error).context("cannot write the output");
                }
            }
            Err(error) => break Err(error).context("the connection to the daemon broke off"),
        }
    };
    drop(raw);
    eprintln!();
    result?;
    if !left.load(Ordering::Relaxed) {
        // No daemon is started for this question.
        let ended = match context.daemon.running()? {
            Some(client) => why_ended(&client, &args.name)?,
            None => None,
        };
        match ended {
            Some(why) => eprintln!("{} {why}", args.name),
            None => bail!(
                "the connection to the console broke off; 'mitose console {}' attaches again",
                args.name
            ),
        }
    }
    Ok(0)
}

/// What became of a VM whose console ended; none where it has a process.
fn why_ended(client: &Client, name: &str) -> Result<Option<&'static str>, ClientError> {
    match client.vm(name) {
        Ok(vm) => Ok(match vm.vm.state.as_str() {
            "poweredOff" => Some("is powered off"),
            "suspended" => Some("is suspended"),
            "out of memory" => Some("is powered off: it had no more memory"),
            _ => None,
        }),
        Err(error) if error.kind() == Some(ErrorKind::NotFound) => Ok(Some("was removed")),
        Err(error) => Err(error),
    }
}

/// Sends what is typed. The end of a terminal's input leaves; that of a pipe only ends the typing.
fn type_in(mut stream: UnixStream, is_terminal: bool, left: &AtomicBool) {
    let mut buffer = [0; 256];
    loop {
        match io::stdin().read(&mut buffer) {
            Ok(count @ 1..) => {
                let bytes = &buffer[..count];
                let end = bytes
                    .iter()
                    .position(|b| *b == ESCAPE)
                    .filter(|_| is_terminal);
                let sent = stream.write_all(&bytes[..end.unwrap_or(count)]);
                if end.is_some() || sent.is_err() {
                    left.store(end.is_some(), Ordering::Relaxed);
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
            }
            _ => {
                if is_terminal {
                    left.store(true, Ordering::Relaxed);
                    let _ = stream.shutdown(Shutdown::Both);
                }
                return;
            }
        }
    }
}
