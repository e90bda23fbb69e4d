//! `mitose console`.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::Context as _;

use super::Context;
use crate::terminal::RawMode;

/// Ctrl-], as virsh and telnet use.
const ESCAPE: u8 = 0x1d;

/// Attach to a VM's serial console
///
/// Shows the end of its output and what follows; what is typed goes to the guest. Ctrl-] leaves.
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
    thread::spawn(move || type_in(typed, is_terminal));
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
    result.map(|()| 0)
}

/// Sends what is typed. The end of a terminal's input leaves; that of a pipe only ends the typing.
fn type_in(mut stream: UnixStream, is_terminal: bool) {
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
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
            }
            _ => {
                if is_terminal {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                return;
            }
        }
    }
}
