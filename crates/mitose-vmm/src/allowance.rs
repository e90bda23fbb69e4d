//! How much a guest's agent may say: a burst, then a steady rate. What exceeds it stays unread, so
//! nothing is lost and the guest waits; the daemon's work for one guest is bounded.

use std::time::{Duration, Instant};

/// Messages that may come at once.
const BURST: f64 = 256.0;
/// Messages a second after that.
const RATE: f64 = 64.0;
/// Bytes that count as one more message.
const BYTES: f64 = 4096.0;

/// What may still be said, in messages.
#[derive(Debug)]
pub(crate) struct Allowance {
    credit: f64,
    at: Instant,
}

impl Allowance {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            credit: BURST,
            at: now,
        }
    }

    /// Counts one message of `len` bytes.
    pub(crate) fn spend(&mut self, len: usize, now: Instant) {
        self.refill(now);
        self.credit -= 1.0 + len as f64 / BYTES;
    }

    /// Returns how long nothing more is to be read; none when it may be.
    pub(crate) fn pause(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        (self.credit <= 0.0).then(|| Duration::from_secs_f64((1.0 - self.credit) / RATE))
    }

    fn refill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * RATE;
        self.credit = (self.credit + gained).min(BURST);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_a_flood_is_held_to_the_rate() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        for _ in 0..200 {
            allowance.spend(100, start);
        }
        assert_eq!(allowance.pause(start), None);
        let mut now = start;
        let mut said = 0;
        while now < start + Duration::from_secs(10) {
            match allowance.pause(now) {
                Some(pause) => now += pause,
                None => {
                    allowance.spend(100, now);
                    said += 1;
                }
            }
        }
        assert!((500..720).contains(&said), "{said} in 10 s");
    }

    #[test]
    fn large_messages_count_more() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut said = 0;
        while allowance.pause(start).is_none() {
            allowance.spend(64 << 10, start);
            said += 1;
        }
        assert!((10..20).contains(&said), "{said} at once");
        let later = start + Duration::from_secs(60);
        assert_eq!(allowance.pause(later), None);
    }
}
