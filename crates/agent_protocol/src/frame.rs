//! Framing: bounded length-prefixed frames over `Read`/`Write` and over byte buffers.
//!
//! A control frame is `[u32 LE length][payload]`, a request frame `[u8 kind][u32 LE length]
//! [payload]`. A length above [`FRAME_MAX`] is refused before anything is allocated for it, and a
//! payload is read in pieces, so a peer that announces much and sends little costs little.

use std::io::{self, Read, Write};

/// Largest payload of one frame, in bytes.
pub const FRAME_MAX: usize = 1 << 20;

/// Bytes that are read at once while a payload arrives.
const READ_STEP: usize = 64 << 10;

/// Why a frame could not be read, written or understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed.
    #[error("cannot {action} a frame")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// What the connection answered.
        source: io::Error,
    },
    /// The peer closed the connection inside a frame.
    #[error("connection closed in the middle of a frame")]
    Truncated,
    /// A frame is larger than [`FRAME_MAX`].
    #[error("frame of {len} bytes is larger than the allowed {FRAME_MAX}")]
    TooLong {
        /// Announced or wanted payload length in bytes.
        len: usize,
    },
    /// A frame has a kind that does not exist in this direction.
    #[error("unknown frame kind {kind:#04x}")]
    UnknownKind {
        /// The kind byte.
        kind: u8,
    },
    /// The payload is not what its kind demands.
    #[error("malformed {what} frame")]
    Malformed {
        /// Which message it was to be.
        what: &'static str,
        /// Where the text is wrong.
        source: serde_json::Error,
    },
    /// A field of a well-formed message has a value that is not allowed.
    #[error("{what}: {field} {problem}")]
    BadField {
        /// Which message.
        what: &'static str,
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A message came that does not fit the state of the conversation.
    #[error("unexpected {got} frame while waiting for {wanted}")]
    Unexpected {
        /// What came.
        got: &'static str,
        /// What was to come.
        wanted: &'static str,
    },
}

/// One frame of a request connection, its payload not yet interpreted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// Which message the payload is.
    pub kind: u8,
    /// At most [`FRAME_MAX`] bytes.
    pub payload: Vec<u8>,
}

/// Reads one control payload; `None` when the peer closed the connection between frames.
pub fn read_control(reader: &mut impl Read) -> Result<Option<Vec<u8>>, FrameError> {
    let mut header = [0u8; 4];
    if !read_header(reader, &mut header)? {
        return Ok(None);
    }
    read_payload(reader, u32::from_le_bytes(header)).map(Some)
}

/// Writes one control payload as a single `write_all`.
pub fn write_control(writer: &mut impl Write, payload: &[u8]) -> Result<(), FrameError> {
    let bytes = encode_control(payload)?;
    write_bytes(writer, &bytes)
}

/// Returns the bytes of a control frame.
pub fn encode_control(payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::with_capacity(4 + payload.len());
    bytes.extend_from_slice(&length(payload)?.to_le_bytes());
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// Reads one request frame; `None` when the peer closed the connection between frames.
pub fn read_raw(reader: &mut impl Read) -> Result<Option<RawFrame>, FrameError> {
    let mut header = [0u8; 5];
    if !read_header(reader, &mut header)? {
        return Ok(None);
    }
    let [kind, l0, l1, l2, l3] = header;
    let payload = read_payload(reader, u32::from_le_bytes([l0, l1, l2, l3]))?;
    Ok(Some(RawFrame { kind, payload }))
}

/// Returns the bytes of a request frame.
pub fn encode_raw(kind: u8, payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::with_capacity(5 + payload.len());
    bytes.push(kind);
    bytes.extend_from_slice(&length(payload)?.to_le_bytes());
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

/// Writes already encoded bytes and flushes them.
pub fn write_bytes(writer: &mut impl Write, bytes: &[u8]) -> Result<(), FrameError> {
    writer
        .write_all(bytes)
        .and_then(|()| writer.flush())
        .map_err(|source| FrameError::Io {
            action: "write",
            source,
        })
}

/// Cuts a byte stream that arrives in pieces into frames, for callers that do their own I/O.
///
/// It holds at most one frame and what came behind it, so feed it pieces of bounded size and take
/// the frames out between two of them.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
}

impl FrameBuffer {
    /// Appends bytes as they came from the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns true when the bytes end at a frame boundary.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes the next control payload out, or `None` while it is incomplete.
    pub fn next_control(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some(header) = self.bytes.first_chunk::<4>() else {
            return Ok(None);
        };
        let len = checked_len(u32::from_le_bytes(*header))?;
        Ok(self.take(4, len))
    }

    /// Takes the next request frame out, or `None` while it is incomplete.
    pub fn next_raw(&mut self) -> Result<Option<RawFrame>, FrameError> {
        let Some(&[kind, l0, l1, l2, l3]) = self.bytes.first_chunk::<5>() else {
            return Ok(None);
        };
        let len = checked_len(u32::from_le_bytes([l0, l1, l2, l3]))?;
        Ok(self.take(5, len).map(|payload| RawFrame { kind, payload }))
    }

    fn take(&mut self, header: usize, len: usize) -> Option<Vec<u8>> {
        let end = header + len;
        if self.bytes.len() < end {
            return None;
        }
        let rest = self.bytes.split_off(end);
        let mut payload = std::mem::replace(&mut self.bytes, rest);
        payload.drain(..header);
        Some(payload)
    }
}

fn length(payload: &[u8]) -> Result<u32, FrameError> {
    if payload.len() > FRAME_MAX {
        return Err(FrameError::TooLong { len: payload.len() });
    }
    Ok(payload.len() as u32)
}

fn checked_len(len: u32) -> Result<usize, FrameError> {
    let len = len as usize;
    if len > FRAME_MAX {
        Err(FrameError::TooLong { len })
    } else {
        Ok(len)
    }
}

/// Fills `header`; false when the stream ended before its first byte.
fn read_header(reader: &mut impl Read, header: &mut [u8]) -> Result<bool, FrameError> {
    let mut filled = 0;
    while filled < header.len() {
        match reader.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(FrameError::Truncated),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(FrameError::Io {
                    action: "read",
                    source,
                });
            }
        }
    }
    Ok(true)
}

fn read_payload(reader: &mut impl Read, len: u32) -> Result<Vec<u8>, FrameError> {
    let len = checked_len(len)?;
    let mut payload = Vec::new();
    while payload.len() < len {
        let start = payload.len();
        payload.resize(len.min(start + READ_STEP), 0);
        reader
            .read_exact(&mut payload[start..])
            .map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => FrameError::Truncated,
                _ => FrameError::Io {
                    action: "read",
                    source,
                },
            })?;
    }
    Ok(payload)
}

#[cfg(test)]
mod tests;
