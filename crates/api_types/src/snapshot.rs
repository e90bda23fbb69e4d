//! Snapshots, and suspending to disk.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schema;

/// Make a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Its name, unique among the VM's snapshots.
    #[schema(schema_with = schema::name)]
    pub name: String,
    /// What it is.
    #[serde(default)]
    #[schema(max_length = 4096)]
    pub description: String,
    /// With the memory of the instant, where the VM runs: it returns to that instant.
    #[serde(default)]
    pub memory: bool,
}

/// Whether a snapshot has the memory of its instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotMemory {
    /// Disks alone.
    None,
    /// Being written, while the VM runs.
    Writing,
    /// In files.
    Files,
}

/// A state to which a VM can return.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Name of its VM.
    pub vm: String,
    /// Id of its VM.
    pub vm_id: String,
    /// What it is.
    pub description: String,
    /// Id of the snapshot that it continues.
    pub parent: Option<String>,
    /// The VM continues it.
    pub current: bool,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// Whether it has memory.
    pub memory: SnapshotMemory,
    /// Space that its memory takes, bytes.
    pub memory_bytes: Option<u64>,
    /// Ids of the top layers of its disks.
    pub layers: Vec<String>,
    /// Time that the VM stood still for it, microseconds.
    pub stun_us: u64,
    /// Time that the VM's disks were held, microseconds.
    pub io_held_us: u64,
}

/// What the removal of a snapshot led to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotsRemoved {
    /// Names of the snapshots that are gone.
    pub removed: Vec<String>,
}
