//! Guest RAM as the processor reaches it.

/// A range of guest RAM in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamSlot {
    /// Guest-physical start, a multiple of 4 KiB.
    pub gpa: u64,
    /// Host address of the first byte; stays valid and mapped for the life of the VM.
    pub host_address: u64,
    /// Length, bytes, a multiple of 4 KiB.
    pub len: u64,
}

/// All RAM of a VM, shared by its processors.
#[derive(Clone, Debug)]
pub struct Ram {
    slots: Vec<RamSlot>,
}

impl Ram {
    /// Makes RAM of `slots`.
    ///
    /// Their memory must stay mapped, readable and writable while a processor uses it; it belongs to
    /// the guest, so nothing of Rust's is in it.
    pub fn new(slots: &[RamSlot]) -> Self {
        Self {
            slots: slots.to_vec(),
        }
    }

    /// Returns the host address of the 4 KiB page at `gpa`, or `None` where it is no RAM.
    pub fn page(&self, gpa: u64) -> Option<u64> {
        let page = gpa & !0xfff;
        let slot = self
            .slots
            .iter()
            .find(|slot| page >= slot.gpa && page - slot.gpa < slot.len)?;
        Some(slot.host_address + (page - slot.gpa))
    }
}
