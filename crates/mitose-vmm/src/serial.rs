//! The other end of a serial port: nobody, a Unix socket that takes one connection at a time, or a
//! pseudo-terminal. Output goes to the log in any case; a peer that does not read loses some.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::SocketFlags;

/// Bytes that are taken from a peer at a time: what a guest's port holds.
const INPUT_BYTES: usize = 64;
/// Most bytes that are taken from a peer that is replaced: more than a socket holds.
const LEFT_BYTES_MAX: usize = 1 << 20;

type Line = Arc<Mutex<Option<Arc<OwnedFd>>>>;

fn lock(line: &Line) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
enum Door {
    Nobody,
    Listener(Arc<OwnedFd>),
    /// The terminal's other side is held open, so that reading this one never ends.
    Pty(#[expect(dead_code, reason = "held open")] OwnedFd),
}

/// Who types on a serial port and reads along.
#[derive(Debug)]
pub(crate) struct SerialPeer {
    /// 0 is COM1.
    pub(crate) port: usize,
    door: Door,
    line: Line,
    /// Typed, and refused by the guest's port so far.
    waiting: Vec<u8>,
    room: Arc<AtomicBool>,
}

/// Writes to a log and to the peer.
#[derive(Debug)]
pub(crate) struct SerialOutput {
    log: File,
    line: Line,
}

impl SerialPeer {
    fn new(port: usize, door: Door, line: Option<Arc<OwnedFd>>) -> Self {
        Self {
            port,
            door,
            line: Arc::new(Mutex::new(line)),
            waiting: vec![],
            room: Arc::default(),
        }
    }

    /// Nobody but the log.
    pub(crate) fn nobody(port: usize) -> Self {
        Self::new(port, Door::Nobody, None)
    }

    /// Whoever connects to `listener`.
    pub(crate) fn listener(port: usize, listener: OwnedFd) -> Self {
        Self::new(port, Door::Listener(Arc::new(listener)), None)
    }

    /// Whoever opens the terminal whose sides are `ours` and `theirs`; `ours` does not block.
    pub(crate) fn pty(port: usize, ours: OwnedFd, theirs: OwnedFd) -> Self {
        Self::new(port, Door::Pty(theirs), Some(Arc::new(ours)))
    }

    /// Returns what takes the port's output.
    pub(crate) fn output(&self, log: File) -> SerialOutput {
        SerialOutput {
            log,
            line: Arc::clone(&self.line),
        }
    }

    /// Returns a flag to be set when the guest's port has room again.
    pub(crate) fn room(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.room)
    }

    /// Returns what to wait for; nothing while the guest's port is full.
    pub(crate) fn waits_for(&self) -> Option<Arc<OwnedFd>> {
        if !self.waiting.is_empty() {
            return None;
        }
        match (&*lock(&self.line), &self.door) {
            (Some(line), _) => Some(Arc::clone(line)),
            (None, Door::Listener(listener)) => Some(Arc::clone(listener)),
            (None, Door::Pty(_) | Door::Nobody) => None,
        }
    }

    /// Takes a connection, or what was typed.
    pub(crate) fn on_readable(&mut self) -> Vec<u8> {
        let mut line = lock(&self.line);
        let Some(connection) = line.as_ref() else {
            if let Door::Listener(listener) = &self.door {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                match rustix::net::accept_with(listener, flags) {
                    Ok(connection) => *line = Some(Arc::new(connection)),
                    Err(error) => tracing::warn!(%error, "cannot take a serial port's peer"),
                }
            }
            return vec![];
        };
        let mut bytes = [0; INPUT_BYTES];
        match rustix::io::read(connection, &mut bytes) {
            Ok(0) => *line = None,
            Ok(count) => return bytes[..count].to_vec(),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => {
                tracing::debug!(%error, "a serial port's peer is gone");
                *line = None;
            }
        }
        vec![]
    }

    /// Ends it; returns what it typed and the guest's port has not taken.
    pub(crate) fn into_typed(self) -> Vec<u8> {
        let mut typed = self.waiting;
        let line = lock(&self.line).take();
        let mut bytes = [0; 4096];
        while let Some(line) = line.as_ref().filter(|_| typed.len() < LEFT_BYTES_MAX) {
            match rustix::io::read(line, &mut bytes) {
                Ok(0) => break,
                Ok(count) => typed.extend_from_slice(&bytes[..count]),
                Err(Errno::INTR) => {}
                // All is read, or the peer is gone.
                Err(_) => break,
            }
        }
        typed
    }

    /// Keeps what the guest's port refused.
    pub(crate) fn keep(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// Returns what was kept, once there is room for it.
    pub(crate) fn retry(&mut self) -> Option<Vec<u8>> {
        let room = self.room.swap(false, Ordering::AcqRel);
        (room && !self.waiting.is_empty()).then(|| std::mem::take(&mut self.waiting))
    }
}

impl Write for SerialOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.log.write(bytes)?;
        if let Some(line) = lock(&self.line).as_ref() {
            // Nobody reads, or not fast enough: a real line loses it too.
            let _ = rustix::io::write(line, &bytes[..count]);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.flush()
    }
}
