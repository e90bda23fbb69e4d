//! Operations that begin by ending a VM's process: reset, return to a snapshot, removal.
//!
//! Each is on record before the process ends, so that a daemon that finds it half-made finishes it.

use std::sync::Arc;

use super::events::with_event;
use super::{Host, Vm, vm_event};
use crate::error::OpResult;
use crate::inventory::{Begun, Changes, Snapshot};

impl Host {
    /// Does `operate` with `begun` on record for as long as it takes. The caller has the VM's turn.
    pub(super) fn with_begun<T>(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        begun: Begun,
        operate: impl FnOnce() -> OpResult<T>,
    ) -> OpResult<T> {
        vm.update(|live| live.row.begun = Some(begun));
        if let Err(error) = self.commit(&[vm], Changes::default()) {
            vm.update(|live| live.row.begun = None);
            return Err(error);
        }
        let done = operate();
        self.forget_begun(vm);
        done
    }

    fn forget_begun(&self, vm: &Arc<Vm>) {
        if !vm.live().removed && vm.update(|live| live.row.begun.take()).is_some() {
            self.commit_logged(&[vm], Changes::default());
        }
    }

    /// At the start of a daemon: finishes what an earlier one had begun.
    pub(super) fn finish_begun(self: &Arc<Self>) {
        for vm in self.all() {
            let Some(begun) = vm.row().begun else {
                continue;
            };
            let finished = self.finish(&vm, &begun);
            let (kind, message) = match finished {
                // Its end is an event already.
                Ok(()) if matches!(begun, Begun::Removal) => continue,
                Ok(()) => (
                    "vm.recovered",
                    format!("{} has been finished", begun.noun()),
                ),
                Err(error) => (
                    "vm.failed",
                    format!(
                        "{} could not be finished: {}",
                        begun.noun(),
                        error.message()
                    ),
                ),
            };
            let message = format!("{message}; the daemon had ended in it");
            tracing::info!(vm = &*vm.name(), "{message}");
            self.forget_begun(&vm);
            self.commit_logged(&[&vm], with_event(vm_event(&vm, kind, message)));
        }
    }

    fn finish(self: &Arc<Self>, vm: &Arc<Vm>, begun: &Begun) -> OpResult<()> {
        let _busy = self.pool.busy();
        if matches!(begun, Begun::Removal) {
            return self.remove(vm, true);
        }
        let _turn = self.turn(vm)?;
        match begun {
            Begun::Reset => {
                self.check_boots(&vm.row())?;
                self.reset_now(vm)
            }
            Begun::Revert { snapshot } => {
                let snapshot = self.object::<Snapshot>(snapshot)?;
                self.check_snapshot_files(&snapshot)?;
                self.revert_now(vm, &snapshot, &|_, _| ())
            }
            Begun::Removal => Ok(()),
        }
    }
}

impl Begun {
    fn noun(&self) -> &'static str {
        match self {
            Self::Reset => "a reset",
            Self::Revert { .. } => "a return to a snapshot",
            Self::Removal => "a removal",
        }
    }
}
