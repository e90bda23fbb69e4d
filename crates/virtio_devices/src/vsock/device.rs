//! The socket device: moves packets between the queues and the connections.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use super::conn::{Conn, Fate, Phase};
use super::packet::Header;
use super::regs::*;
use super::saved::SavedVsock;
use super::table::{LISTENER, Table};
use crate::config_space::ConfigSpace;
use crate::device::{DeviceIo, DeviceKind, Poller, Progress, Readiness, VirtioDevice};
use crate::queue::{Broken, Chain};
use crate::saved::{RestoreError, SavedDevice};

/// Receives connections that the guest opens to service ports: the port and the host's end of
/// the stream, which blocks. Called on the worker's thread with its devices locked, so it hands
/// the stream on and returns.
pub struct GuestConnectSink(Box<dyn FnMut(u32, UnixStream) + Send>);

impl GuestConnectSink {
    /// Returns a sink that calls `f`.
    pub fn new(f: impl FnMut(u32, UnixStream) + Send + 'static) -> Self {
        Self(Box::new(f))
    }
}

impl fmt::Debug for GuestConnectSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestConnectSink").finish_non_exhaustive()
    }
}

/// What the creator of a socket device chooses.
#[derive(Debug)]
pub struct VsockConfig {
    /// Listening unix stream socket on which host programs reach the guest.
    pub listener: Option<OwnedFd>,
    /// Ports of the host that the guest may connect to.
    pub service_ports: Vec<u32>,
    /// Receives the guest's connections to them.
    pub on_guest_connect: GuestConnectSink,
}

/// Where telling the driver of a transport reset stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    None,
    /// The event waits for a buffer.
    Pending,
    /// The event is out; the driver returns a buffer when it has dealt with it.
    Sent {
        waiting: u16,
    },
}

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    listener: Option<UnixListener>,
    accept_ready: bool,
    service_ports: Vec<u32>,
    on_guest_connect: GuestConnectSink,
    config: Arc<ConfigSpace>,
    table: Table,
    stray_resets: VecDeque<Header>,
    reset: Reset,
    next_host_port: u32,
    buffered: usize,
    chain: Chain,
    payload: Vec<u8>,
}

impl Vsock {
    /// Returns a device without connections.
    pub fn new(config: VsockConfig) -> io::Result<Self> {
        let listener = config.listener.map(UnixListener::from);
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
        }
        Ok(Self {
            listener,
            accept_ready: true,
            service_ports: config.service_ports,
            on_guest_connect: config.on_guest_connect,
            config: Arc::new(ConfigSpace::new(GUEST_CID.to_le_bytes().to_vec(), 0..0)),
            table: Table::default(),
            stray_resets: VecDeque::new(),
            reset: Reset::None,
            next_host_port: HOST_PORT_FIRST,
            buffered: 0,
            chain: Chain::default(),
            payload: Vec::new(),
        })
    }

    /// Number of connections, those that are being opened or closed included.
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Takes waiting host programs; returns whether the budget ended it.
    fn accept(&mut self) -> bool {
        let Some(listener) = &self.listener else {
            return false;
        };
        for _ in 0..STEPS_PER_TURN {
            if !self.accept_ready {
                return false;
            }
            match listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_ok() {
                        // Without a place the stream is dropped: the program sees a refusal.
                        let _ = self.table.insert(Conn::accepted(stream));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // With no descriptor left the program waits in the backlog until one is free.
                    self.accept_ready = error.kind() != io::ErrorKind::WouldBlock;
                    return false;
                }
            }
        }
        true
    }

    /// Works on the host side of connections; returns whether the budget ended it.
    fn serve_hosts(&mut self) -> bool {
        for _ in 0..STEPS_PER_TURN {
            let Some(id) = self.table.host_list.pop_front() else {
                return false;
            };
            let Some(conn) = self.table.get_mut(id) else {
                continue;
            };
            conn.in_host_list = false;
            let before = conn.buffered();
            let fate = conn.host_work();
            let after = conn.buffered();
            self.buffered = (self.buffered + after).saturating_sub(before);
            self.apply(id, fate);
        }
        !self.table.host_list.is_empty()
    }

    fn apply(&mut self, id: usize, fate: Fate) {
        match fate {
            Fate::Keep => {}
            Fate::Connect(guest_port) => self.request(id, guest_port),
            Fate::Close => self.close(id),
            Fate::Reset => self.reset_connection(id),
        }
        self.table.mark_guest(id);
    }

    fn close(&mut self, id: usize) {
        if let Some(conn) = self.table.get_mut(id) {
            self.buffered = self.buffered.saturating_sub(conn.buffered());
            self.table.remove(id);
        }
    }

    /// Tells the guest that a connection is over; the host program still gets what was sent.
    fn reset_connection(&mut self, id: usize) {
        let Some(conn) = self.table.get_mut(id) else {
            return;
        };
        let (host_port, guest_port) = (conn.host_port, conn.guest_port);
        let drains = conn.drain();
        self.stray_resets
            .push_back(Header::to_guest(host_port, guest_port, OP_RST));
        self.table.unbind(id);
        if drains {
            self.table.mark(id);
        } else {
            self.close(id);
        }
    }

    fn request(&mut self, id: usize, guest_port: u32) {
        // There are more ports than connections, so a free one is found.
        let host_port = loop {
            let port = self.next_host_port;
            self.next_host_port = port.checked_add(1).unwrap_or(HOST_PORT_FIRST);
            if self.table.find((port, guest_port)).is_none() {
                break port;
            }
        };
        if let Some(conn) = self.table.get_mut(id) {
            conn.request(host_port, guest_port);
            self.table.bind(id, (host_port, guest_port));
        }
    }

    /// Says whether the guest's packets have to wait: their effects have filled a bound.
    fn is_full(&self) -> bool {
        self.stray_resets.len() >= STRAY_RESETS_MAX || self.buffered >= BUFFERED_BYTES_MAX
    }

    /// Takes packets from the guest; returns whether the budget ended it.
    fn receive(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, Broken> {
        for _ in 0..STEPS_PER_TURN {
            if self.is_full() || !io.pop(TX, &mut self.chain, MAX_SEGMENTS)? {
                return Ok(false);
            }
            if self.chain.readable_len() < HEADER_BYTES as u64 {
                let rule = "is too short for a socket packet's header";
                return Err(Broken::Chain {
                    queue: TX,
                    head: self.chain.head(),
                    rule,
                });
            }
            let mut bytes = [0; HEADER_BYTES];
            self.chain.read(io.mem(), 0, &mut bytes)?;
            self.take_packet(io, &Header::decode(&bytes))?;
            io.complete(TX, self.chain.head(), 0)?;
        }
        Ok(true)
    }

    fn take_packet(&mut self, io: &DeviceIo<'_>, header: &Header) -> Result<(), Broken> {
        if header.src_cid != GUEST_CID {
            return Ok(());
        }
        let id = self.table.find((header.dst_port, header.src_port));
        let id = id.filter(|_| header.dst_cid == HOST_CID && header.kind == TYPE_STREAM);
        let Some(id) = id else {
            self.take_first_packet(header);
            return Ok(());
        };
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let sent = self.chain.readable_len() - HEADER_BYTES as u64;
        if header.op == OP_RW && (len > PAYLOAD_BYTES_MAX || len as u64 > sent) {
            self.reset_connection(id);
            return Ok(());
        }
        let len = if header.op == OP_RW { len } else { 0 };
        if self.payload.len() < len {
            self.payload.resize(len, 0);
        }
        self.chain
            .read(io.mem(), HEADER_BYTES as u64, &mut self.payload[..len])?;
        let Some(conn) = self.table.get_mut(id) else {
            return Ok(());
        };
        let before = conn.buffered();
        let fate = conn.take_packet(header, &self.payload[..len]);
        self.buffered = (self.buffered + conn.buffered()).saturating_sub(before);
        if conn.phase == Phase::Draining {
            self.table.unbind(id);
        }
        self.table.mark(id);
        self.apply(id, fate);
        Ok(())
    }

    /// Takes a packet that belongs to no connection.
    fn take_first_packet(&mut self, header: &Header) {
        let known = header.dst_cid == HOST_CID && header.kind == TYPE_STREAM;
        if header.op == OP_RST || known && header.op == OP_REQUEST && self.open_service(header) {
            return;
        }
        self.stray_resets.push_back(Header {
            src_cid: header.dst_cid,
            kind: header.kind,
            ..Header::to_guest(header.dst_port, header.src_port, OP_RST)
        });
    }

    /// Opens a connection of the guest to a service; `false` when it is refused.
    fn open_service(&mut self, request: &Header) -> bool {
        let open = self.table.iter().filter(|conn| conn.service).count();
        if !self.service_ports.contains(&request.dst_port) || open >= SERVICE_CONNECTIONS_MAX {
            return false;
        }
        // A driver that connects has dealt with a reset, whatever it did with the event's buffer.
        self.reset = Reset::None;
        let Ok((ours, theirs)) = UnixStream::pair() else {
            return false;
        };
        if ours.set_nonblocking(true).is_err() {
            return false;
        }
        let Ok(id) = self.table.insert(Conn::service(ours, request)) else {
            return false;
        };
        self.table.bind(id, (request.dst_port, request.src_port));
        (self.on_guest_connect.0)(request.dst_port, theirs);
        true
    }

    /// Gives packets to the guest; returns whether the budget ended it.
    fn transmit(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, Broken> {
        for _ in 0..STEPS_PER_TURN {
            if self.stray_resets.is_empty() && self.table.guest_list.is_empty() {
                return Ok(false);
            }
            if !io.pop(RX, &mut self.chain, MAX_SEGMENTS)? {
                return Ok(false);
            }
            let room = self.chain.writable_len();
            if room <= HEADER_BYTES as u64 {
                let rule = "has no room for a socket packet";
                return Err(Broken::Chain {
                    queue: RX,
                    head: self.chain.head(),
                    rule,
                });
            }
            let payload_room = usize::try_from(room).unwrap_or(usize::MAX) - HEADER_BYTES;
            match self.next_packet(payload_room.min(PAYLOAD_BYTES_MAX)) {
                None => io.unpop(RX),
                Some(header) => {
                    let len = usize::try_from(header.len).unwrap_or(0);
                    self.chain.write(io.mem(), 0, &header.encode())?;
                    self.chain
                        .write(io.mem(), HEADER_BYTES as u64, &self.payload[..len])?;
                    let used = u32::try_from(HEADER_BYTES + len).unwrap_or(u32::MAX);
                    io.complete(RX, self.chain.head(), used)?;
                }
            }
        }
        Ok(true)
    }

    /// Returns a packet of one connection, its payload in `self.payload`; each has its turn.
    fn next_packet(&mut self, room: usize) -> Option<Header> {
        if let Some(header) = self.stray_resets.pop_front() {
            return Some(header);
        }
        if self.payload.len() < room {
            self.payload.resize(room, 0);
        }
        let id = self.table.guest_list.pop_front()?;
        let conn = self.table.get_mut(id)?;
        conn.in_guest_list = false;
        let header = conn.next_packet(&mut self.payload[..room]);
        self.table.mark_guest(id);
        header
    }

    /// Tells the driver of a transport reset; returns whether it has dealt with it.
    fn announce_reset(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, Broken> {
        if self.reset == Reset::Pending && io.pop(EVENT, &mut self.chain, MAX_SEGMENTS)? {
            let event = EVENT_TRANSPORT_RESET;
            if self.chain.writable_len() < event.len() as u64 {
                let rule = "is too short for a socket event";
                return Err(Broken::Chain {
                    queue: EVENT,
                    head: self.chain.head(),
                    rule,
                });
            }
            self.chain.write(io.mem(), 0, &event)?;
            self.reset = Reset::Sent {
                waiting: io.watch(EVENT)?,
            };
            io.complete(EVENT, self.chain.head(), 4)?;
        }
        if let Reset::Sent { waiting } = self.reset
            && io.watch(EVENT)? > waiting
        {
            self.reset = Reset::None;
        }
        Ok(self.reset == Reset::None)
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.config.clone()
    }

    fn attach(&mut self, poller: Poller) -> io::Result<()> {
        if let Some(listener) = &self.listener {
            poller.add(listener, LISTENER)?;
        }
        self.table.set_poller(poller);
        Ok(())
    }

    fn note_ready(&mut self, token: u32, readiness: Readiness) {
        if token == LISTENER {
            self.accept_ready = true;
            return;
        }
        let Ok(id) = usize::try_from(token) else {
            return;
        };
        if let Some(conn) = self.table.get_mut(id) {
            conn.note_ready(readiness);
            self.table.mark(id);
        }
    }

    fn process(&mut self, _kicked: u64, io: &mut DeviceIo<'_>) -> Result<Progress, Broken> {
        let mut more = self.accept();
        more |= self.receive(io)?;
        let was_full = self.is_full();
        more |= self.serve_hosts();
        if self.announce_reset(io)? {
            more |= self.transmit(io)?;
        }
        // The guest was not asked to notify about packets that still wait.
        more |= was_full && !self.is_full();
        Ok(if more { Progress::More } else { Progress::Idle })
    }

    fn reset(&mut self) {
        self.table.clear();
        self.stray_resets.clear();
        self.reset = Reset::None;
        self.buffered = 0;
    }

    fn save(&self) -> SavedDevice {
        SavedDevice::Vsock(SavedVsock {
            next_host_port: self.next_host_port,
        })
    }

    fn restore(&mut self, saved: &SavedDevice, active: bool) -> Result<(), RestoreError> {
        let device_id = self.kind().id();
        let field = |field, value| {
            Err(RestoreError::Field {
                device_id,
                field,
                value,
            })
        };
        match saved {
            SavedDevice::Vsock(saved) if saved.next_host_port < HOST_PORT_FIRST => {
                field("next_host_port", saved.next_host_port.into())
            }
            SavedDevice::Vsock(saved) => {
                self.next_host_port = saved.next_host_port;
                self.reset = if active { Reset::Pending } else { Reset::None };
                Ok(())
            }
            _ => field("device", 0),
        }
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
