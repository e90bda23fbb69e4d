//! How much of the host's memory each VM may take, and who goes first when there is too little.
//!
//! Each VM process has a memory cgroup of its own. Shells of the pool sit in theirs before they are
//! needed, since the kernel takes milliseconds to move a process; those that are born when they are
//! needed move when nobody waits. A VM may take its *budget*: guest RAM and what its process needs
//! beside, or what the user said.
//!
//! The kernel charges a page to the group of the process that first touched it, for as long as the
//! page lives. When a VM is forked, what it was charged for turns into layers that others use too,
//! and it begins to write private pages: its limit is raised before the fork, to what it has plus
//! its budget. From then on, and in a clone from its beginning, a page of RAM may be charged twice to
//! the VM that touches it first: a hole of the layer that is filled, and the private copy of it. The
//! budget has room for both. Clones born by `fork()` *lodge* in the group of their source until they
//! are moved; meanwhile that group has no limit, so that no VM pays for another.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustix::fs::statfs;
use vm_spec::format_size;
use vmm_protocol::RamView;

use super::backends::ENGINE_SOFT;
use super::memory::host_memory;
use super::{Host, Vm};
use crate::cgroup::{Groups, Kills};
use crate::error::{OpError, OpResult};
use crate::inventory::{Changes, VmRow};
use crate::{nursery, usage};

/// What a VM process takes beside guest RAM: its own pages, page cache of its disks, bytes.
const PROCESS_BYTES: u64 = 128 << 20;
/// Share of guest RAM that page tables and the engine's tables take, at most.
const TABLES_SHARE: u64 = 64;
/// What a vCPU of the software engine keeps of its own at most: code caches (48 MiB, and what their
/// tables, pieces and counting by guess add), TLB and stack, bytes.
const SOFT_VCPU_BYTES: u64 = 64 << 20;
/// Least limit that can be set: an empty VM process and its tables, bytes.
const MIN_LIMIT_BYTES: u64 = 16 << 20;
/// OOM scores of VMs, the oldest and the newest (proc(5): oom_score_adj).
const OOM_SCORES: (usize, usize) = (100, 1000);
/// File systems whose files are memory (statfs(2)): tmpfs, ramfs.
const MEMORY_FILE_SYSTEMS: [u32; 2] = [0x0102_1994, 0x8584_58f6];
/// Times that removing a group is tried again.
const REMOVE_TRIES: u32 = 50;

/// A limit that is to be raised before a fork.
#[derive(Debug)]
pub(super) struct Raise {
    group: String,
    /// Whose budget is added; without one the limit is taken away.
    row: Option<VmRow>,
}

/// Processes that live in the group of another VM for a while.
#[derive(Debug)]
pub(super) struct Lodging {
    group: String,
    processes: usize,
}

impl Host {
    /// Groups of VM processes, where the host has a memory controller.
    fn groups(&self) -> Option<&Arc<Groups>> {
        self.groups.as_ref().ok()
    }

    /// Where VM processes are limited, or why they are not.
    pub fn limits(&self) -> Result<&Groups, &str> {
        match &self.groups {
            Ok(groups) => Ok(groups),
            Err(reason) => Err(reason),
        }
    }

    /// Checks a limit that the user gave.
    pub(super) fn check_limit(&self, limit: Option<u64>) -> OpResult<()> {
        let Some(bytes) = limit else { return Ok(()) };
        let total = host_memory()?.total_bytes;
        if bytes < MIN_LIMIT_BYTES {
            return Err(OpError::invalid(format!(
                "memory-limit: {} is less than a VM process needs for itself; give {} or more",
                format_size(bytes),
                format_size(MIN_LIMIT_BYTES)
            )));
        }
        if bytes > total {
            return Err(OpError::invalid(format!(
                "memory-limit: {} is more than the host's {}; leave it out for the VM's memory and \
                 what its process needs",
                format_size(bytes),
                format_size(total)
            )));
        }
        match self.limits() {
            Ok(_) => Ok(()),
            Err(reason) => Err(OpError::unavailable(format!(
                "memory-limit: this host cannot limit VMs: {reason}; leave it out"
            ))),
        }
    }

    /// Memory that a VM on a private view may take beside its layers, bytes.
    fn budget(&self, row: &VmRow) -> u64 {
        self.budget_on(row, RamView::Private)
    }

    /// The same for a VM with this view of its RAM.
    fn budget_on(&self, row: &VmRow, view: RamView) -> u64 {
        row.memory_limit_bytes
            .unwrap_or_else(|| default_budget(row, view) + self.disks_in_memory(row))
    }

    /// Limit that is in force, for an answer; a VM without a process will have RAM of its own.
    pub(super) fn limit_of(&self, row: &VmRow, view: Option<RamView>) -> Option<u64> {
        let view = view.unwrap_or(RamView::Shared);
        self.groups().map(|_| self.budget_on(row, view))
    }

    /// Most that a VM's writes to its disks take of memory: nothing on a real file system.
    fn disks_in_memory(&self, row: &VmRow) -> u64 {
        let kind = statfs(self.store(&row.datastore).root()).map(|stat| stat.f_type as u32);
        if !kind.is_ok_and(|kind| MEMORY_FILE_SYSTEMS.contains(&kind)) {
            return 0;
        }
        let layers = self.layers();
        let disks = row.disks.iter().zip(&row.spec.disks);
        disks
            .filter(|(_, spec)| !spec.read_only)
            .filter_map(|(disk, _)| layers.get(disk.top.as_ref()?))
            .map(|layer| layer.size_bytes)
            .sum()
    }

    /// Limits a VM whose process has a group already. One that is forked is left alone: its limit
    /// was raised.
    pub(super) fn limit(&self, vm: &Vm) {
        let (row, left_alone, view) = {
            let live = vm.live();
            // Nobody knows what a process that does not answer has.
            let left_alone = live.limit_raised || live.unanswered;
            (live.row.clone(), left_alone, live.ram)
        };
        match (self.groups(), &row.group) {
            _ if left_alone => {}
            (Some(_), _) if view == Some(RamView::Private) => self.limit_again(vm),
            (Some(groups), Some(group)) => {
                // One that has no guest yet may become a clone.
                let budget = self.budget_on(&row, view.unwrap_or(RamView::Private));
                note(group, groups.set_limit(group, budget));
            }
            _ => {}
        }
    }

    /// Makes room for the pages that a VM will write after its next fork. Clones of a VM that was
    /// forked before, `clones` in number, are born in its group.
    pub(super) fn raise_for_fork(&self, source: &Vm, clones: usize) -> Option<Lodging> {
        let (lodging, raise) = self.begin_raise(source, clones);
        self.raise(raise);
        lodging
    }

    /// Begins that; what takes time is left to [`Host::raise`], which is to be over before the fork.
    pub(super) fn begin_raise(
        &self,
        source: &Vm,
        clones: usize,
    ) -> (Option<Lodging>, Option<Raise>) {
        if self.groups().is_none() {
            return (None, None);
        }
        let (row, group, splits) = {
            let mut live = source.live();
            let group = live.row.group.clone().or_else(|| live.lodging.clone());
            let Some(group) = group else {
                return (None, None);
            };
            live.limit_raised = true;
            let splits = live.ram == Some(RamView::Private);
            (live.row.clone(), group, splits)
        };
        if splits {
            *self.lodgers().entry(group.clone()).or_default() += clones;
            let lodging = Lodging {
                group: group.clone(),
                processes: clones,
            };
            return (Some(lodging), Some(Raise { group, row: None }));
        }
        let lodged = self.lodgers().contains_key(&group);
        let row = Some(row);
        (None, (!lodged).then_some(Raise { group, row }))
    }

    /// Raises a limit.
    pub(super) fn raise(&self, raise: Option<Raise>) {
        let (Some(Raise { group, row }), Some(groups)) = (raise, self.groups()) else {
            return;
        };
        let raised = match row {
            None => groups.lift_limit(&group),
            Some(row) => {
                let used = groups.used_bytes(&group).unwrap_or(0);
                groups.set_limit(&group, used + self.budget(&row))
            }
        };
        note(&group, raised);
    }

    /// What a fork leads to: clones that are to settle in, or none where it failed and the source
    /// needs no more than before.
    pub(super) fn settle_after_fork(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        clones: Option<Vec<Arc<Vm>>>,
        lodging: Option<Lodging>,
    ) {
        let vms = clones.unwrap_or_else(|| {
            source.update(|live| live.limit_raised = false);
            vec![Arc::clone(source)]
        });
        for vm in vms.iter().filter(|vm| !Arc::ptr_eq(vm, source)) {
            let group = lodging.as_ref().map(|lodging| lodging.group.clone());
            vm.update(|live| live.lodging = group);
        }
        self.settle_in(vms, lodging);
    }

    /// When nobody waits: gives the processes of new VMs groups of their own, limits what they
    /// leave, ranks all VMs, and makes homes for the next ones.
    pub(super) fn settle_in(self: &Arc<Self>, vms: Vec<Arc<Vm>>, lodging: Option<Lodging>) {
        let host = Arc::downgrade(self);
        self.pool.when_quiet(move || {
            if let Some(host) = host.upgrade() {
                host.settle_now(&vms, lodging);
            }
        });
    }

    fn settle_now(self: &Arc<Self>, vms: &[Arc<Vm>], lodging: Option<Lodging>) {
        if let Some(groups) = self.groups() {
            let moved: Vec<&Arc<Vm>> = vms
                .iter()
                .filter(|vm| self.give_group(groups, vm))
                .collect();
            vms.iter().for_each(|vm| self.limit(vm));
            if !moved.is_empty() {
                self.commit_logged(&moved, Changes::default());
            }
            if let Some(lodging) = lodging {
                self.moved_out(&lodging);
            }
        }
        self.rank_all();
        let stores: BTreeSet<_> = vms.iter().map(|vm| vm.row().datastore).collect();
        for store in stores {
            nursery::lay_spares(self.store(&store).root());
        }
    }

    /// Moves a VM's process into a group of its own; returns whether it has one now that it had not.
    fn give_group(&self, groups: &Groups, vm: &Vm) -> bool {
        let pid = {
            let live = vm.live();
            let homeless = live.link.is_some() && live.row.group.is_none();
            live.row.pid.filter(|_| homeless)
        };
        let Some(pid) = pid else { return false };
        let Some(group) = groups.give(&format!("vm-{}-{pid}", vm.id), pid) else {
            return false;
        };
        let taken = vm.update(|live| {
            let still = live.link.is_some() && live.row.pid == Some(pid);
            if still {
                live.row.group = Some(group.clone());
                live.lodging = None;
            }
            still
        });
        if !taken {
            let _ = groups.remove(&group);
        }
        taken
    }

    /// Limits a group again when the last lodger has left it.
    fn moved_out(&self, lodging: &Lodging) {
        let empty = {
            let mut lodgers = self.lodgers();
            let left = lodgers
                .get(&lodging.group)
                .map_or(0, |count| count.saturating_sub(lodging.processes));
            if left == 0 {
                lodgers.remove(&lodging.group);
            } else {
                lodgers.insert(lodging.group.clone(), left);
            }
            left == 0
        };
        let all = self.all();
        let owner = all
            .iter()
            .find(|vm| vm.live().row.group.as_ref() == Some(&lodging.group));
        if let (true, Some(owner)) = (empty, owner) {
            self.limit_again(owner);
        }
    }

    /// Limits a VM to its budget beside all that it was charged for and does not hold as private
    /// pages: layers, and what lodgers wrote before they moved.
    fn limit_again(&self, vm: &Vm) {
        let row = vm.row();
        let (Some(groups), Some(group), Some(pid)) = (self.groups(), &row.group, row.pid) else {
            return;
        };
        let used = groups.used_bytes(group).unwrap_or(0);
        let layers = used.saturating_sub(usage::written_bytes(pid));
        let limit = layers + self.budget(&row);
        // A group with lodgers has no limit; the last that leaves it sees to that.
        let lodgers = self.lodgers();
        if !lodgers.contains_key(group) {
            note(group, groups.set_limit(group, limit));
        }
    }

    /// Tells the kernel whom to end first when the host runs short: the newest VM, then the one
    /// before it.
    fn rank_all(&self) {
        let mut vms: Vec<(i64, i32)> = self
            .all()
            .iter()
            .filter_map(|vm| {
                let live = vm.live();
                let pid = live.row.pid.filter(|_| live.link.is_some())?;
                Some((live.row.created_at_ms, pid))
            })
            .collect();
        vms.sort_unstable();
        let (oldest, newest) = OOM_SCORES;
        for (rank, (_, pid)) in vms.iter().enumerate() {
            let score = oldest + (newest - oldest) * (rank + 1) / vms.len();
            let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
        }
    }

    /// Says so where the kernel ended a VM's process for lack of memory.
    pub(super) fn memory_verdict(&self, row: &VmRow) -> Option<String> {
        let (groups, group) = (self.groups()?, row.group.as_ref()?);
        let kills = groups.kills(group);
        match kills {
            Kills { processes: 0, .. } => None,
            Kills { at_limit: true, .. } => Some(format!(
                "out of memory: it reached its limit of {}; start it with 'mitose start {}', \
                 with a higher limit by 'mitose set {} --memory-limit SIZE'",
                format_size(
                    row.memory_limit_bytes
                        .unwrap_or_else(|| groups.limit(group))
                ),
                row.name,
                row.name
            )),
            Kills { .. } => Some(
                "out of memory: the host had none left; stop other VMs before it is started again"
                    .to_owned(),
            ),
        }
    }

    /// Removes the group of a process that has ended.
    pub(super) fn leave_group(self: &Arc<Self>, group: Option<String>) {
        if let Some(group) = group {
            self.remove_group(group, REMOVE_TRIES);
        }
    }

    fn remove_group(self: &Arc<Self>, group: String, tries: u32) {
        let Some(Err(error)) = self.groups().map(|groups| groups.remove(&group)) else {
            return;
        };
        if tries == 0 {
            tracing::warn!(%error, group, "cannot remove a memory cgroup");
            return;
        }
        // Lodgers, or a process that the kernel has not put away yet.
        let host = Arc::downgrade(self);
        self.pool.when_quiet(move || {
            if let Some(host) = host.upgrade() {
                host.remove_group(group, tries - 1);
            }
        });
    }

    /// Removes groups that no VM has.
    pub(super) fn sweep_groups(&self) {
        let Some(groups) = self.groups() else { return };
        let mut used: Vec<String> = self.all().iter().filter_map(|vm| vm.row().group).collect();
        used.extend(self.keeper_groups());
        for name in groups.names() {
            if !used.contains(&name) {
                note(&name, groups.remove(&name));
            }
        }
    }

    /// Says once that VMs have no limit.
    pub(super) fn tell_limits(&self) {
        if let Err(reason) = &self.groups
            && self.config.cgroup != crate::cgroup::Choice::Off
        {
            let message = format!("VMs run without a memory limit: {reason}");
            self.tell("host", "host.no_memory_limit", message);
        }
    }

    fn lodgers(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, usize>> {
        let lock = self.lodgers.lock();
        lock.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What a VM may take by default beside its layers and its disks, bytes.
fn default_budget(row: &VmRow, view: RamView) -> u64 {
    let ram = row.spec.memory_bytes;
    let pages = match view {
        RamView::Shared => ram,
        RamView::Private => 2 * ram,
    };
    let engine = match &*row.engine {
        ENGINE_SOFT => SOFT_VCPU_BYTES * u64::from(row.spec.cpus),
        _ => 0,
    };
    pages + PROCESS_BYTES + ram / TABLES_SHARE + engine
}

fn note(group: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, group, "a memory cgroup does not do as told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests as sample;

    fn row(engine: &str, cpus: u8) -> VmRow {
        let mut row = sample::vm("vm-1", "a");
        row.engine = engine.into();
        (row.spec.cpus, row.spec.memory_bytes) = (cpus, 512 << 20);
        row
    }

    #[test]
    fn a_private_view_has_room_for_its_pages_and_those_of_its_layer() {
        let [whole, view] =
            [RamView::Shared, RamView::Private].map(|view| default_budget(&row("kvm", 1), view));
        assert_eq!(whole, (512 + 128 + 8) << 20);
        assert_eq!(view - whole, 512 << 20);
    }

    #[test]
    fn each_vcpu_of_the_software_engine_has_room_for_its_caches() {
        let budget = |engine, cpus| default_budget(&row(engine, cpus), RamView::Shared);
        assert_eq!(budget("kvm", 8), budget("kvm", 1));
        assert_eq!(budget("soft", 8) - budget("kvm", 8), 8 * SOFT_VCPU_BYTES);
    }
}
