//! Requests and answers about prepared parents, kept fork points and their children.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Cloned, ExtraDiskRequest, GuestInfo, NicAddressRequest, schema};

/// Most children of one call.
pub const MAX_CHILDREN: u32 = 4096;

/// Turn a powered-on VM into a parent: keep a fork point of it and make children ahead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PrepareRequest {
    /// Name of the fork point; the VM's where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub name: Option<String>,
    /// Children to make ahead: their homes and delta disks, registered but not started.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 4096)]
    pub children: u32,
    /// Their names are this and a number; the fork point's name and a dash where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_prefix)]
    pub prefix: Option<String>,
    /// Command that the guest runs before: programs that it starts and files that it reads are in
    /// the memory of every child.
    #[serde(default)]
    #[schema(schema_with = schema::argv)]
    pub exec: Vec<String>,
    /// Longest time of that command, seconds.
    #[serde(default)]
    #[schema(schema_with = schema::optional_seconds)]
    pub exec_timeout_s: Option<u64>,
    /// Bring the guest to rest first: its file systems are synced, and it stays paused.
    #[serde(default)]
    pub quiesce: bool,
    /// Write the memory to a datastore: the fork point survives a restart of the host.
    #[serde(default)]
    pub durable: bool,
    /// That datastore, by id or name; the VM's where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub datastore: Option<String>,
    /// Children keep their disks over a power-off; only of a quiesced parent.
    #[serde(default)]
    pub persistent: bool,
    /// Longest time that disk requests in flight may take, milliseconds.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 60000)]
    pub drain_ms_max: Option<u32>,
}

/// Answer to [`PrepareRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Prepared {
    /// The fork point.
    pub fork_point: ForkPoint,
    /// Names of the children that were made ahead.
    pub children: Vec<String>,
    /// Exit code of the command that ran before.
    pub exec_exit_code: Option<i32>,
}

/// A kept fork point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ForkPoint {
    /// Its id, such as `forkpoint-1`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Rises with each change.
    pub version: u64,
    /// Name of the parent, as it was then.
    pub parent: String,
    /// Id of the parent; it may be gone.
    pub parent_id: String,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// `sealing`, `memory` (kept by a process), `files` (in a datastore) or `lost`.
    pub memory: String,
    /// Bytes of the parent's RAM.
    pub memory_bytes: u64,
    /// Space that its files take, bytes.
    pub file_bytes: u64,
    /// The guest had been brought to rest.
    pub quiesced: bool,
    /// Time that the parent stood still for it, microseconds.
    pub stun_us: u64,
    /// Time that the parent's disks were held, microseconds.
    pub io_held_us: u64,
    /// Children that are registered and never started.
    pub children_registered: u32,
    /// Children that have a process.
    pub children_running: u32,
    /// All children.
    pub children: u32,
}

/// Power on children of a fork point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PointForkRequest {
    /// Names of new children.
    #[serde(default)]
    #[schema(schema_with = schema::child_names)]
    pub names: Vec<String>,
    /// How many, where no names are given: children that were made ahead first, then new ones.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 4096)]
    pub count: u32,
    /// Names of new children are this and a number; the fork point's name and a dash where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_prefix)]
    pub prefix: Option<String>,
    /// Children keep their disks over a power-off; only of a quiesced parent. Where not given, those
    /// made ahead stay as they are, and new ones are not persistent.
    #[serde(default)]
    pub persistent: Option<bool>,
    /// Children stand still at the fork point until they are resumed.
    #[serde(default)]
    pub paused: bool,
    /// Children keep the parent's hardware addresses.
    #[serde(default)]
    pub keep_mac: bool,
    /// Disks that each child gets at the fork, in the parent's spare slots in their order. A child
    /// that returns to the fork point has them again as they were.
    #[serde(default)]
    #[schema(max_items = 11)]
    pub extra_disks: Vec<ExtraDiskRequest>,
    /// Static addresses of the children's NICs, set by their agents: the first child gets those
    /// given, each further one the next.
    #[serde(default)]
    #[schema(max_items = 11)]
    pub addresses: Vec<NicAddressRequest>,
    /// guestinfo of the children, on top of the parent's; `{name}` and `{index}` (from 1) in a value
    /// are replaced. An empty value removes the key.
    #[serde(default)]
    pub guestinfo: GuestInfo,
    /// Most host memory that each child takes beside the layers that it shares, bytes.
    #[serde(default)]
    #[schema(schema_with = schema::optional_bytes)]
    pub memory_limit_bytes: Option<u64>,
    /// Longest wait for the agents of the children, seconds; 0 does not wait.
    #[serde(default)]
    #[schema(schema_with = schema::optional_seconds)]
    pub wait_ready_s: Option<u64>,
}

/// Answer to [`PointForkRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PointForked {
    /// Id of the fork point.
    pub fork_point: String,
    /// Arrival of the request to the last child's first entry, microseconds.
    pub wall_us: u64,
    /// The children; the parent was not stunned.
    #[serde(flatten)]
    pub cloned: Cloned,
}

/// Keep a child's disks over a power-off, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PersistenceRequest {
    /// It keeps them.
    pub persistent: bool,
}
