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
    /// Id of an earlier export: layers and pages of memory that it had are left out.
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
    /// Memory in the archive, bytes; pages of zeros take none.
    pub memory_bytes: u64,
    /// Memory that was left out since the earlier export had it, bytes.
    pub memory_left_out_bytes: u64,
    /// Why none was left out although `since` was given.
    pub memory_whole_because: Option<String>,
    /// Time that the VM stood still for it, microseconds.
    pub stun_us: u64,
}

/// What an import makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImportAs {
    /// A VM: suspended where the archive has memory, powered off otherwise.
    Vm,
    /// A kept fork point, in files: children of it run at once.
    Forkpoint,
}

/// Make a VM or a fork point of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// Archive on the daemon's host.
    #[schema(schema_with = schema::path)]
    pub path: PathBuf,
    /// What to make: `forkpoint` for the archive of one where not given, `vm` for all others. An
    /// archive with memory can become either.
    #[serde(default, rename = "as")]
    pub import_as: Option<ImportAs>,
    /// Earlier archives on the daemon's host, in any order, that have what this one leaves out and
    /// the host has not.
    #[serde(default)]
    #[schema(schema_with = schema::archives)]
    pub earlier: Vec<PathBuf>,
    /// Name of the VM or fork point; the one in the archive where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub name: Option<String>,
    /// Datastore for its disks and its memory; the first one where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub datastore: Option<String>,
    /// Make it another machine than the exported one: new hardware addresses, UUID, machine id and,
    /// where its guest has an agent, host name and keys. Otherwise it is the same machine. Children
    /// of a fork point are machines of their own in any case.
    #[serde(default)]
    pub new_identity: bool,
    /// Where an earlier import of the same machine is here and nobody changed it since, take its
    /// place: it keeps its id, name, folder, pool, words, networks and serial back ends. The earlier one
    /// stays until all of the new one is there.
    #[serde(default)]
    pub replace: bool,
}

/// What an import made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// Id of the export that was imported.
    pub export: String,
    /// What was made.
    pub kind: ImportAs,
    /// Its name.
    pub name: String,
    /// Id of the VM, where it is one.
    pub vm_id: Option<String>,
    /// Id of the fork point, where it is one.
    pub fork_point_id: Option<String>,
    /// `suspended` for a VM with memory, `poweredOff` for one without, `kept` for a fork point.
    pub state: String,
    /// Disk layers that came out of archives.
    pub layers: usize,
    /// Disk layers that were there already.
    pub layers_found: usize,
    /// It took the place of an earlier import.
    pub replaced: bool,
}
