//! Data breakpoints (SDM 3B 18.2): pages with one have no tags, so each access to them is looked at.

use super::Access;
use crate::Cpu;

/// The data breakpoints that DR7 enables.
#[derive(Debug, Default)]
pub(super) struct Watch {
    ranges: [Option<Range>; 4],
    /// Bits 3 to 0 of DR6 for accesses seen since the last instruction.
    hits: u64,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    len: u64,
    reads: bool,
}

impl Watch {
    /// Whether the page of `linear` has one.
    pub(super) fn covers_page(&self, linear: u64) -> bool {
        let mut ranges = self.ranges.iter().flatten();
        ranges.any(|range| range.start >> 12 == linear >> 12)
    }

    fn touch(&mut self, linear: u64, len: u64, access: Access) {
        for (number, range) in self.ranges.iter().enumerate() {
            let Some(range) = range else { continue };
            let wanted = range.reads || access == Access::Write;
            let apart = linear.wrapping_sub(range.start) >= range.len
                && range.start.wrapping_sub(linear) >= len;
            if wanted && !apart {
                self.hits |= 1 << number;
            }
        }
    }
}

impl Cpu {
    /// Takes over DR0 to DR3 and DR7.
    pub(crate) fn watch_registers_changed(&mut self) {
        let any_before = self.mmu.watch.ranges.iter().any(Option::is_some);
        for number in 0..4 {
            let enabled = self.dr7 >> (2 * number) & 3 != 0;
            let kind = self.dr7 >> (16 + 4 * number) & 3;
            let len = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * number) & 3) as usize];
            let data = enabled && matches!(kind, 1 | 3);
            self.mmu.watch.ranges[number] = data.then(|| Range {
                start: self.debug_address[number] & !(len - 1),
                len,
                reads: kind == 3,
            });
        }
        if any_before || self.mmu.watch.ranges.iter().any(Option::is_some) {
            self.flush_tlb();
        }
    }

    /// Records an access for the data breakpoints.
    #[inline]
    pub(super) fn touch(&mut self, linear: u64, len: u64, access: Access) {
        if self.mmu.watch.ranges.iter().any(Option::is_some) {
            self.mmu.watch.touch(linear, len, access);
        }
    }

    /// Returns the data breakpoints hit since the last call, as bits of DR6.
    pub(crate) fn take_watch_hits(&mut self) -> u64 {
        std::mem::take(&mut self.mmu.watch.hits)
    }
}
