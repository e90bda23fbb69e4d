//! Tells whether the host had too little time for a vCPU, so that its guest can be told.
//!
//! A guest whose processor gets a small part of a busy host's takes itself for hung: its watchdogs
//! count the clock's seconds. Linux forgives what it is told of by the flag of the paravirtual clock
//! that says that the processor stood still.

use rustix::time::{ClockId, clock_gettime};

/// How long it is looked at before it is judged. Linux's watchdog looks every four seconds.
const PERIOD_NS: u64 = 2_000_000_000;
/// Part of the time that a processor wanted and did not get, beyond which it was starved: one half.
const PART: u64 = 2;

/// What a vCPU's thread had of the host since a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Starved {
    /// Start of the period; 0 before the first one.
    since_ns: u64,
    /// The thread's processor time then.
    ran_ns: u64,
    /// Time since then in which it had nothing to run.
    waited_ns: u64,
}

impl Starved {
    /// Begins anew: the thread starts to run the guest.
    pub(crate) fn begin(&mut self) {
        *self = Self::default();
    }

    /// Notes time in which the vCPU waited for an interrupt.
    pub(crate) fn waited(&mut self, ns: u64) {
        self.waited_ns += ns;
    }

    /// Returns whether the vCPU was starved in a period that ends at `now_ns`.
    pub(crate) fn look(&mut self, now_ns: u64) -> bool {
        let over = self.since_ns == 0 || now_ns.saturating_sub(self.since_ns) >= PERIOD_NS;
        over && self.judge(now_ns, thread_ns())
    }

    fn judge(&mut self, now_ns: u64, ran_ns: u64) -> bool {
        let before = std::mem::replace(
            self,
            Self {
                since_ns: now_ns,
                ran_ns,
                waited_ns: 0,
            },
        );
        if before.since_ns == 0 {
            return false;
        }
        let wanted = (now_ns - before.since_ns).saturating_sub(before.waited_ns);
        let missed = wanted.saturating_sub(ran_ns.saturating_sub(before.ran_ns));
        missed > PERIOD_NS / PART && missed > wanted / PART
    }
}

/// Processor time of the calling thread, nanoseconds.
fn thread_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Judges ten seconds of which the thread ran and waited so much.
    fn judged(ran_ns: u64, waited_ns: u64) -> bool {
        let mut starved = Starved::default();
        assert!(!starved.judge(5 * SECOND, SECOND));
        starved.waited(waited_ns);
        starved.judge(15 * SECOND, SECOND + ran_ns)
    }

    #[test]
    fn a_thread_that_got_less_than_half_was_starved() {
        assert!(judged(SECOND, 0));
        assert!(judged(4 * SECOND, 0));
        assert!(!judged(6 * SECOND, 0));
        assert!(!judged(10 * SECOND, 0));
    }

    #[test]
    fn time_spent_waiting_was_not_wanted() {
        assert!(!judged(SECOND / 10, 9 * SECOND));
        assert!(judged(SECOND / 10, 7 * SECOND));
    }

    #[test]
    fn periods_are_looked_at_one_after_the_other() {
        let mut starved = Starved::default();
        assert!(!starved.look(SECOND));
        // Within the period nothing is judged; then this thread did not run for most of it.
        assert!(!starved.look(2 * SECOND));
        assert!(starved.look(1000 * SECOND));
        assert!(!starved.look(1001 * SECOND));
        starved.begin();
        assert!(!starved.look(5000 * SECOND));
    }
}
