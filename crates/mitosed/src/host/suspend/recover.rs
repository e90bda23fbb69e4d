//! VMs that were on their way to disk or back when the daemon ended.

use std::sync::Arc;

use vmm_protocol::{Status, VmState};

use super::set_waking;
use crate::error::OpResult;
use crate::host::events::with_event;
use crate::host::{Host, Vm, vm_event};
use crate::inventory::{Changes, PowerState, SuspendRow};

impl Host {
    /// Ends the process of a VM whose memory is complete on disk: it stands still since. A process
    /// that runs went on from there.
    pub(in crate::host) fn ends_suspended(self: &Arc<Self>, vm: &Arc<Vm>, status: &Status) -> bool {
        let suspended = vm.state() == PowerState::Suspended;
        let ran = matches!(status.state, VmState::Running | VmState::PausedNoSpace);
        if !suspended || ran {
            return false;
        }
        vm.update(|live| live.starting = false);
        self.abandon_process(vm);
        self.commit_logged(&[vm], Changes::default());
        true
    }

    /// Settles a VM whose process answers: what it was on its way to is taken back or done.
    pub(in crate::host) fn settle_suspended(self: &Arc<Self>, vm: &Arc<Vm>) {
        match vm.row().suspend {
            Some(SuspendRow::Writing { paused }) => {
                let before = match paused {
                    true => PowerState::Paused,
                    false => PowerState::Running,
                };
                self.take_suspend_back(vm, before);
                let message = "the daemon ended while it was being suspended; it is as before";
                let told = vm_event(vm, "vm.recovered", message);
                self.commit_logged(&[vm], with_event(told));
            }
            Some(SuspendRow::Files { .. }) => {
                self.give_memory_up(vm);
                self.commit_logged(&[vm], Changes::default());
            }
            None => {}
        }
    }

    /// Forgets the memory on disk of a VM that went on from it; the caller records it.
    pub(in crate::host) fn give_memory_up(&self, vm: &Vm) {
        let given = vm.update(|live| live.row.suspend.take());
        if let Some(SuspendRow::Files { files, .. }) = given {
            self.remove_memory(&files);
        }
    }

    /// A suspended VM without a process stays so: tops that may have been written to while it was
    /// brought to life are replaced.
    pub(in crate::host) fn stay_suspended(self: &Arc<Self>, vm: &Arc<Vm>) {
        let waking = matches!(
            vm.row().suspend,
            Some(SuspendRow::Files { waking: true, .. })
        );
        if !waking {
            return;
        }
        if let Err(error) = self.renew_tops(vm) {
            tracing::error!(vm = &*vm.name(), "{}", error.message());
        }
    }

    fn renew_tops(self: &Arc<Self>, vm: &Arc<Vm>) -> OpResult<()> {
        let row = vm.row();
        let below = self.below_empty_tops(&row)?;
        let made = self.make_tops_on(vm, &below, &row.spec.disks)?;
        set_waking(vm, false);
        vm.update(|live| {
            live.row.state = PowerState::Suspended;
            live.row.disks.clone_from(&made.disks);
        });
        if let Err(error) = self.commit(&[vm], Changes::default()) {
            vm.update(|live| live.row.disks = row.disks);
            set_waking(vm, true);
            self.drop_layers(&made.held);
            return Err(error);
        }
        let old: Vec<_> = row.tops().into_iter().flatten().collect();
        self.drop_layers(&old);
        self.link_tops(&vm.row());
        Ok(())
    }
}
