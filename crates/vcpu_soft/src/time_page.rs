//! The paravirtual clock of KVM as the guest sees it: one page entry for each processor and the wall
//! clock (Linux `Documentation/virt/kvm/x86/msr.rst`, MSRs 0x4b564d00 and 0x4b564d01).

use std::sync::atomic::{Ordering, fence};

use x86_cpu::Ram;

use crate::clock::{self, Scale, View};

/// Enabled, in the MSR of the time page.
const ENABLED: u64 = 1;
const FLAG_STABLE: u32 = 1;
const FLAG_STOPPED: u32 = 2;
/// Words of the entry: version, padding, counter, time, multiplier, shift and flags.
const WORD_LAST: u64 = 7;

/// The time page of one processor.
#[derive(Debug, Default)]
pub(crate) struct TimePage {
    /// Where it is, with bit 0 set when it is in use.
    msr: u64,
    /// Number of the VM's time that it shows, and whose adjustment.
    shows: Option<(u64, u64)>,
    /// The processor stood still since the last update.
    stopped: bool,
}

impl TimePage {
    pub(crate) fn msr(&self) -> u64 {
        self.msr
    }

    /// Takes a write to the MSR.
    pub(crate) fn set_msr(&mut self, value: u64) {
        self.msr = value;
        self.shows = None;
    }

    /// Notes that the processor stood still.
    pub(crate) fn note_stun(&mut self) {
        self.stopped = self.msr & ENABLED != 0;
    }

    /// Brings the page up to date where it is not.
    pub(crate) fn update(&mut self, ram: &Ram, time: &View, adjustment: u64) {
        let wanted = (time.generation(), adjustment);
        if self.msr & ENABLED == 0 || (self.shows == Some(wanted) && !self.stopped) {
            return;
        }
        self.shows = Some(wanted);
        let at = self.msr & !(ENABLED | 2);
        let word = |index: u64| at.wrapping_add(4 * index);
        // A page outside RAM is the guest's loss.
        let (Some(version), Some(last)) = (ram.read_word(at), ram.read_word(word(WORD_LAST)))
        else {
            return;
        };
        let Scale { multiplier, shift } = Scale::of(time.khz());
        let reference = time.reference_ns();
        let counter = time.tsc_at(reference).wrapping_add(adjustment);
        let now = time.clock_at(reference);
        // What the guest has not seen yet of an earlier standstill stays.
        let mut flags = last >> 8 & FLAG_STOPPED;
        if adjustment == 0 {
            flags |= FLAG_STABLE;
        }
        if std::mem::take(&mut self.stopped) {
            flags |= FLAG_STOPPED;
        }
        let words = [
            (2, counter as u32),
            (3, (counter >> 32) as u32),
            (4, now as u32),
            (5, (now >> 32) as u32),
            (6, multiplier),
            (WORD_LAST, u32::from(shift.cast_unsigned()) | flags << 8),
        ];
        write_versioned(
            ram,
            at,
            version,
            &words.map(|(index, value)| (word(index), value)),
        );
    }
}

/// Writes words behind a version at `at` that is odd while they change.
fn write_versioned(ram: &Ram, at: u64, version: u32, words: &[(u64, u32)]) {
    let odd = version | 1;
    ram.write_word(at, odd);
    fence(Ordering::SeqCst);
    for (at, value) in words {
        ram.write_word(*at, *value);
    }
    fence(Ordering::SeqCst);
    ram.write_word(at, odd.wrapping_add(1));
}

/// Writes the wall clock: the time of day at which the paravirtual clock was 0.
pub(crate) fn write_wall_clock(ram: &Ram, at: u64, time: &View) {
    let at = at & !3;
    let Some(version) = ram.read_word(at) else {
        return;
    };
    let booted = clock::time_of_day_ns().wrapping_sub(time.clock_at(clock::now_ns()));
    let (seconds, rest) = (booted / 1_000_000_000, booted % 1_000_000_000);
    let words = [
        (at.wrapping_add(4), seconds as u32),
        (at.wrapping_add(8), rest as u32),
    ];
    write_versioned(ram, at, version, &words);
}

#[cfg(test)]
mod tests {
    use x86_cpu::RamSlot;

    use super::*;
    use crate::clock::VmTime;

    struct Memory {
        ram: Ram,
        _bytes: Vec<u64>,
    }

    fn memory() -> Memory {
        let bytes = vec![0_u64; 2 * 512 + 512];
        let start = (bytes.as_ptr() as u64).next_multiple_of(4096);
        let ram = Ram::new(&[RamSlot {
            gpa: 0,
            host_address: start,
            len: 8192,
        }]);
        Memory { ram, _bytes: bytes }
    }

    fn words(ram: &Ram, at: u64) -> [u32; 8] {
        std::array::from_fn(|index| ram.read_word(at + 4 * index as u64).unwrap())
    }

    #[test]
    fn the_page_shows_the_time_of_its_reference() {
        let memory = memory();
        let time = VmTime::new();
        time.load_clock(5_000_000_000);
        let view = time.view();
        let mut page = TimePage::default();
        page.set_msr(0x1040 | 1);
        page.update(&memory.ram, &view, 0);
        let [version, _, t0, t1, n0, n1, multiplier, last] = words(&memory.ram, 0x1040);
        assert_eq!(version, 2);
        let reference = view.reference_ns();
        assert_eq!(u64::from(t0) | u64::from(t1) << 32, view.tsc_at(reference));
        assert_eq!(
            u64::from(n0) | u64::from(n1) << 32,
            view.clock_at(reference)
        );
        assert_eq!((multiplier, last), (1 << 31, 1 | FLAG_STABLE << 8));
        // Nothing changed, nothing is written.
        page.update(&memory.ram, &view, 0);
        assert_eq!(words(&memory.ram, 0x1040)[0], 2);
        page.note_stun();
        page.update(&memory.ram, &view, 0);
        let after = words(&memory.ram, 0x1040);
        assert_eq!((after[0], after[7] >> 8), (4, FLAG_STABLE | FLAG_STOPPED));
    }

    #[test]
    fn a_page_outside_ram_is_ignored() {
        let memory = memory();
        let view = VmTime::new().view();
        for msr in [u64::MAX, 0x10_0001, 8190 | 1] {
            let mut page = TimePage::default();
            page.set_msr(msr);
            page.update(&memory.ram, &view, 0);
            write_wall_clock(&memory.ram, msr, &view);
        }
    }

    #[test]
    fn the_wall_clock_is_the_time_of_boot() {
        let memory = memory();
        let view = VmTime::new().view();
        write_wall_clock(&memory.ram, 0x20, &view);
        let shown = words(&memory.ram, 0x20);
        let now = clock::time_of_day_ns() / 1_000_000_000;
        assert_eq!(shown[0], 2);
        assert!(now.abs_diff(shown[1].into()) <= 2);
    }
}
