//! Sealing the disks of a VM that has no process.

use std::sync::Arc;

use crate::error::OpResult;
use crate::host::{Host, Vm};
use crate::inventory::LayerId;
use crate::layers::make_delta;

impl Host {
    /// Puts new tops on the disks of a powered-off VM; returns the old ones, which never change
    /// from here on. The caller has the VM's turn, and holds the old ones.
    pub(in crate::host) fn seal_powered_off(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
    ) -> OpResult<Vec<Option<LayerId>>> {
        let tops = vm.row().tops();
        let (deltas, mut recording) = self.record_intent(vm, &mut [], None)?;
        let made = (|| -> OpResult<()> {
            recording.wait_recorded()?;
            for (delta, parent) in &deltas {
                make_delta(delta, parent)?;
            }
            recording.files_made();
            Ok(recording.wait_durable()?)
        })();
        if let Err(error) = made {
            self.end_pending(vm, false);
            return Err(error);
        }
        self.take_pending_tops(vm);
        self.link_tops(&vm.row());
        Ok(tops)
    }
}
