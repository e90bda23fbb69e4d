//! Bytes on their way to a peer that may not take them now.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;

/// Most bytes that wait for the guest's agent.
const MAX_BYTES: usize = 4 << 20;

/// Bytes that wait for a non-blocking stream.
#[derive(Debug, Default)]
pub(crate) struct Outbox(VecDeque<u8>);

impl Outbox {
    /// Queues `bytes`; fails where the peer has not read what was queued before.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.0.len() + bytes.len() > MAX_BYTES {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.0.extend(bytes);
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes what the stream takes.
    pub(crate) fn write_to(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        while !self.0.is_empty() {
            match stream.write(self.0.as_slices().0) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => drop(self.0.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
