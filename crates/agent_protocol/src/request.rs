//! Messages of a request connection: one command, or one file transfer.
//!
//! ```text
//! command   host:  START (STDIN* STDIN_EOF | RESIZE | SIGNAL)*   guest:  STARTED (STDOUT | STDERR)* EXIT
//! upload    host:  PUT DATA* EOF                                 guest:  DONE
//! download  host:  GET                                           guest:  STAT DATA* EOF
//! ```
//!
//! `ERROR` ends any of them; after it the guest discards what still comes, so that a host in the
//! middle of an upload can finish writing and then read the reason. A directory travels as a tar
//! stream. When the host closes the connection the command is asked to end (SIGHUP, SIGTERM) and
//! killed where it does not.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use crate::control::{from_json, to_json};
use crate::frame::{self, FrameError, RawFrame};

/// Largest piece of a stream that a sender puts into one frame, in bytes.
pub const DATA_MAX: usize = 64 << 10;

const START: u8 = 0x01;
const STDIN: u8 = 0x02;
const STDIN_EOF: u8 = 0x03;
const RESIZE: u8 = 0x04;
const SIGNAL: u8 = 0x05;
const PUT: u8 = 0x10;
const DATA: u8 = 0x11;
const EOF: u8 = 0x12;
const GET: u8 = 0x13;
const STARTED: u8 = 0x81;
const STDOUT: u8 = 0x82;
const STDERR: u8 = 0x83;
const EXIT: u8 = 0x84;
const ERROR: u8 = 0x85;
const STAT: u8 = 0x86;
const DONE: u8 = 0x87;
const REPLY_DATA: u8 = 0x91;
const REPLY_EOF: u8 = 0x92;

/// A message from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Runs a command.
    Start(Start),
    /// Bytes for the command's standard input.
    Stdin(Vec<u8>),
    /// End of the command's standard input.
    StdinEof,
    /// The terminal has a new size.
    Resize(WindowSize),
    /// Sends a signal to the command.
    Signal(Signal),
    /// Begins an upload.
    Put(Put),
    /// A piece of the upload.
    Data(Vec<u8>),
    /// End of the upload.
    Eof,
    /// Asks for a download.
    Get(Get),
}

/// A message from the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The command runs.
    Started,
    /// Bytes of its standard output; with a terminal, all output.
    Stdout(Vec<u8>),
    /// Bytes of its standard error.
    Stderr(Vec<u8>),
    /// The command ended; the last message.
    Exit(Exit),
    /// The request failed, with the reason; the last message.
    Error(String),
    /// What a download will bring.
    Stat(Entry),
    /// A piece of the download.
    Data(Vec<u8>),
    /// End of the download; the last message.
    Eof,
    /// The upload is complete; the last message.
    Done,
}

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Program and arguments; the program is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Variables set on top of the agent's environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory; the user's home directory when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Runs the command on a terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<WindowSize>,
    /// User name or number, root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// A signal for the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Linux signal number, 1 to 64.
    pub signal: i32,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It ended by itself.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
}

impl Exit {
    /// Returns the exit code that a shell would give: 128 + n for a signal.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// What a transfer carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// The bytes of one regular file.
    File,
    /// A tar stream with the content of a directory.
    Tar,
}

/// An upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Absolute path in the guest. For a file: the file to write (replaced as a whole when the
    /// transfer is complete), or an existing directory when `name` is given. For tar: the directory
    /// to unpack into, made when it is missing; when it exists and `name` is given, the directory
    /// of that name below it.
    pub path: String,
    /// Name to use when `path` is an existing directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Permission bits of a file.
    #[serde(default = "default_mode")]
    pub mode: u32,
    /// What the data is.
    pub kind: EntryKind,
}

fn default_mode() -> u32 {
    0o644
}

/// A download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// Absolute path in the guest.
    pub path: String,
}

/// What a download brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What the data is.
    pub kind: EntryKind,
    /// Bytes of a file when it was opened; 0 for tar.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
}

impl Request {
    /// Returns the message's name for error texts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start(_) => "start",
            Self::Stdin(_) => "stdin",
            Self::StdinEof => "stdin-eof",
            Self::Resize(_) => "resize",
            Self::Signal(_) => "signal",
            Self::Put(_) => "put",
            Self::Data(_) => "data",
            Self::Eof => "eof",
            Self::Get(_) => "get",
        }
    }

    /// Returns the frame's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        match self {
            Self::Start(start) => frame::encode_raw(START, &to_json("start", start)?),
            Self::Stdin(bytes) => frame::encode_raw(STDIN, bytes),
            Self::StdinEof => frame::encode_raw(STDIN_EOF, &[]),
            Self::Resize(size) => frame::encode_raw(RESIZE, &to_json("resize", size)?),
            Self::Signal(signal) => frame::encode_raw(SIGNAL, &to_json("signal", signal)?),
            Self::Put(put) => frame::encode_raw(PUT, &to_json("put", put)?),
            Self::Data(bytes) => frame::encode_raw(DATA, bytes),
            Self::Eof => frame::encode_raw(EOF, &[]),
            Self::Get(get) => frame::encode_raw(GET, &to_json("get", get)?),
        }
    }

    /// Understands a frame that came from a host.
    pub fn decode(raw: RawFrame) -> Result<Self, FrameError> {
        let RawFrame { kind, payload } = raw;
        Ok(match kind {
            START => Self::Start(from_json("start", &payload)?),
            STDIN => Self::Stdin(payload),
            STDIN_EOF => Self::StdinEof,
            RESIZE => Self::Resize(from_json("resize", &payload)?),
            SIGNAL => Self::Signal(from_json("signal", &payload)?),
            PUT => Self::Put(from_json("put", &payload)?),
            DATA => Self::Data(payload),
            EOF => Self::Eof,
            GET => Self::Get(from_json("get", &payload)?),
            kind => return Err(FrameError::UnknownKind { kind }),
        })
    }

    /// Writes the message.
    pub fn write(&self, writer: &mut impl Write) -> Result<(), FrameError> {
        frame::write_bytes(writer, &self.encode()?)
    }

    /// Reads the next message; `None` at the end of the connection.
    pub fn read(reader: &mut impl Read) -> Result<Option<Self>, FrameError> {
        frame::read_raw(reader)?.map(Self::decode).transpose()
    }
}

impl Reply {
    /// Returns the message's name for error texts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Stdout(_) => "stdout",
            Self::Stderr(_) => "stderr",
            Self::Exit(_) => "exit",
            Self::Error(_) => "error",
            Self::Stat(_) => "stat",
            Self::Data(_) => "data",
            Self::Eof => "eof",
            Self::Done => "done",
        }
    }

    /// Returns true for a message after which nothing follows.
    pub fn is_last(&self) -> bool {
        matches!(
            self,
            Self::Exit(_) | Self::Error(_) | Self::Eof | Self::Done
        )
    }

    /// Returns the frame's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        match self {
            Self::Started => frame::encode_raw(STARTED, &[]),
            Self::Stdout(bytes) => frame::encode_raw(STDOUT, bytes),
            Self::Stderr(bytes) => frame::encode_raw(STDERR, bytes),
            Self::Exit(exit) => frame::encode_raw(EXIT, &to_json("exit", exit)?),
            Self::Error(text) => frame::encode_raw(ERROR, text.as_bytes()),
            Self::Stat(entry) => frame::encode_raw(STAT, &to_json("stat", entry)?),
            Self::Data(bytes) => frame::encode_raw(REPLY_DATA, bytes),
            Self::Eof => frame::encode_raw(REPLY_EOF, &[]),
            Self::Done => frame::encode_raw(DONE, &[]),
        }
    }

    /// Understands a frame that came from a guest. Error text is cut and stripped of control
    /// characters, so that it can be shown.
    pub fn decode(raw: RawFrame) -> Result<Self, FrameError> {
        let RawFrame { kind, payload } = raw;
        Ok(match kind {
            STARTED => Self::Started,
            STDOUT => Self::Stdout(payload),
            STDERR => Self::Stderr(payload),
            EXIT => Self::Exit(from_json("exit", &payload)?),
            ERROR => Self::Error(printable(&payload)),
            STAT => Self::Stat(from_json("stat", &payload)?),
            REPLY_DATA => Self::Data(payload),
            REPLY_EOF => Self::Eof,
            DONE => Self::Done,
            kind => return Err(FrameError::UnknownKind { kind }),
        })
    }

    /// Writes the message.
    pub fn write(&self, writer: &mut impl Write) -> Result<(), FrameError> {
        frame::write_bytes(writer, &self.encode()?)
    }

    /// Reads the next message; `None` at the end of the connection.
    pub fn read(reader: &mut impl Read) -> Result<Option<Self>, FrameError> {
        frame::read_raw(reader)?.map(Self::decode).transpose()
    }
}

/// Longest error text that a host shows, in bytes.
const ERROR_TEXT_MAX: usize = 2048;

fn printable(payload: &[u8]) -> String {
    let end = payload.len().min(ERROR_TEXT_MAX);
    String::from_utf8_lossy(&payload[..end])
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests;
