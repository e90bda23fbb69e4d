//! What a fork, or putting RAM on another layer, leaves to do when nobody waits: unmapping the moved
//! view of guest RAM.
//!
//! It takes tens of milliseconds of processor time, just when the clones start, and the kernel holds
//! the process's memory map meanwhile: a thread does it in small pieces with pauses between them.
//! A child process gets neither the thread nor the view.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_memory::SealedView;

/// Pause after each piece, which takes a quarter of a millisecond.
const PAUSE: Duration = Duration::from_millis(3);
/// Most pauses in a row: memory that is forked every few milliseconds is given back all the same.
const PAUSES_MAX: u32 = 20;
const STACK_BYTES: usize = 128 << 10;

/// The rest of a fork.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finishing(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    view: Mutex<Option<SealedView>>,
    /// Locked by the thread while it changes the memory map.
    at_work: Mutex<()>,
    /// How often somebody began or ended to keep the thread from that.
    hushed: AtomicU64,
}

impl Shared {
    /// Sleeps for a pause, and longer where somebody has wanted quiet meanwhile: whoever did has just
    /// woken vCPUs, or will.
    fn rest(&self) -> MutexGuard<'_, ()> {
        let mut hushed = self.hushed.load(Ordering::SeqCst);
        for _ in 0..PAUSES_MAX {
            std::thread::sleep(PAUSE);
            let working = lock(&self.at_work);
            let before = hushed;
            hushed = self.hushed.load(Ordering::SeqCst);
            if hushed == before {
                return working;
            }
        }
        lock(&self.at_work)
    }
}

/// While it lives, the memory map of the process is not changed.
#[derive(Debug)]
pub(crate) struct Quiet<'a> {
    hushed: &'a AtomicU64,
    _working: MutexGuard<'a, ()>,
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        self.hushed.fetch_add(1, Ordering::SeqCst);
    }
}

impl Finishing {
    /// Takes the moved view of a fork.
    pub(crate) fn leave(&self, view: SealedView) {
        if let Err(error) = view.hide_from_fork() {
            tracing::warn!(%error, "a child process would get what a fork left");
        }
        // One that still waits is not to be lost.
        self.start();
        *lock(&self.0.view) = Some(view);
    }

    /// Says whether there is something left to do.
    pub(super) fn is_due(&self) -> bool {
        lock(&self.0.view).is_some()
    }

    /// Starts the thread.
    pub(super) fn start(&self) {
        let Some(view) = lock(&self.0.view).take() else {
            return;
        };
        let shared = Arc::clone(&self.0);
        let finish = move || {
            linux_sys::take_usual_slices();
            let mut working = Some(shared.rest());
            let finished = view.finish(|| {
                working = None;
                working = Some(shared.rest());
            });
            drop(working);
            if let Err(error) = finished {
                tracing::warn!(%error, "a memory layer could not be sealed against writes");
            }
        };
        let thread = std::thread::Builder::new()
            .name("seal".into())
            .stack_size(STACK_BYTES)
            .spawn(finish);
        // Nobody waits for the thread: it ends by itself or with the process.
        if let Err(error) = thread {
            tracing::warn!(%error, "a memory layer is not sealed against writes: no thread");
        }
    }

    /// Keeps the thread from changing the memory map until the guard is dropped.
    pub(crate) fn quiet(&self) -> Quiet<'_> {
        self.0.hushed.fetch_add(1, Ordering::SeqCst);
        Quiet {
            hushed: &self.0.hushed,
            _working: lock(&self.0.at_work),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
