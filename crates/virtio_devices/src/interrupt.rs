//! The interrupt side of one virtio device: the status register that vCPUs read and acknowledge
//! on every interrupt, and the line behind it. Nothing here blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use chipset::InterruptLine;

/// `InterruptStatus` bit: used buffers (virtio 1.2 §4.2.2).
pub(crate) const INTERRUPT_USED_RING: u32 = 1;
/// `InterruptStatus` bit: the configuration or the device status changed.
pub(crate) const INTERRUPT_CONFIG: u32 = 2;

/// Interrupt status, device error flag and interrupt line of one device.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    needs_reset: AtomicBool,
    line: Arc<dyn InterruptLine>,
}

impl Interrupt {
    pub(crate) fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            line,
        }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn signal_queue(&self) {
        self.raise(INTERRUPT_USED_RING);
    }

    /// Tells the driver that the configuration changed.
    pub fn signal_config(&self) {
        self.raise(INTERRUPT_CONFIG);
    }

    /// Notes that the configuration changed, without an edge: one has to follow.
    pub(crate) fn note_config(&self) {
        self.status.fetch_or(INTERRUPT_CONFIG, Ordering::SeqCst);
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        // The line is edge-triggered: an edge follows every cause, also when the bit is still set.
        self.line.trigger();
    }

    /// Marks the device as broken until the driver resets it.
    pub(crate) fn signal_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.signal_config();
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(crate) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(crate) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    pub(crate) fn restore(&self, status: u32, needs_reset: bool) {
        self.status.store(status, Ordering::SeqCst);
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
    }

    /// Raises the edge again for causes that the driver has not acknowledged.
    pub(crate) fn raise_unacknowledged(&self) {
        if self.status() != 0 {
            self.line.trigger();
        }
    }
}
