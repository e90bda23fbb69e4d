//! Answers about snapshots.

use std::fs;
use std::os::unix::fs::MetadataExt;

use api_types::{Snapshot as Answer, SnapshotMemory as Word};

use super::{Host, Vm};
use crate::inventory::{Object, Snapshot, SnapshotMemory};

impl Host {
    /// A snapshot as it is answered.
    pub fn show_snapshot(&self, vm: &Vm, snapshot: &Object<Snapshot>) -> Answer {
        let (memory, memory_bytes) = match &snapshot.doc.memory {
            SnapshotMemory::None => (Word::None, None),
            SnapshotMemory::Writing => (Word::Writing, None),
            SnapshotMemory::Files(files) => {
                let taken = [&files.ram, &files.checkpoint]
                    .into_iter()
                    .filter_map(|path| fs::metadata(path).ok())
                    .map(|file| file.blocks() * 512)
                    .sum();
                (Word::Files, Some(taken))
            }
        };
        Answer {
            id: snapshot.id.clone(),
            name: snapshot.name.clone(),
            vm: vm.name().to_string(),
            vm_id: vm.id.clone(),
            description: snapshot.doc.description.clone(),
            parent: snapshot.doc.tree_parent.clone(),
            current: vm.live().row.snapshot.as_ref() == Some(&snapshot.id),
            created_at_ms: snapshot.doc.created_at_ms,
            memory,
            memory_bytes,
            layers: snapshot.doc.tops.iter().flatten().cloned().collect(),
            stun_us: snapshot.doc.stun_us,
            io_held_us: snapshot.doc.io_held_us,
        }
    }
}
