//! The first flush after a fork waits until the daemon has made durable what names the new tops.
//!
//! A guest's FLUSH is a promise: what it wrote survives the host's end. After a fork that includes
//! the directory entries and the record of the new tops, which only the daemon can sync. It does so
//! while the source runs, and says when it is done.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Longest wait of a flush for the daemon. A daemon that is gone by then finds the new tops by their
/// names when it starts again, and a guest must not hang with it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether the last fork's tops are durably known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Durability(Arc<(Mutex<bool>, Condvar)>);

impl Durability {
    /// Flushes of tops pushed from here on wait for [`reached`](Self::reached).
    pub(crate) fn awaited(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// The daemon's word, or the end of a fork that came to nothing.
    pub(crate) fn reached(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.1.notify_all();
    }

    /// Returns what a disk does before its first flush on a new top.
    pub(crate) fn before_first_sync(&self) -> Box<dyn FnMut() -> io::Result<()> + Send> {
        let shared = Arc::clone(&self.0);
        Box::new(move || {
            let awaited = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (awaited, waited) = shared
                .1
                .wait_timeout_while(awaited, PATIENCE, |awaited| *awaited)
                .unwrap_or_else(PoisonError::into_inner);
            drop(awaited);
            if waited.timed_out() {
                tracing::warn!("the daemon did not say that a fork is durable; a flush goes on");
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_waits_for_the_daemons_word() {
        let durability = Durability::default();
        durability.awaited();
        let mut hook = durability.before_first_sync();
        let flushed = Arc::new(Mutex::new(false));
        let seen = Arc::clone(&flushed);
        let thread = std::thread::spawn(move || {
            hook().expect("flush");
            *seen.lock().expect("lock") = true;
        });
        assert!(!*flushed.lock().expect("lock"));
        durability.reached();
        thread.join().expect("thread");
        assert!(*flushed.lock().expect("lock"));
    }

    #[test]
    fn without_a_fork_nothing_waits() {
        Durability::default().before_first_sync()().expect("flush");
    }
}
