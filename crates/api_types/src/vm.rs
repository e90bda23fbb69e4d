//! VMs as they are shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use vm_spec::MacAddr;

use crate::{GuestInfo, SerialDetail, schema};

/// What becomes of the disks of a fork point's child by a power-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Persistence {
    /// It keeps them and boots from them.
    Persistent,
    /// It returns to its fork point.
    NonPersistent,
}

impl Persistence {
    /// The word for it in texts.
    pub fn word(self) -> &'static str {
        match self {
            Self::Persistent => "persistent",
            Self::NonPersistent => "non-persistent",
        }
    }
}

/// A VM as `ls` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Its id, never used again.
    #[serde(default)]
    pub id: String,
    /// Its name.
    pub name: String,
    /// `creating`, `running`, `paused`, `frozen`, `paused: no space`, `poweredOff` or `out of memory`.
    pub state: String,
    /// `kvm` or `soft`.
    pub engine: String,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Guest RAM, bytes.
    pub memory_bytes: u64,
    /// Name of the VM it was cloned from, as it was then.
    pub source: Option<String>,
    /// Forks between it and a VM that booted.
    pub generation: u32,
    /// Id of the fork point that it is a child of.
    #[serde(default)]
    pub fork_point: Option<String>,
    /// Whether it keeps its disks over a power-off; only of a child of a fork point.
    #[serde(default)]
    pub persistence: Option<Persistence>,
    /// The guest's agent said that it is ready.
    pub ready: bool,
    /// It is not to be started, only cloned.
    #[serde(default)]
    pub template: bool,
    /// Id of the folder that it lies in.
    #[serde(default)]
    pub folder: String,
    /// Rises with each change of its configuration; the `ETag` of the VM.
    #[serde(default)]
    pub version: u64,
    /// Free text of a user.
    #[serde(default)]
    pub annotation: String,
    /// Attributes that a user gave it.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// Host memory of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryUse {
    /// Guest RAM, bytes.
    pub configured_bytes: u64,
    /// Pages written since its own fork point and the VM process's own, KiB.
    pub private_kib: u64,
    /// Resident pages of the layers that it sees, KiB.
    pub shared_kib: u64,
    /// Proportional share of all pages that it maps, KiB.
    pub pss_kib: u64,
    /// Most that it may take beside its layers, KiB; none on a host that cannot limit it.
    #[serde(default)]
    pub limit_kib: Option<u64>,
}

/// Host disk space of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskUse {
    /// Allocated bytes of its own tops.
    pub delta_bytes: u64,
}

/// One disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskDetail {
    /// Serial number that the guest reads.
    pub serial: String,
    /// The guest cannot write.
    pub read_only: bool,
    /// Size that the guest sees, bytes; 0 of an empty slot.
    #[serde(default)]
    pub size_bytes: u64,
    /// Files of the stack, the writable top first; none of an empty slot.
    pub layers: Vec<String>,
}

/// One NIC of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicDetail {
    /// Hardware address.
    #[schema(schema_with = schema::mac)]
    pub mac: MacAddr,
    /// TAP interface that its user made.
    pub tap: Option<String>,
    /// Id of the network that it is on: the daemon makes its TAP interface.
    #[serde(default)]
    pub network: Option<String>,
    /// Its cable is plugged into one of them.
    #[serde(default)]
    pub connected: bool,
    /// Static address with prefix length that its agent was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// One fork of a VM, as its source saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StunRecord {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// First vCPU stopped to last vCPU running again, microseconds.
    pub stun_us: u64,
    /// Disk queues held, microseconds.
    pub io_held_us: u64,
    /// Clones made.
    pub clones: u32,
    /// Parts of the stun, microseconds, by step.
    #[serde(default)]
    #[schema(schema_with = schema::figures)]
    pub steps_us: Vec<(String, u64)>,
}

/// What a guest's agent said about itself; not to be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestReply {
    /// Host name in force.
    pub hostname: String,
    /// Content of `/etc/machine-id`.
    pub machine_id: String,
    /// Hardware addresses in force.
    pub macs: Vec<String>,
    /// What the agent could not apply.
    pub errors: Vec<String>,
}

/// A VM as `info` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmDetail {
    /// What `ls` shows.
    #[serde(flatten)]
    pub vm: Vm,
    /// Instance and BIOS UUID.
    pub uuid: String,
    /// Machine id that the agent is told.
    pub machine_id: String,
    /// Id of the datastore of its home and of what it writes.
    #[serde(default)]
    pub datastore: String,
    /// Id of the resource pool that it counts to.
    #[serde(default)]
    pub pool: String,
    /// Why it is in its state, where a fault or a person led there.
    pub reason: Option<String>,
    /// Image it was made from.
    pub image: Option<String>,
    /// Kernel file.
    pub kernel: String,
    /// Kernel command line.
    pub cmdline: String,
    /// Process, while it has one.
    pub pid: Option<i32>,
    /// User id of the process.
    pub uid: Option<u32>,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// Host memory.
    pub memory: MemoryUse,
    /// Host disk space.
    pub disk: DiskUse,
    /// Disks.
    pub disks: Vec<DiskDetail>,
    /// NICs.
    pub nics: Vec<NicDetail>,
    /// Its own latest forks, oldest first.
    pub stuns: Vec<StunRecord>,
    /// What the guest says of itself.
    pub guest: Option<GuestReply>,
    /// Key-value pairs that its user and its guest set.
    #[serde(default)]
    pub guestinfo: GuestInfo,
    /// Unix socket that reaches the guest's vsock ports (`CONNECT <port>\n`).
    pub vsock: String,
    /// Where COM1's output goes.
    pub serial: Option<String>,
    /// Serial ports.
    #[serde(default)]
    pub serial_ports: Vec<SerialDetail>,
}
