//! A blocking client for request connections, generic over the stream.
//!
//! A connection is given as its two halves (a `UnixStream` and its `try_clone`), because a
//! command's input is written while its output is read.

use std::io::{self, Read, Write};
use std::thread;

use crate::frame::{self, FrameError};
use crate::request::{DATA_MAX, Entry, Exit, Get, Put, Reply, Request, Start};

/// Why a request to a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The guest's port could not be reached.
    #[error("cannot connect to port {port} of the guest: {answer}")]
    Refused {
        /// vsock port in the guest.
        port: u32,
        /// What came instead of `OK`.
        answer: String,
    },
    /// The conversation broke.
    #[error("conversation with the guest agent failed")]
    Frame(#[source] FrameError),
    /// The connection ended before the last message.
    #[error("guest agent closed the connection early")]
    Closed,
    /// The guest could not do what was asked.
    #[error("guest agent: {reason}")]
    Guest {
        /// The guest's words.
        reason: String,
    },
    /// The host's end of a transfer failed.
    #[error("cannot {action} on the host")]
    Local {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A command's whole output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How the command ended.
    pub exit: Exit,
}

/// Asks a hybrid vsock socket for a guest port: `CONNECT port` answered by `OK port`.
pub fn connect(stream: &mut (impl Read + Write), port: u32) -> Result<(), HostError> {
    let line = format!("CONNECT {port}\n");
    frame::write_bytes(stream, line.as_bytes()).map_err(HostError::Frame)?;
    let mut answer = Vec::new();
    loop {
        let mut byte = [0u8];
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) if answer.len() < 64 => answer.push(byte[0]),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(HostError::Frame(FrameError::Io {
                    action: "read",
                    source,
                }));
            }
        }
    }
    if answer.starts_with(b"OK ") {
        return Ok(());
    }
    let answer = match answer.as_slice() {
        [] => "nothing listens there".to_owned(),
        text => String::from_utf8_lossy(text).escape_debug().to_string(),
    };
    Err(HostError::Refused { port, answer })
}

/// Runs a command; `on_output` gets each piece of output with `true` for standard error.
///
/// `stdin` is sent by a thread of its own while output is read. The thread is left behind when the
/// command ends first (a terminal may never deliver another byte); an error in sending does not
/// hide the command's exit status.
pub fn run(
    mut reader: impl Read,
    mut writer: impl Write + Send + 'static,
    start: &Start,
    mut stdin: impl Read + Send + 'static,
    mut on_output: impl FnMut(bool, &[u8]) -> io::Result<()>,
) -> Result<Exit, HostError> {
    Request::Start(start.clone())
        .write(&mut writer)
        .map_err(HostError::Frame)?;
    thread::Builder::new()
        .name("guest-stdin".into())
        .spawn(move || {
            let _ = feed(&mut stdin, &mut writer, Request::Stdin, Request::StdinEof);
        })
        .map_err(|source| HostError::Local {
            action: "start a thread",
            source,
        })?;
    loop {
        match next_reply(&mut reader)? {
            Reply::Started => {}
            Reply::Stdout(bytes) => on_output(false, &bytes).map_err(output_failed)?,
            Reply::Stderr(bytes) => on_output(true, &bytes).map_err(output_failed)?,
            Reply::Exit(exit) => return Ok(exit),
            other => return Err(unexpected(&other, "output or exit")),
        }
    }
}

/// Runs a command with the given input and collects its output, at most `max` bytes of each.
pub fn run_collect(
    reader: impl Read,
    writer: impl Write + Send + 'static,
    start: &Start,
    stdin: &[u8],
    max: usize,
) -> Result<Output, HostError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let stdin = io::Cursor::new(stdin.to_vec());
    let exit = run(reader, writer, start, stdin, |is_stderr, bytes| {
        let sink = if is_stderr { &mut stderr } else { &mut stdout };
        let room = max.saturating_sub(sink.len()).min(bytes.len());
        sink.extend_from_slice(&bytes[..room]);
        Ok(())
    })?;
    Ok(Output {
        stdout,
        stderr,
        exit,
    })
}

/// Uploads a file's bytes or a tar stream.
pub fn put(
    mut reader: impl Read,
    mut writer: impl Write,
    put: &Put,
    mut content: impl Read,
) -> Result<(), HostError> {
    let sent = Request::Put(put.clone())
        .write(&mut writer)
        .map_err(HostError::Frame)
        .and_then(|()| feed(&mut content, &mut writer, Request::Data, Request::Eof));
    match answer(&mut reader, sent)? {
        Reply::Done => Ok(()),
        other => Err(unexpected(&other, "done")),
    }
}

/// Downloads a path into `sink`, which is made once it is known what comes.
pub fn get<S: Write>(
    mut reader: impl Read,
    mut writer: impl Write,
    path: &str,
    sink: impl FnOnce(&Entry) -> io::Result<S>,
) -> Result<(Entry, S), HostError> {
    let asked = Request::Get(Get {
        path: path.to_owned(),
    });
    let sent = asked.write(&mut writer).map_err(HostError::Frame);
    let entry = match answer(&mut reader, sent)? {
        Reply::Stat(entry) => entry,
        other => return Err(unexpected(&other, "stat")),
    };
    let mut sink = sink(&entry).map_err(output_failed)?;
    loop {
        match next_reply(&mut reader)? {
            Reply::Data(bytes) => sink.write_all(&bytes).map_err(output_failed)?,
            Reply::Eof => break,
            other => return Err(unexpected(&other, "data")),
        }
    }
    sink.flush().map_err(output_failed)?;
    Ok((entry, sink))
}

/// Sends a stream in pieces, then its end.
fn feed(
    source: &mut impl Read,
    writer: &mut impl Write,
    piece: impl Fn(Vec<u8>) -> Request,
    end: Request,
) -> Result<(), HostError> {
    let mut buffer = vec![0u8; DATA_MAX];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                piece(buffer[..n].to_vec())
                    .write(writer)
                    .map_err(HostError::Frame)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(HostError::Local {
                    action: "read the data to send",
                    source,
                });
            }
        }
    }
    end.write(writer).map_err(HostError::Frame)
}

/// The reply to what was `sent`. A guest that refuses closes before it has taken all: its words say
/// more than the broken pipe that the host sees.
fn answer(reader: &mut impl Read, sent: Result<(), HostError>) -> Result<Reply, HostError> {
    let broken = match sent {
        Ok(()) => return next_reply(reader),
        Err(local @ HostError::Local { .. }) => return Err(local),
        Err(broken) => broken,
    };
    match next_reply(reader) {
        Err(refused @ HostError::Guest { .. }) => Err(refused),
        _ => Err(broken),
    }
}

fn next_reply(reader: &mut impl Read) -> Result<Reply, HostError> {
    match Reply::read(reader).map_err(HostError::Frame)? {
        None => Err(HostError::Closed),
        Some(Reply::Error(reason)) => Err(HostError::Guest { reason }),
        Some(reply) => Ok(reply),
    }
}

fn unexpected(got: &Reply, wanted: &'static str) -> HostError {
    HostError::Frame(FrameError::Unexpected {
        got: got.name(),
        wanted,
    })
}

fn output_failed(source: io::Error) -> HostError {
    HostError::Local {
        action: "write the received data",
        source,
    }
}

#[cfg(test)]
mod tests;
