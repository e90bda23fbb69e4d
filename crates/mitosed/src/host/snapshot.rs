//! Snapshots of VMs: a tree of states to which a VM can return.
//!
//! A snapshot is made like the fork point of a fork without clones: the tops of the disks are
//! sealed, the VM goes on with new ones. It holds the sealed layers, so they stay as long as it
//! does. Memory, where asked for, is written to files while the VM runs on.
//!
//! ```text
//! create ─ seal ─ record (memory: writing) ─ write files ─ record (memory: files)
//! revert ─ end the process ─ new tops on the snapshot's ─ record ─ resume at that instant
//! ```

mod children;
mod recover;
mod remove;
mod revert;
mod show;
mod tops;

use std::sync::Arc;

use anyhow::Context;
use api_types::{DryRun, ErrorKind, Snapshot as Answer, SnapshotRequest};

use super::check::Problems;
use super::fork::SealedMemory;
use super::states::Operation;
use super::{Host, TaskContext, Vm, vm_event};
use crate::clock::now_ms;
use crate::error::{OpError, OpResult};
use crate::inventory::{
    Changes, Labels, MemoryFiles, Object, PointMemory, Snapshot, SnapshotMemory, VmRow,
};

impl Host {
    /// Makes a snapshot of a VM. It is complete when the call returns; the VM goes on before.
    pub fn create_snapshot(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        request: &SnapshotRequest,
        task: &TaskContext,
    ) -> OpResult<Answer> {
        let place;
        let (snapshot, memory) = {
            let _busy = self.pool.busy();
            self.wait_for_room(vm)?;
            let _turn = self.turn(vm)?;
            self.snapshot_problems(vm, request).finish()?;
            place = request
                .memory
                .then(|| self.memory_place(vm, None))
                .transpose()?;
            task.progress(0.0, "taking the instant");
            self.snapshot_instant(vm, request)
                .map_err(|error| self.blame_stores(&vm.row(), error))?
        };
        let Some(memory) = memory else {
            return Ok(self.show_snapshot(vm, &snapshot));
        };
        task.progress(0.1, "the VM runs; its memory is being written");
        let stored = self.store_memory(&snapshot.id, memory, true, place.as_ref());
        let written = stored.and_then(|memory| self.memory_written(&snapshot, &memory));
        match written {
            Ok(snapshot) => Ok(self.show_snapshot(vm, &snapshot)),
            Err(error) => {
                self.drop_unfinished(vm, &snapshot, &error.message());
                Err(error)
            }
        }
    }

    /// Tries a request for a snapshot out.
    pub fn check_snapshot(&self, vm: &Vm, request: &SnapshotRequest) -> DryRun {
        self.snapshot_problems(vm, request).dry_run()
    }

    fn snapshot_problems(&self, vm: &Vm, request: &SnapshotRequest) -> Problems {
        let mut problems = Problems::default();
        problems.take(self.check_free::<Snapshot>(Some(&vm.id), &request.name));
        problems.take(self.check_snapshot_state(vm, request.memory));
        problems.take(self.check_stores_of(&vm.row()));
        problems
    }

    /// Seals the present instant and records the snapshot; returns it with the memory that is still
    /// to be written. The caller has the VM's turn.
    fn snapshot_instant(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        request: &SnapshotRequest,
    ) -> OpResult<(Object<Snapshot>, Option<SealedMemory>)> {
        let row = vm.row();
        let tops = row.tops();
        let mut doc = Snapshot {
            labels: Labels::default(),
            description: request.description.clone(),
            tree_parent: row.snapshot.clone(),
            created_at_ms: now_ms(),
            row: Box::new(still(&row)),
            tops: tops.clone(),
            memory: SnapshotMemory::None,
            stun_us: 0,
            io_held_us: 0,
        };
        // From here on they are the snapshot's.
        self.hold_layers(tops.iter().flatten());
        let sealed = if vm.state().has_process() {
            let sealed = self.seal(vm, request.memory, None);
            sealed.map(|sealed| {
                doc.stun_us = sealed.forked.stun_us;
                doc.io_held_us = sealed.forked.io_held_us;
                Some(sealed.memory)
            })
        } else {
            self.seal_powered_off(vm).map(|_| None)
        };
        let memory = sealed.inspect_err(|_| self.drop_layers(tops.iter().flatten()))?;
        let memory = memory.filter(|memory| !matches!(memory, SealedMemory::None));
        if memory.is_some() {
            doc.memory = SnapshotMemory::Writing;
        }
        match self.record_snapshot(vm, &request.name, doc) {
            Ok(snapshot) => Ok((snapshot, memory)),
            Err(error) => {
                memory.into_iter().for_each(|m| self.discard_sealed(m));
                Err(error)
            }
        }
    }

    /// Records that the memory of a snapshot is complete.
    fn memory_written(
        &self,
        snapshot: &Object<Snapshot>,
        memory: &PointMemory,
    ) -> OpResult<Object<Snapshot>> {
        let PointMemory::Files { ram, checkpoint } = memory else {
            return Err(OpError::failed("the memory was not written to files"));
        };
        let files = MemoryFiles {
            ram: ram.clone(),
            checkpoint: checkpoint.clone(),
        };
        let written = self.change_object::<Snapshot>(&snapshot.id, None, |snapshot| {
            snapshot.doc.memory = SnapshotMemory::Files(files.clone());
            Ok(())
        });
        // Its VM may have been removed meanwhile.
        written.inspect_err(|_| self.remove_memory(&files))
    }

    fn check_snapshot_state(&self, vm: &Vm, memory: bool) -> OpResult<()> {
        let operation = match memory {
            true => Operation::SnapshotMemory,
            false => Operation::Snapshot,
        };
        self.allow(vm, operation)?;
        let row = vm.row();
        let Some(child) = row.child.as_ref().filter(|child| child.starts_at_point()) else {
            return Ok(());
        };
        let name = vm.name();
        Err(OpError::conflict(if child.persistent {
            format!(
                "{name} was never started, so it is its fork point; 'mitose start {name}' first"
            )
        } else if row.persistence_settled() {
            format!(
                "{name} is a non-persistent child: it returns to its fork point; make a snapshot of \
                 a clone of it ('mitose clone {name} --mode linked')"
            )
        } else {
            format!(
                "{name} is a non-persistent child: it returns to its fork point; 'mitose persist \
                 {name}' first"
            )
        }))
    }

    /// Records a snapshot whose layers are sealed; from here on it holds them.
    fn record_snapshot(
        &self,
        vm: &Arc<Vm>,
        name: &str,
        doc: Snapshot,
    ) -> OpResult<Object<Snapshot>> {
        let object = Object {
            id: self.new_id("snapshot")?,
            parent: Some(vm.id.clone()),
            name: name.to_owned(),
            version: 1,
            doc,
        };
        let event = vm_event(vm, "snapshot.created", message_of(&object))
            .about(&vm.id)
            .with(serde_json::json!({
                "snapshot": object.id,
                "stun_us": object.doc.stun_us,
                "memory": !matches!(object.doc.memory, SnapshotMemory::None),
            }));
        let row = super::row_of(&object)?;
        let before = vm.update(|live| live.row.snapshot.replace(object.id.clone()));
        let changes = Changes {
            objects: vec![row],
            events: vec![event],
            ..Changes::default()
        };
        let recorded = self
            .commit(&[vm], changes)
            .and_then(|()| Ok(self.inventory.sync().context("cannot sync the inventory")?));
        if let Err(error) = recorded {
            vm.update(|live| live.row.snapshot = before);
            let removed = Changes {
                removed_objects: vec![object.id.clone()],
                ..Changes::default()
            };
            self.commit_logged(&[vm], removed);
            self.drop_layers(object.doc.tops.iter().flatten());
            return Err(error);
        }
        Ok(object)
    }

    /// The snapshot of a VM that has an id or a name.
    pub fn find_snapshot(&self, vm: &Vm, reference: &str) -> OpResult<Object<Snapshot>> {
        let found = self
            .snapshots_of(vm)
            .into_iter()
            .find(|snapshot| snapshot.id == reference || snapshot.name == reference);
        found.ok_or_else(|| {
            OpError::new(
                ErrorKind::NotFound,
                format!(
                    "snapshot: {0} has no snapshot {reference:?}; 'mitose snapshot ls {0}' lists them",
                    vm.name()
                ),
            )
        })
    }

    /// Snapshots of a VM, oldest first.
    pub fn snapshots_of(&self, vm: &Vm) -> Vec<Object<Snapshot>> {
        let mut all = self.objects::<Snapshot>();
        all.retain(|snapshot| snapshot.parent.as_deref() == Some(&vm.id));
        // By number: the clock may have been set back.
        all.sort_by_key(|snapshot| number_of(&snapshot.id));
        all
    }

    /// Refuses a snapshot whose memory is not complete.
    pub(in crate::host) fn check_complete(&self, snapshot: &Object<Snapshot>) -> OpResult<()> {
        match snapshot.doc.memory {
            SnapshotMemory::Writing => Err(OpError::conflict(format!(
                "snapshot: the memory of {:?} is still being written; wait for the task that \
                 makes it",
                snapshot.name
            ))),
            _ => Ok(()),
        }
    }
}

/// The number in an id.
pub(super) fn number_of(id: &str) -> u64 {
    id.rsplit_once('-')
        .and_then(|(_, number)| number.parse().ok())
        .unwrap_or(0)
}

/// A row without what belongs to a process.
fn still(row: &VmRow) -> VmRow {
    VmRow {
        uid: None,
        pid: None,
        group: None,
        stuns: Vec::new(),
        suspend: None,
        begun: None,
        begun_by: None,
        making: None,
        ..row.clone()
    }
}

fn message_of(snapshot: &Object<Snapshot>) -> String {
    let kind = match snapshot.doc.memory {
        SnapshotMemory::None => "disks",
        _ => "disks and memory",
    };
    format!(
        "snapshot {} of {kind}, stun {} us",
        snapshot.name, snapshot.doc.stun_us
    )
}
