//! Ready copies of all pools in memory, and their directories.
//!
//! ```text
//! pool/<pool id>/<n>.part/   being filled
//! pool/<pool id>/<n>/        ready: disk0.qcow2, disk1.qcow2, …, content (what they are copies of)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::datastore::StoreDir;
use crate::inventory::ObjectId;

/// File that tells what a copy is of.
pub(super) const CONTENT_FILE: &str = "content";
/// End of the name of a copy that is being made.
pub(super) const PART: &str = ".part";

/// Name of disk `number` in a copy's directory.
pub(super) fn disk_name(number: usize) -> String {
    format!("disk{number}.qcow2")
}

/// Copies of all pools.
#[derive(Debug, Default)]
pub(in crate::host) struct Pools {
    state: Mutex<HashMap<ObjectId, Copies>>,
    changed: Condvar,
    /// The filler is to look at once.
    woken: Mutex<bool>,
    work: Condvar,
    /// Batches that take ready copies at the moment.
    takers: AtomicUsize,
}

/// A batch that takes ready copies: no new ones are begun before it is done, since writing them
/// would make it wait for the disk.
#[derive(Debug)]
pub(in crate::host) struct Taking(SharedPools);

impl Drop for Taking {
    fn drop(&mut self) {
        self.0.takers.fetch_sub(1, Ordering::AcqRel);
        self.0.wake();
    }
}

/// Copies of one pool.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    pub store: ObjectId,
    pub dir: PathBuf,
    /// What each ready copy is of, by its number.
    pub ready: BTreeMap<u64, Vec<String>>,
    pub hits: u64,
    pub misses: u64,
    /// Why it is not filled.
    pub note: Option<String>,
    /// Part of a copy that is done, 0 to 1.
    pub filling: Option<f32>,
    /// A copy was made since it was last told that it is filled.
    pub news: bool,
    /// After a failure it is not tried again before this.
    pub not_before: Option<Instant>,
}

/// Copies that were taken from a pool; what is left of them is removed when this is dropped.
#[derive(Debug)]
pub(in crate::host) struct Claimed {
    dir: PathBuf,
}

impl Claimed {
    /// File of disk `number`.
    pub fn disk(&self, number: usize) -> PathBuf {
        self.dir.join(disk_name(number))
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        remove_dir(&self.dir);
    }
}

impl Pools {
    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectId, Copies>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the ready copies of a pool again, and removes what is not one. Of those that are known
    /// the ones that are gone are forgotten: of others somebody may just have taken a part.
    pub fn meet(&self, id: &str, store_id: &str, store: &StoreDir) {
        let dir = store.pools().join(id);
        let mut state = self.lock();
        if let Some(known) = state.get_mut(id) {
            let is_whole = |number: &u64| content_of_copy(&dir.join(number.to_string())).is_some();
            known.ready.retain(|number, _| is_whole(number));
            return;
        }
        let ready = find_ready(&dir);
        let copies = state.entry(id.to_owned()).or_default();
        store_id.clone_into(&mut copies.store);
        copies.dir = dir;
        copies.ready = ready;
    }

    /// Forgets a pool, once nobody fills it.
    pub fn forget(&self, id: &str) {
        let mut state = self.lock();
        while state.get(id).is_some_and(|copies| copies.filling.is_some()) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.remove(id);
    }

    /// Number of ready copies with this content on a datastore.
    pub fn ready_on(&self, store: &str, stamps: &[String]) -> usize {
        let state = self.lock();
        let here = state.values().filter(|copies| copies.store == store);
        here.flat_map(|copies| copies.ready.values())
            .filter(|of| *of == stamps)
            .count()
    }

    /// Whether any datastore has a ready copy with this content.
    pub fn has_ready(&self, stamps: &[String]) -> bool {
        let state = self.lock();
        let mut all = state.values().flat_map(|copies| copies.ready.values());
        all.any(|of| *of == stamps)
    }

    /// Takes a ready copy with this content on a datastore.
    pub fn claim(&self, store: &str, stamps: &[String]) -> Option<Claimed> {
        let mut state = self.lock();
        let here = state.values_mut().filter(|copies| copies.store == store);
        for copies in here {
            let found = copies.ready.iter().find(|(_, of)| *of == stamps);
            if let Some(number) = found.map(|(number, _)| *number) {
                copies.ready.remove(&number);
                copies.hits += 1;
                return Some(Claimed {
                    dir: copies.dir.join(number.to_string()),
                });
            }
        }
        None
    }

    /// Changes what is known of a pool.
    pub(super) fn update<T>(&self, id: &str, change: impl FnOnce(&mut Copies) -> T) -> Option<T> {
        let changed = self.lock().get_mut(id).map(change);
        self.changed.notify_all();
        changed
    }

    /// What is known of a pool.
    pub(super) fn get(&self, id: &str) -> Copies {
        self.lock().get(id).cloned().unwrap_or_default()
    }

    /// Holds refills back for a batch.
    pub fn begin_taking(self: &Arc<Self>) -> Taking {
        self.takers.fetch_add(1, Ordering::AcqRel);
        Taking(Arc::clone(self))
    }

    /// Whether a batch takes copies.
    pub(super) fn are_taken_from(&self) -> bool {
        self.takers.load(Ordering::Acquire) > 0
    }

    /// Lets the filler look at once.
    pub fn wake(&self) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.work.notify_all();
    }

    /// Waits for a call of [`Pools::wake`].
    pub(super) fn wait(&self, longest: Duration) {
        let woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .work
            .wait_timeout_while(woken, longest, |woken| !*woken);
        let (mut woken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *woken = false;
    }
}

fn find_ready(dir: &Path) -> BTreeMap<u64, Vec<String>> {
    let mut ready = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        match number.zip(content_of_copy(&entry.path())) {
            Some((number, stamps)) => {
                ready.insert(number, stamps);
            }
            None => {
                tracing::info!(path = %entry.path().display(), "removing what is no copy");
                remove_dir(&entry.path());
            }
        }
    }
    ready
}

/// What a copy is of, where it is complete.
fn content_of_copy(dir: &Path) -> Option<Vec<String>> {
    let text = fs::read(dir.join(CONTENT_FILE)).ok()?;
    let stamps: Vec<String> = serde_json::from_slice(&text).ok()?;
    let complete = (0..stamps.len()).all(|number| dir.join(disk_name(number)).is_file());
    complete.then_some(stamps)
}

/// Removes a directory with all that is in it.
pub(super) fn remove_dir(dir: &Path) {
    let removed = match fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(dir),
        Ok(_) => fs::remove_file(dir),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %dir.display(), %error, "cannot remove a copy");
        }
        _ => {}
    }
}

/// Pools shared between the host and its filler.
pub(in crate::host) type SharedPools = Arc<Pools>;

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(store: &StoreDir, name: &str, stamps: &[&str], disks: usize) {
        let dir = store.pools().join("diskpool-1").join(name);
        fs::create_dir_all(&dir).unwrap();
        for disk in 0..disks {
            fs::write(dir.join(disk_name(disk)), b"x").unwrap();
        }
        fs::write(dir.join(CONTENT_FILE), serde_json::to_vec(stamps).unwrap()).unwrap();
    }

    #[test]
    fn whole_copies_are_found_taken_once_and_halves_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::new(dir.path().to_owned());
        copy(&store, "1", &["a", "b"], 2);
        copy(&store, "2", &["a", "b"], 1);
        copy(&store, "3.part", &["a", "b"], 2);
        copy(&store, "4", &["old", "b"], 2);
        let pools = Pools::default();
        pools.meet("diskpool-1", "datastore-1", &store);
        let mut left: Vec<_> = fs::read_dir(store.pools().join("diskpool-1"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["1", "4"]);
        let stamps = ["a".to_owned(), "b".to_owned()];
        assert_eq!(pools.ready_on("datastore-1", &stamps), 1);
        assert!(pools.claim("datastore-2", &stamps).is_none());
        let taken = pools.claim("datastore-1", &stamps).unwrap();
        assert!(taken.disk(1).is_file());
        assert!(pools.claim("datastore-1", &stamps).is_none());
        drop(taken);
        assert!(!store.pools().join("diskpool-1/1").exists());
        assert_eq!(pools.get("diskpool-1").hits, 1);
    }
}
