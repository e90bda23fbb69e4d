//! What a fork leads to: tops that are taken over or taken back, clones that live or are removed.

use std::sync::Arc;

use api_types::{Cloned, ClonedVm, Consistency, StunRecord};
use vmm_protocol::{ForkStep, Forked, RamView};

use super::Phases;
use super::seats::Seat;
use crate::clock::{now_ms, us_between};
use crate::host::{Host, Vm, vm_event};
use crate::inventory::{Changes, LayerId, LayerRow, MAX_STUN_RECORDS, NewEvent, PowerState};

/// What became of clones.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Those that live, and others whose rows are to be written.
    pub living: Vec<Arc<Vm>>,
    /// What to tell.
    pub events: Vec<NewEvent>,
    /// Layers that their rows name no more.
    pub outdated: Vec<LayerId>,
    /// The answer about each.
    pub clones: Vec<ClonedVm>,
}

impl Settled {
    /// A clone that does not come to life: one made for this call goes, a VM that was there before
    /// stays as it was.
    fn take_back(&mut self, host: &Arc<Host>, seat: &Seat, message: String) {
        host.abandon_process(&seat.vm);
        if seat.was_there {
            self.outdated.extend(seat.give_up_unmade());
            seat.vm.update(|live| {
                live.starting = false;
                live.row.state = PowerState::PoweredOff;
                live.row.making = None;
                live.row.reason = Some(message.clone());
                // Without a process nothing was written to its disks: it is as it was registered.
                if let Some(child) = live.row.child.as_mut().filter(|_| seat.link.is_none()) {
                    child.started = false;
                }
            });
            self.events.push(vm_event(&seat.vm, "vm.failed", message));
            self.living.push(Arc::clone(&seat.vm));
        } else {
            host.erase(
                &seat.vm,
                Some(vm_event(&seat.vm, "vm.clone_failed", message)),
            );
        }
    }
}

impl Host {
    /// Records which clones live, removes the others, and makes it durable.
    pub(super) fn conclude(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        seats: &mut [Seat],
        forked: &Forked,
        phases: &mut Phases,
    ) -> Cloned {
        let mut settled = self.settle_seats(&source.name(), seats, phases.arrived_ns);
        let count = settled.living.len();
        let message = format!("forked into {count} clones, stun {} us", forked.stun_us);
        let figures = serde_json::json!({
            "stun_us": forked.stun_us,
            "io_held_us": forked.io_held_us,
            "clones": count,
        });
        settled
            .events
            .push(vm_event(source, "vm.forked", message).with(figures));
        settled.living.push(Arc::clone(source));
        let clones = self.record_settled(settled, seats);
        phases.mark("concluded");
        Cloned {
            source: source.name().to_string(),
            stun_us: forked.stun_us,
            io_held_us: forked.io_held_us,
            memory: if forked.layer.is_some() {
                "layer"
            } else {
                "fork"
            }
            .to_owned(),
            consistency: Consistency::Instant,
            steps_us: step_names(&forked.steps_us),
            phases_us: Vec::new(),
            clones,
        }
    }

    /// Sorts clones into those that live and those that do not; the latter are taken back.
    pub(super) fn settle_seats(
        self: &Arc<Self>,
        from: &str,
        seats: &mut [Seat],
        arrived_ns: u64,
    ) -> Settled {
        let mut settled = Settled::default();
        for seat in seats.iter_mut() {
            let ran_us = seat.first_run_at_ns.map(|at| us_between(arrived_ns, at));
            if let Some(error) = &seat.error {
                let message = format!("cloning {from} failed: {error}");
                settled.take_back(self, seat, message);
            } else {
                seat.early_no_space = seat.vm.update(|live| {
                    if seat.paused {
                        return live.came_to_rest(RamView::Private);
                    }
                    live.came_to_life(RamView::Private)
                });
                let figures = serde_json::json!({ "source": from, "first_run_us": ran_us });
                let message = format!("cloned from {from}");
                settled
                    .events
                    .push(vm_event(&seat.vm, "vm.cloned", message).with(figures));
                settled.living.push(Arc::clone(&seat.vm));
            }
            settled.clones.push(ClonedVm {
                name: seat.vm.name().to_string(),
                first_run_us: ran_us,
                ready_us: None,
                error: seat.error.clone(),
                disks: None,
            });
        }
        settled
    }

    /// Records what became of clones, durably.
    pub(super) fn record_settled(
        self: &Arc<Self>,
        settled: Settled,
        seats: &[Seat],
    ) -> Vec<ClonedVm> {
        let changes = Changes {
            events: settled.events,
            ..Changes::default()
        };
        let changed: Vec<_> = settled.living.iter().collect();
        self.commit_logged(&changed, changes);
        let outdated = seats.iter().flat_map(|seat| &seat.outdated);
        self.drop_layers(outdated.chain(&settled.outdated));
        for vm in &changed {
            self.link_tops(&vm.row());
        }
        if let Err(error) = self.inventory.sync() {
            tracing::error!("{:#}", anyhow::Error::from(error));
        }
        for seat in seats {
            self.recheck(seat);
        }
        settled.clones
    }

    /// What happened to a clone before its row said that it runs was left alone by the handler.
    fn recheck(self: &Arc<Self>, seat: &Seat) {
        if let Some(disk) = seat.early_no_space {
            self.no_space(&seat.vm, disk);
        }
        let ended = seat
            .link
            .as_ref()
            .filter(|link| link.is_closed() && seat.error.is_none());
        if let Some(link) = ended {
            (self.handler(&seat.vm, link))(crate::vmm::Notice::Closed(None));
        }
    }

    /// After a fork: the pending tops are the source's tops.
    pub(super) fn adopt_tops(&self, source: &Vm, forked: &Forked, clones: usize) {
        source.update(|live| {
            if forked.layer.is_some() {
                live.ram = Some(RamView::Private);
            }
            live.row.stuns.push(StunRecord {
                at_ms: now_ms(),
                stun_us: forked.stun_us,
                io_held_us: forked.io_held_us,
                clones: clones as u32,
                steps_us: step_names(&forked.steps_us),
            });
            let excess = live.row.stuns.len().saturating_sub(MAX_STUN_RECORDS);
            live.row.stuns.drain(..excess);
        });
        self.take_pending_tops(source);
    }

    /// Makes each pending top the top of its disk.
    pub(in crate::host) fn take_pending_tops(&self, vm: &Vm) {
        let mut gone = Vec::new();
        vm.update(|live| {
            let mut layers = self.layers();
            for disk in &mut live.row.disks {
                if let Some(pending) = disk.pending.take() {
                    let old = disk.top.replace(pending);
                    gone.extend(old.iter().flat_map(|old| layers.release(old)));
                }
            }
        });
        debug_assert!(gone.is_empty(), "a top is the parent of its successor");
    }

    /// After a fork that failed in the source, which has its next tops and another view of its RAM
    /// where it `swapped`.
    pub(super) fn fork_failed(&self, source: &Arc<Vm>, disks_only: bool, swapped: bool) {
        if swapped && !disks_only {
            source.update(|live| live.ram = Some(RamView::Private));
        }
        self.end_pending(source, swapped);
    }

    /// After a failed fork: takes the pending tops, or forgets them and removes their files.
    pub(in crate::host) fn end_pending(&self, source: &Arc<Vm>, take: bool) {
        let mut changes = Changes::default();
        if take {
            self.take_pending_tops(source);
        } else {
            let gone = self.drop_pending_tops(source);
            changes.removed_layers = gone.iter().map(|layer| layer.id.clone()).collect();
            self.remove_layers(&gone);
        }
        self.commit_logged(&[source], changes);
    }

    /// Forgets pending tops; returns the layers that nobody uses any more.
    pub(in crate::host) fn drop_pending_tops(&self, vm: &Vm) -> Vec<LayerRow> {
        let mut gone = Vec::new();
        vm.update(|live| {
            let mut layers = self.layers();
            for disk in &mut live.row.disks {
                if let Some(pending) = disk.pending.take() {
                    gone.extend(layers.release(&pending));
                }
            }
        });
        gone
    }
}

/// Steps of a fork by their names.
pub(super) fn step_names(steps: &[(ForkStep, u64)]) -> Vec<(String, u64)> {
    let name = |step: &ForkStep| match serde_json::to_value(step) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{step:?}"),
    };
    steps.iter().map(|(step, us)| (name(step), *us)).collect()
}
