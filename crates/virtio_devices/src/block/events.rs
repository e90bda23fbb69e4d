//! What the owner of a block device chooses, and what it hears of it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// What the creator of a block device chooses.
#[derive(Debug, Default)]
pub struct BlockConfig {
    /// Serial number that the guest reads; bytes past 20 are cut off.
    pub serial: String,
    /// Receives news of the device.
    pub events: BlockEventSink,
}

/// Kind of request, for [`BlockEvent::IoError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOp {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush of caches to the medium.
    Flush,
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes,
}

/// News of a block device for its VM's owner.
#[derive(Debug)]
pub enum BlockEvent {
    /// The host has no space for a write; the device waits for [`crate::Block::resume`].
    NoSpace,
    /// A request failed on the host and the guest was told so.
    IoError {
        /// What was tried.
        op: BlockOp,
        /// Where, in sectors of 512 bytes.
        sector: u64,
        /// Why.
        error: io::Error,
    },
}

/// Why a medium could not be put into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// There is one already.
    #[error("the slot has a medium already")]
    Occupied,
    /// The guest was told that it can write.
    #[error("the slot is for a disk that can be written to")]
    ReadOnly,
}

/// Receives [`BlockEvent`]s. It is called on the worker's thread with its devices locked, so it
/// hands the event on and returns.
#[derive(Default)]
pub struct BlockEventSink(Option<Box<dyn Fn(BlockEvent) + Send>>);

impl BlockEventSink {
    /// Returns a sink that calls `f`.
    pub fn new(f: impl Fn(BlockEvent) + Send + 'static) -> Self {
        Self(Some(Box::new(f)))
    }

    pub(super) fn send(&self, event: BlockEvent) {
        if let Some(f) = &self.0 {
            f(event);
        }
    }
}

impl fmt::Debug for BlockEventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockEventSink").finish_non_exhaustive()
    }
}

/// Running totals of a block device, readable at any time.
#[derive(Debug, Default)]
pub struct BlockCounters {
    /// Completed reads.
    pub reads: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Completed writes.
    pub writes: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Completed flushes.
    pub flushes: AtomicU64,
    /// Completed discards and write-zeroes.
    pub discards: AtomicU64,
    /// Requests that the guest was told have failed.
    pub errors: AtomicU64,
    /// The device waits for space on the host.
    pub stalled: AtomicBool,
}
