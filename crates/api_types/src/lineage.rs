//! Where VMs come from and what they cost.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{MemoryUse, Persistence, StunRecord};

/// A VM among its family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LineageVm {
    /// Its id.
    pub id: String,
    /// Its name; for a VM that was removed the one that it had.
    pub name: String,
    /// Its folder's path; `/` for the first one.
    pub folder: String,
    /// Its state; none where it was removed.
    pub state: Option<String>,
    /// Id of the VM that it was cloned from.
    pub source: Option<String>,
    /// Name that it had then.
    #[serde(default)]
    pub source_name: Option<String>,
    /// Forks between it and a VM that booted.
    pub generation: u32,
    /// Id of the fork point that it is a child of.
    #[serde(default)]
    pub fork_point: Option<String>,
    /// Whether it keeps its disks over a power-off; only of a child of a fork point.
    #[serde(default)]
    pub persistence: Option<Persistence>,
    /// Layers of each disk, its own top included.
    pub disk_depths: Vec<usize>,
    /// Layers of its RAM: 1 for a VM that was never forked, 2 on a private view, 0 without a process.
    pub memory_depth: u32,
    /// Allocated bytes of its own tops.
    pub disk_bytes: u64,
    /// Host memory; only where it was asked for.
    #[serde(default)]
    pub memory: Option<MemoryUse>,
    /// Latest forks of it, with their stuns.
    #[serde(default)]
    pub forks: Vec<StunRecord>,
}

/// What a family takes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FamilyUse {
    /// Members that exist.
    pub vms: usize,
    /// Of these, those with a process.
    pub running: usize,
    /// Pages that its members wrote since their fork points, KiB.
    pub private_kib: u64,
    /// Its members' shares of all pages that they map, KiB: what the family takes of the host.
    pub pss_kib: u64,
    /// Allocated bytes of all layers that the daemon made for its members, each counted once.
    pub disk_bytes: u64,
    /// Of these, bytes in layers that several members share.
    pub shared_disk_bytes: u64,
}

/// Family of a VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Lineage {
    /// The VM itself.
    pub vm: LineageVm,
    /// VMs that it comes from, the nearest first.
    pub parents: Vec<LineageVm>,
    /// VMs that were cloned from it.
    pub children: Vec<LineageVm>,
    /// All who come from the same first VM.
    pub family: FamilyUse,
}
