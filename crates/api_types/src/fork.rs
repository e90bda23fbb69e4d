//! Clones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ExtraDiskRequest, GuestInfo, NetRequest, NicAddressRequest, SerialRequest, schema};

/// How a clone is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CloneMode {
    /// From the running state: a live fork.
    #[default]
    Instant,
    /// Powered off, on the source's disks.
    Linked,
    /// Powered off, with disks of its own.
    Full,
}

/// What is special about one clone of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CloneEdit {
    /// Folder that it is to lie in.
    #[schema(schema_with = schema::optional_folder)]
    pub folder: Option<String>,
    /// Free text about it.
    #[schema(schema_with = schema::optional_annotation)]
    pub annotation: Option<String>,
    /// Custom attributes, beside the source's.
    #[schema(schema_with = schema::attributes)]
    pub attributes: BTreeMap<String, String>,
    /// Instance UUID; a random one where not given.
    #[schema(schema_with = schema::optional_uuid)]
    pub uuid: Option<String>,
    /// BIOS UUID; the instance's where not given.
    #[schema(schema_with = schema::optional_uuid)]
    pub bios_uuid: Option<String>,
    /// NICs, in the source's order; those not given are on the source's networks.
    #[schema(max_items = 11)]
    pub nets: Vec<NetRequest>,
    /// Back ends of serial ports, COM1 first.
    #[schema(max_items = 4)]
    pub serial: Vec<SerialRequest>,
    /// Disks for the source's spare slots, in their order, in the place of those of the request.
    #[schema(max_items = 11)]
    pub extra_disks: Vec<ExtraDiskRequest>,
}

/// Clone a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// Names of the clones.
    #[schema(schema_with = schema::names)]
    pub names: Vec<String>,
    /// How.
    #[serde(default)]
    pub mode: CloneMode,
    /// Snapshot of the source to clone instead of its present state: id or name.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub snapshot: Option<String>,
    /// Datastore of the clones' homes and of what they write, by id or name; the source's where not
    /// given, for full clones those with ready copies or the most space.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub datastore: Option<String>,
    /// Most bytes that full clones copy in a second; no limit where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_bytes)]
    pub rate_bytes_per_s: Option<u64>,
    /// Before full clones of a VM that runs, the file systems of its guest are synced.
    #[serde(default)]
    pub quiesce: bool,
    /// NICs of the clone, in the source's order, where only one is made.
    #[serde(default)]
    #[schema(max_items = 11)]
    pub nets: Vec<NetRequest>,
    /// Back ends of the clone's serial ports, COM1 first, where only one is made. Those not given
    /// are logs, or pseudo-terminals where the source has such.
    #[serde(default)]
    #[schema(max_items = 4)]
    pub serial: Vec<SerialRequest>,
    /// Disks that each instant clone gets at the fork, in the source's spare slots in their order.
    #[serde(default)]
    #[schema(max_items = 11)]
    pub extra_disks: Vec<ExtraDiskRequest>,
    /// Folder that the clones are to lie in; the source's where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_folder)]
    pub folder: Option<String>,
    /// Resource pool that the clones are to belong to; the source's where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub pool: Option<String>,
    /// Free text about the clones; the source's where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_annotation)]
    pub annotation: Option<String>,
    /// Custom attributes of the clones, beside the source's.
    #[serde(default)]
    #[schema(schema_with = schema::attributes)]
    pub attributes: BTreeMap<String, String>,
    /// What is special about each clone, in the order of the names; none, or one for each.
    #[serde(default)]
    #[schema(max_items = 240)]
    pub each: Vec<CloneEdit>,
    /// Instant clones stand still at the fork point until they are resumed.
    #[serde(default)]
    pub paused: bool,
    /// Static addresses of the clones' NICs, set by their agents: the first clone gets those given,
    /// each further one the next.
    #[serde(default)]
    #[schema(max_items = 11)]
    pub addresses: Vec<NicAddressRequest>,
    /// guestinfo of the clones, on top of the source's; `{name}` and `{index}` (from 1) in a value are
    /// replaced. An empty value removes the key.
    #[serde(default)]
    pub guestinfo: GuestInfo,
    /// The clones keep the source's hardware addresses and links.
    #[serde(default)]
    pub keep_mac: bool,
    /// Most host memory that each clone takes beside the layers that it shares, bytes; the source's
    /// where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_bytes)]
    pub memory_limit_bytes: Option<u64>,
    /// Longest wait for the agents of the clones, seconds; 0 does not wait.
    #[serde(default)]
    #[schema(schema_with = schema::optional_seconds)]
    pub wait_ready_s: Option<u64>,
    /// Longest time that disk requests in flight may take, milliseconds.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 60000)]
    pub drain_ms_max: Option<u32>,
    /// Step of the fork at which to fail, for tests of the failure paths; only an admin may give it.
    #[serde(default)]
    #[schema(max_length = 32, pattern = "^[a-z_]+$")]
    pub fail_at: Option<String>,
}

/// Where the disks of a full clone came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CopyOrigin {
    /// Name of the datastore that they are on.
    pub datastore: String,
    /// `pool`: a copy made ahead; `reflink` or `copy`: one made for it; `none`: it has no disks.
    pub how: String,
    /// Why no copy made ahead was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One clone of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClonedVm {
    /// Its name.
    pub name: String,
    /// Arrival of the request to the first entry of the clone, microseconds.
    pub first_run_us: Option<u64>,
    /// Arrival of the request to the agent's word, microseconds.
    pub ready_us: Option<u64>,
    /// Why it does not exist, or is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Where its disks came from, of a full clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<CopyOrigin>,
}

/// What the disks of clones hold of the source's instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Disks and memory of one instant.
    #[default]
    Instant,
    /// The disks of a source that did not run.
    AtRest,
    /// The disks of a source that ran, as a power cut would leave them: what the guest had not yet
    /// written is not there.
    Crash,
    /// The same, just after the guest had written what its file systems held back.
    Synced,
}

/// Answer to [`ForkRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cloned {
    /// Name of the source.
    pub source: String,
    /// First vCPU stopped to last vCPU running again, microseconds.
    pub stun_us: u64,
    /// Disk queues held, microseconds.
    pub io_held_us: u64,
    /// `layer` or `fork`; `files` of a snapshot, `kept` of a fork point, `none` of clones without memory.
    pub memory: String,
    /// What the clones' disks hold.
    #[serde(default)]
    pub consistency: Consistency,
    /// Parts of the stun, microseconds, by step.
    #[serde(default)]
    #[schema(schema_with = schema::figures)]
    pub steps_us: Vec<(String, u64)>,
    /// Arrival of the request to the end of each phase of the daemon's own work, microseconds.
    #[serde(default)]
    #[schema(schema_with = schema::figures)]
    pub phases_us: Vec<(String, u64)>,
    /// The clones in the order of the request.
    pub clones: Vec<ClonedVm>,
}
