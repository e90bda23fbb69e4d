//! The qcow2 format: header, tables, clusters.
//!
//! Lookup is in [`image`], changes in [`update`], the order in which changes reach the file in
//! [`commit`].

pub(crate) mod alloc;
pub(crate) mod backing;
pub(crate) mod cache;
pub(crate) mod commit;
pub(crate) mod compressed;
pub(crate) mod create;
pub(crate) mod header;
pub(crate) mod image;
pub(crate) mod update;
