//! Frames with file descriptors over a Unix stream socket.
//!
//! A frame is a 4-byte little-endian length, then that many bytes of JSON; its descriptors travel
//! as `SCM_RIGHTS` with the first byte of the frame (unix(7)). Both directions are bounded, so that
//! neither peer can make the other allocate without limit.

#![forbid(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest frame, bytes.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Most descriptors of one frame; the kernel takes 253.
pub const MAX_FDS: usize = 250;

/// A frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer closed the socket between two frames.
    #[error("peer closed the connection")]
    Closed,
    /// The socket failed.
    #[error("cannot {action} a frame")]
    Io {
        /// "send" or "receive".
        action: &'static str,
        /// The host call's error.
        #[source]
        source: io::Error,
    },
    /// A frame or its descriptors exceed the limits.
    #[error("frame of {bytes} bytes and {fds} descriptors exceeds the limits")]
    TooLarge {
        /// Length, bytes.
        bytes: usize,
        /// Number of descriptors.
        fds: usize,
    },
    /// The bytes are no message of the expected type.
    #[error("frame is no valid message")]
    Malformed(#[source] serde_json::Error),
}

/// One received message, its descriptors in order, and the sender's process id where the socket
/// passes credentials (`SO_PASSCRED`; filled in by the kernel).
#[derive(Debug)]
pub struct Frame<T> {
    /// The message.
    pub message: T,
    /// Descriptors, numbered from 0.
    pub fds: Vec<OwnedFd>,
    /// Process id of the sender.
    pub sender_pid: Option<i32>,
}

/// Sends one message with its descriptors.
pub fn send<T: Serialize>(
    socket: &UnixStream,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ChannelError> {
    let body = serde_json::to_vec(message).map_err(ChannelError::Malformed)?;
    if body.len() > MAX_FRAME_BYTES || fds.len() > MAX_FDS {
        return Err(ChannelError::TooLarge {
            bytes: body.len(),
            fds: fds.len(),
        });
    }
    let failed = |source| ChannelError::Io {
        action: "send",
        source,
    };
    let mut bytes = Vec::with_capacity(body.len() + 4);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(ChannelError::TooLarge {
            bytes: body.len(),
            fds: fds.len(),
        });
    }
    let mut sent = 0;
    while sent < bytes.len() {
        let parts = [IoSlice::new(&bytes[sent..])];
        match sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL) {
            Ok(n) => {
                sent += n;
                control.clear();
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(())
}

/// Receives one message; blocks until it is complete.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> Result<Frame<T>, ChannelError> {
    let mut received = Received::default();
    let mut head = [0; 4];
    received.fill(socket, &mut head, true)?;
    let length = u32::from_le_bytes(head) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(ChannelError::TooLarge {
            bytes: length,
            fds: received.fds.len(),
        });
    }
    let mut body = vec![0; length];
    received.fill(socket, &mut body, false)?;
    let message = serde_json::from_slice(&body).map_err(ChannelError::Malformed)?;
    Ok(Frame {
        message,
        fds: received.fds,
        sender_pid: received.sender_pid,
    })
}

#[derive(Default)]
struct Received {
    fds: Vec<OwnedFd>,
    sender_pid: Option<i32>,
}

impl Received {
    /// Fills `bytes` from the socket and keeps what travels beside them.
    fn fill(
        &mut self,
        socket: &UnixStream,
        bytes: &mut [u8],
        at_start: bool,
    ) -> Result<(), ChannelError> {
        let failed = |source| ChannelError::Io {
            action: "receive",
            source,
        };
        let mut got = 0;
        while got < bytes.len() {
            let mut space = vec![
                MaybeUninit::uninit();
                rustix::cmsg_space!(ScmRights(MAX_FDS), ScmCredentials(1))
            ];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut bytes[got..])];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let result = match recvmsg(socket.as_fd(), &mut parts, &mut control, flags) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(|errno| failed(errno.into()))?,
            };
            for message in control.drain() {
                match message {
                    RecvAncillaryMessage::ScmRights(fds) => self.fds.extend(fds),
                    RecvAncillaryMessage::ScmCredentials(cred) => {
                        self.sender_pid = Some(cred.pid.as_raw_nonzero().get());
                    }
                    _ => {}
                }
            }
            if result.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > MAX_FDS {
                return Err(ChannelError::TooLarge {
                    bytes: got,
                    fds: self.fds.len(),
                });
            }
            match result.bytes {
                0 if at_start && got == 0 => return Err(ChannelError::Closed),
                0 => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                n => got += n,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
