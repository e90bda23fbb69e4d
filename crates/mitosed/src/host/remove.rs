//! Removing VMs.

use std::sync::Arc;

use super::states::Operation;
use super::{Host, Vm, vm_event};
use crate::error::{OpError, OpResult};
use crate::inventory::{Begun, PowerState};

impl Host {
    /// Removes a VM with its own disks; a running one only with `force`.
    pub fn remove(self: &Arc<Self>, vm: &Arc<Vm>, force: bool) -> OpResult<()> {
        let _turn = self.turn(vm)?;
        self.check_removal(vm, force)?;
        if vm.state().has_process() {
            return self.with_begun(vm, Begun::Removal, || {
                self.end_process(vm);
                self.remove_now(vm)
            });
        }
        self.remove_now(vm)
    }

    fn remove_now(&self, vm: &Arc<Vm>) -> OpResult<()> {
        if !vm.state().is_off() && vm.state() != PowerState::Suspended {
            return Err(OpError::failed(format!(
                "{} cannot be removed: its process does not end",
                vm.name()
            )));
        }
        self.erase(vm, Some(vm_event(vm, "vm.removed", "removed")));
        Ok(())
    }

    /// Refuses to remove a VM whose state does not allow it, or that a disk pool has copies of.
    pub fn check_removal(&self, vm: &Vm, force: bool) -> OpResult<()> {
        let operation = match force {
            true => Operation::RemoveByForce,
            false => Operation::Remove,
        };
        self.allow(vm, operation)?;
        self.check_no_disk_pool(vm)
    }
}
