//! Archives of virtual machines: the means of moving them between hosts and of keeping them safe.
//!
//! An archive is a tar file that any tar can list. Its members come in one order:
//!
//! ```text
//! manifest.json     what the machine is, and of what it consists, with sizes and SHA-256
//! manifest.sha256   SHA-256 of manifest.json
//! boot/kernel       boot/initrd
//! layers/<n>.qcow2  disk layers, parents first; those that the reader has already are left out
//! memory/ram        memory/state    where the machine goes on from an instant
//! ```
//!
//! Boot files are left out where an earlier archive has the same. In place of `memory/ram` there may be `memory/changes`, the pages that differ from guest RAM that an
//! earlier archive has: its SHA-256 is in the manifest beside that of the whole RAM that results.
//!
//! Names of members follow from the manifest: a reader takes exactly these, in this order, and
//! uses no name of an archive as a path. Holes of files stay holes (GNU sparse members).
//!
//! The crate knows files, not a daemon: where members come from and go to is the caller's affair.
#![forbid(unsafe_code)]

mod content;
mod error;
mod manifest;
mod pages;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use content::{Watch, copy_expected, digest};
pub use error::ArchiveError;
pub use manifest::{
    Blob, FORMAT, Kind, Layer, LayerFormat, Machine, Manifest, Memory, MemoryChanges, Part, Point,
    Port,
};
pub use pages::{Changes, PAGE_BYTES, Survey, survey};
pub use read::Reader;
pub use write::{Content, write};
