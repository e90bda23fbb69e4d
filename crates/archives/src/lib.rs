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
//! Names of members follow from the manifest: a reader takes exactly these, in this order, and
//! uses no name of an archive as a path. Holes of files stay holes (GNU sparse members).
//!
//! The crate knows files, not a daemon: where members come from and go to is the caller's affair.
#![forbid(unsafe_code)]

mod content;
mod error;
mod manifest;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use content::{Watch, digest};
pub use error::ArchiveError;
pub use manifest::{Blob, FORMAT, Kind, Layer, LayerFormat, Machine, Manifest, Memory, Part, Port};
pub use read::Reader;
pub use write::write;
