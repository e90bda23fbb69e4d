//! Guest RAM as layers: one shared memfd while a VM was never forked, a private copy-on-write view
//! of a sealed layer afterwards.
//!
//! **Guest RAM keeps its host address for life.** A fork moves the shared mapping away with
//! `mremap` and puts a private mapping of the same file in its place, so that no stale host pointer
//! (KVM memory slot, device thread) can write the sealed layer, and nothing in proportion to the
//! amount of RAM happens page by page.
//!
//! A private view that has many pages of its own is put on a new layer piece by piece
//! ([`GuestRam::begin_flatten`]); its address stays here too.
//!
//! Guest-physical memory is one range below 3 GiB and, for larger machines, one from 4 GiB on
//! ([`ram_ranges`]); both lie back to back in the file and in the host mapping.

#![expect(
    unsafe_code,
    reason = "maps, moves and unmaps guest RAM; vm-memory wraps raw mappings"
)]

mod dump;
mod flatten;
mod layers;
mod mapping;
mod pagemap;
mod ram;

pub use dump::DumpError;
pub use flatten::{FlattenError, NewLayer, Piece};
pub use layers::Displaced;
pub use mapping::MapError;
pub use pagemap::PageMapError;
pub use ram::{
    CreateRamError, GuestRam, RamRange, ReservedRam, SealError, SealedView, View, ram_ranges,
};
pub use vm_memory::GuestMemoryMmap;

#[cfg(test)]
mod tests;
