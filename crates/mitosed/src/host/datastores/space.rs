//! Whether a datastore is there and has space, and promising that space.

use std::path::{Path, PathBuf};

use api_types::ErrorKind;
use vm_spec::format_size;

use super::stores::Promise;
use crate::datastore::{Mark, Space, StoreDir};
use crate::error::{OpError, OpResult};
use crate::host::full::is_no_space;
use crate::host::{Host, Vm};
use crate::inventory::{Datastore, Object, VmRow};

/// Space that a delta takes before its guest writes, bytes: header and first tables.
pub(in crate::host) const DELTA_BYTES: u64 = 512 << 10;
/// Largest reserve and threshold of a datastore that names none, bytes.
const MAX_DEFAULT_RESERVE: u64 = 1 << 30;
const MAX_DEFAULT_WARN: u64 = 10 << 30;

/// Free space below which `store` takes no new disks, bytes.
pub(super) fn reserve_of(store: &Datastore, space: Space) -> u64 {
    let by_size = (space.capacity_bytes / 100).min(MAX_DEFAULT_RESERVE);
    store.reserve_bytes.unwrap_or(by_size)
}

/// Free space below which an event warns, bytes.
pub(super) fn warn_of(store: &Datastore, space: Space) -> u64 {
    let by_size = (space.capacity_bytes / 20).min(MAX_DEFAULT_WARN);
    store.warn_bytes.unwrap_or(by_size)
}

/// Why the directory of a datastore cannot be used, where it cannot.
pub(super) fn why_lost(dir: &StoreDir, store: &Datastore) -> Option<String> {
    let shown = dir.root().display();
    match dir.compare_mark(&store.mark) {
        Ok(Mark::Right) => None,
        Ok(Mark::Other) => Some(format!("{shown} holds another datastore")),
        Ok(Mark::Missing) if dir.root().is_dir() => Some(format!(
            "{shown} has not the datastore's mark; is its file system mounted?"
        )),
        Ok(Mark::Missing) => Some(format!("{shown} does not exist")),
        Err(error) => Some(format!("{shown} cannot be read: {error}")),
    }
}

fn no_space(name: &str, needed: u64, free: u64, reserve: u64) -> OpError {
    let reserved = match reserve {
        0 => String::new(),
        _ => format!(" beside its reserve of {}", format_size(reserve)),
    };
    OpError::new(
        ErrorKind::Unavailable,
        format!(
            "no space on datastore {name}: {} needed, {} free{reserved}; make space on it, or \
             choose another datastore",
            format_size(needed),
            format_size(free)
        ),
    )
}

impl Host {
    /// Directory of a datastore.
    pub fn store(&self, id: &str) -> StoreDir {
        self.stores.dir(id)
    }

    /// Home folder of a VM.
    pub fn vm_home(&self, row: &VmRow) -> PathBuf {
        self.store(&row.datastore).vm(&row.id)
    }

    /// Refuses a datastore that is not there.
    pub(in crate::host) fn check_store(&self, id: &str) -> OpResult<()> {
        let store = self.object::<Datastore>(id)?;
        match why_lost(&self.store(&store.id), &store.doc) {
            None => Ok(()),
            Some(reason) => Err(OpError::unavailable(format!(
                "datastore: {} is inaccessible: {reason}; it is used again as soon as it is back",
                store.name
            ))),
        }
    }

    /// Refuses a VM whose home is on a datastore that is not there.
    pub fn check_home_of(&self, vm: &Vm) -> OpResult<()> {
        let id = vm.live().row.datastore.clone();
        self.check_store(&id)
    }

    /// What is wrong with the datastores of a VM for which something could not be made, where that
    /// is why: one is not there, or has no space.
    pub(in crate::host) fn blame_stores(&self, row: &VmRow, error: OpError) -> OpError {
        if let Err(lost) = self.check_stores_of(row) {
            return lost;
        }
        let full = error.has_cause(is_no_space);
        let store = full.then(|| self.object::<Datastore>(&row.datastore));
        match store {
            Some(Ok(store)) => OpError::unavailable(format!(
                "datastore: no space on {} for what {} needs; make space on it, then try again",
                store.name, row.name
            )),
            _ => error,
        }
    }

    /// The same for one file.
    pub(in crate::host) fn blame_store_of(&self, path: &Path, error: OpError) -> OpError {
        self.check_store_of(path).err().unwrap_or(error)
    }

    /// Refuses a VM whose home or disks are on a datastore that is not there.
    pub(in crate::host) fn check_stores_of(&self, row: &VmRow) -> OpResult<()> {
        for id in self.stores_of(row) {
            self.check_store(&id).map_err(|error| {
                OpError::unavailable(format!("{} cannot be used: {}", row.name, error.message()))
            })?;
        }
        Ok(())
    }

    /// Datastores that a VM's home and layers are on.
    fn stores_of(&self, row: &VmRow) -> Vec<String> {
        let mut used = vec![row.datastore.clone()];
        let dirs = self.stores.all_dirs();
        let layers = self.layers();
        for top in row.disks.iter().filter_map(|disk| disk.top.as_ref()) {
            for layer in layers.chain(top).unwrap_or_default() {
                let holds = |(_, dir): &&(String, StoreDir)| layer.path.starts_with(dir.root());
                if let Some((id, _)) = dirs.iter().find(holds)
                    && !used.contains(id)
                {
                    used.push(id.clone());
                }
            }
        }
        used
    }

    /// Refuses to make `count` tops on a datastore that has no space for them at all.
    pub(in crate::host) fn check_space_for_tops(&self, store: &str, count: usize) -> OpResult<()> {
        let store = self.object::<Datastore>(store)?;
        let needed = DELTA_BYTES.saturating_mul(count as u64);
        match self.store(&store.id).space() {
            Ok(space) if space.free_bytes < needed => Err(self.ran_out_of_space(&store, needed)),
            _ => Ok(()),
        }
    }

    /// Refuses a file whose datastore is not there.
    pub(in crate::host) fn check_store_of(&self, path: &Path) -> OpResult<()> {
        let dirs = self.stores.all_dirs();
        let found = dirs.iter().find(|(_, dir)| path.starts_with(dir.root()));
        found.map_or(Ok(()), |(id, _)| self.check_store(id))
    }

    /// The datastore that new disks are to be put on: one that is there and takes some.
    pub(in crate::host) fn store_for_disks(&self, reference: &str) -> OpResult<Object<Datastore>> {
        let store = self.object::<Datastore>(reference);
        let store = store.map_err(|error| error.about("datastore"))?;
        if store.doc.maintenance {
            return Err(OpError::conflict(format!(
                "datastore: {0} is in maintenance and takes no new disks; end that with \
                 'mitose datastore maintenance {0} --off', or choose another with --datastore",
                store.name
            )));
        }
        self.check_store(&store.id)?;
        Ok(store)
    }

    /// Promises space of a datastore to an operation, or refuses it.
    pub(in crate::host) fn promise_space(
        &self,
        store: &Object<Datastore>,
        bytes: u64,
    ) -> OpResult<Promise> {
        let space = self.store(&store.id).space().map_err(|error| {
            OpError::unavailable(format!(
                "datastore: cannot tell the free space of {}: {error}",
                store.name
            ))
        })?;
        let reserve = reserve_of(&store.doc, space);
        let mut left = 0;
        let promise = self.stores.promise(&store.id, bytes, |promised| {
            left = space
                .free_bytes
                .saturating_sub(promised)
                .saturating_sub(reserve);
            bytes <= left
        });
        promise.ok_or_else(|| no_space(&store.name, bytes, left, reserve))
    }

    /// The refusal of a write that found no space although it was promised.
    pub(in crate::host) fn ran_out_of_space(
        &self,
        store: &Object<Datastore>,
        bytes: u64,
    ) -> OpError {
        let space = self.store(&store.id).space().unwrap_or_default();
        no_space(&store.name, bytes, space.free_bytes, 0)
    }

    /// Bytes that new disks on a datastore may take.
    pub(in crate::host) fn free_for_disks(&self, store: &Object<Datastore>) -> u64 {
        let space = self.store(&store.id).space().unwrap_or_default();
        let (promised, _) = self.stores.promised_of(&store.id);
        space
            .free_bytes
            .saturating_sub(promised)
            .saturating_sub(reserve_of(&store.doc, space))
    }

    /// Checks that new deltas of a VM can be made, and promises their space.
    pub(in crate::host) fn promise_deltas(&self, store: &str, count: usize) -> OpResult<Promise> {
        let store = self.store_for_disks(store)?;
        self.promise_space(&store, DELTA_BYTES.saturating_mul(count as u64))
    }
}
