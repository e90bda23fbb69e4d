//! Operations that begin by ending a VM's process: reset, return to a snapshot, removal.
//!
//! Each is on record before the process ends, so that a daemon that finds it half-made finishes it.

use std::collections::HashMap;
use std::sync::Arc;

use super::events::with_event;
use super::{Host, Vm, tasks, vm_event};
use crate::error::{OpError, OpResult};
use crate::inventory::{Begun, Changes, Snapshot, VmRow};

impl Host {
    /// Does `operate` with `begun` on record for as long as it takes. The caller has the VM's turn.
    pub(super) fn with_begun<T>(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        begun: Begun,
        operate: impl FnOnce() -> OpResult<T>,
    ) -> OpResult<T> {
        vm.update(|live| {
            live.row.begun = Some(begun);
            live.row.begun_by = tasks::present();
        });
        if let Err(error) = self.commit(&[vm], Changes::default()) {
            vm.update(|live| (live.row.begun, live.row.begun_by) = (None, None));
            return Err(error);
        }
        let done = operate();
        self.forget_begun(vm, done.is_ok());
        done
    }

    /// What had been begun has ended; whose task it was stays on record where it is `done`.
    fn forget_begun(&self, vm: &Arc<Vm>, done: bool) {
        if vm.live().removed {
            return;
        }
        let begun = vm.update(|live| {
            live.row.begun_by = live.row.begun_by.filter(|_| done);
            live.row.begun.take()
        });
        if begun.is_some() {
            self.commit_logged(&[vm], Changes::default());
        }
    }

    /// At the start of a daemon: finishes what an earlier one had begun; returns the tasks whose
    /// work could not be finished.
    pub(super) fn finish_begun(self: &Arc<Self>) -> HashMap<i64, OpError> {
        let mut unfinished = HashMap::new();
        for vm in self.all() {
            let VmRow {
                begun: Some(begun),
                begun_by,
                ..
            } = vm.row()
            else {
                continue;
            };
            if let Err(error) = self.on_behalf(begun_by, || self.finish_and_tell(&vm, &begun)) {
                unfinished.extend(begun_by.map(|task| (task, error)));
            }
        }
        unfinished
    }

    fn finish_and_tell(self: &Arc<Self>, vm: &Arc<Vm>, begun: &Begun) -> OpResult<()> {
        let finished = self.finish(vm, begun);
        let (kind, message) = match &finished {
            // Its end is an event already.
            Ok(()) if matches!(begun, Begun::Removal) => return finished,
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
        self.forget_begun(vm, finished.is_ok());
        self.commit_logged(&[vm], with_event(vm_event(vm, kind, message)));
        finished
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
