//! System instructions one by one, on the bench of `mmu`.

mod events;
mod far;
mod modes;
mod privilege;
mod registers;

pub(super) use crate::mmu::tests::Bench;

/// Type byte of a present interrupt gate of 64 or 32 bits; `| 0x60` lets user code call it.
pub(super) const GATE: u8 = 0x8e;
