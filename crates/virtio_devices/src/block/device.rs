//! The block device: takes requests, checks them, and does them on the back end.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::backend::BlockBackend;
use super::events::{BlockConfig, BlockCounters, BlockEvent, BlockEventSink, BlockOp, InsertError};
use super::regs::*;
use super::saved::SavedBlock;
use crate::config_space::ConfigSpace;
use crate::device::{DeviceIo, DeviceKind, Progress, VirtioDevice};
use crate::queue::{Broken, Chain};
use crate::saved::{RestoreError, SavedDevice};

/// Requests done before the worker looks at other things.
const REQUESTS_PER_TURN: usize = 64;
const QUEUE: usize = 0;

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// How a request ended.
enum Outcome {
    /// Status byte, and bytes of data written into guest memory before it.
    Done(u8, u64),
    /// Not done: it goes back into the queue.
    NoSpace,
    /// Not done because the gate was shut in the middle.
    Gated,
}

/// Why a request could not be done.
enum Failure {
    Queue(Broken),
    Host(io::Error),
    Gated,
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::Queue(broken)
    }
}

/// A block device over back end `B`.
#[derive(Debug)]
pub struct Block<B> {
    backend: B,
    config: Arc<ConfigSpace>,
    id: [u8; ID_BYTES],
    events: BlockEventSink,
    counters: Arc<BlockCounters>,
    capacity_sectors: u64,
    read_only: bool,
    stalled: bool,
    chain: Chain,
    buffer: Vec<u8>,
}

impl<B: BlockBackend + 'static> Block<B> {
    /// Returns a device with the content of `backend`.
    pub fn new(backend: B, config: BlockConfig) -> Self {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(config.serial.bytes()) {
            *to = from;
        }
        let capacity_sectors = backend.size() / SECTOR_BYTES;
        Self {
            config: Arc::new(ConfigSpace::new(config_bytes(&backend), 0..0)),
            read_only: backend.read_only(),
            backend,
            id,
            events: config.events,
            counters: Arc::default(),
            capacity_sectors,
            stalled: false,
            chain: Chain::default(),
            buffer: Vec::new(),
        }
    }

    /// The back end; to be changed only for one with the same content and size, see also
    /// [`Block::insert`].
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Running totals.
    pub fn counters(&self) -> Arc<BlockCounters> {
        self.counters.clone()
    }

    /// Says whether the device waits for space on the host.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Tries a request again that found no space.
    pub fn resume(&mut self) {
        self.set_stalled(false);
    }

    fn set_stalled(&mut self, stalled: bool) {
        self.stalled = stalled;
        self.counters.stalled.store(stalled, Ordering::Relaxed);
    }

    /// Does the request in `self.chain`.
    fn serve(&mut self, io: &DeviceIo<'_>) -> Result<Outcome, Broken> {
        let mut header = [0; HEADER_BYTES as usize];
        if self.chain.readable_len() < HEADER_BYTES || self.chain.writable_len() == 0 {
            let rule = "has no room for a block request's header and status";
            return Err(Broken::Chain {
                queue: QUEUE,
                head: self.chain.head(),
                rule,
            });
        }
        self.chain.read(io.mem(), 0, &mut header)?;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let sector = u64::from_le_bytes(sector);
        let (op, result) = match kind {
            T_IN => (BlockOp::Read, self.read(io, sector)),
            T_OUT => (BlockOp::Write, self.write(io, sector)),
            T_FLUSH => (BlockOp::Flush, self.flush()),
            T_DISCARD => (BlockOp::Discard, self.discard(io, false)),
            T_WRITE_ZEROES => (BlockOp::WriteZeroes, self.discard(io, true)),
            T_GET_ID => return self.get_id(io),
            _ => return Ok(Outcome::Done(S_UNSUPP, 0)),
        };
        match result {
            Ok((status, written)) => Ok(Outcome::Done(status, written)),
            Err(Failure::Queue(broken)) => Err(broken),
            Err(Failure::Gated) => Ok(Outcome::Gated),
            Err(Failure::Host(error)) if is_no_space(&error) => Ok(Outcome::NoSpace),
            Err(Failure::Host(error)) => {
                self.events.send(BlockEvent::IoError { op, sector, error });
                Ok(Outcome::Done(S_IOERR, 0))
            }
        }
    }

    /// Returns the byte offset of a range of sectors that lies on the disk.
    fn offset_of(&self, sector: u64, len: u64) -> Option<u64> {
        let sectors = len.div_ceil(SECTOR_BYTES);
        let end = sector.checked_add(sectors)?;
        (end <= self.capacity_sectors).then(|| sector * SECTOR_BYTES)
    }

    fn read(&mut self, io: &DeviceIo<'_>, sector: u64) -> Result<(u8, u64), Failure> {
        let len = self.chain.writable_len() - 1;
        let Some(start) = self
            .offset_of(sector, len)
            .filter(|_| len.is_multiple_of(SECTOR_BYTES))
        else {
            return Ok((S_IOERR, 0));
        };
        self.each_chunk(io, len, |block, at, size| {
            let buf = &mut block.buffer[..size];
            block
                .backend
                .read_at(start + at, buf)
                .map_err(Failure::Host)?;
            Ok(block.chain.write(io.mem(), at, buf)?)
        })?;
        count(&self.counters.reads, 1);
        count(&self.counters.read_bytes, len);
        Ok((S_OK, len))
    }

    fn write(&mut self, io: &DeviceIo<'_>, sector: u64) -> Result<(u8, u64), Failure> {
        let len = self.chain.readable_len() - HEADER_BYTES;
        let Some(start) = self
            .offset_of(sector, len)
            .filter(|_| len.is_multiple_of(SECTOR_BYTES))
        else {
            return Ok((S_IOERR, 0));
        };
        if self.read_only {
            return Ok((S_IOERR, 0));
        }
        self.each_chunk(io, len, |block, at, size| {
            let buf = &mut block.buffer[..size];
            block.chain.read(io.mem(), HEADER_BYTES + at, buf)?;
            block
                .backend
                .write_at(start + at, buf)
                .map_err(Failure::Host)
        })?;
        if !io.has_feature(F_FLUSH) {
            // Such a driver takes a completed write for a durable one (virtio 1.2 §5.2.5).
            self.backend.sync().map_err(Failure::Host)?;
        }
        count(&self.counters.writes, 1);
        count(&self.counters.written_bytes, len);
        Ok((S_OK, 0))
    }

    /// Calls `f` with offset and size of each piece of `len` bytes. A gate shut between two pieces
    /// ends the request: done again from its start later, it has the same effect.
    fn each_chunk(
        &mut self,
        io: &DeviceIo<'_>,
        len: u64,
        mut f: impl FnMut(&mut Self, u64, usize) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut at = 0;
        while at < len {
            if at > 0 && io.gated() {
                return Err(Failure::Gated);
            }
            let size = usize::try_from(len - at)
                .unwrap_or(CHUNK_BYTES)
                .min(CHUNK_BYTES);
            if self.buffer.len() < size {
                self.buffer.resize(size, 0);
            }
            f(self, at, size)?;
            at += size as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(u8, u64), Failure> {
        if !self.read_only {
            self.backend.sync().map_err(Failure::Host)?;
        }
        count(&self.counters.flushes, 1);
        Ok((S_OK, 0))
    }

    fn discard(&mut self, io: &DeviceIo<'_>, zero: bool) -> Result<(u8, u64), Failure> {
        let feature = if zero { F_WRITE_ZEROES } else { F_DISCARD };
        if !io.has_feature(feature) {
            return Ok((S_UNSUPP, 0));
        }
        let len = self.chain.readable_len() - HEADER_BYTES;
        if len == 0 || !len.is_multiple_of(RANGE_BYTES) || len / RANGE_BYTES > MAX_RANGES.into() {
            return Ok((S_IOERR, 0));
        }
        // The driver must see all ranges refused or all tried: check first, on a private copy.
        let mut ranges = [(0, 0, false); MAX_RANGES as usize];
        let ranges = &mut ranges[..usize::try_from(len / RANGE_BYTES).unwrap_or(0)];
        for (i, range) in ranges.iter_mut().enumerate() {
            let mut bytes = [0; RANGE_BYTES as usize];
            self.chain
                .read(io.mem(), HEADER_BYTES + i as u64 * RANGE_BYTES, &mut bytes)?;
            match self.check_range(bytes, zero) {
                Ok(checked) => *range = checked,
                Err(status) => return Ok((status, 0)),
            }
        }
        for &(offset, len, may_unmap) in ranges.iter() {
            let done = if zero {
                self.backend.write_zeroes(offset, len, may_unmap)
            } else {
                self.backend.discard(offset, len)
            };
            done.map_err(Failure::Host)?;
        }
        count(&self.counters.discards, 1);
        Ok((S_OK, 0))
    }

    /// Returns offset, length and may-unmap of one range, or the status that refuses it.
    fn check_range(
        &self,
        bytes: [u8; RANGE_BYTES as usize],
        zero: bool,
    ) -> Result<(u64, u64, bool), u8> {
        let [
            s0,
            s1,
            s2,
            s3,
            s4,
            s5,
            s6,
            s7,
            n0,
            n1,
            n2,
            n3,
            f0,
            f1,
            f2,
            f3,
        ] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let (max, flags_known) = if zero {
            (MAX_ZERO_SECTORS, RANGE_UNMAP)
        } else {
            (MAX_DISCARD_SECTORS, 0)
        };
        if flags & !flags_known != 0 {
            return Err(S_UNSUPP);
        }
        let len = u64::from(sectors) * SECTOR_BYTES;
        match self.offset_of(sector, len) {
            Some(offset) if sectors <= max && !self.read_only => Ok((offset, len, flags != 0)),
            _ => Err(S_IOERR),
        }
    }

    fn get_id(&mut self, io: &DeviceIo<'_>) -> Result<Outcome, Broken> {
        let room = usize::try_from(self.chain.writable_len() - 1).unwrap_or(usize::MAX);
        let len = room.min(ID_BYTES);
        self.chain.write(io.mem(), 0, &self.id[..len])?;
        Ok(Outcome::Done(S_OK, len as u64))
    }

    /// Writes the status byte and gives the request back.
    fn complete(&mut self, io: &mut DeviceIo<'_>, status: u8, written: u64) -> Result<(), Broken> {
        if status != S_OK {
            count(&self.counters.errors, 1);
        }
        self.chain
            .write(io.mem(), self.chain.writable_len() - 1, &[status])?;
        let used = u32::try_from(written + 1).unwrap_or(u32::MAX);
        io.complete(QUEUE, self.chain.head(), used)?;
        io.signal_used()
    }
}

impl<B: BlockBackend + 'static> VirtioDevice for Block<B> {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let always = 1 << F_SEG_MAX | 1 << F_BLK_SIZE | 1 << F_FLUSH;
        let by_mode = if self.read_only {
            1 << F_RO
        } else {
            1 << F_DISCARD | 1 << F_WRITE_ZEROES
        };
        always | by_mode
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.config.clone()
    }

    fn process(&mut self, _kicked: u64, io: &mut DeviceIo<'_>) -> Result<Progress, Broken> {
        if self.stalled {
            return Ok(Progress::Idle);
        }
        for _ in 0..REQUESTS_PER_TURN {
            if !io.pop(QUEUE, &mut self.chain, MAX_SEGMENTS)? {
                return Ok(Progress::Idle);
            }
            match self.serve(io)? {
                Outcome::Done(status, written) => self.complete(io, status, written)?,
                Outcome::Gated => {
                    io.unpop(QUEUE);
                    return Ok(Progress::Idle);
                }
                Outcome::NoSpace => {
                    io.unpop(QUEUE);
                    self.set_stalled(true);
                    self.events.send(BlockEvent::NoSpace);
                    return Ok(Progress::Idle);
                }
            }
        }
        Ok(Progress::More)
    }

    fn reset(&mut self) {
        self.set_stalled(false);
    }

    fn quiesce(&mut self) -> io::Result<()> {
        if self.read_only {
            Ok(())
        } else {
            self.backend.flush()
        }
    }

    fn save(&self) -> SavedDevice {
        SavedDevice::Block(SavedBlock {
            capacity_sectors: self.capacity_sectors,
            read_only: self.read_only,
        })
    }

    fn restore(&mut self, saved: &SavedDevice, _active: bool) -> Result<(), RestoreError> {
        let device_id = self.kind().id();
        let field = |field, value| {
            Err(RestoreError::Field {
                device_id,
                field,
                value,
            })
        };
        match saved {
            SavedDevice::Block(saved) if saved.capacity_sectors != self.capacity_sectors => {
                field("capacity_sectors", saved.capacity_sectors)
            }
            SavedDevice::Block(saved) if saved.read_only != self.read_only => {
                field("read_only", saved.read_only.into())
            }
            SavedDevice::Block(_) => Ok(()),
            _ => field("device", 0),
        }
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl<B: BlockBackend + 'static> Block<Option<B>> {
    /// Puts a medium into the empty slot. The driver learns the new size from the configuration:
    /// tell it with [`crate::WorkerGuard::config_changed`].
    pub fn insert(&mut self, medium: B) -> Result<(), InsertError> {
        if self.backend.is_some() {
            return Err(InsertError::Occupied);
        }
        if medium.read_only() != self.read_only {
            return Err(InsertError::ReadOnly);
        }
        self.capacity_sectors = medium.size() / SECTOR_BYTES;
        let bytes = config_bytes(&medium);
        for field in [
            0..8,
            config::DISCARD_ALIGNMENT..config::DISCARD_ALIGNMENT + 4,
        ] {
            self.config.set_field(field.start, &bytes[field]);
        }
        self.backend = Some(medium);
        Ok(())
    }
}

fn is_no_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn config_bytes(backend: &impl BlockBackend) -> Vec<u8> {
    let capacity_sectors = backend.size() / SECTOR_BYTES;
    let alignment = (backend.discard_granularity() / SECTOR_BYTES).clamp(1, 1 << 16);
    let mut bytes = vec![0; config::BYTES];
    bytes[..8].copy_from_slice(&capacity_sectors.to_le_bytes());
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(config::SEG_MAX, SEG_MAX);
    put(config::BLK_SIZE, 512);
    put(config::MAX_DISCARD_SECTORS, MAX_DISCARD_SECTORS);
    put(config::MAX_DISCARD_SEG, MAX_RANGES);
    put(
        config::DISCARD_ALIGNMENT,
        u32::try_from(alignment).unwrap_or(8),
    );
    put(config::MAX_ZERO_SECTORS, MAX_ZERO_SECTORS);
    put(config::MAX_ZERO_SEG, MAX_RANGES);
    bytes[config::ZERO_MAY_UNMAP] = 1;
    bytes
}
