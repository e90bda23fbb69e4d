//! Model-specific registers that the processor does not hold itself.

use crate::clock;
use crate::platform::Platform;
use crate::time_page;
use vcpu::GuestIo;

pub(crate) const TSC: u32 = 0x10;
pub(crate) const APIC_BASE: u32 = 0x1b;
pub(crate) const TSC_ADJUST: u32 = 0x3b;
pub(crate) const TSC_DEADLINE: u32 = 0x6e0;
pub(crate) const WALL_CLOCK: u32 = 0x4b56_4d00;
pub(crate) const TIME_PAGE: u32 = 0x4b56_4d01;
const X2APIC: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;
/// Version of the processor's own program: there is none.
const MICROCODE: u32 = 0x8b;

/// Machine checks without a bank, and registers of AMD's family that kernels read or write without
/// asking CPUID: performance counters, configuration of caches, bus and power. They read as zero and
/// take nothing.
const SILENT: &[std::ops::RangeInclusive<u32>] = &[
    0x179..=0x17b,
    0x1d9..=0x1d9,
    0x1db..=0x1de,
    0xc001_0000..=0xc001_0007,
    0xc001_0010..=0xc001_001f,
    0xc001_0030..=0xc001_0035,
    0xc001_0044..=0xc001_0048,
    0xc001_0050..=0xc001_0058,
    0xc001_0061..=0xc001_006f,
    0xc001_0114..=0xc001_0115,
    0xc001_1004..=0xc001_1005,
    0xc001_100c..=0xc001_100d,
    0xc001_1020..=0xc001_102c,
];

/// Registers that hold what was written and do nothing: HWCR and the decoder's configuration, in
/// which kernels set bits and look whether they stay.
pub(crate) const PLAIN: [u32; 2] = [0xc001_0015, 0xc001_1029];

fn is_silent(index: u32) -> bool {
    index == MICROCODE || SILENT.iter().any(|range| range.contains(&index))
}

impl Platform {
    /// Reads register `index`; `None` is a #GP.
    pub(crate) fn msr_read(&mut self, index: u32) -> Option<u64> {
        let now = clock::now_ns();
        match index {
            TSC => Some(self.tsc_at(now)),
            TSC_ADJUST => Some(self.tsc_adjustment),
            TSC_DEADLINE => Some(self.apic.tsc_deadline()),
            APIC_BASE => Some(self.apic.base()),
            WALL_CLOCK => Some(self.wall_clock),
            TIME_PAGE => Some(self.time_page.msr()),
            _ if X2APIC.contains(&index) => self.apic.msr_read(index, now),
            _ => {
                let plain = PLAIN.iter().zip(self.plain).find(|(i, _)| **i == index);
                plain
                    .map(|(_, value)| value)
                    .or_else(|| self.mtrrs.read(index))
                    .or_else(|| is_silent(index).then_some(0))
            }
        }
    }

    /// Writes register `index`; `false` is a #GP.
    pub(crate) fn msr_write(&mut self, index: u32, value: u64, io: &dyn GuestIo) -> bool {
        let now = clock::now_ns();
        match index {
            TSC => {
                let change = value.wrapping_sub(self.tsc_at(now));
                self.adjust_tsc(self.tsc_adjustment.wrapping_add(change));
            }
            TSC_ADJUST => self.adjust_tsc(value),
            TSC_DEADLINE => {
                let at = self.time.time_of_tsc(value, self.tsc_adjustment, now);
                self.apic.set_tsc_deadline(value, at);
            }
            APIC_BASE => return self.apic.set_base(value),
            WALL_CLOCK => {
                self.wall_clock = value;
                time_page::write_wall_clock(&self.ram, value, &self.time);
            }
            TIME_PAGE => {
                self.time_page.set_msr(value);
                self.update_time_page();
            }
            _ if X2APIC.contains(&index) => return self.apic.msr_write(index, value, now, io),
            _ => {
                let plain = PLAIN.iter().zip(&mut self.plain);
                if let Some((_, held)) = plain.into_iter().find(|(i, _)| **i == index) {
                    *held = value;
                    return true;
                }
                let taken = self.mtrrs.write(index, value);
                return taken.unwrap_or_else(|| is_silent(index));
            }
        }
        true
    }
}
