//! Where a full clone goes: to a datastore with a ready copy of its disks, or to the one with the
//! most space.

use std::cmp::Reverse;

use vm_spec::format_size;

use super::content::Content;
use crate::error::{OpError, OpResult};
use crate::host::Host;
use crate::host::datastores::Promise;
use crate::host::disk_pools::Claimed;
use crate::inventory::{Datastore, Object, ObjectId, VmRow};

/// Datastores whose free space differs by less than this part of it are as good as each other.
const SIMILAR_SPACE: u64 = 8;

/// The place of one clone.
pub(super) struct Place {
    /// Its datastore.
    pub store: Object<Datastore>,
    /// Copies of its disks, where some were ready.
    pub ready: Option<Claimed>,
    /// Space for copies to be made.
    pub space: Option<Promise>,
    /// Why copies are to be made.
    pub reason: Option<String>,
}

impl Host {
    /// Chooses the place of a full clone of `source`: by ready copies, then by free space. Each
    /// call sees what earlier ones took, and `placed` has the datastores that this batch had copies
    /// made on, so that it spreads over those with about the same space.
    pub(super) fn place_full(
        &self,
        source: &VmRow,
        content: &Content,
        wanted: Option<&str>,
        placed: &[ObjectId],
    ) -> OpResult<Place> {
        let mut stores = match wanted {
            Some(wanted) => vec![self.store_for_disks(wanted)?],
            None => self.stores_for_copies(),
        };
        if content.chains.is_empty() {
            let store = wanted.unwrap_or(&source.datastore);
            return Ok(Place {
                store: self.store_for_disks(store)?,
                ready: None,
                space: None,
                reason: None,
            });
        }
        let free = |store: &Object<Datastore>| self.free_for_disks(store);
        stores.sort_by_cached_key(|store| {
            let ready = self.disk_pools.ready_on(&store.id, &content.stamps);
            Reverse((ready, free(store)))
        });
        for store in &stores {
            if let Some(ready) = self.disk_pools.claim(&store.id, &content.stamps) {
                return Ok(Place {
                    store: store.clone(),
                    ready: Some(ready),
                    space: None,
                    reason: None,
                });
            }
        }
        let most = stores.iter().map(free).max().unwrap_or(0);
        stores.retain(|store| free(store) >= most - most / SIMILAR_SPACE);
        let here = |store: &Object<Datastore>| placed.iter().filter(|id| **id == store.id).count();
        let Some(store) = stores.into_iter().min_by_key(here) else {
            return Err(OpError::unavailable(
                "datastore: none takes new disks at the moment; 'mitose datastore ls' tells why",
            ));
        };
        let space = self.promise_space(&store, content.bytes)?;
        Ok(Place {
            reason: Some(self.why_no_copy(source, &store)),
            store,
            ready: None,
            space: Some(space),
        })
    }

    /// Refuses a batch of `count` full clones whose copies have no room together: those that take
    /// ready copies need none, and files that share their blocks with the source's next to none.
    pub(in crate::host) fn check_full_space(
        &self,
        source: &VmRow,
        wanted: Option<&str>,
        count: usize,
    ) -> OpResult<()> {
        let content = self.content_of(source)?;
        let stores = match wanted {
            Some(wanted) => vec![self.store_for_disks(wanted)?],
            None => self.stores_for_copies(),
        };
        if content.chains.is_empty() {
            return Ok(());
        }
        let mut left = count;
        let mut free = 0_u64;
        for store in &stores {
            left = left.saturating_sub(self.disk_pools.ready_on(&store.id, &content.stamps));
            free = free.saturating_add(self.free_for_disks(store));
        }
        for store in &stores {
            let bytes = self.free_for_disks(store);
            let fits = match content.may_share_blocks(self.store(&store.id).root()) {
                true if bytes >= content.bytes => left as u64,
                _ => bytes / content.bytes.max(1),
            };
            left = left.saturating_sub(usize::try_from(fits).unwrap_or(usize::MAX));
        }
        if left == 0 {
            return Ok(());
        }
        let place = match &stores[..] {
            [one] => format!("datastore {}", one.name),
            _ => format!("{} datastores", stores.len()),
        };
        Err(OpError::unavailable(format!(
            "datastore: no space on {place} for {left} of {count} clones: each takes up to {}, {} \
             free for all; make fewer, make space, or choose another with --datastore",
            format_size(content.bytes),
            format_size(free)
        )))
    }

    /// Datastores that are there and take new disks.
    fn stores_for_copies(&self) -> Vec<Object<Datastore>> {
        let all = self.objects::<Datastore>().into_iter();
        all.filter(|store| !store.doc.adding && self.store_for_disks(&store.id).is_ok())
            .collect()
    }

    /// Why there is no ready copy for a clone of `source`; notes that its pools were asked.
    fn why_no_copy(&self, source: &VmRow, store: &Object<Datastore>) -> String {
        let pools = self.disk_pools_of(source);
        if pools.is_empty() {
            return format!("there is no disk pool for {}", source.name);
        }
        let reasons: Vec<String> = pools.iter().map(|pool| self.note_miss(pool)).collect();
        let names = reasons.join(", ");
        format!("no ready copy: {names}; copied to {}", store.name)
    }
}
