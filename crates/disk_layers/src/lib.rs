//! Copy-on-write disks: stacks of raw and qcow2 layers over open files.
//!
//! A [`DiskStack`] is one writable *top* over immutable layers. A fork makes the top immutable
//! and puts an empty overlay on it ([`DiskStack::push_top`]), which takes microseconds; the same
//! sealed layers then carry any number of clones, each with a top of its own.
//!
//! The crate works on file descriptors alone: no function here opens a path that a file's content
//! names, so that it can run inside the jailed VM process. [`chain`] is the exception, for the
//! daemon: it walks backing names below a given directory.
//!
//! What reaches the disk when:
//!
//! - [`DiskStack::flush`] writes tables to the file, so that other processes see a valid image;
//! - [`DiskStack::sync`] makes everything durable, and is what a guest's FLUSH means;
//! - between the two, the file on disk is the state of the last flush plus overwritten sectors.
//!
//! Formats: raw; qcow2 versions 2 and 3 (compressed clusters are read, never written). Encryption,
//! external data files, subclusters and internal snapshots in a top are refused.
#![forbid(unsafe_code)]

pub mod chain;
mod copy;
mod error;
mod inspect;
mod layer;
mod qcow2;
mod repair;
mod stack;
mod storage;
#[cfg(test)]
mod tests;

pub use copy::{CopyDiskError, Progress, flatten, import_disk};
pub use error::{DiskError, LayerError, OpenDiskError, SwapTopError};
pub use inspect::{DiskHeader, inspect, inspect_as};
pub use layer::{DiskFormat, LayerFile};
pub use qcow2::create::{CreateDiskError, create_full, create_overlay};
pub use qcow2::header::{BackingRef, MAX_DISK_BYTES};
pub use repair::{RefcountReport, RepairError, check_refcounts, check_whole, repair_refcounts};
pub use stack::{DiskStack, PreparedTop, StackOptions};

/// Most layers that a stack can have.
pub const MAX_LAYERS: usize = 64;
