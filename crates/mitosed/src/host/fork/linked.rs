//! Linked clones of a powered-off VM: powered off too, on the source's disks.

use std::sync::Arc;

use anyhow::Context;
use api_types::{Cloned, ClonedVm, ForkRequest, MAX_CLONES};

use super::seats::Seat;
use crate::error::OpResult;
use crate::host::states::Operation;
use crate::host::{Host, Vm, vm_event};
use crate::inventory::{Changes, PowerState};
use crate::layers::make_delta;

impl Host {
    /// Makes linked clones, for which source and clones get a new delta each on the source's present
    /// tops.
    pub(super) fn clone_linked(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        request: &ForkRequest,
    ) -> OpResult<Cloned> {
        let _turn = self.turn(source)?;
        self.allow(source, Operation::Copy)?;
        self.check_stores_of(&source.row())?;
        let mut seats = self.plan_clones(&source.row(), request, MAX_CLONES as usize)?;
        let vms: Vec<_> = seats.iter().map(|seat| Arc::clone(&seat.vm)).collect();
        self.reserve(&vms)?;
        if let Err(error) = self.make_linked(source, &mut seats) {
            self.end_pending(source, false);
            seats.iter().for_each(|seat| self.erase(&seat.vm, None));
            return Err(error);
        }
        self.take_pending_tops(source);
        let mut changes = Changes::default();
        let mut changed = vec![source];
        for seat in &seats {
            seat.vm.update(|live| {
                live.row.state = PowerState::PoweredOff;
                live.row.generation = live.row.generation.saturating_sub(1);
            });
            let message = format!("linked clone of {}", source.name());
            changes
                .events
                .push(vm_event(&seat.vm, "vm.cloned", message));
            changed.push(&seat.vm);
        }
        self.commit(&changed, changes)?;
        self.inventory.sync().context("cannot sync the inventory")?;
        changed.iter().for_each(|vm| self.link_tops(&vm.row()));
        Ok(Cloned {
            source: source.name().to_string(),
            stun_us: 0,
            io_held_us: 0,
            memory: "none".to_owned(),
            steps_us: Vec::new(),
            phases_us: Vec::new(),
            clones: seats
                .iter()
                .map(|seat| ClonedVm {
                    name: seat.vm.name().to_string(),
                    ..ClonedVm::default()
                })
                .collect(),
        })
    }

    fn make_linked(self: &Arc<Self>, source: &Arc<Vm>, seats: &mut [Seat]) -> OpResult<()> {
        let (deltas, mut recording) = self.record_intent(source, seats)?;
        recording.wait_recorded()?;
        for (delta, parent) in deltas {
            make_delta(&delta, &parent)?;
        }
        for seat in seats.iter_mut() {
            seat.make_tops()?;
            self.make_home(&seat.vm)?;
        }
        recording.files_made();
        recording.wait_durable()?;
        Ok(())
    }
}
