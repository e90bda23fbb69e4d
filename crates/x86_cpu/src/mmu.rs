//! Paging, TLBs and access to guest memory.

/// TLBs and what belongs to them.
#[derive(Debug, Default)]
pub(crate) struct Mmu {}
