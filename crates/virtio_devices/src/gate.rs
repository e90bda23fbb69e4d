//! What keeps a worker from taking descriptors: the gate, and whoever wants the devices' mutex.
//!
//! A holder counts from before it waits for the mutex, so a worker in the middle of a turn stops
//! at the next descriptor instead of keeping the holder waiting for the rest of it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[derive(Debug)]
pub(crate) struct Gate {
    shut: AtomicBool,
    holders: AtomicU32,
    /// Descriptors may have been left lying: look at every queue.
    recheck: AtomicBool,
}

impl Gate {
    /// Returns a gate that is shut.
    pub(crate) fn new() -> Self {
        Self {
            shut: AtomicBool::new(true),
            holders: AtomicU32::new(0),
            recheck: AtomicBool::new(true),
        }
    }

    /// Says whether no descriptor may be taken.
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::SeqCst) || self.holders.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }

    /// Opens the gate; the caller wakes the worker.
    pub(crate) fn open(&self) {
        self.recheck.store(true, Ordering::SeqCst);
        self.shut.store(false, Ordering::SeqCst);
    }

    pub(crate) fn hold(&self) {
        self.holders.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends a hold; the caller wakes the worker.
    pub(crate) fn release(&self) {
        self.recheck.store(true, Ordering::SeqCst);
        self.holders.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn wants_recheck(&self) -> bool {
        self.recheck.load(Ordering::SeqCst)
    }

    pub(crate) fn take_recheck(&self) -> bool {
        self.recheck.swap(false, Ordering::SeqCst)
    }
}
