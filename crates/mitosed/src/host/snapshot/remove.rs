//! Removing snapshots. Their layers stay as long as others use them.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use super::children::{nearest_left, subtree};
use super::{Host, Vm, vm_event};
use crate::error::OpResult;
use crate::host::row_of;
use crate::inventory::{
    Changes, LayerId, LayerRow, MemoryFiles, Object, ObjectId, Snapshot, SnapshotMemory,
};

/// What is left in the datastore when snapshots are gone from the record.
#[derive(Debug, Default)]
pub(in crate::host) struct Debris {
    layers: Vec<LayerRow>,
    memory: Vec<MemoryFiles>,
}

impl Debris {
    /// Removes the files.
    pub fn remove(&self, host: &Host) {
        host.remove_layers(&self.layers);
        self.memory
            .iter()
            .for_each(|files| host.remove_memory(files));
    }
}

impl Host {
    /// Removes a snapshot; those made on it move up, or go too.
    pub fn remove_snapshot(
        &self,
        vm: &Arc<Vm>,
        reference: &str,
        children: bool,
    ) -> OpResult<Vec<String>> {
        let _turn = self.turn(vm)?;
        let (all, gone) = self.check_snapshot_removal(vm, reference, children)?;
        let names: Vec<_> = all
            .iter()
            .filter(|s| gone.contains(&s.id))
            .map(|s| s.name.clone())
            .collect();
        let message = format!("removed snapshots {}", names.join(", "));
        self.take_out(vm, &all, &gone, "snapshot.removed", message)?;
        Ok(names)
    }

    /// All snapshots of a VM, and those that would go with one, where they may.
    pub fn check_snapshot_removal(
        &self,
        vm: &Vm,
        reference: &str,
        children: bool,
    ) -> OpResult<(Vec<Object<Snapshot>>, BTreeSet<ObjectId>)> {
        let snapshot = self.find_snapshot(vm, reference)?;
        let all = self.snapshots_of(vm);
        let gone = if children {
            subtree(&all, &snapshot.id)
        } else {
            BTreeSet::from([snapshot.id.clone()])
        };
        for snapshot in all.iter().filter(|s| gone.contains(&s.id)) {
            self.check_complete(snapshot)?;
        }
        Ok((all, gone))
    }

    /// Removes a snapshot that cannot be finished.
    pub(super) fn drop_unfinished(&self, vm: &Arc<Vm>, snapshot: &Object<Snapshot>, why: &str) {
        let Ok(_turn) = self.turn(vm) else { return };
        let all = self.snapshots_of(vm);
        let gone = BTreeSet::from([snapshot.id.clone()]);
        let message = format!("snapshot {} was not finished: {why}", snapshot.name);
        if let Err(error) = self.take_out(vm, &all, &gone, "snapshot.failed", message) {
            tracing::error!("{}", error.message());
        }
    }

    /// Takes snapshots out of the tree, on record first.
    pub(super) fn take_out(
        &self,
        vm: &Arc<Vm>,
        all: &[Object<Snapshot>],
        gone: &BTreeSet<ObjectId>,
        kind: &'static str,
        message: String,
    ) -> OpResult<()> {
        let _objects = self
            .object_turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut changes = Changes::default();
        for snapshot in all.iter().filter(|s| !gone.contains(&s.id)) {
            let parent = nearest_left(all, gone, snapshot.doc.tree_parent.clone());
            if parent != snapshot.doc.tree_parent {
                let mut moved = snapshot.clone();
                moved.doc.tree_parent = parent;
                changes.objects.push(row_of(&moved)?);
            }
        }
        let before = vm.update(|live| {
            let present = live.row.snapshot.clone();
            live.row.snapshot = nearest_left(all, gone, present.clone());
            present
        });
        changes.removed_objects = gone.iter().cloned().collect();
        changes.events.push(vm_event(vm, kind, message));
        if let Err(error) = self.commit(&[vm], changes) {
            vm.update(|live| live.row.snapshot = before);
            return Err(error);
        }
        let going = all.iter().filter(|s| gone.contains(&s.id));
        let debris = self.let_go(going);
        self.forget_debris(&debris);
        Ok(())
    }

    /// Lets go of what snapshots hold, which are gone or about to go with their VM.
    pub(in crate::host) fn let_go<'a>(
        &self,
        snapshots: impl IntoIterator<Item = &'a Object<Snapshot>>,
    ) -> Debris {
        let mut debris = Debris::default();
        for snapshot in snapshots {
            let mut layers = self.layers();
            for top in snapshot.doc.tops.iter().flatten() {
                debris.layers.extend(layers.release(top));
            }
            if let SnapshotMemory::Files(files) = &snapshot.doc.memory {
                debris.memory.push(files.clone());
            }
        }
        debris
    }

    /// Forgets layers that nobody uses, then removes files.
    pub(in crate::host) fn forget_debris(&self, debris: &Debris) {
        if !debris.layers.is_empty() {
            let changes = Changes {
                removed_layers: debris.layers.iter().map(|layer| layer.id.clone()).collect(),
                ..Changes::default()
            };
            self.commit_logged(&[], changes);
        }
        debris.remove(self);
    }

    /// Counts one more user of each layer.
    pub(in crate::host) fn hold_layers<'a>(&self, ids: impl IntoIterator<Item = &'a LayerId>) {
        let mut layers = self.layers();
        ids.into_iter().for_each(|id| layers.hold(id));
    }

    /// Counts one user less of each layer; those that nobody uses any more go.
    pub(in crate::host) fn drop_layers<'a>(&self, ids: impl IntoIterator<Item = &'a LayerId>) {
        let mut debris = Debris::default();
        {
            let mut layers = self.layers();
            for id in ids {
                debris.layers.extend(layers.release(id));
            }
        }
        self.forget_debris(&debris);
    }
}
