//! Guest time: the time-stamp counter and the paravirtual clock, both made of the host's
//! `CLOCK_MONOTONIC`, so that they never drift apart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::time::{ClockId, clock_gettime};

/// Frequency of the time-stamp counter of a VM that this engine boots, kHz: one tick is one
/// nanosecond.
pub(crate) const TSC_KHZ: u32 = 1_000_000;
/// Counters that differ by less when they are loaded belong together, nanoseconds: they were saved
/// one after the other.
const TOGETHER_NS: u64 = 1_000_000_000;

/// Returns `CLOCK_MONOTONIC`, nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Returns the host's time of day: nanoseconds since 1970.
pub(crate) fn time_of_day_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// Turns nanoseconds into ticks of a counter of `khz`.
pub(crate) fn ticks_of(ns: u64, khz: u32) -> u64 {
    if khz == TSC_KHZ {
        return ns;
    }
    (u128::from(ns) * u128::from(khz) / 1_000_000) as u64
}

/// Turns ticks of a counter of `khz` into nanoseconds, rounded up; the longest time where they are
/// more than fit.
pub(crate) fn ns_of(ticks: u64, khz: u32) -> u64 {
    if khz == TSC_KHZ {
        return ticks;
    }
    let ns = (u128::from(ticks) * 1_000_000).div_ceil(u128::from(khz.max(1)));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// How ticks become nanoseconds in the guest: `((ticks << shift) * multiplier) >> 32`, where a
/// negative shift goes to the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale {
    pub(crate) multiplier: u32,
    pub(crate) shift: i8,
}

impl Scale {
    /// The most exact scale for `khz`.
    pub(crate) fn of(khz: u32) -> Self {
        // Nanoseconds per tick as multiplier / 2^32 * 2^shift, the multiplier's top bit set.
        let khz = u128::from(khz.max(1));
        let mut shift = -31_i8;
        loop {
            // shift <= 21, since a tick of 1 kHz is 10^6 ns
            let power = u32::try_from(32 - i32::from(shift)).unwrap_or(0);
            let multiplier = (1_000_000_u128 << power) / khz;
            if let Ok(multiplier) = u32::try_from(multiplier) {
                return Self { multiplier, shift };
            }
            shift += 1;
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Origin {
    khz: u32,
    /// Counter = ticks of `CLOCK_MONOTONIC` + this, wrapping.
    tsc_offset: u64,
    /// The highest counter that was loaded since the VM was made.
    loaded: Option<u64>,
    /// Paravirtual clock = `CLOCK_MONOTONIC` + this, wrapping.
    clock_offset_ns: u64,
    /// When the last change was, of `CLOCK_MONOTONIC`.
    changed_ns: u64,
    /// Grows with each change.
    generation: u64,
}

impl Origin {
    fn change(&mut self) {
        self.changed_ns = now_ns();
        self.generation += 1;
    }
}

/// A copy of a VM's time for one processor, valid for one generation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    origin: Origin,
}

impl View {
    /// Ticks a second, thousands.
    pub(crate) fn khz(&self) -> u32 {
        self.origin.khz
    }

    /// Number of the VM's time that this is a copy of.
    pub(crate) fn generation(&self) -> u64 {
        self.origin.generation
    }

    /// The instant that the time pages of all processors name.
    pub(crate) fn reference_ns(&self) -> u64 {
        self.origin.changed_ns
    }

    /// The counter, without any processor's own adjustment, at `ns` of [`now_ns`].
    pub(crate) fn tsc_at(&self, ns: u64) -> u64 {
        ticks_of(ns, self.origin.khz).wrapping_add(self.origin.tsc_offset)
    }

    /// The paravirtual clock at `ns` of [`now_ns`].
    pub(crate) fn clock_at(&self, ns: u64) -> u64 {
        ns.wrapping_add(self.origin.clock_offset_ns)
    }

    /// When, in [`now_ns`], the counter of a processor with `adjustment` reaches `tsc`.
    pub(crate) fn time_of_tsc(&self, tsc: u64, adjustment: u64, now_ns: u64) -> u64 {
        let now = self.tsc_at(now_ns).wrapping_add(adjustment);
        let ahead = tsc.wrapping_sub(now);
        // A deadline that has passed is a short way back, not a long way ahead.
        if ahead.cast_signed() <= 0 {
            return now_ns;
        }
        now_ns.saturating_add(ns_of(ahead, self.origin.khz))
    }
}

/// The time of one VM.
#[derive(Debug)]
pub(crate) struct VmTime {
    origin: Mutex<Origin>,
    /// The instant at which the last processor was saved; 0 while they run. The clock is saved as
    /// of it, or the guest would see it part from the counter.
    saved_ns: AtomicU64,
}

impl VmTime {
    /// Time of a VM that is made now: both clocks start at 0.
    pub(crate) fn new() -> Self {
        let now = now_ns();
        let origin = Mutex::new(Origin {
            khz: TSC_KHZ,
            tsc_offset: ticks_of(now, TSC_KHZ).wrapping_neg(),
            loaded: None,
            clock_offset_ns: now.wrapping_neg(),
            changed_ns: now,
            generation: 0,
        });
        Self {
            origin,
            saved_ns: AtomicU64::new(0),
        }
    }

    /// The instant as of which a processor that stands still is saved.
    pub(crate) fn save_processor_ns(&self) -> u64 {
        let now = now_ns();
        self.saved_ns.fetch_max(now, Ordering::SeqCst);
        now
    }

    /// The paravirtual clock, as of the instant at which the last processor was saved.
    pub(crate) fn save_clock(&self) -> u64 {
        let saved = self.saved_ns.load(Ordering::SeqCst);
        let at = if saved == 0 { now_ns() } else { saved };
        self.view().clock_at(at)
    }

    /// A processor runs.
    pub(crate) fn running(&self) {
        self.saved_ns.store(0, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Origin> {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a copy.
    pub(crate) fn view(&self) -> View {
        View {
            origin: *self.lock(),
        }
    }

    /// Makes the counter go on from `tsc` at a rate of `khz`.
    ///
    /// Processors are saved and loaded one after the other, so that their values differ by the time
    /// that took: the VM's counter becomes the one that is furthest ahead, and the guest sees it go
    /// back nowhere. Returns the adjustment of a processor whose value does not belong to it.
    pub(crate) fn load_tsc(&self, tsc: u64, khz: u32) -> u64 {
        let mut origin = self.lock();
        let now = now_ns();
        let offset = tsc.wrapping_sub(ticks_of(now, khz));
        let first = origin.loaded.is_none() || origin.khz != khz;
        let ahead = offset.wrapping_sub(origin.tsc_offset).cast_signed();
        if !first && ahead.unsigned_abs() > ticks_of(TOGETHER_NS, khz) {
            return ahead.cast_unsigned();
        }
        let highest = origin.loaded.filter(|_| !first).unwrap_or(tsc);
        origin.loaded = Some(highest.max(tsc));
        if first || ahead > 0 {
            origin.tsc_offset = offset;
            origin.khz = khz;
            origin.change();
        }
        0
    }

    /// Makes the paravirtual clock go on from `ns`.
    pub(crate) fn load_clock(&self, ns: u64) {
        let mut origin = self.lock();
        let now = now_ns();
        // It was saved with the highest of the counters and has gone on as they have.
        let since = origin.loaded.map_or(0, |highest| {
            let counter = ticks_of(now, origin.khz).wrapping_add(origin.tsc_offset);
            ns_of(counter.saturating_sub(highest), origin.khz)
        });
        origin.clock_offset_ns = ns.wrapping_add(since).wrapping_sub(now);
        origin.change();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scaled(ticks: u64, scale: Scale) -> u64 {
        let shifted = if scale.shift < 0 {
            ticks >> -scale.shift
        } else {
            ticks << scale.shift
        };
        ((u128::from(shifted) * u128::from(scale.multiplier)) >> 32) as u64
    }

    proptest! {
        #[test]
        fn the_guests_arithmetic_is_the_hosts(khz in 1000_u32..6_000_000, ns in 0_u64..1 << 40) {
            let ticks = ticks_of(ns, khz);
            let guest = scaled(ticks, Scale::of(khz));
            prop_assert!(guest.abs_diff(ns) <= 2000 + ns / 500_000_000, "{guest} {ns}");
        }

        #[test]
        fn ticks_and_time_are_inverse(khz in 1000_u32..6_000_000, ticks in 0_u64..1 << 50) {
            prop_assert!(ticks_of(ns_of(ticks, khz), khz) >= ticks);
            prop_assert!(ticks_of(ns_of(ticks, khz), khz) - ticks <= u64::from(khz) / 1_000_000 + 1);
        }

        #[test]
        fn a_scale_exists_for_each_rate(khz in any::<u32>()) {
            prop_assert!(Scale::of(khz).multiplier > 0);
        }
    }

    #[test]
    fn a_tick_of_a_nanosecond_is_exact() {
        assert_eq!(scaled(123_456_789, Scale::of(TSC_KHZ)), 123_456_789);
    }

    #[test]
    fn counters_saved_one_after_the_other_become_one_that_never_goes_back() {
        let time = VmTime::new();
        assert_eq!(time.load_tsc(5_000_000_000, 2_000_000), 0);
        assert_eq!(time.load_tsc(5_000_300_000, 2_000_000), 0);
        assert_eq!(time.load_tsc(5_000_100_000, 2_000_000), 0);
        assert!(time.view().tsc_at(now_ns()) >= 5_000_300_000);
        // One that the guest itself had set apart stays apart.
        let apart = time.load_tsc(1 << 60, 2_000_000);
        let read = time.view().tsc_at(now_ns()).wrapping_add(apart);
        assert!((1 << 60..(1 << 60) + 20_000_000_000).contains(&read));
    }

    #[test]
    fn a_deadline_in_the_past_is_now() {
        let view = VmTime::new().view();
        let now = now_ns();
        let tsc = view.tsc_at(now);
        assert_eq!(view.time_of_tsc(tsc.wrapping_sub(7), 0, now), now);
        assert_eq!(view.time_of_tsc(tsc + 7, 0, now), now + 7);
        assert_eq!(view.time_of_tsc(tsc + 7, 3, now), now + 4);
    }

    #[test]
    fn counter_and_clock_stay_together_over_a_save() {
        let apart = |time: &VmTime| {
            let (view, now) = (time.view(), now_ns());
            view.clock_at(now).wrapping_sub(view.tsc_at(now))
        };
        let time = VmTime::new();
        time.load_clock(9_000_000_000);
        let pause = || std::thread::sleep(std::time::Duration::from_millis(2));
        let save = || time.view().tsc_at(time.save_processor_ns());
        let (first, _, second) = (save(), pause(), save());
        pause();
        let clock = time.save_clock();
        let other = VmTime::new();
        for tsc in [second, first] {
            other.load_tsc(tsc, TSC_KHZ);
            pause();
        }
        other.load_clock(clock);
        assert_eq!(apart(&other), apart(&time));
        time.running();
        assert!(time.save_clock() > clock);
    }

    #[test]
    fn the_clock_goes_on_from_where_it_was() {
        let time = VmTime::new();
        time.load_clock(77_000_000_000);
        let read = time.view().clock_at(now_ns());
        assert!((77_000_000_000..78_000_000_000).contains(&read));
    }
}
