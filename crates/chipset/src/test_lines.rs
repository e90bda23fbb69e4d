//! Interrupt lines and sinks that count, for tests.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::{InterruptLine, MsiMessage, MsiSink, PowerControl};

/// Counts the edges it is given.
#[derive(Debug, Default)]
pub(crate) struct CountingLine(AtomicUsize);

impl CountingLine {
    /// Returns the number of edges since the last call.
    pub(crate) fn take(&self) -> usize {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl InterruptLine for CountingLine {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Keeps the messages it is given.
#[derive(Debug, Default)]
pub(crate) struct RecordingSink(Mutex<Vec<MsiMessage>>);

impl RecordingSink {
    /// Returns the messages since the last call.
    pub(crate) fn take(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl MsiSink for RecordingSink {
    fn signal_msi(&self, message: MsiMessage) {
        self.0.lock().unwrap().push(message);
    }
}

/// Counts power-offs and resets, for tests.
#[derive(Debug, Default)]
pub(crate) struct RecordedPower(AtomicU32, AtomicU32);

impl RecordedPower {
    /// Returns the number of power-offs and resets since the last call.
    pub(crate) fn take(&self) -> (u32, u32) {
        (
            self.0.swap(0, Ordering::SeqCst),
            self.1.swap(0, Ordering::SeqCst),
        )
    }
}

impl PowerControl for RecordedPower {
    fn power_off(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn reset(&self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}
