//! Linked clones: powered off, on the source's disks. Those of a VM that runs are sealed first, which
//! holds its disks for a moment and leaves its vCPUs and its memory alone.

use std::sync::Arc;

use anyhow::Context;
use api_types::{Cloned, ClonedVm, Consistency, ForkRequest, MAX_CLONES};
use vmm_protocol::Forked;

use super::fail_at::FailAt;
use super::seats::Seat;
use super::{Ground, make_next_tops, tell_durable};
use crate::error::{OpError, OpResult};
use crate::host::states::Operation;
use crate::host::{Host, Vm, vm_event};
use crate::inventory::{Changes, PowerState};

impl Host {
    /// Makes linked clones, for which source and clones get a new delta each on the source's present
    /// tops.
    pub(super) fn clone_linked(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        request: &ForkRequest,
    ) -> OpResult<Cloned> {
        if source.state().has_process() {
            self.wait_for_room(source)?;
        }
        let _turn = self.turn(source)?;
        self.allow(source, Operation::Copy)?;
        self.check_stores_of(&source.row())?;
        let mut seats = self.plan_clones(&source.row(), request, MAX_CLONES as usize)?;
        let consistency = self.settle_guest(source, request)?;
        let vms: Vec<_> = seats.iter().map(|seat| Arc::clone(&seat.vm)).collect();
        self.reserve(&vms, "none", consistency)?;
        let made = self.make_linked(source, &mut seats, request.drain_ms_max);
        let forked = match made {
            Ok(forked) => forked,
            Err((error, swapped)) => {
                self.fork_failed(source, true, swapped);
                seats.iter().for_each(|seat| self.erase(&seat.vm, None));
                return Err(error);
            }
        };
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
        let forked = forked.unwrap_or_default();
        Ok(Cloned {
            source: source.name().to_string(),
            stun_us: forked.stun_us,
            io_held_us: forked.io_held_us,
            memory: "none".to_owned(),
            consistency,
            steps_us: super::outcome::step_names(&forked.steps_us),
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

    /// Has the guest write what its file systems hold back, where that is asked for; says what its
    /// disks hold without its memory.
    pub(in crate::host) fn settle_guest(
        &self,
        source: &Arc<Vm>,
        request: &ForkRequest,
    ) -> OpResult<Consistency> {
        match source.state() {
            state if state.is_off() => Ok(Consistency::AtRest),
            PowerState::Running if request.quiesce => {
                self.sync_guest(source)?;
                Ok(Consistency::Synced)
            }
            _ => Ok(Consistency::Crash),
        }
    }

    /// Makes the deltas of source and clones, and puts the source's on; returns what that cost a
    /// source that runs. An error also says whether the source has swapped its tops.
    fn make_linked(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        seats: &mut [Seat],
        drain_ms_max: Option<u32>,
    ) -> Result<Option<Forked>, (OpError, bool)> {
        let ground = self.lay_linked(source, seats);
        let ground = ground.map_err(|error| (error, false))?;
        if source.state().is_off() {
            let durable = ground.recording.wait_durable();
            durable.map_err(|error| (error.into(), false))?;
            self.take_pending_tops(source);
            return Ok(None);
        }
        let Some(link) = source.link() else {
            let error = OpError::conflict(format!("{} is ending", source.name()));
            return Err((error, false));
        };
        let never = FailAt::parse(None).map_err(|error| (error, false))?;
        let point = self.fork_source(source, &link, &[], &ground, drain_ms_max, never)?;
        self.adopt_tops(source, &point.forked, seats.len());
        let durable = ground.recording.wait_durable();
        durable.map_err(|error| (error.into(), true))?;
        tell_durable(&source.name(), &link);
        Ok(Some(point.forked))
    }

    /// All that is done before the source's disks wait.
    fn lay_linked(self: &Arc<Self>, source: &Arc<Vm>, seats: &mut [Seat]) -> OpResult<Ground> {
        let (deltas, mut recording) = self.record_intent(source, seats, None)?;
        recording.wait_recorded()?;
        let tops = make_next_tops(&deltas)?;
        for seat in seats.iter_mut() {
            seat.make_tops()?;
            self.make_home(&seat.vm)?;
        }
        recording.files_made();
        Ok(Ground {
            tops,
            kvm: None,
            disks_only: true,
            recording,
        })
    }
}
