//! The threads that fill disk pools, with the disk's idle priority.
//!
//! One thread looks at all pools and begins copies, each in a thread of its own. A datastore's pools
//! take turns, one copy at a time; a pool with a rate of its own is filled beside them, so that a slow
//! one holds no other up.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::Context;
use disk_layers::{Pace, Progress};

use super::copies::{CONTENT_FILE, PART, disk_name, remove_dir};
use crate::error::OpResult;
use crate::host::datastores::Promise;
use crate::host::full::{Content, copy_disk, verify_copy};
use crate::host::{Host, event};
use crate::inventory::{Changes, Datastore, DiskPool, Object, ObjectId, sync_directory};

/// Pause between two looks at all pools where nobody wakes the filler.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Pause after a copy that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Pools and datastores that have copies in work at the same time, at most.
const MAX_BUSY: usize = 32;
/// Speed of filling where a pool names none, bytes per second.
const DEFAULT_RATE: NonZeroU64 = NonZeroU64::new(256 << 20).expect("it is not zero");

/// Starts the thread; it ends with the host.
pub(super) fn start(host: &Arc<Host>) -> anyhow::Result<()> {
    let pools = Arc::clone(&host.disk_pools);
    let host: Weak<Host> = Arc::downgrade(host);
    std::thread::Builder::new()
        .name("pool-filler".into())
        .spawn(move || {
            let mut turns = Turns::default();
            while let Some(host) = host.upgrade() {
                host.fill_round(&mut turns);
                drop(host);
                pools.wait(LOOK_INTERVAL);
            }
        })
        .context("cannot start a thread")?;
    Ok(())
}

/// Which pools are filled, and whose turn is next.
#[derive(Debug, Default)]
struct Turns {
    lanes: Arc<Lanes>,
    /// When each pool had its last turn.
    last: HashMap<ObjectId, u64>,
    given: u64,
}

/// Copies in work by what they hold up: their pool, and their datastore where they have no rate of
/// their own.
#[derive(Debug, Default)]
struct Lanes(Mutex<HashSet<ObjectId>>);

/// A lane that a copy is made in; free again when this is dropped.
struct Lane {
    lanes: Arc<Lanes>,
    taken: Vec<ObjectId>,
}

impl Lanes {
    fn enter(self: &Arc<Self>, pool: &Object<DiskPool>) -> Option<Lane> {
        let mut taken = vec![pool.id.clone()];
        if pool.doc.rate_bytes_per_s.is_none() {
            taken.extend(pool.parent.clone());
        }
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if busy.len() >= MAX_BUSY || taken.iter().any(|id| busy.contains(id)) {
            return None;
        }
        busy.extend(taken.iter().cloned());
        let lanes = Arc::clone(self);
        Some(Lane { lanes, taken })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut busy = self.lanes.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.taken.iter().for_each(|id| {
            busy.remove(id);
        });
    }
}

/// A copy that a pool wants.
struct Job {
    pool: Object<DiskPool>,
    store: Object<Datastore>,
    content: Content,
}

impl Host {
    /// Looks at each pool, the one that waited longest first, and begins the copies that can be made
    /// now.
    fn fill_round(self: &Arc<Self>, turns: &mut Turns) {
        let mut pools = self.objects::<DiskPool>();
        turns
            .last
            .retain(|id, _| pools.iter().any(|pool| pool.id == *id));
        pools.sort_by_key(|pool| turns.last.get(&pool.id).copied());
        for pool in pools {
            let job = match self.look_at_disk_pool(&pool) {
                Ok(None) => {
                    self.note_disk_pool(&pool, None);
                    continue;
                }
                Ok(Some(job)) => job,
                Err(error) => {
                    self.note_disk_pool(&pool, Some(error.message()));
                    continue;
                }
            };
            if self.disk_pools.are_taken_from() {
                continue;
            }
            let Some(lane) = turns.lanes.enter(&pool) else {
                continue;
            };
            turns.given += 1;
            turns.last.insert(pool.id.clone(), turns.given);
            match self.promise_space(&job.store, job.content.bytes) {
                Ok(space) => self.begin_copy(job, space, lane),
                Err(error) => self.note_disk_pool(&pool, Some(error.message())),
            }
        }
    }

    fn begin_copy(self: &Arc<Self>, job: Job, space: Promise, lane: Lane) {
        let host = Arc::clone(self);
        let work = move || {
            let _background = linux_sys::Background::begin();
            host.fill_one(job, space);
            drop(lane);
            host.disk_pools.wake();
        };
        let thread = std::thread::Builder::new()
            .name("pool-copy".into())
            .spawn(work);
        if let Err(error) = thread {
            tracing::warn!(%error, "cannot start a thread that fills a disk pool");
        }
    }

    /// Removes copies that do not fit, and finds out whether one is to be made.
    fn look_at_disk_pool(&self, pool: &Object<DiskPool>) -> OpResult<Option<Job>> {
        let store = self.store_for_disks(pool.parent.as_deref().unwrap_or_default())?;
        let content = self.content_of_source(&pool.doc.source);
        match &content {
            Ok(content) => {
                let fits = |of: &[String]| of == content.stamps;
                self.drain_disk_pool(pool, fits, "their source has changed");
            }
            Err(_) if self.lost_source(&pool.doc.source) => {
                self.drain_disk_pool(pool, |_| false, "their source is gone");
            }
            // They may fit when the source can be read again.
            Err(_) => self.drain_disk_pool(pool, |_| true, ""),
        }
        let content = content?;
        let copies = self.disk_pools.get(&pool.id);
        let waits = copies.not_before.is_some_and(|at| Instant::now() < at);
        let ready = copies.ready.len() as u64;
        if ready >= pool.doc.count {
            return Ok(None);
        }
        if waits {
            return Err(crate::error::OpError::failed(
                copies
                    .note
                    .unwrap_or_else(|| "the last copy failed".to_owned()),
            ));
        }
        Ok(Some(Job {
            pool: pool.clone(),
            store,
            content,
        }))
    }

    /// Removes the copies that do not fit, told with the reason, and those that are too many.
    fn drain_disk_pool(
        &self,
        pool: &Object<DiskPool>,
        fits: impl Fn(&[String]) -> bool,
        why: &str,
    ) {
        let stale = self.disk_pools.update(&pool.id, |copies| {
            let mut gone: Vec<u64> = Vec::new();
            copies.ready.retain(|number, of| {
                let keep = fits(of);
                gone.extend((!keep).then_some(*number));
                keep
            });
            let drained = gone.len();
            while copies.ready.len() as u64 > pool.doc.count
                && let Some((number, _)) = copies.ready.pop_last()
            {
                gone.push(number);
            }
            (gone, drained, copies.dir.clone())
        });
        let Some((gone, drained, dir)) = stale else {
            return;
        };
        for number in gone {
            remove_dir(&dir.join(number.to_string()));
        }
        if drained > 0 {
            let message = format!("{drained} copies removed: {why}");
            self.tell_disk_pool(pool, "pool.drained", message);
        }
    }

    fn fill_one(&self, job: Job, space: Promise) {
        let Job { pool, content, .. } = job;
        self.note_disk_pool(&pool, None);
        let begun = self.disk_pools.update(&pool.id, |copies| {
            copies.filling = Some(0.0);
            let last = copies
                .ready
                .last_key_value()
                .map_or(0, |(number, _)| *number);
            let dir = copies.dir.clone();
            (dir, last)
        });
        let Some((dir, last)) = begun else {
            return;
        };
        let number = next_number(&dir, last);
        let part = dir.join(format!("{number}{PART}"));
        let made = self.make_copy(&pool, &content, space, &part);
        let made = made.and_then(|()| {
            let path = dir.join(number.to_string());
            fs::rename(&part, &path)
                .with_context(|| format!("cannot name the copy {}", path.display()))?;
            sync_directory(&dir).context("cannot sync the pool")
        });
        remove_dir(&part);
        // Somebody may have started the source meanwhile.
        let fits = self
            .content_of_source(&pool.doc.source)
            .is_ok_and(|present| present.stamps == content.stamps);
        let is_there = self.object::<DiskPool>(&pool.id).is_ok();
        if !fits || !is_there {
            remove_dir(&dir.join(number.to_string()));
        }
        self.disk_pools.update(&pool.id, |copies| {
            copies.filling = None;
            if made.is_ok() && fits && is_there {
                copies.ready.insert(number, content.stamps);
                copies.news = true;
            }
        });
        if let Err(error) = made
            && is_there
            && fits
            && !error.is::<Interrupted>()
        {
            let message = crate::error::chain_line(&error);
            self.note_disk_pool(&pool, Some(message));
            self.disk_pools.update(&pool.id, |copies| {
                copies.not_before = Some(Instant::now() + RETRY_INTERVAL);
            });
        }
    }

    /// Copies all disks into the directory `part`, durably, and verifies them.
    fn make_copy(
        &self,
        pool: &Object<DiskPool>,
        content: &Content,
        mut space: Promise,
        part: &Path,
    ) -> anyhow::Result<()> {
        remove_dir(part);
        fs::create_dir_all(part).with_context(|| format!("cannot make {}", part.display()))?;
        let disks = content.chains.len();
        for (number, chain) in content.chains.iter().enumerate() {
            let mut seen = 0;
            let mut tell = |progress: Progress| {
                space.spend(progress.done_bytes.saturating_sub(seen));
                seen = progress.done_bytes;
                let disk = progress.done_bytes as f32 / progress.total_bytes.max(1) as f32;
                let done = (number as f32 + disk) / disks as f32;
                self.disk_pools
                    .update(&pool.id, |copies| copies.filling = Some(done));
                if self.is_wanted(pool) {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            };
            let rate = pool.doc.rate_bytes_per_s.and_then(NonZeroU64::new);
            let mut pace = Pace::limited(&mut tell, rate.unwrap_or(DEFAULT_RATE));
            let path = part.join(disk_name(number));
            let target = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .with_context(|| format!("cannot make {}", path.display()))?;
            let copied = copy_disk(chain, target, &mut pace);
            if !self.is_wanted(pool) {
                return Err(Interrupted.into());
            }
            copied.with_context(|| format!("cannot copy a disk to {}", path.display()))?;
            verify_copy(&path, chain[0].size_bytes)?;
        }
        let text = serde_json::to_vec(&content.stamps)?;
        let path = part.join(CONTENT_FILE);
        fs::write(&path, text)
            .and_then(|()| File::open(&path)?.sync_all())
            .with_context(|| format!("cannot write {}", path.display()))?;
        sync_directory(part).context("cannot sync the copy")
    }

    /// Whether a copy that is being made is still to be finished.
    fn is_wanted(&self, pool: &Object<DiskPool>) -> bool {
        let ready = self.disk_pools.get(&pool.id).ready.len() as u64;
        let wanted = self.object::<DiskPool>(&pool.id);
        let store = pool.parent.as_deref().unwrap_or_default();
        // A copy goes on with another speed from its beginning.
        let same_rate =
            |wanted: &Object<DiskPool>| wanted.doc.rate_bytes_per_s == pool.doc.rate_bytes_per_s;
        wanted.is_ok_and(|wanted| ready < wanted.doc.count && same_rate(&wanted))
            && self
                .object::<Datastore>(store)
                .is_ok_and(|store| !store.doc.maintenance)
    }

    /// Notes why a pool is not filled, or that it is; tells what is news.
    fn note_disk_pool(&self, pool: &Object<DiskPool>, note: Option<String>) {
        let news = self.disk_pools.update(&pool.id, |copies| {
            let paused = note.is_some() && copies.note.is_none();
            copies.note.clone_from(&note);
            let is_full = note.is_none() && copies.ready.len() as u64 >= pool.doc.count;
            // One that an earlier daemon filled is no news.
            let filled = is_full && std::mem::take(&mut copies.news);
            (paused, filled)
        });
        match (news, note) {
            (Some((true, _)), Some(note)) => self.tell_disk_pool(pool, "pool.paused", note),
            (Some((_, true)), _) => {
                let message = format!("{} copies are ready", pool.doc.count);
                self.tell_disk_pool(pool, "pool.filled", message);
            }
            _ => {}
        }
    }

    fn tell_disk_pool(&self, pool: &Object<DiskPool>, kind: &'static str, message: String) {
        let told = event(&pool.name, kind, message).about(&pool.id);
        let changes = Changes {
            events: vec![told],
            ..Changes::default()
        };
        self.commit_logged(&[], changes);
    }
}

/// A number that no copy in `dir` has, also none that a clone is just taking.
fn next_number(dir: &Path, last: u64) -> u64 {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let numbers = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    numbers.max().unwrap_or(0).max(last) + 1
}

/// The copy is not wanted any more.
#[derive(Debug, thiserror::Error)]
#[error("the copy is not wanted any more")]
struct Interrupted;
