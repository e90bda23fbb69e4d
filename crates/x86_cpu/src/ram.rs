//! Guest RAM as the processor reaches it.

#![expect(unsafe_code, reason = "guest RAM is reached by host address")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::mmu::CodePages;

/// A range of guest RAM in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamSlot {
    /// Guest-physical start, a multiple of 4 KiB.
    pub gpa: u64,
    /// Host address of the first byte; stays valid and mapped for the life of the VM.
    pub host_address: u64,
    /// Length, bytes, a multiple of 4 KiB.
    pub len: u64,
}

/// All RAM of a VM, shared by its processors: clones are the same RAM.
///
/// It is made once for each VM, because it also knows which pages hold translated code.
#[derive(Clone, Debug)]
pub struct Ram {
    slots: Arc<[RamSlot]>,
    code: Arc<CodePages>,
}

impl Ram {
    /// Makes RAM of `slots`.
    ///
    /// Their memory must stay mapped, readable and writable while a processor uses it; it belongs to
    /// the guest, so nothing of Rust's is in it. Addresses and lengths are rounded inwards to whole
    /// pages.
    pub fn new(slots: &[RamSlot]) -> Self {
        let whole_pages = |slot: &RamSlot| {
            let skip = slot.gpa.wrapping_neg() & 0xfff;
            RamSlot {
                gpa: slot.gpa + skip,
                host_address: slot.host_address + skip,
                len: slot.len.saturating_sub(skip) & !0xfff,
            }
        };
        let slots: Arc<[RamSlot]> = slots.iter().map(whole_pages).collect();
        let pages = slots.iter().map(|slot| slot.len >> 12).sum::<u64>();
        Self {
            code: Arc::new(CodePages::new(pages as usize)),
            slots,
        }
    }

    /// Returns the host address of the 4 KiB page at `gpa`, or `None` where it is no RAM.
    pub fn page(&self, gpa: u64) -> Option<u64> {
        let page = gpa & !0xfff;
        let slot = self
            .slots
            .iter()
            .find(|slot| page >= slot.gpa && page - slot.gpa < slot.len)?;
        Some(slot.host_address + (page - slot.gpa))
    }

    /// Reads four bytes of RAM at `gpa`, a multiple of 4, or returns `None` where it is no RAM.
    pub fn read_word(&self, gpa: u64) -> Option<u32> {
        self.read32(gpa).filter(|_| gpa & 3 == 0)
    }

    /// Writes four bytes of RAM at `gpa`, a multiple of 4, as a device does; elsewhere nothing.
    pub fn write_word(&self, gpa: u64, value: u32) {
        if let Some(word) = self.entry32(gpa).filter(|_| gpa & 3 == 0) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Returns the number of the page at `gpa` among all pages of RAM.
    pub(crate) fn page_number(&self, gpa: u64) -> Option<usize> {
        let mut before = 0;
        for slot in self.slots.iter() {
            if gpa >= slot.gpa && gpa - slot.gpa < slot.len {
                return Some((before + ((gpa - slot.gpa) >> 12)) as usize);
            }
            before += slot.len >> 12;
        }
        None
    }

    /// Returns the record of pages with code.
    pub(crate) fn code(&self) -> &Arc<CodePages> {
        &self.code
    }

    /// Returns the eight bytes at `gpa`, a multiple of 8, as an atomic of the host.
    pub(crate) fn entry64(&self, gpa: u64) -> Option<&AtomicU64> {
        let host = self.page(gpa)? + (gpa & 0xff8);
        // SAFETY: `page` returned the host address of a whole page that stays mapped while `self`
        // is used (condition of `new`), the offset keeps the eight bytes in it and aligned, and
        // guest RAM is only accessed by volatile or atomic operations.
        Some(unsafe { AtomicU64::from_ptr(host as *mut u64) })
    }

    /// Returns the four bytes at `gpa`, a multiple of 4, as an atomic of the host.
    pub(crate) fn entry32(&self, gpa: u64) -> Option<&AtomicU32> {
        let host = self.page(gpa)? + (gpa & 0xffc);
        // SAFETY: as in `entry64`.
        Some(unsafe { AtomicU32::from_ptr(host as *mut u32) })
    }

    /// Reads eight bytes of RAM at `gpa`, a multiple of 8.
    pub(crate) fn read64(&self, gpa: u64) -> Option<u64> {
        Some(self.entry64(gpa)?.load(Ordering::Relaxed))
    }

    /// Reads four bytes of RAM at `gpa`, a multiple of 4.
    pub(crate) fn read32(&self, gpa: u64) -> Option<u32> {
        Some(self.entry32(gpa)?.load(Ordering::Relaxed))
    }
}
