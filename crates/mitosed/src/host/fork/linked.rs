//! Clones of a powered-off VM: powered off too, on the source's disks or with copies of them.

use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Context;
use api_types::{CloneMode, Cloned, ClonedVm, ForkRequest, MAX_CLONES};
use disk_layers::{LayerFile, flatten};

use super::seats::Seat;
use crate::error::OpResult;
use crate::host::states::Operation;
use crate::host::{Host, Vm, vm_event};
use crate::inventory::{Changes, DiskRow, LayerRow, PowerState, sync_directory};
use crate::layers::{disk_format, make_delta};

impl Host {
    /// Makes linked clones, for which source and clones get a new delta each on the source's present
    /// tops, or full clones with disks of their own.
    pub(super) fn clone_powered_off(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        request: &ForkRequest,
    ) -> OpResult<Cloned> {
        let _turn = self.turn(source)?;
        self.allow(source, Operation::Copy)?;
        let mut seats = self.plan_clones(&source.row(), request, MAX_CLONES as usize)?;
        let vms: Vec<_> = seats.iter().map(|seat| Arc::clone(&seat.vm)).collect();
        self.reserve(&vms)?;
        let made = match request.mode {
            CloneMode::Full => self.make_full(source, &seats),
            _ => self.make_linked(source, &mut seats),
        };
        if let Err(error) = made {
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
            let how = match request.mode {
                CloneMode::Full => "full",
                _ => "linked",
            };
            let message = format!("{how} clone of {}", source.name());
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
                    first_run_us: None,
                    ready_us: None,
                    error: None,
                })
                .collect(),
        })
    }

    /// Gives each clone standalone copies of the disks that it can write to.
    pub(super) fn make_full(self: &Arc<Self>, source: &Vm, seats: &[Seat]) -> OpResult<()> {
        let row = source.row();
        let mut copies = Vec::new();
        for seat in seats {
            let mut changes = Changes::default();
            for (index, disk) in row.disks.iter().enumerate() {
                let chain = self.layers().chain(&disk.top)?;
                let mut top = disk.top.clone();
                if !row.spec.disks[index].read_only {
                    let mut copy = self.next_delta(&mut seat.vm.live().row, index, &chain[0]);
                    copy.parent = None;
                    top.clone_from(&copy.id);
                    changes.layers.push(copy.clone());
                    copies.push((copy, chain));
                }
                let mut layers = self.layers();
                layers.insert(changes.layers.iter().cloned());
                layers.hold(&top);
                seat.vm
                    .update(|live| live.row.disks.push(DiskRow { top, pending: None }));
            }
            self.commit(&[&seat.vm], changes)?;
            self.make_home(&seat.vm.id)?;
        }
        for (copy, chain) in &copies {
            copy_disk(copy, chain)?;
        }
        sync_directory(&self.config.home.layers()).context("cannot sync the datastore")?;
        Ok(())
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

/// Writes what a stack shows to a new standalone file, durably.
fn copy_disk(copy: &LayerRow, chain: &[LayerRow]) -> anyhow::Result<()> {
    let open = |layer: &LayerRow| {
        let file = File::open(&layer.path)
            .with_context(|| format!("cannot open the disk layer {}", layer.path.display()))?;
        anyhow::Ok(LayerFile {
            file,
            format: disk_format(layer.format),
        })
    };
    let chain = chain.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let failed = || format!("cannot copy a disk to {}", copy.path.display());
    let target = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&copy.path)
        .with_context(failed)?;
    flatten(chain, target, &mut |_| ControlFlow::Continue(())).with_context(failed)
}
