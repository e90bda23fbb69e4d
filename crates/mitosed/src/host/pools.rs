//! Resource pools: VMs that share limits on their number and guest memory.

use std::sync::Arc;

use api_types::{DryRun, PoolRequest, ResourcePool as PoolReply};
use vm_spec::format_size;

use super::check::Problems;
use super::describe::{pool_of, show_object};
use super::{Host, Vm, event};
use crate::error::{OpError, OpResult};
use crate::inventory::{HostSystem, Object, ResourcePool};

/// Pool that every inventory has.
pub(super) const FIRST_POOL: &str = "resgroup-1";

impl Host {
    /// Id of the pool that a request names, the first one where it names none.
    pub(super) fn pool_id(&self, reference: Option<&str>) -> OpResult<String> {
        match reference {
            None => Ok(FIRST_POOL.to_owned()),
            Some(reference) => self
                .object::<ResourcePool>(reference)
                .map(|pool| pool.id)
                .map_err(|error| OpError::new(error.kind, format!("pool: {}", error.message()))),
        }
    }

    /// Refuses what does not fit the limits of a pool.
    pub(super) fn check_pool(&self, pool: &str, vms: u32, memory_bytes: u64) -> OpResult<()> {
        let members = self.all();
        self.check_pool_among(&members, pool, vms, memory_bytes)
    }

    /// As [`Host::check_pool`], with the VMs that there are.
    pub(super) fn check_pool_among(
        &self,
        members: &[Arc<Vm>],
        pool: &str,
        vms: u32,
        memory_bytes: u64,
    ) -> OpResult<()> {
        let pool = self.object::<ResourcePool>(pool)?;
        if pool.doc.vms_max.is_none() && pool.doc.memory_bytes_max.is_none() {
            return Ok(());
        }
        let (used_vms, used_bytes) = used(members, &pool.id);
        if let Some(most) = pool.doc.vms_max
            && u64::from(used_vms) + u64::from(vms) > u64::from(most)
        {
            return Err(OpError::conflict(format!(
                "pool: {} takes {most} VMs and has {used_vms}, {vms} more do not fit; choose another pool or raise its limit",
                pool.name
            )));
        }
        if let Some(most) = pool.doc.memory_bytes_max
            && used_bytes.saturating_add(memory_bytes) > most
        {
            return Err(OpError::conflict(format!(
                "pool: {} takes {} of guest memory and has {}, {} more do not fit; choose another pool or raise its limit",
                pool.name,
                format_size(most),
                format_size(used_bytes),
                format_size(memory_bytes)
            )));
        }
        Ok(())
    }

    /// All pools by id.
    pub fn list_pools(&self) -> Vec<PoolReply> {
        let pools = self.objects::<ResourcePool>();
        pools.iter().map(|pool| self.show_pool(pool)).collect()
    }

    /// A pool as it is shown.
    pub fn show_pool(&self, pool: &Object<ResourcePool>) -> PoolReply {
        let (vms, memory_bytes) = used(&self.all(), &pool.id);
        PoolReply {
            object: show_object(pool, &pool.doc.labels),
            vms,
            vms_max: pool.doc.vms_max,
            memory_bytes,
            memory_bytes_max: pool.doc.memory_bytes_max,
        }
    }

    /// Tries a request for a pool out.
    pub fn check_new_pool(&self, request: &PoolRequest) -> DryRun {
        let mut problems = Problems::default();
        problems.take(self.plan_new_pool(request));
        problems.dry_run()
    }

    /// The host that a new pool is to be of.
    fn plan_new_pool(&self, request: &PoolRequest) -> OpResult<Object<HostSystem>> {
        let host = self.objects::<HostSystem>().into_iter().next();
        let host = host.ok_or_else(|| OpError::failed("the inventory has no host"))?;
        self.check_free::<ResourcePool>(Some(&host.id), &request.name)?;
        Ok(host)
    }

    /// Makes a pool.
    pub fn make_pool(&self, request: &PoolRequest) -> OpResult<PoolReply> {
        let _turn = self.objects_turn();
        let host = self.plan_new_pool(request)?;
        let doc = ResourcePool {
            vms_max: request.vms_max.filter(|most| *most > 0),
            memory_bytes_max: request.memory_bytes_max.filter(|most| *most > 0),
            ..ResourcePool::default()
        };
        let told = event(&request.name, "pool.created", "created");
        let pool = self.make_object_in_turn(Some(&host.id), &request.name, doc, Some(told))?;
        Ok(self.show_pool(&pool))
    }

    /// Removes a pool that no VM belongs to.
    pub fn remove_pool(&self, reference: &str) -> OpResult<()> {
        let _turn = self.objects_turn();
        let pool = self.check_pool_removal(reference)?;
        let told = event(&pool.name, "pool.removed", "removed").about(&pool.id);
        self.remove_object::<ResourcePool>(&pool.id, Some(told))
    }

    /// The pool of a reference, where it may be removed.
    pub fn check_pool_removal(&self, reference: &str) -> OpResult<Object<ResourcePool>> {
        let pool = self.object::<ResourcePool>(reference)?;
        if pool.id == FIRST_POOL {
            return Err(OpError::conflict(
                "pool: the first pool stays; remove another one",
            ));
        }
        let (vms, _) = used(&self.all(), &pool.id);
        if vms > 0 {
            return Err(OpError::conflict(format!(
                "pool: {vms} VMs belong to {}; put them into another pool first",
                pool.name
            )));
        }
        Ok(pool)
    }
}

/// VMs of a pool and their guest memory.
fn used(members: &[Arc<Vm>], pool: &str) -> (u32, u64) {
    let mut vms = 0;
    let mut bytes = 0u64;
    for vm in members {
        let live = vm.live();
        if pool_of(&live.row.pool) == pool {
            vms += 1;
            bytes = bytes.saturating_add(live.row.spec.memory_bytes);
        }
    }
    (vms, bytes)
}
