//! Snapshots: states of a VM to which it can return, and the memory of suspended VMs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::objects::{Kind, Labels, ObjectId};
use super::rows::{LayerId, VmRow};

/// Guest RAM and checkpoint of one instant in files of a datastore; both are complete, durable and
/// never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFiles {
    /// Guest RAM; holes are zeros.
    pub ram: PathBuf,
    /// Checkpoint.
    pub checkpoint: PathBuf,
}

/// Whether a snapshot has the memory of its instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotMemory {
    /// Disks alone.
    None,
    /// Being written: a daemon that finds a snapshot like this removes it.
    Writing,
    /// In files.
    Files(MemoryFiles),
}

/// A state of a VM. It lies below its VM in the tree of objects and holds the layers that it names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Words of a user.
    #[serde(default)]
    pub labels: Labels,
    /// What it is, in the user's words.
    pub description: String,
    /// The snapshot that the VM had returned to, or of which it was the continuation.
    pub tree_parent: Option<ObjectId>,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// The VM as it was.
    pub row: Box<VmRow>,
    /// Immutable top layer of each disk, in the order of the description; none of an empty slot.
    pub tops: Vec<Option<LayerId>>,
    /// Its memory.
    pub memory: SnapshotMemory,
    /// Time that the VM stood still for it, microseconds.
    pub stun_us: u64,
    /// Time that the VM's disks were held, microseconds.
    pub io_held_us: u64,
}

impl Kind for Snapshot {
    const KIND: &'static str = "snapshot";
    const NOUN: &'static str = "snapshot";
    const PREFIX: &'static str = "snapshot";
}

/// A VM whose memory goes to files, or is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuspendRow {
    /// Being written, while the VM stands still: a daemon that finds a VM like this lets it go on.
    Writing {
        /// It stood still before.
        paused: bool,
    },
    /// In files: the VM has no process, or one that is about to end.
    Files {
        /// The files.
        files: MemoryFiles,
        /// It goes on as another machine than the one that was suspended.
        #[serde(default)]
        as_clone: bool,
        /// It may have gone on elsewhere since, so its guest is told that it is another generation.
        #[serde(default)]
        copied: bool,
        /// It is being brought to life: its tops may have been written to.
        #[serde(default)]
        waking: bool,
    },
}
