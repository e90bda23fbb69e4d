//! Clones of a snapshot: powered-off ones on its disks or with copies of them, and running ones from
//! its memory; and clones of a suspended VM.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use api_types::{CloneMode, Cloned, ClonedVm, Consistency, ForkRequest, MAX_CLONES};

use super::point::Ground;
use super::seats::Seat;
use super::{DEFAULT_READY_WAIT_S, wait_for_agents};
use crate::error::{OpError, OpResult};
use crate::host::{Host, Vm, vm_event};
use crate::inventory::{
    Changes, DiskRow, ForkPoint, Labels, LayerId, MemoryFiles, Object, PointMemory, PowerState,
    Snapshot, SnapshotMemory, VmRow,
};

/// Clones that are brought to life together.
const GROUP: usize = 50;

/// Layers that stay while clones are made of them.
pub(in crate::host) struct Held<'a> {
    host: &'a Host,
    layers: Vec<LayerId>,
}

impl<'a> Held<'a> {
    /// Counts one more user of each layer.
    pub fn new(host: &'a Host, tops: &[Option<LayerId>]) -> Self {
        let layers: Vec<_> = tops.iter().flatten().cloned().collect();
        host.hold_layers(&layers);
        Self { host, layers }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.host.drop_layers(&self.layers);
    }
}

/// An instant whose memory is in files.
struct Instant {
    /// What it is called.
    from: String,
    /// The machine.
    row: VmRow,
    /// Immutable top layer of each disk, none of an empty slot.
    tops: Vec<Option<LayerId>>,
    files: MemoryFiles,
    ground: Ground,
}

impl Host {
    /// Clones a snapshot of a VM. The VM itself is not touched.
    pub(in crate::host) fn clone_snapshot(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        snapshot: &Object<Snapshot>,
        request: &ForkRequest,
        arrived_ns: u64,
    ) -> OpResult<Cloned> {
        let held = {
            // A snapshot that is being removed is gone or stays until its layers are held.
            let _turn = self.turn(vm)?;
            self.find_snapshot(vm, &snapshot.id)?;
            Held::new(self, &snapshot.doc.tops)
        };
        let past = past_of(vm, snapshot);
        if request.mode == CloneMode::Instant {
            let instant = self.instant_of(&past, snapshot)?;
            return self.clone_instant(instant, request, arrived_ns);
        }
        if request.mode == CloneMode::Full {
            let consistency = consistency_of(&snapshot.doc);
            return self.copy_clones(&past.row(), request, consistency, None);
        }
        let mut seats = self.plan_clones(&past.row(), request, MAX_CLONES as usize)?;
        let vms: Vec<_> = seats.iter().map(|seat| Arc::clone(&seat.vm)).collect();
        self.reserve(&vms, "none", consistency_of(&snapshot.doc))?;
        let made = self
            .link_to(&snapshot.doc.tops, &mut seats)
            .and_then(|()| self.conclude_powered_off(snapshot, &seats));
        if let Err(error) = made {
            seats.iter().for_each(|seat| self.erase(&seat.vm, None));
            return Err(error);
        }
        drop(held);
        Ok(Cloned {
            source: vm.name().to_string(),
            stun_us: 0,
            io_held_us: 0,
            memory: "none".to_owned(),
            consistency: consistency_of(&snapshot.doc),
            steps_us: Vec::new(),
            phases_us: Vec::new(),
            clones: seats.iter().map(clone_of).collect(),
        })
    }

    /// Records clones on the snapshot's layers, and makes their tops.
    fn link_to(self: &Arc<Self>, tops: &[Option<LayerId>], seats: &mut [Seat]) -> OpResult<()> {
        let mut recording = self.record_children(tops, seats)?;
        recording.wait_recorded()?;
        for seat in seats.iter_mut() {
            seat.make_tops()?;
            self.make_home(&seat.vm)?;
        }
        recording.files_made();
        Ok(recording.wait_durable()?)
    }

    /// Clones a suspended VM from its memory on disk; it stays suspended.
    pub(in crate::host) fn clone_suspended(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        request: &ForkRequest,
        arrived_ns: u64,
    ) -> OpResult<Cloned> {
        let (instant, _held) = {
            let _turn = self.turn(vm)?;
            let row = vm.row();
            let Some(files) = row.memory_files().cloned() else {
                return Err(OpError::conflict(format!(
                    "{0} goes on at the moment; try again when 'mitose ls' shows it running",
                    vm.name()
                )));
            };
            let tops = self.below_empty_tops(&row)?;
            let held = Held::new(self, &tops);
            let from = row.name.clone();
            let instant = Instant {
                ground: self.open_ground(&row, &files)?,
                from,
                row,
                tops,
                files,
            };
            (instant, held)
        };
        self.clone_instant(instant, request, arrived_ns)
    }

    fn instant_of(&self, past: &Vm, snapshot: &Object<Snapshot>) -> OpResult<Instant> {
        self.check_complete(snapshot)?;
        let SnapshotMemory::Files(files) = &snapshot.doc.memory else {
            return Err(OpError::conflict(format!(
                "snapshot: {} has no memory, so that no clone can run from its instant; use \
                 --mode linked or --mode full",
                snapshot.name
            )));
        };
        let row = past.row();
        Ok(Instant {
            ground: self.open_ground(&row, files)?,
            from: format!("snapshot {} of {}", snapshot.name, row.name),
            row,
            tops: snapshot.doc.tops.clone(),
            files: files.clone(),
        })
    }

    fn open_ground(&self, row: &VmRow, files: &MemoryFiles) -> OpResult<Ground> {
        Ok(Ground {
            ram: open_file(&files.ram)?,
            checkpoint: open_file(&files.checkpoint)?,
            kvm: self.open_engine(&row.engine)?,
        })
    }

    /// Powers on clones at an instant whose memory is in files.
    fn clone_instant(
        self: &Arc<Self>,
        instant: Instant,
        request: &ForkRequest,
        arrived_ns: u64,
    ) -> OpResult<Cloned> {
        let Instant {
            from,
            row,
            tops,
            files,
            ground,
        } = instant;
        let mut seats = self.plan_clones(&row, request, MAX_CLONES as usize)?;
        seats
            .iter_mut()
            .for_each(|seat| seat.paused = request.paused);
        let vms: Vec<_> = seats.iter().map(|seat| Arc::clone(&seat.vm)).collect();
        self.reserve(&vms, "files", Consistency::Instant)?;
        let source = row.name.clone();
        // A fork point for the time of this call: it is no object.
        let point = Object {
            id: String::new(),
            parent: None,
            name: from.clone(),
            version: 1,
            doc: ForkPoint {
                imported: false,
                labels: Labels::default(),
                row: Box::new(row),
                tops,
                memory: PointMemory::Files {
                    ram: files.ram,
                    checkpoint: files.checkpoint,
                },
                quiesced: false,
                created_at_ms: 0,
                stun_us: 0,
                io_held_us: 0,
            },
        };
        let mut clones = Vec::new();
        for group in seats.chunks_mut(GROUP) {
            let _busy = self.pool.busy();
            self.bring_to_life(&point, group, &ground);
            let settled = self.settle_seats(&from, group, arrived_ns);
            clones.extend(self.record_settled(settled, group));
            let alive = group.iter().filter(|seat| seat.error.is_none());
            let alive = alive.map(|seat| Arc::clone(&seat.vm)).collect();
            self.settle_in(alive, None);
        }
        let wait_s = match request.wait_ready_s {
            _ if request.paused => 0,
            Some(wait_s) => wait_s,
            None if point.doc.row.has_agent => DEFAULT_READY_WAIT_S,
            None => 0,
        };
        wait_for_agents(wait_s, &seats, &mut clones, arrived_ns);
        Ok(Cloned {
            source,
            stun_us: 0,
            io_held_us: 0,
            memory: "files".to_owned(),
            consistency: Consistency::Instant,
            steps_us: Vec::new(),
            phases_us: Vec::new(),
            clones,
        })
    }

    fn conclude_powered_off(&self, snapshot: &Object<Snapshot>, seats: &[Seat]) -> OpResult<()> {
        let mut changes = Changes::default();
        let mut changed = Vec::new();
        for seat in seats {
            seat.vm.update(|live| {
                live.row.state = PowerState::PoweredOff;
                live.row.generation = live.row.generation.saturating_sub(1);
            });
            let message = format!("linked clone of snapshot {}", snapshot.name);
            changes
                .events
                .push(vm_event(&seat.vm, "vm.cloned", message));
            changed.push(&seat.vm);
        }
        self.commit(&changed, changes)?;
        self.inventory.sync().context("cannot sync the inventory")?;
        changed.iter().for_each(|vm| self.link_tops(&vm.row()));
        Ok(())
    }
}

/// The VM as it was when the snapshot was made, powered off; it is not listed.
pub(in crate::host) fn past_of(vm: &Vm, snapshot: &Object<Snapshot>) -> Arc<Vm> {
    let disk = |top: &Option<LayerId>| DiskRow::of(top.clone());
    Vm::new(VmRow {
        name: vm.name().to_string(),
        folder: vm.row().folder,
        state: PowerState::PoweredOff,
        disks: snapshot.doc.tops.iter().map(disk).collect(),
        snapshot: None,
        suspend: None,
        ..VmRow::clone(&snapshot.doc.row)
    })
}

/// What the disks of a snapshot hold without its memory.
fn consistency_of(snapshot: &Snapshot) -> Consistency {
    // Disks are only held where there is a process that writes to them.
    let ran = snapshot.io_held_us > 0 || !matches!(snapshot.memory, SnapshotMemory::None);
    match ran {
        true => Consistency::Crash,
        false => Consistency::AtRest,
    }
}

fn clone_of(seat: &Seat) -> ClonedVm {
    ClonedVm {
        name: seat.vm.name().to_string(),
        ..ClonedVm::default()
    }
}

fn open_file(path: &Path) -> OpResult<Arc<OwnedFd>> {
    let file =
        File::open(path).with_context(|| format!("snapshot: cannot open {}", path.display()))?;
    Ok(Arc::new(file.into()))
}
