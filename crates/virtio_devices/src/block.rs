//! virtio-blk (virtio 1.2 §5.2): one request queue over a [`BlockBackend`].
//!
//! Requests are done one at a time on the worker's thread, each complete before the next is taken,
//! so nothing is in flight between them. A write that finds no space on the host is not failed:
//! it stays in the queue, the device stalls and says so, and [`Block::resume`] tries again.
//!
//! `Block<Option<B>>` is a slot that may be empty: a disk of 0 bytes until [`Block::insert`].

mod backend;
mod device;
mod events;
mod regs;
mod saved;
#[cfg(test)]
mod tests;

pub use backend::{BlockBackend, MemoryBackend};
pub use device::Block;
pub use events::{BlockConfig, BlockCounters, BlockEvent, BlockEventSink, BlockOp, InsertError};
pub use saved::SavedBlock;
