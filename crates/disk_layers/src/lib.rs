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
//! A stack that grew long is made short again beside its use: [`merge`] writes neighbouring sealed
//! layers into one, [`DiskStack::replace_below`] puts it under the top of a disk in use, and
//! [`set_backing`] under one that nobody uses.
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
mod merge;
mod pace;
mod qcow2;
mod repair;
mod stack;
mod storage;
#[cfg(test)]
mod tests;

pub use copy::full::{CopyMethod, copy_full};
pub use copy::{CopyDiskError, flatten, import_disk};
pub use error::{DiskError, LayerError, OpenDiskError, ReplaceBelowError, SwapTopError};
pub use inspect::{DiskHeader, foreign_format, inspect, inspect_as};
pub use layer::{DiskFormat, LayerFile};
pub use merge::merge;
pub use pace::{CopyReport, Pace, Progress};
pub use qcow2::backing::{SetBackingError, set_backing};
pub use qcow2::create::{CreateDiskError, create_full, create_overlay};
pub use qcow2::header::{BackingRef, MAX_DISK_BYTES};
pub use repair::{RefcountReport, RepairError, check_refcounts, check_whole, repair_refcounts};
pub use stack::{DiskStack, PreparedBelow, PreparedTop, Replaced, StackOptions};

/// Most layers that a stack can have.
pub const MAX_LAYERS: usize = 64;
