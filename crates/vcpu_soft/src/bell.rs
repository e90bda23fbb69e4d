//! Waking a processor that waits for an interrupt.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::clock;

/// One thread waits, any thread rings. Ringing costs one load while nobody waits.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    waiting: AtomicBool,
    lock: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    /// Wakes the thread that waits; what it waits for has been set before.
    pub(crate) fn ring(&self) {
        // Against the one in `wait`: either this side sees that somebody waits, or that side sees
        // what was set.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) {
            // Under the lock, so that the waiter sleeps already or has yet to look.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.rung.notify_one();
        }
    }

    /// Waits until `ready` or, where there is one, until `deadline_ns` of [`clock::now_ns`].
    pub(crate) fn wait(&self, deadline_ns: Option<u64>, mut ready: impl FnMut() -> bool) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        while !ready() {
            guard = match deadline_ns {
                None => self
                    .rung
                    .wait(guard)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let Some(left) = deadline.checked_sub(clock::now_ns()).filter(|ns| *ns > 0)
                    else {
                        break;
                    };
                    self.rung
                        .wait_timeout(guard, Duration::from_nanos(left))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        self.waiting.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn no_ring_is_lost() {
        const TURNS: u32 = 2000;
        let pair = Arc::new((Bell::default(), Bell::default(), AtomicU32::new(0)));
        let other = Arc::clone(&pair);
        let thread = std::thread::spawn(move || {
            let (ping, pong, turn) = &*other;
            for n in 0..TURNS {
                ping.wait(None, || turn.load(Ordering::SeqCst) == 2 * n + 1);
                turn.fetch_add(1, Ordering::SeqCst);
                pong.ring();
            }
        });
        let (ping, pong, turn) = &*pair;
        for n in 0..TURNS {
            turn.fetch_add(1, Ordering::SeqCst);
            ping.ring();
            pong.wait(None, || turn.load(Ordering::SeqCst) == 2 * n + 2);
        }
        thread.join().unwrap();
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let from = clock::now_ns();
        Bell::default().wait(Some(from + 2_000_000), || false);
        assert!(clock::now_ns() >= from + 2_000_000);
        Bell::default().wait(Some(1), || false);
    }
}
