//! The balloon device.

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use tracing::debug;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::regs::*;
use super::saved::SavedBalloon;
use crate::config_space::ConfigSpace;
use crate::device::{DeviceIo, DeviceKind, Progress, VirtioDevice};
use crate::queue::{Broken, Chain, GuestRam};
use crate::saved::{RestoreError, SavedDevice};

/// Chains handled before other devices have their turn.
const CHAINS_PER_TURN: usize = 16;
/// Page numbers read from a chain at once.
const PAGES_PER_READ: usize = 1024;
/// Most bytes of page numbers in one chain: 1 GiB of guest memory.
const CHAIN_BYTES_MAX: u64 = 1 << 20;

/// Takes guest memory back. Supplied by whoever owns the guest's RAM, who knows whether a hole in
/// a shared file or dropping private pages is right.
pub trait ReclaimRam: Send + Debug {
    /// Gives `len` bytes at `gpa` back to the host; the guest may read anything there afterwards.
    /// Both are multiples of 4 KiB and inside guest memory.
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()>;
}

/// A memory balloon with free page reporting.
#[derive(Debug)]
pub struct Balloon {
    config: Arc<ConfigSpace>,
    ram: Box<dyn ReclaimRam>,
    target_changed: bool,
    reclaimed_bytes: u64,
    chain: Chain,
    pages: Vec<u32>,
}

impl Balloon {
    /// Returns an empty balloon that gives memory back through `ram`.
    pub fn new(ram: Box<dyn ReclaimRam>) -> Self {
        let driver_writable = config::ACTUAL..config::BYTES;
        Self {
            config: Arc::new(ConfigSpace::new(vec![0; config::BYTES], driver_writable)),
            ram,
            target_changed: false,
            reclaimed_bytes: 0,
            chain: Chain::default(),
            pages: Vec::new(),
        }
    }

    /// Asks the guest to give up `pages` pages of 4 KiB in all.
    pub fn set_target_pages(&mut self, pages: u32) {
        self.target_changed |= self
            .config
            .set_field(config::NUM_PAGES, &pages.to_le_bytes());
    }

    /// Size that the host asked for, pages of 4 KiB.
    pub fn target_pages(&self) -> u32 {
        u32::from_le_bytes(self.config.field(config::NUM_PAGES))
    }

    /// Size that the guest reports, pages of 4 KiB. It is the guest's word.
    pub fn actual_pages(&self) -> u32 {
        u32::from_le_bytes(self.config.field(config::ACTUAL))
    }

    /// Bytes given back to the host since the device was made.
    pub fn reclaimed_bytes(&self) -> u64 {
        self.reclaimed_bytes
    }

    fn discard(&mut self, mem: &GuestRam, gpa: u64, len: u64) {
        let in_ram = usize::try_from(len)
            .is_ok_and(|len| GuestMemoryBackend::check_range(mem, GuestAddress(gpa), len));
        if len == 0 || !in_ram {
            return;
        }
        match self.ram.discard(gpa, len) {
            Ok(()) => self.reclaimed_bytes += len,
            Err(error) => debug!(gpa, len, %error, "cannot give guest memory back"),
        }
    }

    /// The chain holds 32-bit numbers of pages that the guest gives up.
    fn inflate(&mut self, mem: &GuestRam) -> Result<(), Broken> {
        let len = self.chain.readable_len();
        if len > CHAIN_BYTES_MAX {
            let rule = "names more than 1 GiB of pages";
            return Err(Broken::Chain {
                queue: INFLATE,
                head: self.chain.head(),
                rule,
            });
        }
        let mut at = 0;
        let mut bytes = [0; PAGES_PER_READ * 4];
        while at + 4 <= len {
            let take = usize::try_from((len - at) & !3)
                .unwrap_or(bytes.len())
                .min(bytes.len());
            self.chain.read(mem, at, &mut bytes[..take])?;
            at += take as u64;
            let numbers = bytes[..take].chunks_exact(4);
            let mut pages = std::mem::take(&mut self.pages);
            pages.clear();
            pages.extend(numbers.map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]])));
            pages.sort_unstable();
            pages.dedup();
            for run in pages.chunk_by(|a, b| a + 1 == *b) {
                self.discard_pages(mem, run);
            }
            self.pages = pages;
        }
        Ok(())
    }

    fn discard_pages(&mut self, mem: &GuestRam, run: &[u32]) {
        let Some(&first) = run.first() else { return };
        let gpa = u64::from(first) * PAGE_BYTES;
        let len = run.len() as u64 * PAGE_BYTES;
        if usize::try_from(len)
            .is_ok_and(|len| GuestMemoryBackend::check_range(mem, GuestAddress(gpa), len))
        {
            self.discard(mem, gpa, len);
        } else {
            // A run that leaves RAM somewhere: its good pages count one by one.
            for &page in run {
                self.discard(mem, u64::from(page) * PAGE_BYTES, PAGE_BYTES);
            }
        }
    }

    /// The chain's writable segments are free pages that the guest does not need for a while.
    fn report(&mut self, mem: &GuestRam) {
        for i in 0..self.chain.writable().len() {
            let segment = self.chain.writable()[i];
            let start = segment.gpa.next_multiple_of(PAGE_BYTES);
            let end = (segment.gpa + u64::from(segment.len)) / PAGE_BYTES * PAGE_BYTES;
            self.discard(mem, start, end.saturating_sub(start));
        }
    }

    fn take_chain(&mut self, io: &mut DeviceIo<'_>) -> Result<bool, Broken> {
        if io.pop(INFLATE, &mut self.chain, MAX_SEGMENTS)? {
            self.inflate(io.mem())?;
            io.complete(INFLATE, self.chain.head(), 0)?;
            return Ok(true);
        }
        if io.pop(DEFLATE, &mut self.chain, MAX_SEGMENTS)? {
            // The guest takes its pages back by touching them.
            io.complete(DEFLATE, self.chain.head(), 0)?;
            return Ok(true);
        }
        for queue in REPORTING {
            if io.has_feature(F_REPORTING) && io.pop(queue, &mut self.chain, MAX_SEGMENTS)? {
                self.report(io.mem());
                io.complete(queue, self.chain.head(), 0)?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << F_DEFLATE_ON_OOM | 1 << F_REPORTING
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.config.clone()
    }

    fn process(&mut self, _kicked: u64, io: &mut DeviceIo<'_>) -> Result<Progress, Broken> {
        if std::mem::take(&mut self.target_changed) {
            io.signal_config();
        }
        for _ in 0..CHAINS_PER_TURN {
            if !self.take_chain(io)? {
                return Ok(Progress::Idle);
            }
        }
        Ok(Progress::More)
    }

    fn reset(&mut self) {
        self.config.set_field(config::ACTUAL, &[0; 4]);
    }

    fn save(&self) -> SavedDevice {
        SavedDevice::Balloon(SavedBalloon {
            target_pages: self.target_pages(),
            actual_pages: self.actual_pages(),
        })
    }

    fn restore(&mut self, saved: &SavedDevice, _active: bool) -> Result<(), RestoreError> {
        let SavedDevice::Balloon(saved) = saved else {
            let device_id = self.kind().id();
            return Err(RestoreError::Field {
                device_id,
                field: "device",
                value: 0,
            });
        };
        self.config
            .set_field(config::NUM_PAGES, &saved.target_pages.to_le_bytes());
        self.config
            .set_field(config::ACTUAL, &saved.actual_pages.to_le_bytes());
        Ok(())
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
