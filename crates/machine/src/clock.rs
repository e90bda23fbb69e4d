//! Host time for figures: `CLOCK_MONOTONIC`, the same in every process of the host.

use rustix::time::{ClockId, clock_gettime};

/// Returns `CLOCK_MONOTONIC`, nanoseconds.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Returns the whole microseconds from `start_ns` to `end_ns`.
pub(crate) fn us_between(start_ns: u64, end_ns: u64) -> u64 {
    end_ns.saturating_sub(start_ns) / 1000
}
