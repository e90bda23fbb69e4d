//! What is held in memory about datastores: their directories, the space that operations in flight
//! were promised, and which of them are gone. Its locks are taken last, each alone.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::datastore::StoreDir;
use crate::inventory::{Datastore, Kind, Object, ObjectId, ObjectRow};

/// Datastores in memory.
#[derive(Debug)]
pub(in crate::host) struct Stores {
    /// Directory of the datastore that is part of the data directory.
    first: PathBuf,
    dirs: RwLock<HashMap<ObjectId, StoreDir>>,
    promised: Mutex<HashMap<ObjectId, Promised>>,
    /// Those that are not there, with the reason.
    lost: Mutex<BTreeMap<ObjectId, String>>,
    /// Those whose free space is below their threshold.
    low: Mutex<Vec<ObjectId>>,
    /// Taken around adding and removing one.
    pub(super) turn: Mutex<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Promised {
    bytes: u64,
    operations: usize,
}

/// Space of a datastore that an operation in flight may use; given back when it is dropped.
#[derive(Debug)]
pub(in crate::host) struct Promise {
    stores: Arc<Stores>,
    id: ObjectId,
    bytes: u64,
}

impl Promise {
    /// Bytes of it were written, so that they are missing from the free space by themselves.
    pub fn spend(&mut self, bytes: u64) {
        let spent = bytes.min(self.bytes);
        self.bytes -= spent;
        let mut promised = self.stores.promised();
        if let Some(entry) = promised.get_mut(&self.id) {
            entry.bytes = entry.bytes.saturating_sub(spent);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut promised = self.stores.promised();
        if let Some(entry) = promised.get_mut(&self.id) {
            entry.bytes = entry.bytes.saturating_sub(self.bytes);
            entry.operations -= 1;
            if entry.operations == 0 {
                promised.remove(&self.id);
            }
        }
    }
}

impl Stores {
    pub fn new(first: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            first,
            dirs: RwLock::default(),
            promised: Mutex::default(),
            lost: Mutex::default(),
            low: Mutex::default(),
            turn: Mutex::default(),
        })
    }

    /// Takes over rows that were changed.
    pub fn apply(&self, changed: &[ObjectRow], removed: &[ObjectId]) {
        let is_store = |row: &&ObjectRow| row.kind == Datastore::KIND;
        let mut dirs = self.dirs.write().unwrap_or_else(PoisonError::into_inner);
        for row in changed.iter().filter(is_store) {
            if let Ok(store) = Object::<Datastore>::from_row(row) {
                dirs.insert(store.id.clone(), self.dir_of(&store.doc));
            }
        }
        for id in removed {
            dirs.remove(id);
        }
    }

    /// Directory that a datastore's document names.
    pub fn dir_of(&self, store: &Datastore) -> StoreDir {
        StoreDir::new(if store.path.as_os_str().is_empty() {
            self.first.clone()
        } else {
            store.path.clone()
        })
    }

    /// Directory of a datastore. One that the inventory does not know has a directory that is not
    /// there.
    pub fn dir(&self, id: &str) -> StoreDir {
        let dirs = self.dirs.read().unwrap_or_else(PoisonError::into_inner);
        let found = dirs.get(id).cloned();
        found.unwrap_or_else(|| StoreDir::new(self.first.join("unknown").join(id)))
    }

    /// Directories of all datastores.
    pub fn all_dirs(&self) -> Vec<(ObjectId, StoreDir)> {
        let dirs = self.dirs.read().unwrap_or_else(PoisonError::into_inner);
        let all = dirs.iter().map(|(id, dir)| (id.clone(), dir.clone()));
        all.collect()
    }

    /// Promises `bytes` where `fits` allows them beside those promised before.
    pub fn promise(
        self: &Arc<Self>,
        id: &str,
        bytes: u64,
        fits: impl FnOnce(u64) -> bool,
    ) -> Option<Promise> {
        let mut promised = self.promised();
        let entry = promised.entry(id.to_owned()).or_default();
        if !fits(entry.bytes) {
            if entry.operations == 0 {
                promised.remove(id);
            }
            return None;
        }
        entry.bytes = entry.bytes.saturating_add(bytes);
        entry.operations += 1;
        Some(Promise {
            stores: Arc::clone(self),
            id: id.to_owned(),
            bytes,
        })
    }

    /// Bytes promised of a datastore, and to how many operations.
    pub fn promised_of(&self, id: &str) -> (u64, usize) {
        let entry = self.promised().get(id).copied().unwrap_or_default();
        (entry.bytes, entry.operations)
    }

    /// Notes that a datastore is there, or why not; says whether that is news.
    pub fn note_lost(&self, id: &str, reason: Option<String>) -> bool {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => lost.insert(id.to_owned(), reason).is_none(),
            None => lost.remove(id).is_some(),
        }
    }

    /// Whether a datastore was found missing when it was last looked at.
    pub fn is_lost(&self, id: &str) -> bool {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.contains_key(id)
    }

    /// Notes whether a datastore is short of space; says whether that is news.
    pub fn note_low(&self, id: &str, is_low: bool) -> bool {
        let mut low = self.low.lock().unwrap_or_else(PoisonError::into_inner);
        let was_low = low.iter().any(|known| known == id);
        if is_low && !was_low {
            low.push(id.to_owned());
        } else if !is_low {
            low.retain(|known| known != id);
        }
        was_low != is_low
    }

    fn promised(&self) -> MutexGuard<'_, HashMap<ObjectId, Promised>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_add_up_and_are_given_back() {
        let stores = Stores::new("/x".into());
        let mut first = stores.promise("d", 10, |before| before == 0).unwrap();
        let second = stores.promise("d", 5, |before| before == 10).unwrap();
        assert!(stores.promise("d", 1, |_| false).is_none());
        assert_eq!(stores.promised_of("d"), (15, 2));
        first.spend(4);
        assert_eq!(stores.promised_of("d"), (11, 2));
        drop(second);
        first.spend(100);
        assert_eq!(stores.promised_of("d"), (0, 1));
        drop(first);
        assert_eq!(stores.promised_of("d"), (0, 0));
        assert!(stores.promised().is_empty());
    }

    #[test]
    fn news_are_told_once() {
        let stores = Stores::new("/x".into());
        assert!(stores.note_lost("d", Some("gone".into())));
        assert!(!stores.note_lost("d", Some("gone".into())));
        assert!(stores.is_lost("d"));
        assert!(stores.note_lost("d", None) && !stores.note_lost("d", None));
        assert!(stores.note_low("d", true) && !stores.note_low("d", true));
        assert!(stores.note_low("d", false) && !stores.note_low("d", false));
    }
}
