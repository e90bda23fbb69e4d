//! Where memory goes that is kept in files: the folder `memory` of the VM's datastore, or of another
//! that was asked for. A place is promised before the VM stands still.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::datastores::Promise;
use super::recover::sweep;
use super::{Host, Vm};
use crate::datastore::StoreDir;
use crate::error::{OpError, OpResult};
use crate::inventory::{
    Datastore, ForkPoint, MemoryFiles, Object, PointMemory, Snapshot, SnapshotMemory,
};
use crate::usage;

/// Space of a checkpoint, bytes.
const CHECKPOINT_BYTES: u64 = 1 << 20;

/// A place for the memory of an instant, with its space.
#[derive(Debug)]
pub(in crate::host) struct MemoryPlace {
    pub store: Object<Datastore>,
    pub bytes: u64,
    _space: Promise,
}

impl Host {
    /// A place for the memory of a VM that runs: on the datastore `wanted`, or on the VM's own.
    pub(in crate::host) fn memory_place(
        &self,
        vm: &Vm,
        wanted: Option<&str>,
    ) -> OpResult<MemoryPlace> {
        let store = match wanted {
            Some(wanted) => self.store_for_disks(wanted)?,
            None => {
                let store = self.object::<Datastore>(&vm.row().datastore)?;
                self.check_store(&store.id)?;
                store
            }
        };
        let (pid, ram, all) = {
            let live = vm.live();
            (live.row.pid, live.ram, live.row.spec.memory_bytes)
        };
        let used = pid.map_or_else(Default::default, |pid| usage::memory_of(pid, ram));
        let used = (used.private_kib + used.shared_kib) << 10;
        // Pages of zeros stay holes. Where the kernel does not tell, all of it may be written.
        let bytes = if used == 0 { all } else { used.min(all) } + CHECKPOINT_BYTES;
        let space = self.promise_space(&store, bytes)?;
        if wanted.is_some() {
            // From the promise on it cannot be removed; it may have been before.
            self.store_for_disks(&store.id)?;
        }
        Ok(MemoryPlace {
            store,
            bytes,
            _space: space,
        })
    }

    /// Paths of the memory and the checkpoint of an instant on a datastore.
    pub(in crate::host) fn memory_paths(
        &self,
        store: &StoreDir,
        id: &str,
    ) -> OpResult<(PathBuf, PathBuf)> {
        let dir = store.memory();
        fs::create_dir_all(&dir).map_err(|error| {
            OpError::failed(format!("cannot make the folder {}: {error}", dir.display()))
        })?;
        Ok((
            dir.join(format!("{id}.ram")),
            dir.join(format!("{id}.state")),
        ))
    }

    /// Removes memory of a datastore that nothing needs, where no operation may be writing some.
    pub(in crate::host) fn sweep_memory(&self, store: &str) {
        let dir = self.store(store).memory();
        let (_, operations) = self.stores.promised_of(store);
        if operations == 0 && dir.exists() && !self.keeps_unlisted() {
            let used: HashSet<PathBuf> = self.memory_in_use().map(|(path, _)| path).collect();
            sweep(&dir, |name| used.contains(&dir.join(name)));
        }
    }

    /// What keeps memory in a folder, one of it.
    pub(in crate::host) fn user_of_memory(&self, below: &Path) -> Option<String> {
        let mut all = self.memory_in_use();
        let found = all.find(|(path, _)| path.starts_with(below));
        found.map(|(_, user)| user)
    }

    /// Files of memory that are needed, each with what needs it.
    fn memory_in_use(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let mut used = Vec::new();
        let mut note = |files: &MemoryFiles, user: String| {
            used.push((files.ram.clone(), user.clone()));
            used.push((files.checkpoint.clone(), user));
        };
        for vm in self.all() {
            if let Some(files) = vm.row().memory_files() {
                note(files, format!("the suspended VM {}", vm.name()));
            }
        }
        for snapshot in self.objects::<Snapshot>() {
            if let SnapshotMemory::Files(files) = &snapshot.doc.memory {
                note(files, format!("the snapshot {}", snapshot.name));
            }
        }
        for point in self.objects::<ForkPoint>() {
            if let PointMemory::Files { ram, checkpoint } = point.doc.memory {
                let files = MemoryFiles { ram, checkpoint };
                note(&files, format!("the fork point {}", point.name));
            }
        }
        used.into_iter()
    }
}
