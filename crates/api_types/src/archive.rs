//! Archives: export and import.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::schema;

/// Write a VM, one of its snapshots or a fork point to an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// File to make on the daemon's host; it must not be there.
    #[schema(schema_with = schema::path)]
    pub path: PathBuf,
    /// Snapshot of the VM to export instead of its present state: id or name.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub snapshot: Option<String>,
    /// Id of an earlier export: layers that it had are left out.
    #[serde(default)]
    #[schema(pattern = "^[0-9a-f]{32}$", min_length = 32, max_length = 32)]
    pub since: Option<String>,
    /// Leave disk layers out that the daemon did not make: the importing host has the same files.
    #[serde(default)]
    pub without_base: bool,
}

/// What an export wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Exported {
    /// Id of the export, for a later one's `since`.
    pub id: String,
    /// The archive.
    #[schema(schema_with = schema::path)]
    pub path: PathBuf,
    /// `vm`, `snapshot` or `forkpoint`.
    pub kind: String,
    /// Length of the archive, bytes.
    pub archive_bytes: u64,
    /// Disk layers in the archive.
    pub layers: usize,
    /// Disk layers that were left out.
    pub layers_left_out: usize,
    /// It has memory.
    pub memory: bool,
    /// Time that the VM stood still for it, microseconds.
    pub stun_us: u64,
}

/// Make a VM of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// Archive on the daemon's host.
    #[schema(schema_with = schema::path)]
    pub path: PathBuf,
    /// Name of the VM; the one in the archive where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub name: Option<String>,
    /// Datastore for its disks; the first one where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub datastore: Option<String>,
    /// Make it another machine than the exported one: new hardware addresses, UUID, machine id and,
    /// where its guest has an agent, host name and keys. Otherwise it is the same machine.
    #[serde(default)]
    pub new_identity: bool,
}

/// What an import made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// Id of the export that was imported.
    pub export: String,
    /// Name of the VM.
    pub name: String,
    /// Id of the VM.
    pub vm_id: String,
    /// State of the VM: `suspended` where the archive has memory, `poweredOff` otherwise.
    pub state: String,
    /// Disk layers that came out of the archive.
    pub layers: usize,
    /// Disk layers that were there already.
    pub layers_found: usize,
}
