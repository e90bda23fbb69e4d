//! Keeps the guest's two clocks together over a save: the time-stamp counter, which each vCPU
//! thread saves and loads by itself, and the paravirtual clock of the VM.
//!
//! Linux compares them twice a second and gives the counter up for good when they part by half a
//! millisecond (`kernel/time/clocksource.c`, `WATCHDOG_MAX_SKEW`). So a saved state has both as of
//! one instant, and at the load the clock is set to where the counter has gone since, however long
//! lay between. The host's `CLOCK_MONOTONIC` says how far apart two such instants are.

use std::sync::{Mutex, PoisonError};

use kvm_bindings::kvm_clock_data;
use kvm_ioctls::VmFd;
use rustix::time::{ClockId, clock_gettime};
use vcpu::{EngineError, VcpuState, VmClock};

use crate::failed;

/// The time-stamp counter (SDM 3B 19.17).
pub(crate) const MSR_TSC: u32 = 0x10;
/// A reading that took longer than this is tried again, nanoseconds: the thread lost its processor
/// in the middle of it.
pub(crate) const PROMPT_NS: u64 = 50_000;
/// Most readings of which the promptest is taken.
pub(crate) const TRIES: u32 = 8;

/// Returns the host's `CLOCK_MONOTONIC`, nanoseconds.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(now.tv_nsec as u64)
}

/// Does `read` between two looks at the host's clock, again where it took long, and returns the
/// promptest with the time before it and how long it took, nanoseconds.
pub(crate) fn promptly<T>(
    mut read: impl FnMut() -> Result<T, EngineError>,
) -> Result<(T, u64, u64), EngineError> {
    let mut best: Option<(T, u64, u64)> = None;
    for _ in 0..TRIES {
        let from = now_ns();
        let value = read()?;
        let took = now_ns().saturating_sub(from);
        if best.as_ref().is_none_or(|(_, _, least)| took < *least) {
            best = Some((value, from, took));
        }
        if took <= PROMPT_NS {
            break;
        }
    }
    best.ok_or(EngineError::Missing("a reading of the clock"))
}

/// What the counter of a loaded vCPU has gone through.
#[derive(Clone, Copy, Debug)]
struct Loaded {
    /// The counter in the state, ticks.
    saved: u64,
    /// The counter now, ticks, at `at_ns` of [`now_ns`].
    tsc: u64,
    at_ns: u64,
    khz: u32,
}

impl Loaded {
    /// Nanoseconds from the saved instant until `now_ns`.
    fn progress_ns(&self, now_ns: u64) -> u64 {
        let ticks = u128::from(self.tsc.saturating_sub(self.saved));
        let counted = ticks * 1_000_000 / u128::from(self.khz.max(1));
        (counted as u64).saturating_add(now_ns.saturating_sub(self.at_ns))
    }
}

/// When the counters of one VM were read.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// For each vCPU the instant at which its counter was saved last, [`now_ns`].
    saved: Mutex<Vec<Option<u64>>>,
    /// Of the loaded vCPUs the one whose counter was saved furthest ahead: the clock was saved with
    /// that one (engines whose vCPUs are not saved as of one instant say so).
    loaded: Mutex<Option<Loaded>>,
}

impl Times {
    /// The counter of vCPU `index` was saved at `at_ns`.
    pub(crate) fn counter_saved(&self, index: u8, at_ns: u64) {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::from(index);
        if saved.len() <= index {
            saved.resize(index + 1, None);
        }
        saved[index] = Some(at_ns);
    }

    /// A counter that was saved as `saved` was loaded and reads as `read` tells, with the time
    /// before the reading; asked only where it matters.
    pub(crate) fn counter_loaded(
        &self,
        saved: u64,
        khz: u32,
        read: impl FnOnce() -> Result<(u64, u64), EngineError>,
    ) -> Result<(), EngineError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.is_none_or(|before| before.saved < saved) {
            let (tsc, at_ns) = read()?;
            *loaded = Some(Loaded {
                saved,
                tsc,
                at_ns,
                khz,
            });
        }
        Ok(())
    }

    /// Saves the clock and brings the counters of `vcpus`, which stand still, to that instant.
    pub(crate) fn save_clock(
        &self,
        fd: &VmFd,
        vcpus: &mut [VcpuState],
    ) -> Result<VmClock, EngineError> {
        let read = || fd.get_clock().map_err(failed("KVM_GET_CLOCK"));
        let (clock, at_ns, _) = promptly(read)?;
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        for (state, from_ns) in vcpus.iter_mut().zip(&*saved) {
            bring_to(state, from_ns.unwrap_or(at_ns), at_ns);
        }
        Ok(VmClock { ns: clock.clock })
    }

    /// Makes the clock go on from `clock` as the counters have gone on.
    pub(crate) fn restore_clock(&self, fd: &VmFd, clock: &VmClock) -> Result<(), EngineError> {
        let loaded = *self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TRIES {
            let from = now_ns();
            let since = loaded.map_or(0, |loaded| loaded.progress_ns(from));
            let data = kvm_clock_data {
                clock: clock.ns.saturating_add(since),
                ..Default::default()
            };
            fd.set_clock(&data).map_err(failed("KVM_SET_CLOCK"))?;
            if now_ns().saturating_sub(from) <= PROMPT_NS {
                break;
            }
        }
        Ok(())
    }
}

/// Moves the counter of `state` from instant `from_ns` to `to_ns`, as it would have gone on.
fn bring_to(state: &mut VcpuState, from_ns: u64, to_ns: u64) {
    let Some(khz) = state.tsc_khz else { return };
    let Some(counter) = state.msrs.iter_mut().find(|msr| msr.index == MSR_TSC) else {
        return;
    };
    let ticks = u128::from(to_ns.saturating_sub(from_ns)) * u128::from(khz) / 1_000_000;
    counter.value = counter.value.wrapping_add(ticks as u64);
}

#[cfg(test)]
mod tests {
    use vcpu::Msr;

    use super::*;

    #[test]
    fn counters_saved_one_after_the_other_are_brought_to_one_instant() {
        // 2 GHz: two ticks a nanosecond; the second was read 300 ns after the first.
        let state = |value| VcpuState {
            msrs: vec![
                Msr {
                    index: 0x11,
                    value: 7,
                },
                Msr {
                    index: MSR_TSC,
                    value,
                },
            ],
            tsc_khz: Some(2_000_000),
            ..VcpuState::default()
        };
        let mut states = [state(10_000), state(10_600)];
        bring_to(&mut states[0], 5_000, 6_000);
        bring_to(&mut states[1], 5_300, 6_000);
        assert_eq!(states[0].msrs[1].value, 12_000);
        assert_eq!(states[1], states[0]);
        assert_eq!(states[0].msrs[0].value, 7);
    }

    #[test]
    fn the_clock_goes_on_as_the_counter_that_is_furthest_ahead() {
        let times = Times::default();
        let read = |tsc, at_ns| move || Ok((tsc, at_ns));
        times.counter_loaded(500, 1_000_000, read(600, 40)).unwrap();
        times.counter_loaded(900, 1_000_000, read(950, 70)).unwrap();
        times
            .counter_loaded(700, 1_000_000, || panic!("behind: need not be read"))
            .unwrap();
        let loaded = times.loaded.lock().unwrap().unwrap();
        // 50 ticks of a nanosecond, and 30 ns since they were read.
        assert_eq!(loaded.progress_ns(100), 80);
    }

    #[test]
    fn a_reading_that_took_long_is_tried_again() {
        let mut left = 2;
        let read = || {
            left -= 1;
            if left > 0 {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            Ok(left)
        };
        let (value, _, took) = promptly(read).unwrap();
        // The first took at least 2 ms, and is not the one that counts unless all took longer.
        assert!(value <= 0 || took >= 2_000_000);
    }
}
