//! What a fork leaves to do when nobody waits: unmapping the moved view of guest RAM.
//!
//! It takes tens of milliseconds of processor time, just when the clones start, and the kernel holds
//! the process's memory map meanwhile: a thread does it in small pieces with pauses between them.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use guest_memory::SealedView;

/// Pause after each piece, which takes a quarter of a millisecond.
const PAUSE: Duration = Duration::from_millis(3);
const STACK_BYTES: usize = 128 << 10;

#[derive(Debug, Default)]
struct Pace {
    hurry: Mutex<bool>,
    changed: Condvar,
}

impl Pace {
    fn pause(&self) {
        let hurry = self.hurry.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(hurry, PAUSE, |hurry| !*hurry);
        drop(waited);
    }

    fn hurry(&self) {
        *self.hurry.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

/// The rest of the last fork.
#[derive(Debug, Default)]
pub(crate) struct Finishing {
    view: Option<SealedView>,
    thread: Option<(JoinHandle<()>, Arc<Pace>)>,
}

impl Finishing {
    /// Takes the moved view of a fork.
    pub(super) fn leave(&mut self, view: SealedView) {
        self.view = Some(view);
    }

    /// Starts the thread.
    pub(super) fn start(&mut self) {
        let Some(view) = self.view.take() else {
            return;
        };
        let pace = Arc::new(Pace::default());
        let of_thread = Arc::clone(&pace);
        let finish = move || {
            of_thread.pause();
            if let Err(error) = view.finish(|| of_thread.pause()) {
                tracing::warn!(%error, "a memory layer could not be sealed against writes");
            }
        };
        let thread = std::thread::Builder::new()
            .name("seal".into())
            .stack_size(STACK_BYTES)
            .spawn(finish);
        match thread {
            Ok(thread) => self.thread = Some((thread, pace)),
            Err(error) => {
                tracing::warn!(%error, "a memory layer is not sealed against writes: no thread");
            }
        }
    }

    /// Waits until all is done: a thread that unmaps must not be met by `fork()`.
    pub(super) fn complete(&mut self) {
        self.start();
        if let Some((thread, pace)) = self.thread.take() {
            pace.hurry();
            // It does not panic; its failure was logged.
            let _ = thread.join();
        }
    }
}
