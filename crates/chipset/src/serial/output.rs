//! The way of output bytes to the host: never waits, keeps a bounded backlog, counts losses.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};

/// Bytes kept for a sink that is full.
const BACKLOG_BYTES_MAX: usize = 64 * 1024;
/// Signals may interrupt a write this often before the sink counts as full.
const INTERRUPTIONS_MAX: usize = 8;

/// A sink with what it has refused so far.
#[derive(Default)]
pub(super) struct Output {
    sink: Option<Box<dyn Write + Send>>,
    backlog: VecDeque<u8>,
    lost: u64,
}

impl Output {
    /// Replaces the sink; the backlog goes to the new one.
    pub(super) fn set_sink(&mut self, sink: Box<dyn Write + Send>) {
        self.sink = Some(sink);
        self.retry();
    }

    /// Returns the number of bytes that were dropped.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Hands `byte` on, or keeps it, or counts it as lost.
    pub(super) fn write(&mut self, byte: u8) {
        if self.backlog.is_empty() {
            match self.offer(&[byte]) {
                Offered::Taken(0) => {}
                Offered::Taken(_) => return,
                Offered::Failed => {
                    self.lost += 1;
                    return;
                }
            }
        }
        if self.backlog.len() >= BACKLOG_BYTES_MAX && self.retry() >= BACKLOG_BYTES_MAX {
            self.lost += 1;
            return;
        }
        self.backlog.push_back(byte);
    }

    /// Offers the backlog again and returns what is left of it.
    pub(super) fn retry(&mut self) -> usize {
        while !self.backlog.is_empty() {
            let chunk = self.backlog.as_slices().0.to_vec();
            match self.offer(&chunk) {
                Offered::Taken(0) => break,
                Offered::Taken(taken) => drop(self.backlog.drain(..taken.min(chunk.len()))),
                Offered::Failed => {
                    self.lost += self.backlog.len() as u64;
                    self.backlog.clear();
                }
            }
        }
        self.backlog.len()
    }

    fn offer(&mut self, bytes: &[u8]) -> Offered {
        let Some(sink) = &mut self.sink else {
            return Offered::Taken(bytes.len());
        };
        for _ in 0..INTERRUPTIONS_MAX {
            match sink.write(bytes) {
                Ok(taken) => return Offered::Taken(taken),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Offered::Taken(0),
                Err(_) => return Offered::Failed,
            }
        }
        Offered::Taken(0)
    }
}

/// What a sink did with bytes.
enum Offered {
    /// It took that many of them.
    Taken(usize),
    /// It is broken: no reader, no space.
    Failed,
}
