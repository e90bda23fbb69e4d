//! When putting a source on a new layer pays off.
//!
//! What a fork costs goes with all pages that the source's process has as its own; what it would
//! cost without a history goes with those written since the last fork. The first is one line of
//! `/proc`, the second would take a walk over all page tables. So the first fork after a change of
//! layer is taken as the measure: its source has what one interval writes, and nothing else. Where
//! intervals differ, or a source wrote much once, that measure is too high for ever; so it is tried
//! again after some forks, which become more each time that it was in vain.

use std::time::{Duration, Instant};

/// Growth above the measure, in halves of it, that is worth a change of layer.
const GROWN_HALVES: u64 = 3;
/// Forks after which it is tried whatever the growth: at first, and at most.
const PATIENCE: (u32, u32) = (8, 256);
/// Share of the time in which a layer may be written.
const REST: u32 = 10;
/// Rest after a failure: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Own memory of a VM's process over its forks.
#[derive(Clone, Debug)]
pub(in crate::host) struct History {
    /// At the first fork since the VM came onto its layer, KiB.
    once_kib: Option<u64>,
    /// Forks since then.
    forks: u32,
    patience: u32,
    /// At the fork after which the layer was changed last, KiB.
    before_kib: Option<u64>,
    /// At the latest fork, KiB.
    last_kib: u64,
    rest_until: Option<Instant>,
    pause: Duration,
}

impl Default for History {
    fn default() -> Self {
        Self {
            once_kib: None,
            forks: 0,
            patience: PATIENCE.0,
            before_kib: None,
            last_kib: 0,
            rest_until: None,
            pause: PAUSE.0,
        }
    }
}

impl History {
    /// Before a fork of a process that has `own_kib` of its own; returns whether a change of layer
    /// pays. Below `limit_kib` it never does.
    pub fn fork(&mut self, own_kib: u64, limit_kib: u64, now: Instant) -> bool {
        self.forks += 1;
        self.last_kib = own_kib;
        if self.once_kib.is_none()
            && let Some(before) = self.before_kib
        {
            let in_vain = grown(before, own_kib).is_none();
            self.patience = match in_vain {
                true => (self.patience * 2).min(PATIENCE.1),
                false => PATIENCE.0,
            };
        }
        let once = *self.once_kib.get_or_insert(own_kib);
        let rests = self.rest_until.is_some_and(|until| now < until);
        let pays = grown(own_kib, once).is_some() || self.forks >= self.patience;
        own_kib >= limit_kib && !rests && pays
    }

    /// The layer was changed, which took so long.
    pub fn flattened(&mut self, took: Duration, now: Instant) {
        self.once_kib = None;
        self.forks = 0;
        self.before_kib = Some(self.last_kib);
        self.rest_until = Some(now + took * REST);
        self.pause = PAUSE.0;
    }

    /// It came to nothing.
    pub fn failed(&mut self, now: Instant) {
        self.rest_until = Some(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE.1);
    }
}

/// By how much `kib` exceeds what is bearable beside `measure`.
fn grown(kib: u64, measure: u64) -> Option<u64> {
    kib.checked_sub(measure.saturating_mul(GROWN_HALVES) / 2)
        .filter(|more| *more > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1000;

    /// Forks `count` times with what `own` gives for the fork and the one after which the layer was
    /// changed last; returns the numbers of those after which it is changed.
    fn changes(count: u64, own: impl Fn(u64, u64) -> u64) -> Vec<u64> {
        let (mut history, mut now) = (History::default(), Instant::now());
        let (mut changes, mut last) = (Vec::new(), 0);
        for fork in 1..=count {
            now += Duration::from_secs(60);
            if history.fork(own(fork, last), LIMIT, now) {
                history.flattened(Duration::from_secs(1), now);
                changes.push(fork);
                last = fork;
            }
        }
        changes
    }

    #[test]
    fn a_source_that_writes_other_pages_each_time_is_flattened_every_other_fork() {
        let changed = changes(9, |fork, last| (fork - last) * 2000);
        assert_eq!(changed, [2, 4, 6, 8]);
    }

    #[test]
    fn a_source_that_writes_the_same_pages_is_seldom_flattened() {
        let changed = changes(100, |_, _| 20_000);
        assert_eq!(changed, [8, 24, 56]);
    }

    #[test]
    fn one_that_wrote_much_once_is_flattened_once() {
        let changed = changes(40, |_, last| if last == 0 { 500_000 } else { 2000 });
        assert_eq!(changed, [8, 16, 32]);
        assert!(changes(40, |_, _| LIMIT - 1).is_empty());
    }

    #[test]
    fn it_rests_after_work_and_longer_after_each_failure() {
        let (mut history, start) = (History::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        assert!(!history.fork(2000, LIMIT, start));
        assert!(history.fork(4000, LIMIT, start));
        history.failed(start);
        assert!(!history.fork(6000, LIMIT, after(99)));
        assert!(history.fork(6000, LIMIT, after(100)));
        history.failed(after(100));
        assert!(!history.fork(6000, LIMIT, after(299)));
        assert!(history.fork(6000, LIMIT, after(300)));
        history.flattened(Duration::from_millis(50), after(350));
        assert!(!history.fork(2000, LIMIT, after(400)));
        assert!(!history.fork(4000, LIMIT, after(849)));
        assert!(history.fork(6000, LIMIT, after(850)));
        history.failed(after(850));
        assert!(history.fork(6000, LIMIT, after(950)));
    }
}
