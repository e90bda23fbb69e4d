//! The one place that splits a VM's process.

#![expect(
    unsafe_code,
    reason = "fork() of a process with threads is for its caller to make safe"
)]

use jail::{Forked, JailError, SoleThread};

/// Which side of the split the caller is on.
pub(super) enum Side {
    /// The VM's process.
    Source {
        /// Process id of the holder.
        holder: i32,
    },
    /// The holder.
    Holder(SoleThread),
}

/// Splits the process while the caller holds the VM still.
pub(super) fn split() -> Result<Side, JailError> {
    // SAFETY: called by the fork with the state of every vCPU taken, its thread waiting or about to
    // wait for the next order, every device worker held by its guard and the thread that unmaps an
    // old view held by its lock: they hold no lock of the allocator. The holder forgets the machine
    // with all that belongs to those threads, and builds clones from RAM and the checkpoint alone.
    match unsafe { jail::fork_process() }? {
        Forked::Parent { child } => Ok(Side::Source { holder: child }),
        Forked::Child(thread) => Ok(Side::Holder(thread)),
    }
}
