//! Disk pools: full copies of the disks of a VM, template or image, made ahead on a datastore.
//!
//! ```text
//! wanted > ready ──filler──▶ <n>.part ─ synced, verified ─▶ <n> ──rename──▶ a full clone's disks
//! content of the source changed: ready copies are removed, and made again
//! ```
//!
//! A copy fits every clone whose disks show the same content, whatever pool it is of: the pool of
//! an image also serves VMs of it that were never written to.

mod copies;
mod filler;

use std::sync::Arc;

use api_types::{
    DiskPool as DiskPoolAnswer, DiskPoolChangeRequest, DiskPoolRequest, DiskPoolState, DryRun,
    ErrorKind,
};

use self::copies::remove_dir;
pub(super) use self::copies::{Claimed, SharedPools};
use super::check::Problems;
use super::full::Content;
use super::{Host, Vm, event};
use crate::error::{OpError, OpResult};
use crate::inventory::{Datastore, DiskPool, Labels, Object, PoolSource, VmRow};

/// What stands before the name of an image where a VM has the same.
const IMAGE_PREFIX: &str = "image:";

impl Host {
    /// All disk pools, with their hits and misses since the daemon began.
    pub fn disk_pools(&self) -> Vec<DiskPoolAnswer> {
        let pools = self.objects::<DiskPool>();
        pools.iter().map(|pool| self.show_disk_pool(pool)).collect()
    }

    /// One disk pool.
    pub fn disk_pool(&self, reference: &str) -> OpResult<DiskPoolAnswer> {
        Ok(self.show_disk_pool(&self.object(reference)?))
    }

    fn show_disk_pool(&self, pool: &Object<DiskPool>) -> DiskPoolAnswer {
        let copies = self.disk_pools.get(&pool.id);
        let ready = copies.ready.len() as u64;
        let state = match copies.note {
            Some(_) => DiskPoolState::Paused,
            None if ready >= pool.doc.count => DiskPoolState::Full,
            None => DiskPoolState::Filling,
        };
        let store = pool.parent.clone().unwrap_or_default();
        DiskPoolAnswer {
            id: pool.id.clone(),
            name: pool.name.clone(),
            datastore: self
                .object::<Datastore>(&store)
                .map_or(store, |store| store.name),
            source: match &pool.doc.source {
                PoolSource::Image(name) => format!("{IMAGE_PREFIX}{name}"),
                PoolSource::Vm(id) => self.find(id).map_or(id.clone(), |vm| vm.name().to_string()),
            },
            count: pool.doc.count,
            ready,
            state,
            reason: copies.note,
            hits: copies.hits,
            misses: copies.misses,
            rate_bytes_per_s: pool.doc.rate_bytes_per_s,
            version: pool.version,
        }
    }

    /// Tries a request for a disk pool out.
    pub fn check_disk_pool(&self, request: &DiskPoolRequest) -> DryRun {
        let mut problems = Problems::default();
        self.plan_disk_pool(request, &mut problems);
        problems.dry_run()
    }

    /// What a new pool is to have copies of, its name, and where it is to be.
    fn plan_disk_pool(
        &self,
        request: &DiskPoolRequest,
        problems: &mut Problems,
    ) -> Option<(PoolSource, String, Object<Datastore>)> {
        let source = problems.take(self.disk_pool_source(&request.source));
        if let Some((source, name)) = &source {
            // Says what is wrong with the source while somebody listens.
            let content = problems.take(self.content_of_source(source));
            if content.is_some_and(|content| content.chains.is_empty()) {
                problems.note(OpError::conflict(format!(
                    "source: {name} has no disk that it can write to, so there is nothing to \
                     copy; give another"
                )));
            }
        }
        let store = problems.take(self.store_for_disks(&request.datastore));
        let (source, name) = source?;
        let (store, name) = (store?, request.name.clone().unwrap_or(name));
        problems.take(self.check_free::<DiskPool>(Some(&store.id), &name));
        Some((source, name, store))
    }

    /// Makes a disk pool; it is filled in the background.
    pub fn make_disk_pool(&self, request: &DiskPoolRequest) -> OpResult<DiskPoolAnswer> {
        let _turn = self.store_turn();
        let mut problems = Problems::default();
        let planned = self.plan_disk_pool(request, &mut problems);
        let (source, name, store) = problems.end(planned)?;
        let doc = DiskPool {
            labels: Labels::default(),
            source,
            count: request.count,
            rate_bytes_per_s: request.rate_bytes_per_s,
        };
        let told = event(&name, "pool.created", format!("on {}", store.name));
        let pool = self.make_object(Some(&store.id), &name, doc, Some(told))?;
        self.disk_pools
            .meet(&pool.id, &store.id, &self.store(&store.id));
        self.disk_pools.wake();
        Ok(self.show_disk_pool(&pool))
    }

    /// Finds what a pool is to hold copies of; also gives the pool a name.
    fn disk_pool_source(&self, reference: &str) -> OpResult<(PoolSource, String)> {
        let image = |name: &str| (PoolSource::Image(name.to_owned()), name.to_owned());
        if let Some(name) = reference.strip_prefix(IMAGE_PREFIX) {
            crate::image::resolve(&self.config.home, name)?;
            return Ok(image(name));
        }
        match self.find(reference) {
            Ok(vm) => Ok((PoolSource::Vm(vm.id.clone()), vm.name().to_string())),
            Err(error) if error.kind != ErrorKind::NotFound => Err(error),
            Err(_) if crate::image::resolve(&self.config.home, reference).is_ok() => {
                Ok(image(reference))
            }
            Err(_) => Err(OpError::new(
                ErrorKind::NotFound,
                format!(
                    "source: there is no VM and no image {reference:?}; 'mitose ls' and \
                     'mitose image ls' list them"
                ),
            )),
        }
    }

    /// Whether the source of a pool is gone, so that nobody asks for its copies. What an inventory
    /// that was put back does not name may come back.
    fn lost_source(&self, source: &PoolSource) -> bool {
        match source {
            PoolSource::Vm(id) => !self.keeps_unlisted() && self.listing().get(id).is_none(),
            PoolSource::Image(name) => crate::image::resolve(&self.config.home, name)
                .is_err_and(|error| error.kind == ErrorKind::NotFound),
        }
    }

    /// Refuses to remove a VM that a pool has copies of.
    pub(super) fn check_no_disk_pool(&self, vm: &Vm) -> OpResult<()> {
        let of_vm = PoolSource::Vm(vm.id.clone());
        let mut pools = self.objects::<DiskPool>().into_iter();
        let Some(pool) = pools.find(|pool| pool.doc.source == of_vm) else {
            return Ok(());
        };
        let store = pool.parent.as_deref().unwrap_or_default();
        let store = self
            .object::<Datastore>(store)
            .map_or_else(|_| store.to_owned(), |store| store.name);
        Err(OpError::conflict(format!(
            "{} is the source of the disk pool {} on {store}; remove that first with \
             'mitose pool rm {}'",
            vm.name(),
            pool.name,
            pool.id
        )))
    }

    fn content_of_source(&self, source: &PoolSource) -> OpResult<Content> {
        match source {
            PoolSource::Image(name) => self.content_of_image(name),
            PoolSource::Vm(id) => {
                let vm = self.listing().get(id).cloned().ok_or_else(|| {
                    OpError::new(
                        ErrorKind::NotFound,
                        format!("source: the VM {id} is gone; remove the pool"),
                    )
                })?;
                if !vm.state().is_off() {
                    return Err(OpError::conflict(format!(
                        "source: {0} is {1}: copies are made of powered-off VMs; stop it with \
                         'mitose stop {0}'",
                        vm.name(),
                        vm.state().word()
                    )));
                }
                let row = vm.row();
                self.check_stores_of(&row)?;
                self.content_of(&row)
            }
        }
    }

    /// Changes a pool's count or rate.
    pub fn change_disk_pool(
        &self,
        reference: &str,
        request: &DiskPoolChangeRequest,
    ) -> OpResult<DiskPoolAnswer> {
        let id = self.object::<DiskPool>(reference)?.id;
        let pool = self.change_object::<DiskPool>(&id, request.version, |pool| {
            let doc = &mut pool.doc;
            doc.count = request.count.unwrap_or(doc.count);
            doc.rate_bytes_per_s = request.rate_bytes_per_s.or(doc.rate_bytes_per_s);
            Ok(())
        })?;
        self.disk_pools
            .update(&id, |copies| copies.not_before = None);
        self.disk_pools.wake();
        Ok(self.show_disk_pool(&pool))
    }

    /// Removes a pool with its copies.
    pub fn remove_disk_pool(&self, reference: &str) -> OpResult<()> {
        let pool = self.object::<DiskPool>(reference)?;
        let told = event(&pool.name, "pool.removed", "removed").about(&pool.id);
        self.remove_object::<DiskPool>(&pool.id, Some(told))?;
        self.disk_pools.wake();
        let dir = self.disk_pools.get(&pool.id).dir;
        self.disk_pools.forget(&pool.id);
        if !dir.as_os_str().is_empty() {
            remove_dir(&dir);
        }
        Ok(())
    }

    /// Pools that a full clone of a VM asks: its own, and those of the image that it was made of.
    pub(super) fn disk_pools_of(&self, source: &VmRow) -> Vec<Object<DiskPool>> {
        let mut pools = self.objects::<DiskPool>();
        pools.retain(|pool| match &pool.doc.source {
            PoolSource::Vm(id) => *id == source.id,
            PoolSource::Image(name) => source.boot.image.as_ref() == Some(name),
        });
        pools
    }

    /// Counts a clone that a pool had no copy for; tells why it had none.
    pub(super) fn note_miss(&self, pool: &Object<DiskPool>) -> String {
        let store = pool.parent.as_deref().unwrap_or_default();
        let store = self
            .object::<Datastore>(store)
            .map_or_else(|_| store.to_owned(), |store| store.name);
        let copies = self.disk_pools.update(&pool.id, |copies| {
            copies.misses += 1;
            copies.clone()
        });
        let copies = copies.unwrap_or_default();
        let what = match (copies.ready.len(), &copies.note) {
            (0, Some(note)) => format!("is empty ({note})"),
            (0, None) => format!("is empty (0 of {} ready)", pool.doc.count),
            _ => "has copies of other content".to_owned(),
        };
        format!("pool {} on {store} {what}", pool.name)
    }

    /// Finds the copies of all pools of a datastore again, and removes what belongs to none.
    pub(super) fn meet_disk_pools(&self, store_id: &str) {
        let store = self.store(store_id);
        let pools = self.objects::<DiskPool>();
        super::recover::sweep(&store.pools(), |name| {
            let is_listed = || self.object::<DiskPool>(name).is_ok();
            self.keeps_unlisted() || pools.iter().any(|pool| pool.id == name) || is_listed()
        });
        for pool in pools {
            let here = pool.parent.as_deref() == Some(store_id);
            let busy = self.disk_pools.get(&pool.id).filling.is_some();
            if here && !busy {
                self.disk_pools.meet(&pool.id, store_id, &store);
            }
        }
    }

    /// Starts to fill the pools.
    pub(super) fn fill_disk_pools(self: &Arc<Self>) -> anyhow::Result<()> {
        filler::start(self)
    }
}
