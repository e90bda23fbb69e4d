//! `mitose exec`.

mod signals;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use agent_protocol::{Exit, REQUEST_PORT, Reply, Request, Start, WindowSize};
use anyhow::{Context as _, bail};

use self::signals::Signals;
use super::Context;
use crate::output::{self, Format};
use crate::terminal::window_size;

/// Pause between two looks at the terminal's size.
const SIZE_INTERVAL: Duration = Duration::from_millis(250);

/// Run a command in a guest
///
/// Needs the guest agent. The exit code is the command's own; 128 + N where a signal N ended it.
/// Ctrl-C and SIGTERM go to the command; a second one ends mitose, and the agent ends the command.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose exec web1 -- hostname
  mitose exec web1 -it -- bash
  echo hello | mitose exec web1 -i -- tee /tmp/x
  mitose exec web1 --wait 300 -- cat /etc/os-release
  mitose exec web1 --user nobody --env A=1 -- env")]
pub struct Args {
    /// Name of the VM
    name: String,
    /// Send standard input to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Variable to set, NAME=VALUE; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse_env)]
    env: Vec<(String, String)>,
    /// Working directory in the guest
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User in the guest, root by default
    #[arg(short, long)]
    user: Option<String>,
    /// Seconds to wait for the guest agent while the VM is starting
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    /// Command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

type Writer = Arc<Mutex<UnixStream>>;

/// Runs the command.
pub fn run(args: Args, context: &Context) -> anyhow::Result<u8> {
    let client = context.client()?;
    // After a daemon was started, which would ignore them too; before threads are.
    let signals = Signals::take()?;
    let stream = client.vsock(&args.name, REQUEST_PORT, args.wait)?;
    let writer = Arc::new(Mutex::new(
        stream.try_clone().context("cannot share the connection")?,
    ));
    let start = Start {
        argv: args.command,
        env: args.env,
        cwd: args.workdir,
        tty: args.tty.then(window_size),
        user: args.user,
    };
    send(&writer, &Request::Start(start))?;
    signals.pass_to(&writer, args.tty && args.interactive)?;
    if args.interactive {
        let writer = Arc::clone(&writer);
        thread::spawn(move || forward_input(&writer));
    } else {
        // A command that has ended already takes no more; its answer tells how it went.
        let _ = send(&writer, &Request::StdinEof);
    }
    if args.tty {
        let writer = Arc::clone(&writer);
        thread::spawn(move || follow_size(&writer));
    }
    let collect = context.format == Format::Json && !args.tty;
    let mut collected = (Vec::new(), Vec::new());
    let exit = take_output(&stream, collect.then_some(&mut collected));
    let _ = stream.shutdown(Shutdown::Both);
    drop(signals);
    let exit = exit.map_err(|error| match error.is::<Broken>() && !context.daemon.answers() {
        true => anyhow::anyhow!(
            "the connection to the daemon broke: it ended or was restarted; the command is ended in \
             the guest, so look there how far it came before it is run again"
        ),
        false => error,
    });
    let code = exit?.shell_code();
    if collect {
        output::json(&serde_json::json!({
            "name": args.name,
            "exit_code": code,
            "stdout": String::from_utf8_lossy(&collected.0),
            "stderr": String::from_utf8_lossy(&collected.1),
        }))?;
    }
    Ok(u8::try_from(code & 0xff).unwrap_or(1))
}

/// The connection ended before the command did.
#[derive(Debug)]
struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the guest ended the connection before the command ended; see 'mitose logs' of the VM",
        )
    }
}

/// Passes output on until the command has ended.
fn take_output(
    mut stream: &UnixStream,
    mut collected: Option<&mut (Vec<u8>, Vec<u8>)>,
) -> anyhow::Result<Exit> {
    loop {
        let reply = Reply::read(&mut stream).context(Broken)?;
        match reply {
            Some(Reply::Started) => {}
            Some(Reply::Stdout(bytes)) => match &mut collected {
                Some((stdout, _)) => stdout.extend_from_slice(&bytes),
                None => write_on(&mut io::stdout().lock(), &bytes)?,
            },
            Some(Reply::Stderr(bytes)) => match &mut collected {
                Some((_, stderr)) => stderr.extend_from_slice(&bytes),
                None => write_on(&mut io::stderr().lock(), &bytes)?,
            },
            Some(Reply::Exit(exit)) => return Ok(exit),
            Some(Reply::Error(reason)) => bail!("the guest agent says: {reason}"),
            Some(other) => bail!(
                "the guest agent sent an unexpected {} message",
                other.name()
            ),
            None => return Err(anyhow::Error::msg(Broken)),
        }
    }
}

fn write_on(output: &mut impl Write, bytes: &[u8]) -> anyhow::Result<()> {
    let written = output.write_all(bytes).and_then(|()| output.flush());
    written.context("cannot write the output")
}

fn forward_input(writer: &Writer) {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let request = match io::stdin().read(&mut buffer) {
            Ok(count @ 1..) => Request::Stdin(buffer[..count].to_vec()),
            _ => Request::StdinEof,
        };
        let end = request == Request::StdinEof;
        if send(writer, &request).is_err() || end {
            return;
        }
    }
}

fn follow_size(writer: &Writer) {
    let mut last: WindowSize = window_size();
    loop {
        thread::sleep(SIZE_INTERVAL);
        let size = window_size();
        if size != last {
            last = size;
            if send(writer, &Request::Resize(size)).is_err() {
                return;
            }
        }
    }
}

fn send(writer: &Writer, request: &Request) -> anyhow::Result<()> {
    let mut stream = writer.lock().unwrap_or_else(PoisonError::into_inner);
    request
        .write(&mut *stream)
        .context("cannot send to the guest agent")
}

fn parse_env(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}
