//! Making VMs and powering them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vm_spec::EngineChoice;

use crate::{DiskRequest, GuestInfo, NetRequest, NicAddressRequest, SerialRequest, Vm, schema};

fn default_cpus() -> u32 {
    1
}

fn default_memory_bytes() -> u64 {
    512 << 20
}

/// Make a VM and start it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Its name, unique in its folder.
    #[schema(schema_with = schema::name)]
    pub name: String,
    /// Folder that it is to lie in: an id, or names joined by `/`; the first one where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_folder)]
    pub folder: Option<String>,
    /// Resource pool that it is to belong to; the first one where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub pool: Option<String>,
    /// Make it and do not start it.
    #[serde(default)]
    pub powered_off: bool,
    /// Free text about it.
    #[serde(default)]
    #[schema(schema_with = schema::optional_annotation)]
    pub annotation: Option<String>,
    /// Custom attributes.
    #[serde(default)]
    #[schema(schema_with = schema::attributes)]
    pub attributes: BTreeMap<String, String>,
    /// Instance UUID; a random one where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_uuid)]
    pub uuid: Option<String>,
    /// BIOS UUID; the instance's where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_uuid)]
    pub bios_uuid: Option<String>,
    /// Image to boot.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub image: Option<String>,
    /// Kernel file to boot; also replaces an image's own.
    #[serde(default)]
    #[schema(schema_with = schema::optional_path)]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk; also replaces an image's own.
    #[serde(default)]
    #[schema(schema_with = schema::optional_path)]
    pub initrd: Option<PathBuf>,
    /// Kernel command line; also replaces an image's own.
    #[serde(default)]
    #[schema(schema_with = schema::optional_cmdline)]
    pub cmdline: Option<String>,
    /// Disks behind those of the image.
    #[serde(default)]
    #[schema(max_items = 11)]
    pub disks: Vec<DiskRequest>,
    /// Empty disk slots behind its disks: clones made of it while it runs can be given disks there.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 11)]
    pub spare_disks: u32,
    /// Datastore of its home and of what it writes, by id or name; the first one where not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_name)]
    pub datastore: Option<String>,
    /// Number of vCPUs.
    #[serde(default = "default_cpus")]
    #[schema(schema_with = schema::cpus)]
    pub cpus: u32,
    /// Guest RAM, bytes.
    #[serde(default = "default_memory_bytes")]
    #[schema(schema_with = schema::memory_bytes)]
    pub memory_bytes: u64,
    /// Most host memory that the VM takes, bytes; guest RAM and what its process needs beside where
    /// not given.
    #[serde(default)]
    #[schema(schema_with = schema::optional_bytes)]
    pub memory_limit_bytes: Option<u64>,
    /// NICs.
    #[serde(default)]
    #[schema(max_items = 11)]
    pub nets: Vec<NetRequest>,
    /// Back end of COM1.
    #[serde(default)]
    pub serial: SerialRequest,
    /// Back ends of COM2, COM3 and COM4, as many as are given.
    #[serde(default)]
    #[schema(max_items = 3)]
    pub more_serial: Vec<SerialRequest>,
    /// Engine.
    #[serde(default)]
    #[schema(schema_with = schema::engine)]
    pub engine: EngineChoice,
    /// Entry address that overrides the kernel file's own.
    #[serde(default)]
    #[schema(schema_with = schema::optional_number)]
    pub entry: Option<u64>,
    /// Static addresses of its NICs, set by its agent.
    #[serde(default)]
    #[schema(max_items = 11)]
    pub addresses: Vec<NicAddressRequest>,
    /// guestinfo; `{name}` in a value is replaced.
    #[serde(default)]
    pub guestinfo: GuestInfo,
    /// Longest wait for the agent of an image that has one, seconds; 0 does not wait.
    #[serde(default)]
    #[schema(schema_with = schema::optional_seconds)]
    pub wait_ready_s: Option<u64>,
}

impl RunRequest {
    /// A request that only names its VM; the rest is as it is where a member is not given.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            folder: None,
            pool: None,
            powered_off: false,
            annotation: None,
            attributes: BTreeMap::new(),
            uuid: None,
            bios_uuid: None,
            image: None,
            kernel: None,
            initrd: None,
            cmdline: None,
            datastore: None,
            disks: Vec::new(),
            spare_disks: 0,
            cpus: default_cpus(),
            memory_bytes: default_memory_bytes(),
            memory_limit_bytes: None,
            nets: Vec::new(),
            serial: SerialRequest::default(),
            more_serial: Vec::new(),
            engine: EngineChoice::default(),
            entry: None,
            addresses: Vec::new(),
            guestinfo: GuestInfo::default(),
            wait_ready_s: None,
        }
    }
}

/// Answer to [`RunRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunReply {
    /// The VM.
    #[serde(flatten)]
    pub vm: Vm,
    /// Arrival of the request to the first entry of the guest, microseconds; none where it was not
    /// started.
    pub first_run_us: Option<u64>,
    /// Arrival of the request to the agent's word, microseconds; none without an agent or waiting.
    pub ready_us: Option<u64>,
    /// What the user should know, one line each.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Power a VM off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// At once, without asking the guest.
    #[serde(default)]
    pub force: bool,
    /// Longest wait for the guest, seconds.
    #[serde(default)]
    #[schema(schema_with = schema::optional_seconds)]
    pub timeout_s: Option<u64>,
}
