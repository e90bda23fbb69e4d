//! The driver: register handshake, rings in guest memory, interrupts.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chipset::{BusDevice, InterruptLine};
use vm_memory::{Bytes, GuestAddress};

use crate::queue::GuestRam;
use crate::slot::{F_EVENT_IDX, F_VERSION_1};
use crate::transport::{MmioTransport, regs};

/// Rings of queue `i` start at this many bytes times `i + 1`.
const RING_SPACING: u64 = 0x1_0000;
const AVAIL_OFFSET: u64 = 0x4000;
const USED_OFFSET: u64 = 0x8000;
/// Data for chains goes here and above.
const DATA_START: u64 = 0x10_0000;
const DATA_END: u64 = 0x3f_0000;
const WAIT_MAX: Duration = Duration::from_secs(20);

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;

/// Counts edges.
#[derive(Debug, Default)]
pub struct TestLine {
    edges: Mutex<u64>,
    raised: Condvar,
}

impl TestLine {
    /// Edges so far.
    pub fn edges(&self) -> u64 {
        *self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there are more than `seen` edges; `false` when none comes in a long time.
    pub fn wait_past(&self, seen: u64) -> bool {
        let edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        let (edges, _) = self
            .raised
            .wait_timeout_while(edges, WAIT_MAX, |edges| *edges <= seen)
            .unwrap_or_else(PoisonError::into_inner);
        *edges > seen
    }
}

impl InterruptLine for TestLine {
    fn trigger(&self) {
        *self.edges.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.raised.notify_all();
    }
}

/// A descriptor of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// The device may write it.
    pub writable: bool,
}

/// An entry of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes that the device wrote.
    pub len: u32,
}

#[derive(Clone, Debug, Default)]
struct Ring {
    size: u16,
    base: u64,
    next_desc: u16,
    avail_idx: u16,
    used_idx: u16,
}

/// A driver of one device.
#[derive(Debug)]
pub struct Driver {
    mem: Arc<GuestRam>,
    transport: Arc<MmioTransport>,
    line: Arc<TestLine>,
    rings: Vec<Ring>,
    features: u64,
    next_data: u64,
}

impl Driver {
    /// Returns a driver that has not touched its device.
    pub fn new(mem: Arc<GuestRam>, transport: Arc<MmioTransport>, line: Arc<TestLine>) -> Self {
        let next_data = DATA_START;
        Self {
            mem,
            transport,
            line,
            rings: Vec::new(),
            features: 0,
            next_data,
        }
    }

    pub(crate) fn carry_over(
        &self,
        mem: Arc<GuestRam>,
        transport: Arc<MmioTransport>,
        line: Arc<TestLine>,
    ) -> Self {
        let rings = self.rings.clone();
        Self {
            mem,
            transport,
            line,
            rings,
            features: self.features,
            next_data: self.next_data,
        }
    }

    /// The device's interrupt line.
    pub fn line(&self) -> &TestLine {
        &self.line
    }

    /// The device's window.
    pub fn transport(&self) -> &Arc<MmioTransport> {
        &self.transport
    }

    /// Reads a register.
    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Reads configuration bytes.
    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.transport.read(regs::CONFIG + offset, &mut data);
        data
    }

    /// Feature bits on offer.
    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.write(regs::DEVICE_FEATURES_SEL, select);
            u64::from(self.read(regs::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Accepts `features` of those on offer and VERSION_1, up to `FEATURES_OK`; returns whether
    /// the device agrees.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.write(regs::STATUS, 0);
        self.write(regs::STATUS, 1);
        self.write(regs::STATUS, 3);
        self.features = self.offered() & features | 1 << F_VERSION_1;
        self.write(regs::DRIVER_FEATURES_SEL, 0);
        self.write(regs::DRIVER_FEATURES, (self.features & 0xffff_ffff) as u32);
        self.write(regs::DRIVER_FEATURES_SEL, 1);
        self.write(regs::DRIVER_FEATURES, (self.features >> 32) as u32);
        self.write(regs::STATUS, 11);
        self.read(regs::STATUS) & 8 != 0
    }

    /// Sets up all queues and starts the device, with all features on offer.
    pub fn start(&mut self) {
        self.start_with(u64::MAX);
    }

    /// Sets up all queues and starts the device, with those of `features` on offer.
    ///
    /// # Panics
    ///
    /// When the device refuses its own features.
    pub fn start_with(&mut self, features: u64) {
        assert!(
            self.negotiate(features),
            "the device refuses its own features"
        );
        self.rings.clear();
        for index in 0.. {
            self.write(regs::QUEUE_SEL, index);
            let max = self.read(regs::QUEUE_NUM_MAX);
            if max == 0 {
                break;
            }
            let size = u16::try_from(max).expect("queue sizes fit 16 bits");
            let base = RING_SPACING * u64::from(index + 1);
            self.mem
                .write_slice(&[0; RING_SPACING as usize], GuestAddress(base))
                .expect("ring");
            self.rings.push(Ring {
                size,
                base,
                ..Ring::default()
            });
            self.write(regs::QUEUE_NUM, max);
            self.write_address(regs::QUEUE_DESC_LOW, base);
            self.write_address(regs::QUEUE_DRIVER_LOW, base + AVAIL_OFFSET);
            self.write_address(regs::QUEUE_DEVICE_LOW, base + USED_OFFSET);
            self.write(regs::QUEUE_READY, 1);
        }
        self.write(regs::STATUS, 15);
    }

    fn write_address(&self, low: u64, gpa: u64) {
        self.write(low, (gpa & 0xffff_ffff) as u32);
        self.write(low + 4, (gpa >> 32) as u32);
    }

    /// Number of queues that were set up.
    pub fn queues(&self) -> usize {
        self.rings.len()
    }

    /// Where queue `queue`'s descriptor table, available ring and used ring are.
    pub fn ring_addresses(&self, queue: usize) -> (u64, u64, u64) {
        let base = self.rings[queue].base;
        (base, base + AVAIL_OFFSET, base + USED_OFFSET)
    }

    /// Reserves `len` bytes of guest memory; old reservations are reused after 3 MiB.
    pub fn alloc(&mut self, len: u32) -> u64 {
        let len = u64::from(len).next_multiple_of(16);
        if self.next_data + len > DATA_END {
            self.next_data = DATA_START;
        }
        let gpa = self.next_data;
        self.next_data += len;
        gpa
    }

    /// Reserves memory for `bytes` and fills it: a piece that the device reads.
    pub fn input(&mut self, bytes: &[u8]) -> Piece {
        let len = u32::try_from(bytes.len()).expect("test input is small");
        let gpa = self.alloc(len);
        self.poke(gpa, bytes);
        Piece {
            gpa,
            len,
            writable: false,
        }
    }

    /// Reserves zeroed memory: a piece that the device writes.
    pub fn output(&mut self, len: u32) -> Piece {
        let gpa = self.alloc(len);
        self.poke(gpa, &vec![0; len as usize]);
        Piece {
            gpa,
            len,
            writable: true,
        }
    }

    /// Writes guest memory.
    ///
    /// # Panics
    ///
    /// When the range is not RAM.
    pub fn poke(&self, gpa: u64, bytes: &[u8]) {
        self.mem
            .write_slice(bytes, GuestAddress(gpa))
            .expect("inside RAM");
    }

    /// Reads guest memory.
    ///
    /// # Panics
    ///
    /// When the range is not RAM.
    pub fn peek(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem
            .read_slice(&mut bytes, GuestAddress(gpa))
            .expect("inside RAM");
        bytes
    }

    /// Writes descriptor `index` of a queue, whatever it says.
    pub fn put_descriptor(&self, queue: usize, index: u16, piece: Piece, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&piece.gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&piece.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.poke(self.rings[queue].base + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain available and returns its head; the device is not notified.
    pub fn offer(&mut self, queue: usize, pieces: &[Piece]) -> u16 {
        let size = self.rings[queue].size;
        let count = u16::try_from(pieces.len()).expect("test chains are short");
        if self.rings[queue].next_desc + count > size {
            self.rings[queue].next_desc = 0;
        }
        let head = self.rings[queue].next_desc;
        self.rings[queue].next_desc += count;
        for (index, &piece) in (head..).zip(pieces) {
            let write = if piece.writable { DESC_WRITE } else { 0 };
            let next = if index + 1 < head + count {
                DESC_NEXT
            } else {
                0
            };
            self.put_descriptor(queue, index, piece, write | next, index + 1);
        }
        self.offer_head(queue, head);
        head
    }

    /// Puts `head` into the available ring, whatever is there.
    pub fn offer_head(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = u64::from(ring.avail_idx % ring.size);
        ring.avail_idx = ring.avail_idx.wrapping_add(1);
        let avail = ring.base + AVAIL_OFFSET;
        let idx = ring.avail_idx;
        self.poke(avail + 4 + 2 * slot, &head.to_le_bytes());
        self.mem
            .store(idx.to_le(), GuestAddress(avail + 2), Ordering::SeqCst)
            .expect("ring");
    }

    /// Notifies the device.
    pub fn kick(&self, queue: usize) {
        self.write(
            regs::QUEUE_NOTIFY,
            u32::try_from(queue).expect("queue index"),
        );
    }

    /// Notifies the device if it asked for that, as a real driver does with EVENT_IDX.
    pub fn kick_if_wanted(&self, queue: usize, added: u16) {
        let ring = &self.rings[queue];
        let at = ring.base + USED_OFFSET + 4 + 8 * u64::from(ring.size);
        std::sync::atomic::fence(Ordering::SeqCst);
        let event: u16 = self
            .mem
            .load(GuestAddress(at), Ordering::SeqCst)
            .expect("ring");
        let event = u16::from_le(event);
        let (new, old) = (ring.avail_idx, ring.avail_idx.wrapping_sub(added));
        let wanted = new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        if self.features & 1 << F_EVENT_IDX == 0 || wanted {
            self.kick(queue);
        }
    }

    /// Takes the next entry of the used ring.
    pub fn used(&mut self, queue: usize) -> Option<Used> {
        let ring = &mut self.rings[queue];
        let used = ring.base + USED_OFFSET;
        let idx: u16 = self
            .mem
            .load(GuestAddress(used + 2), Ordering::SeqCst)
            .expect("ring");
        if u16::from_le(idx) == ring.used_idx {
            return None;
        }
        let at = used + 4 + 8 * u64::from(ring.used_idx % ring.size);
        ring.used_idx = ring.used_idx.wrapping_add(1);
        // `used_event`: an interrupt for the next entry is wanted.
        let event = ring.base + AVAIL_OFFSET + 4 + 2 * u64::from(ring.size);
        let next = ring.used_idx.to_le();
        self.mem
            .store(next, GuestAddress(event), Ordering::SeqCst)
            .expect("ring");
        let entry = self.peek(at, 8);
        Some(Used {
            head: u16::from_le_bytes([entry[0], entry[1]]),
            len: u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]),
        })
    }

    /// Waits for the next entry of the used ring, by interrupts.
    ///
    /// # Panics
    ///
    /// When none comes in a long time.
    pub fn wait_used(&mut self, queue: usize) -> Used {
        let start = Instant::now();
        loop {
            let seen = self.line.edges();
            if let Some(used) = self.used(queue) {
                return used;
            }
            // Between looking and asking for an interrupt an entry may have come.
            std::sync::atomic::fence(Ordering::SeqCst);
            if let Some(used) = self.used(queue) {
                return used;
            }
            assert!(
                self.line.wait_past(seen) && start.elapsed() < WAIT_MAX,
                "queue {queue}: no used buffer came"
            );
        }
    }

    /// Says whether the device asks for a reset.
    pub fn needs_reset(&self) -> bool {
        self.read(regs::STATUS) & 0x40 != 0
    }
}
