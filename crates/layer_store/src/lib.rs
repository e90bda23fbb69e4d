//! Immutable disk layers on a datastore, a directory of a file system.
//!
//! ```text
//!   <root>/layers/<id>.qcow2    every layer, at the one path it ever has
//!   <root>/layers/.<id>.tmp     an import that is not finished
//!   <root>/vms/<name>/          home folder of a VM: links to its layers, and what others keep there
//! ```
//!
//! A layer names the one below it in its qcow2 header, relative to `layers/`, so that all tools of
//! the ecosystem read a chain, and so that the store needs no records of its own: who uses which
//! layer is computed from the headers and from the *live* layers that the caller knows.
//!
//! Life of a layer: `create_delta` (one writer, held by a file lock that travels with the
//! descriptor) → `seal` (nobody opens it for writing again) → `collect` (nobody live needs it).
//! An import is complete and durable from its first moment.
//!
//! The store has no notion of a VM; names of home folders are the caller's.
#![forbid(unsafe_code)]

mod collect;
mod error;
mod home;
mod id;
mod import;
mod space;
mod store;
#[cfg(test)]
mod tests;

pub use collect::{Collected, Survey};
pub use error::StoreError;
pub use id::{LayerId, ParseLayerIdError};
pub use space::{Reservation, Space};
pub use store::{Access, ChainLayer, LayerStore, NewDelta};
