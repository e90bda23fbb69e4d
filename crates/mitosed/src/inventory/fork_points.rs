//! Kept fork points, and how children stand to them.

use std::path::PathBuf;

use api_types::Persistence;
use serde::{Deserialize, Serialize};

use super::objects::{Kind, Labels, ObjectId};
use super::rows::{LayerId, VmRow};

/// Where the memory and the checkpoint of a fork point are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PointMemory {
    /// Not yet sealed: a fork point that a daemon finds like this was never finished.
    Sealing,
    /// Held by a keeper process; gone with the host.
    Kept {
        /// The keeper.
        pid: i32,
        /// Its user id.
        uid: u32,
        /// Its memory cgroup.
        group: Option<String>,
    },
    /// In files of a datastore.
    Files {
        /// Guest RAM.
        ram: PathBuf,
        /// Checkpoint.
        checkpoint: PathBuf,
    },
    /// Its keeper ended; nothing can be forked from it.
    Lost,
}

/// A kept fork point: all that children start from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForkPoint {
    /// Words of a user.
    #[serde(default)]
    pub labels: Labels,
    /// The VM as it was at that instant.
    pub row: Box<VmRow>,
    /// Immutable top layer of each disk, in the order of the description; none of an empty slot.
    pub tops: Vec<Option<LayerId>>,
    /// Where memory and checkpoint are.
    pub memory: PointMemory,
    /// The guest had been brought to rest: what was on its way to the disks is there.
    pub quiesced: bool,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// Time that the parent stood still for it, microseconds.
    pub stun_us: u64,
    /// Time that the parent's disks were held, microseconds.
    pub io_held_us: u64,
    /// It came out of an archive.
    #[serde(default)]
    pub imported: bool,
}

impl Kind for ForkPoint {
    const KIND: &'static str = "fork_point";
    const NOUN: &'static str = "fork point";
    const PREFIX: &'static str = "forkpoint";
}

/// How a VM stands to the fork point that it is a child of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildRow {
    /// The fork point.
    pub point: ObjectId,
    /// It keeps its disks over a power-off and boots from them; otherwise it returns to the fork
    /// point.
    pub persistent: bool,
    /// It has run since its disks were made.
    pub started: bool,
    /// It has run before its disks were renewed: somebody uses it, though it stands at the fork
    /// point again.
    #[serde(default)]
    pub used: bool,
    /// It was powered off, or booted from the disks that it keeps: whether it is persistent is
    /// settled.
    #[serde(default)]
    pub settled: bool,
}

impl ChildRow {
    /// The word for it in answers.
    pub fn persistence(&self) -> Persistence {
        match self.persistent {
            true => Persistence::Persistent,
            false => Persistence::NonPersistent,
        }
    }

    /// Whether the VM's next start is at the fork point.
    pub fn starts_at_point(&self) -> bool {
        !self.persistent || !self.started
    }

    /// Whether it was made ahead and has never run.
    pub fn is_fresh(&self) -> bool {
        !self.started && !self.used
    }
}
