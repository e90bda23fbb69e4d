//! Clones of a powered-off VM: powered off too, on the source's disks.

use std::sync::Arc;

use anyhow::Context;
use api_types::{CloneMode, Cloned, ClonedVm, ForkRequest};

use super::seats::Seat;
use crate::error::{OpError, OpResult};
use crate::host::{Host, Vm, event};
use crate::inventory::{Changes, PowerState};
use crate::layers::make_delta;

impl Host {
    /// Makes linked clones: source and clones get a new delta each on the source's present tops.
    pub(super) fn clone_powered_off(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        request: &ForkRequest,
    ) -> OpResult<Cloned> {
        if request.mode == CloneMode::Full {
            return Err(OpError::invalid(
                "mode: full clones are not part of this build; use --mode linked or instant",
            ));
        }
        let _turn = self.turn(source)?;
        if source.state() != PowerState::PoweredOff {
            return Err(OpError::conflict(format!(
                "{0} is {1}: linked clones are made of powered-off VMs; \
                 stop it with 'mitose stop {0}', or use --mode instant",
                source.name,
                source.state().word()
            )));
        }
        let mut seats = self.plan_clones(source, request)?;
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
            let message = format!("linked clone of {}", source.name);
            changes
                .events
                .push(event(&seat.vm.name, "vm.cloned", message));
            changed.push(&seat.vm);
        }
        self.commit(&changed, changes)?;
        self.inventory.sync().context("cannot sync the inventory")?;
        changed.iter().for_each(|vm| self.link_tops(&vm.row()));
        Ok(Cloned {
            source: source.name.clone(),
            stun_us: 0,
            io_held_us: 0,
            memory: "none".to_owned(),
            steps_us: Vec::new(),
            phases_us: Vec::new(),
            clones: seats
                .iter()
                .map(|seat| ClonedVm {
                    name: seat.vm.name.clone(),
                    first_run_us: None,
                    ready_us: None,
                    error: None,
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
            self.make_home(&seat.vm.id)?;
        }
        recording.files_made();
        recording.wait_durable()?;
        Ok(())
    }
}
