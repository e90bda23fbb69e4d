//! One stream connection: a host socket, and the credit that both sides gave each other.
//!
//! ```text
//! Greeting ──CONNECT──▶ Requested ──RESPONSE──▶ Established ──host gone──▶ Closing
//!                                                    │  guest done
//!    guest's REQUEST to a service ───────────────────┘─────────▶ Draining
//! ```
//!
//! *Closing* waits for the guest to confirm; *Draining* is unknown to the guest and only gives the
//! host program what the guest had sent.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use super::greeting::{self, Greeting};
use super::packet::Header;
use super::regs::*;
use crate::device::Readiness;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Greeting,
    Requested,
    Established,
    Closing,
    Draining,
}

/// What becomes of a connection after a step on the host side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Keep,
    /// The greeting is complete: the program wants this port of the guest.
    Connect(u32),
    /// It is over; the guest knows nothing of it or knows it already.
    Close,
    /// It is over and the guest is to be told.
    Reset,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) stream: UnixStream,
    pub(super) phase: Phase,
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
    /// Opened by the guest to a service.
    pub(super) service: bool,
    /// It is in the table's list of connections with work on the host side.
    pub(super) in_host_list: bool,
    /// It is in the table's list of connections with a packet for the guest.
    pub(super) in_guest_list: bool,
    readable: bool,
    writable: bool,
    hangup: bool,
    /// The host program sends no more.
    host_eof: bool,
    /// The guest sends no more; the stream's write side is shut when `to_host` is empty.
    guest_eof: bool,
    write_shut: bool,
    guest_receives: bool,
    to_host: VecDeque<u8>,
    /// Bytes from the guest that the host program has taken.
    fwd_cnt: Wrapping<u32>,
    fwd_cnt_told: Wrapping<u32>,
    peer_buf_alloc: u32,
    peer_fwd_cnt: Wrapping<u32>,
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    wants_request: bool,
    wants_response: bool,
    wants_credit_update: bool,
    credit_asked: bool,
    shutdown_told: u32,
}

impl Conn {
    fn new(stream: UnixStream, phase: Phase) -> Self {
        Self {
            stream,
            phase,
            host_port: 0,
            guest_port: 0,
            service: false,
            in_host_list: false,
            in_guest_list: false,
            readable: true,
            writable: true,
            hangup: false,
            host_eof: false,
            guest_eof: false,
            write_shut: false,
            guest_receives: true,
            to_host: VecDeque::new(),
            fwd_cnt: Wrapping(0),
            fwd_cnt_told: Wrapping(0),
            peer_buf_alloc: 0,
            peer_fwd_cnt: Wrapping(0),
            sent: Wrapping(0),
            wants_request: false,
            wants_response: false,
            wants_credit_update: false,
            credit_asked: false,
            shutdown_told: 0,
        }
    }

    /// A host program connected and has yet to say where to.
    pub(super) fn accepted(stream: UnixStream) -> Self {
        Self::new(stream, Phase::Greeting)
    }

    /// The guest connects to a service; `request` is its first packet.
    pub(super) fn service(stream: UnixStream, request: &Header) -> Self {
        let mut conn = Self::new(stream, Phase::Established);
        conn.service = true;
        conn.host_port = request.dst_port;
        conn.guest_port = request.src_port;
        conn.wants_response = true;
        conn.note_credit(request);
        conn
    }

    /// The greeting named a port: asks the guest.
    pub(super) fn request(&mut self, host_port: u32, guest_port: u32) {
        self.phase = Phase::Requested;
        self.host_port = host_port;
        self.guest_port = guest_port;
        self.wants_request = true;
    }

    pub(super) fn note_ready(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable;
        self.writable |= readiness.writable;
        self.hangup |= readiness.hangup;
    }

    pub(super) fn buffered(&self) -> usize {
        self.to_host.len()
    }

    fn note_credit(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = Wrapping(header.fwd_cnt);
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    /// Bytes that the guest has room for. A guest that lies about what it took gets none.
    fn credit(&self) -> u32 {
        self.peer_buf_alloc
            .saturating_sub((self.sent - self.peer_fwd_cnt).0)
    }

    /// Works on the host side: greeting, bytes for the host program, its going away.
    pub(super) fn host_work(&mut self) -> Fate {
        if self.phase == Phase::Greeting {
            return self.greet();
        }
        if self.flush().is_err() {
            // The program reads no more: what the guest sent has nowhere to go.
            self.to_host.clear();
            self.hangup = true;
        }
        match self.phase {
            Phase::Draining if self.to_host.is_empty() || self.hangup => Fate::Close,
            Phase::Requested if self.hangup => Fate::Reset,
            _ => Fate::Keep,
        }
    }

    fn greet(&mut self) -> Fate {
        if !self.readable {
            return Fate::Keep;
        }
        match greeting::read(&self.stream) {
            Ok(Greeting::Connect(port)) => Fate::Connect(port),
            Ok(Greeting::Partial) if !self.hangup => {
                self.readable = false;
                Fate::Keep
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Fate::Keep
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Fate::Keep,
            Ok(Greeting::Partial | Greeting::Wrong) | Err(_) => Fate::Close,
        }
    }

    /// Gives buffered bytes to the host program as far as it takes them.
    fn flush(&mut self) -> io::Result<()> {
        while !self.to_host.is_empty() && self.writable {
            let (front, _) = self.to_host.as_slices();
            let taken = write_some(&mut self.stream, front, &mut self.writable)?;
            self.to_host.drain(..taken);
            self.count_taken(taken);
        }
        if self.to_host.is_empty() && self.guest_eof && !self.write_shut {
            self.write_shut = true;
            // Fails only when the program has gone, which its hang-up tells as well.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    fn count_taken(&mut self, taken: usize) {
        self.fwd_cnt += Wrapping(u32::try_from(taken).unwrap_or(u32::MAX));
        if (self.fwd_cnt - self.fwd_cnt_told).0 >= BUF_ALLOC / 4 {
            self.wants_credit_update = true;
        }
    }

    /// Takes a packet that the guest sent on this connection.
    pub(super) fn take_packet(&mut self, header: &Header, payload: &[u8]) -> Fate {
        if self.phase == Phase::Draining || self.phase == Phase::Greeting {
            return Fate::Keep;
        }
        self.note_credit(header);
        match header.op {
            OP_RST => self.guest_reset(),
            OP_RESPONSE if self.phase == Phase::Requested => self.guest_accepts(),
            OP_RW if self.phase != Phase::Requested && !self.guest_eof => self.take_data(payload),
            OP_SHUTDOWN if self.phase != Phase::Requested => self.guest_shutdown(header.flags),
            OP_CREDIT_UPDATE => Fate::Keep,
            OP_CREDIT_REQUEST => {
                self.wants_credit_update = true;
                Fate::Keep
            }
            _ => Fate::Reset,
        }
    }

    fn guest_reset(&mut self) -> Fate {
        if self.to_host.is_empty() || !self.guest_eof || self.hangup {
            return Fate::Close;
        }
        self.phase = Phase::Draining;
        Fate::Keep
    }

    fn guest_accepts(&mut self) -> Fate {
        let answer = format!("OK {}\n", self.host_port);
        // The socket is new, so its buffer takes the line whole or the program has gone.
        match (&self.stream).write(answer.as_bytes()) {
            Ok(len) if len == answer.len() => {
                self.phase = Phase::Established;
                Fate::Keep
            }
            _ => Fate::Reset,
        }
    }

    fn take_data(&mut self, payload: &[u8]) -> Fate {
        if self.to_host.len() + payload.len() > BUF_ALLOC as usize {
            return Fate::Reset;
        }
        if self.phase == Phase::Closing {
            // Nobody reads it any more; the guest will hear of that.
            self.count_taken(payload.len());
            return Fate::Keep;
        }
        let mut rest = payload;
        while self.to_host.is_empty() && self.writable && !rest.is_empty() {
            match write_some(&mut self.stream, rest, &mut self.writable) {
                Ok(taken) => {
                    self.count_taken(taken);
                    rest = &rest[taken..];
                }
                Err(_) => {
                    self.hangup = true;
                    self.count_taken(rest.len());
                    return Fate::Keep;
                }
            }
        }
        self.to_host.extend(rest);
        Fate::Keep
    }

    fn guest_shutdown(&mut self, flags: u32) -> Fate {
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_eof = true;
        }
        if flags & SHUTDOWN_RECEIVE != 0 && self.guest_receives {
            self.guest_receives = false;
            // As in `flush`: failing means that the program has gone.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        // Without both the guest may go on in one direction; with both it waits for a reset.
        if self.guest_eof && !self.guest_receives {
            Fate::Reset
        } else {
            Fate::Keep
        }
    }

    /// The guest forgets the connection: goes on with what the host program has yet to take, or
    /// says that there is nothing.
    pub(super) fn drain(&mut self) -> bool {
        self.phase = Phase::Draining;
        self.guest_eof = true;
        !self.to_host.is_empty() && !self.hangup
    }

    fn may_read(&self) -> bool {
        let open = self.phase == Phase::Established && !self.wants_response;
        open && self.readable && !self.host_eof && self.guest_receives
    }

    /// Which directions the host side is done with, as the flags of a shutdown packet.
    fn shutdown_flags(&self) -> u32 {
        if self.phase != Phase::Established && self.phase != Phase::Closing {
            0
        } else if self.hangup && (self.host_eof || !self.guest_receives) {
            SHUTDOWN_BOTH
        } else if self.host_eof {
            SHUTDOWN_SEND
        } else {
            0
        }
    }

    /// Says whether [`Conn::next_packet`] may have something.
    pub(super) fn wants_guest(&self) -> bool {
        if matches!(self.phase, Phase::Greeting | Phase::Draining) {
            return false;
        }
        self.wants_request
            || self.wants_response
            || self.wants_credit_update
            || (self.may_read() && (self.credit() > 0 || !self.credit_asked))
            || self.shutdown_flags() & !self.shutdown_told != 0
    }

    /// Returns the next packet for the guest; a payload goes into `room`.
    pub(super) fn next_packet(&mut self, room: &mut [u8]) -> Option<Header> {
        if std::mem::take(&mut self.wants_request) {
            return Some(self.header(OP_REQUEST));
        }
        if std::mem::take(&mut self.wants_response) {
            return Some(self.header(OP_RESPONSE));
        }
        if self.may_read() && self.credit() > 0 {
            let credit = usize::try_from(self.credit()).unwrap_or(usize::MAX);
            let len = room.len().min(credit).min(PAYLOAD_BYTES_MAX);
            let len = self.read_stream(&mut room[..len]);
            if len > 0 {
                let len = u32::try_from(len).unwrap_or(0);
                self.sent += Wrapping(len);
                return Some(Header {
                    len,
                    ..self.header(OP_RW)
                });
            }
        } else if self.may_read() && !self.credit_asked {
            self.credit_asked = true;
            return Some(self.header(OP_CREDIT_REQUEST));
        }
        if self.wants_credit_update {
            return Some(self.header(OP_CREDIT_UPDATE));
        }
        let flags = self.shutdown_flags();
        if flags & !self.shutdown_told != 0 {
            self.shutdown_told = flags;
            if flags == SHUTDOWN_BOTH {
                self.phase = Phase::Closing;
            }
            return Some(Header {
                flags,
                ..self.header(OP_SHUTDOWN)
            });
        }
        None
    }

    fn read_stream(&mut self, room: &mut [u8]) -> usize {
        loop {
            match self.stream.read(room) {
                Ok(0) => self.host_eof = !room.is_empty(),
                Ok(len) => return len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(_) => {
                    self.host_eof = true;
                    self.hangup = true;
                }
            }
            return 0;
        }
    }

    /// A header with the current credit, of which the guest thereby knows.
    fn header(&mut self, op: u16) -> Header {
        self.wants_credit_update = false;
        self.fwd_cnt_told = self.fwd_cnt;
        Header {
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.fwd_cnt.0,
            ..Header::to_guest(self.host_port, self.guest_port, op)
        }
    }
}

/// Writes once; 0 and `writable` cleared when the socket is full.
fn write_some(stream: &mut UnixStream, bytes: &[u8], writable: &mut bool) -> io::Result<usize> {
    match stream.write(bytes) {
        Ok(0) => Err(ErrorKind::WriteZero.into()),
        Ok(len) => Ok(len),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            *writable = false;
            Ok(0)
        }
        Err(error) => Err(error),
    }
}
