//! How fast a long copy goes, who hears of it, and who may stop it.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Longest sleep before the owner is asked again whether to go on.
const NAP: Duration = Duration::from_millis(100);
/// Time that a copy which was slower than its limit may make up for.
const CREDIT: Duration = Duration::from_millis(50);

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the disk dealt with, holes included; of its file, where that is copied as it is.
    pub done_bytes: u64,
    /// Size of the disk, or of the file.
    pub total_bytes: u64,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Bytes of content that were read and written; holes and zeroes are not counted.
    pub copied_bytes: u64,
    /// Time from start to durable result, waits for the limit included.
    pub elapsed: Duration,
}

/// The owner said stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cancelled;

/// Speed limit and listener of one copy.
pub struct Pace<'a> {
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    bytes_per_s: Option<NonZeroU64>,
    /// When the limit lets the next byte be copied.
    due: Option<Instant>,
}

impl fmt::Debug for Pace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace")
            .field("bytes_per_s", &self.bytes_per_s)
            .finish_non_exhaustive()
    }
}

impl<'a> Pace<'a> {
    /// Goes as fast as it can. `progress` is called after every piece, at most 1 MiB, and ends the
    /// copy with [`ControlFlow::Break`].
    pub fn free(progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>) -> Self {
        Pace {
            progress,
            bytes_per_s: None,
            due: None,
        }
    }

    /// Copies at most so many bytes per second; `progress` is also called while it waits.
    pub fn limited(
        progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
        bytes_per_s: NonZeroU64,
    ) -> Self {
        Pace {
            bytes_per_s: Some(bytes_per_s),
            ..Pace::free(progress)
        }
    }

    /// Tells how far the copy is, and waits until the limit allows more than the `copied` bytes
    /// since the last call.
    pub(crate) fn step(&mut self, report: Progress, copied: u64) -> Result<(), Cancelled> {
        self.tell(report)?;
        let Some(rate) = self.bytes_per_s else {
            return Ok(());
        };
        let now = Instant::now();
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let cost = Duration::from_secs_f64(copied as f64 / rate.get() as f64);
        let due = self.due.map_or(now, |due| due.max(earliest)) + cost;
        self.due = Some(due);
        while let Some(left) = due.checked_duration_since(Instant::now()) {
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(NAP));
            self.tell(report)?;
        }
        Ok(())
    }

    fn tell(&mut self, report: Progress) -> Result<(), Cancelled> {
        match (self.progress)(report) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Cancelled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: Progress = Progress {
        done_bytes: 1,
        total_bytes: 2,
    };

    #[test]
    fn a_limit_is_kept_over_many_steps() {
        let mut go_on = |_| ControlFlow::Continue(());
        let mut pace = Pace::limited(&mut go_on, NonZeroU64::new(1 << 20).expect("not 0"));
        let start = Instant::now();
        for _ in 0..30 {
            pace.step(REPORT, 10 << 10).expect("goes on");
        }
        // 300 KiB at 1 MiB/s.
        assert!(start.elapsed() >= Duration::from_millis(240));
    }

    #[test]
    fn a_wait_can_be_cancelled() {
        let mut calls = 0;
        let mut stop = |_| {
            calls += 1;
            if calls == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let mut pace = Pace::limited(&mut stop, NonZeroU64::MIN);
        let start = Instant::now();
        pace.step(REPORT, 1 << 30).expect_err("cancelled");
        assert!(start.elapsed() < Duration::from_secs(60), "not 34 years");
        assert_eq!(calls, 3);
    }
}
