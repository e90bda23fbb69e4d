//! The network device.

use std::any::Any;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use vm_spec::MacAddr;

use super::regs::*;
use super::saved::SavedNet;
use crate::config_space::ConfigSpace;
use crate::device::{DeviceIo, DeviceKind, Poller, Progress, Readiness, VirtioDevice};
use crate::queue::{Broken, Chain};
use crate::saved::{RestoreError, SavedDevice};

/// Frames moved in each direction before other devices have their turn.
const FRAMES_PER_TURN: usize = 64;
const BUFFER_BYTES: usize = HEADER_BYTES + FRAME_BYTES_MAX;

/// What the creator of a network interface chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Hardware address that the driver reads.
    pub mac: MacAddr,
    /// The link is up from the start.
    pub link_up: bool,
    /// Frames that the guest sends from other hardware addresses are dropped.
    pub own_mac_only: bool,
    /// The guest may leave checksums and TCP segmentation of sent frames to the host.
    pub tx_offload: bool,
}

/// Running totals of a network interface, readable at any time.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames given to the guest.
    pub rx_frames: AtomicU64,
    /// Bytes given to the guest.
    pub rx_bytes: AtomicU64,
    /// Frames for the guest that were dropped: link down, or larger than its buffers.
    pub rx_dropped: AtomicU64,
    /// Frames sent by the guest.
    pub tx_frames: AtomicU64,
    /// Bytes sent by the guest.
    pub tx_bytes: AtomicU64,
    /// Frames of the guest that were dropped: link down, malformed, or refused by the host.
    pub tx_dropped: AtomicU64,
    /// Frames of the guest that were dropped for their source address.
    pub tx_foreign_mac: AtomicU64,
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

/// What became of a frame at the TAP.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Done,
    Later,
}

/// A network interface over a TAP device.
#[derive(Debug)]
pub struct Net {
    tap: OwnedFd,
    config: Arc<ConfigSpace>,
    own_mac_only: bool,
    tx_offload: bool,
    config_changed: bool,
    tap_readable: bool,
    tap_writable: bool,
    counters: Arc<NetCounters>,
    chain: Chain,
    /// A frame taken from the TAP, header included; valid up to `rx_len`.
    rx_frame: Vec<u8>,
    /// 0 when no frame waits for a buffer of the guest.
    rx_len: usize,
    tx_frame: Vec<u8>,
}

impl Net {
    /// Returns an interface over `tap`, which is made non-blocking. Each read and write of `tap`
    /// moves one frame behind a 12-byte header.
    pub fn new(tap: OwnedFd, config: NetConfig) -> io::Result<Self> {
        fcntl_setfl(&tap, fcntl_getfl(&tap)? | OFlags::NONBLOCK)?;
        let mut bytes = vec![0; config::BYTES];
        bytes[config::MAC..config::MAC + 6].copy_from_slice(&config.mac.0);
        bytes[config::STATUS..].copy_from_slice(&link_bits(config.link_up));
        Ok(Self {
            tap,
            config: Arc::new(ConfigSpace::new(bytes, 0..0)),
            own_mac_only: config.own_mac_only,
            tx_offload: config.tx_offload,
            config_changed: false,
            tap_readable: true,
            tap_writable: true,
            counters: Arc::default(),
            chain: Chain::default(),
            rx_frame: Vec::new(),
            rx_len: 0,
            tx_frame: Vec::new(),
        })
    }

    /// Running totals.
    pub fn counters(&self) -> Arc<NetCounters> {
        self.counters.clone()
    }

    /// Hardware address in the configuration space.
    pub fn mac(&self) -> [u8; 6] {
        self.config.field(config::MAC)
    }

    /// Says whether the link is up.
    pub fn link_up(&self) -> bool {
        u16::from_le_bytes(self.config.field(config::STATUS)) & S_LINK_UP != 0
    }

    /// Plugs the cable in or out.
    pub fn set_link(&mut self, up: bool) {
        self.config_changed |= self.config.set_field(config::STATUS, &link_bits(up));
    }

    /// Sets whether frames from other hardware addresses than the configured one are dropped.
    pub fn set_own_mac_only(&mut self, own_mac_only: bool) {
        self.own_mac_only = own_mac_only;
    }

    /// Makes a restored interface that of a clone: new address, link down until
    /// [`Net::set_link`], and only frames from that address leave.
    pub fn adopt(&mut self, mac: MacAddr) {
        self.config_changed |= self.config.set_field(config::MAC, &mac.0);
        self.set_link(false);
        self.own_mac_only = true;
        self.rx_len = 0;
    }

    /// Moves frames from the TAP to the guest; returns whether the budget ended it.
    fn receive(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, Broken> {
        for _ in 0..FRAMES_PER_TURN {
            if self.rx_len == 0 && !self.read_tap() {
                return Ok(false);
            }
            if !self.link_up() {
                count(&self.counters.rx_dropped, 1);
            } else if !self.deliver(io)? {
                return Ok(false);
            }
            self.rx_len = 0;
        }
        Ok(true)
    }

    /// Takes a frame from the TAP; `false` when there is none.
    fn read_tap(&mut self) -> bool {
        if !self.tap_readable {
            return false;
        }
        allocate(&mut self.rx_frame);
        match rustix::io::read(&self.tap, &mut self.rx_frame[..]) {
            // A runt counts as a frame that is dropped on delivery.
            Ok(len @ 1..) => self.rx_len = len,
            Err(Errno::INTR) => return self.read_tap(),
            // 0: the other end of a socket is gone; errors: the TAP is down or was removed.
            Ok(0) | Err(_) => self.tap_readable = false,
        }
        self.rx_len > 0
    }

    /// Gives the frame in `rx_frame` to the guest or drops it; `false` when no buffer is free.
    fn deliver(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, Broken> {
        let frame = &mut self.rx_frame[..self.rx_len];
        if frame.len() < HEADER_BYTES + FRAME_BYTES_MIN {
            count(&self.counters.rx_dropped, 1);
            return Ok(true);
        }
        if !io.pop(RX, &mut self.chain, MAX_SEGMENTS)? {
            return Ok(false);
        }
        if self.chain.writable_len() < frame.len() as u64 {
            io.unpop(RX);
            count(&self.counters.rx_dropped, 1);
            return Ok(true);
        }
        // The driver accepted no receive offload, so the frame is plain.
        frame[..HEADER_BYTES].fill(0);
        frame[HEADER_NUM_BUFFERS] = 1;
        self.chain.write(io.mem(), 0, frame)?;
        io.complete(
            RX,
            self.chain.head(),
            u32::try_from(frame.len()).unwrap_or(0),
        )?;
        count(&self.counters.rx_frames, 1);
        count(&self.counters.rx_bytes, frame.len() - HEADER_BYTES);
        Ok(true)
    }

    /// Moves frames from the guest to the TAP; returns whether the budget ended it.
    fn transmit(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, Broken> {
        for _ in 0..FRAMES_PER_TURN {
            if !self.tap_writable || !io.pop(TX, &mut self.chain, MAX_SEGMENTS)? {
                return Ok(false);
            }
            if self.send(io)? == Sent::Later {
                io.unpop(TX);
                self.tap_writable = false;
                return Ok(false);
            }
            io.complete(TX, self.chain.head(), 0)?;
        }
        Ok(true)
    }

    fn send(&mut self, io: &DeviceIo<'_>) -> Result<Sent, Broken> {
        let len = usize::try_from(self.chain.readable_len()).unwrap_or(usize::MAX);
        let in_bounds = (HEADER_BYTES + FRAME_BYTES_MIN..=BUFFER_BYTES).contains(&len);
        if !self.link_up() || !in_bounds {
            count(&self.counters.tx_dropped, 1);
            return Ok(Sent::Done);
        }
        allocate(&mut self.tx_frame);
        let frame = &mut self.tx_frame[..len];
        self.chain.read(io.mem(), 0, frame)?;
        let source = &frame[HEADER_BYTES + 6..HEADER_BYTES + 12];
        if self.own_mac_only && source != self.config.field::<6>(config::MAC) {
            count(&self.counters.tx_foreign_mac, 1);
            return Ok(Sent::Done);
        }
        if !io.has_feature(F_CSUM) {
            frame[..HEADER_BYTES].fill(0);
        } else if frame[HEADER_GSO_TYPE] != 0
            && !(io.has_feature(F_HOST_TSO4) || io.has_feature(F_HOST_TSO6))
        {
            count(&self.counters.tx_dropped, 1);
            return Ok(Sent::Done);
        }
        loop {
            match rustix::io::write(&self.tap, frame) {
                Ok(_) => {
                    count(&self.counters.tx_frames, 1);
                    count(&self.counters.tx_bytes, len - HEADER_BYTES);
                    return Ok(Sent::Done);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Sent::Later),
                Err(_) => {
                    count(&self.counters.tx_dropped, 1);
                    return Ok(Sent::Done);
                }
            }
        }
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let offload = 1 << F_CSUM | 1 << F_HOST_TSO4 | 1 << F_HOST_TSO6;
        1 << F_MAC | 1 << F_STATUS | if self.tx_offload { offload } else { 0 }
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.config.clone()
    }

    fn attach(&mut self, poller: Poller) -> io::Result<()> {
        poller.add(&self.tap, 0)
    }

    fn note_ready(&mut self, _token: u32, readiness: Readiness) {
        self.tap_readable |= readiness.readable;
        self.tap_writable |= readiness.writable;
    }

    fn process(&mut self, _kicked: u64, io: &mut DeviceIo<'_>) -> Result<Progress, Broken> {
        if std::mem::take(&mut self.config_changed) {
            io.signal_config();
        }
        let more_rx = self.receive(io)?;
        let more_tx = self.transmit(io)?;
        Ok(if more_rx || more_tx {
            Progress::More
        } else {
            Progress::Idle
        })
    }

    fn reset(&mut self) {
        self.rx_len = 0;
        self.tap_writable = true;
    }

    fn save(&self) -> SavedDevice {
        SavedDevice::Net(SavedNet {
            mac: self.mac(),
            link_up: self.link_up(),
            own_mac_only: self.own_mac_only,
        })
    }

    fn restore(&mut self, saved: &SavedDevice, _active: bool) -> Result<(), RestoreError> {
        let SavedDevice::Net(saved) = saved else {
            let device_id = self.kind().id();
            return Err(RestoreError::Field {
                device_id,
                field: "device",
                value: 0,
            });
        };
        self.config.set_field(config::MAC, &saved.mac);
        self.config
            .set_field(config::STATUS, &link_bits(saved.link_up));
        self.own_mac_only = saved.own_mac_only;
        Ok(())
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// Makes the frame buffer at its first use; zeroed memory costs pages only where it is touched.
fn allocate(frame: &mut Vec<u8>) {
    if frame.is_empty() {
        *frame = vec![0; BUFFER_BYTES];
    }
}

fn link_bits(up: bool) -> [u8; 2] {
    (if up { S_LINK_UP } else { 0 }).to_le_bytes()
}
