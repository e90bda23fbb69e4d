//! Documents of the inventory. They are stored as JSON: fields are only ever added, with a default.

use std::collections::BTreeMap;
use std::path::PathBuf;

use api_types::{Consistency, GuestReply, SerialRequest, StunRecord};
use serde::{Deserialize, Serialize};
use vm_spec::VmSpec;
use vmm_protocol::LayerFormat;

use super::FIRST_DATASTORE;
use super::fork_points::ChildRow;
use super::objects::{Labels, ObjectId};
use super::snapshots::SuspendRow;
use crate::clock::{now_ms, random_hex, random_uuid};

/// Latest forks that a VM remembers.
pub const MAX_STUN_RECORDS: usize = 32;

/// Name of a disk layer; the stem of its file for a delta: `<vm id>-<disk>-<number>`, so that the
/// directory entry of a delta tells whose it is and which of that VM's deltas is the latest.
pub type LayerId = String;

/// Power state of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PowerState {
    /// Being made: it is removed after a crash unless its process runs.
    Creating,
    /// vCPUs run.
    Running,
    /// vCPUs stand still because somebody asked.
    Paused,
    /// vCPUs stand still at the point where the guest asked for it: clones go on from there.
    Frozen,
    /// vCPUs stand still until there is space for a guest write.
    PausedNoSpace,
    /// No process.
    PoweredOff,
    /// No process: the kernel ended it, since its memory limit was reached or the host had no more.
    OutOfMemory,
    /// No process: memory and checkpoint are in files, from which it goes on.
    Suspended,
}

impl PowerState {
    /// The word for it in answers.
    pub fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Frozen => "frozen",
            Self::PausedNoSpace => "paused: no space",
            Self::PoweredOff => "poweredOff",
            Self::OutOfMemory => "out of memory",
            Self::Suspended => "suspended",
        }
    }

    /// Whether a VM in this state has a process.
    pub fn has_process(self) -> bool {
        matches!(
            self,
            Self::Running | Self::Paused | Self::Frozen | Self::PausedNoSpace
        )
    }

    /// Whether a VM in this state has a process whose vCPUs somebody stopped.
    pub fn stands_still(self) -> bool {
        matches!(self, Self::Paused | Self::Frozen)
    }

    /// Whether a VM in this state can be started.
    pub fn is_off(self) -> bool {
        matches!(self, Self::PoweredOff | Self::OutOfMemory)
    }
}

/// What a VM boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSource {
    /// Image it was made from.
    pub image: Option<String>,
    /// Kernel file.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
}

/// One disk of a VM; without a top it is an empty slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRow {
    /// Layer that the VM writes to, or reads where the disk is read-only; none in an empty slot.
    #[serde(default)]
    pub top: Option<LayerId>,
    /// Next top of a fork under way. An empty overlay equals its base, so whoever finds a valid
    /// pending top may take it as the top.
    #[serde(default)]
    pub pending: Option<LayerId>,
    /// The medium that the clone was given at its fork: a child has it again when it returns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<MediumRow>,
}

impl DiskRow {
    /// A disk with this top, or an empty slot.
    pub fn of(top: Option<LayerId>) -> Self {
        Self {
            top,
            ..Self::default()
        }
    }

    /// Layers that it holds.
    pub fn held(&self) -> impl Iterator<Item = &LayerId> {
        self.top.iter().chain(&self.pending)
    }
}

/// A medium as it is put into an empty slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediumRow {
    /// An empty disk.
    Blank {
        /// Its size, bytes.
        size_bytes: u64,
    },
    /// A delta on a file that nobody writes to.
    On {
        /// That file, absolute.
        path: PathBuf,
        /// Its format.
        format: LayerFormat,
    },
}

/// One NIC of a VM, host side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicRow {
    /// TAP interface that the user made.
    pub tap: Option<String>,
    /// Network that it is on: the daemon makes its TAP interface.
    #[serde(default)]
    pub network: Option<ObjectId>,
    /// Its cable is pulled.
    #[serde(default)]
    pub disconnected: bool,
    /// Static addresses that the guest's agent sets.
    #[serde(default)]
    pub addresses: Option<AddressRow>,
}

impl NicRow {
    /// Whether it has, or is to have, a TAP interface.
    pub fn has_tap(&self) -> bool {
        self.tap.is_some() || self.network.is_some()
    }
}

/// Static addresses of a NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressRow {
    /// With prefix length: `192.0.2.7/24`.
    pub address: String,
    /// Default gateway.
    pub gateway: Option<String>,
    /// Name servers.
    pub dns: Vec<String>,
}

/// A guest's wish to be frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeRow {
    /// The guest's name for it: it asks again with the same one until it is answered.
    pub token: String,
    /// It was frozen for it and goes on since.
    pub thawed: bool,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmRow {
    /// Its id, never used again.
    pub id: String,
    /// Its name, unique in its folder.
    pub name: String,
    /// Folder that it lies in; the first one where none is named.
    #[serde(default)]
    pub folder: Option<ObjectId>,
    /// Datastore of its home folder and of the deltas that it writes.
    #[serde(default = "first_datastore")]
    pub datastore: ObjectId,
    /// Rises with each change that a user makes to its configuration.
    #[serde(default = "first_version")]
    pub version: u64,
    /// Words of a user.
    #[serde(default)]
    pub labels: Labels,
    /// Resource pool that it belongs to; the host's first one where none is named.
    #[serde(default)]
    pub pool: Option<ObjectId>,
    /// It is not to be started, only cloned.
    #[serde(default)]
    pub template: bool,
    /// Power state.
    pub state: PowerState,
    /// Why it is in that state, where a fault or the guest led there.
    #[serde(default)]
    pub reason: Option<String>,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// `kvm` or `soft`.
    pub engine: String,
    /// What it boots.
    pub boot: BootSource,
    /// The machine as the guest sees it.
    pub spec: VmSpec,
    /// Disks, in the order of the description.
    pub disks: Vec<DiskRow>,
    /// NICs, in the order of the description.
    pub nics: Vec<NicRow>,
    /// Back ends of the serial ports, COM1 first.
    pub serial: Vec<SerialRequest>,
    /// Instance UUID, also the BIOS UUID where no other one is named.
    pub uuid: String,
    /// BIOS UUID that is not the instance's.
    #[serde(default)]
    pub bios_uuid: Option<String>,
    /// Machine id that the agent is told.
    pub machine_id: String,
    /// Name of the VM that it was cloned from, as it was then.
    pub source: Option<String>,
    /// Id of the VM that it was cloned from.
    #[serde(default)]
    pub source_id: Option<ObjectId>,
    /// Forks between it and a VM that booted.
    pub generation: u32,
    /// The fork point that it is a child of.
    #[serde(default)]
    pub child: Option<ChildRow>,
    /// User id of its process.
    pub uid: Option<u32>,
    /// Its process.
    #[serde(default)]
    pub pid: Option<i32>,
    /// Memory cgroup of its process.
    #[serde(default)]
    pub group: Option<String>,
    /// Host memory that it may take beside its layers, where the user said so, bytes.
    #[serde(default)]
    pub memory_limit_bytes: Option<u64>,
    /// An agent has answered in it, or its image has one.
    #[serde(default)]
    pub has_agent: bool,
    /// Kinds of SSH host keys that its agent told.
    #[serde(default)]
    pub ssh_host_key_kinds: Vec<String>,
    /// It was given SSH host keys after its first boot.
    #[serde(default)]
    pub has_host_keys: bool,
    /// A clone that boots on what its source's disks had, and whose guest was not told so yet.
    #[serde(default)]
    pub cold_clone: bool,
    /// What its agent said when it was ready.
    #[serde(default)]
    pub guest: Option<GuestReply>,
    /// Key-value pairs that its user and its guest set.
    #[serde(default)]
    pub guestinfo: BTreeMap<String, String>,
    /// The latest wish of the guest to be frozen.
    #[serde(default)]
    pub freeze: Option<FreezeRow>,
    /// Latest forks of it.
    #[serde(default)]
    pub stuns: Vec<StunRecord>,
    /// Number of the next delta of this VM.
    #[serde(default)]
    pub next_layer: u32,
    /// Snapshot that it last made or returned to.
    #[serde(default)]
    pub snapshot: Option<ObjectId>,
    /// Where it is on its way to disk or back.
    #[serde(default)]
    pub suspend: Option<SuspendRow>,
    /// What was begun with it and has not ended.
    #[serde(default)]
    pub begun: Option<Begun>,
    /// Disks and machine are as an import made them: it has not run since.
    #[serde(default)]
    pub standby: bool,
    /// Task that last began with it what a daemon finishes or what suspends it; none where that
    /// came to nothing.
    #[serde(default)]
    pub begun_by: Option<i64>,
    /// How it was made.
    #[serde(default)]
    pub making: Option<Making>,
}

/// The task that made a VM, and what that task's answer tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Making {
    /// Its number.
    pub task: i64,
    /// Where the VM's memory is from, as in answers.
    pub memory: String,
    /// What its disks hold.
    pub consistency: Consistency,
    /// The VM was there before, registered: what is not made is taken back, and the VM stays.
    #[serde(default)]
    pub was_there: bool,
}

/// An operation that ends a VM's process first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begun {
    /// It boots again, or returns to its fork point.
    Reset,
    /// It returns to a snapshot.
    Revert {
        /// Id of the snapshot.
        snapshot: ObjectId,
    },
    /// It goes.
    Removal,
}

fn first_version() -> u64 {
    1
}

fn first_datastore() -> ObjectId {
    FIRST_DATASTORE.to_owned()
}

impl VmRow {
    /// Top layer of each disk, in the order of the description; none of an empty slot.
    pub fn tops(&self) -> Vec<Option<LayerId>> {
        self.disks.iter().map(|disk| disk.top.clone()).collect()
    }

    /// Deltas that it needs for a fork: one for each disk that can be written to.
    pub fn deltas_of_fork(&self) -> usize {
        let disks = self.disks.iter().zip(&self.spec.disks);
        disks
            .filter(|(disk, spec)| disk.top.is_some() && !spec.read_only)
            .count()
    }

    /// Its process is gone: a child stays persistent or not from here on, unless a `reset` takes it
    /// back to its fork point.
    pub fn process_gone(&mut self, reset: bool) {
        let returns = reset && self.returns_to_point();
        if let Some(child) = self.child.as_mut().filter(|_| !returns) {
            child.settled |= !child.is_fresh();
        }
    }

    /// Whether it is a child that stays persistent or not for good.
    pub fn persistence_settled(&self) -> bool {
        let off = self.state.is_off();
        let child = self.child.as_ref();
        child.is_some_and(|child| child.settled || (off && !child.is_fresh()))
    }

    /// Disk slots without a medium.
    pub fn empty_slots(&self) -> usize {
        self.disks.iter().filter(|disk| disk.top.is_none()).count()
    }

    /// Whether the next start is at a fork point.
    pub fn returns_to_point(&self) -> bool {
        self.child.as_ref().is_some_and(ChildRow::starts_at_point)
    }

    /// A VM that is being made, without disks and NICs.
    pub fn new(id: ObjectId, name: String, engine: String, boot: BootSource, spec: VmSpec) -> Self {
        Self {
            id,
            name,
            folder: None,
            datastore: first_datastore(),
            version: first_version(),
            labels: Labels::default(),
            pool: None,
            template: false,
            state: PowerState::Creating,
            reason: None,
            created_at_ms: now_ms(),
            engine,
            boot,
            spec,
            disks: Vec::new(),
            nics: Vec::new(),
            serial: vec![SerialRequest::Log],
            uuid: random_uuid(),
            bios_uuid: None,
            machine_id: random_hex::<16>(),
            source: None,
            source_id: None,
            generation: 0,
            child: None,
            uid: None,
            pid: None,
            group: None,
            memory_limit_bytes: None,
            has_agent: false,
            ssh_host_key_kinds: Vec::new(),
            has_host_keys: false,
            cold_clone: false,
            guest: None,
            guestinfo: BTreeMap::new(),
            freeze: None,
            stuns: Vec::new(),
            next_layer: 0,
            snapshot: None,
            suspend: None,
            begun: None,
            standby: false,
            begun_by: None,
            making: None,
        }
    }
}

/// One disk layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRow {
    /// Its name.
    pub id: LayerId,
    /// Layer below it.
    pub parent: Option<LayerId>,
    /// Absolute path of its file.
    pub path: PathBuf,
    /// Its format.
    pub format: LayerFormat,
    /// Size of the disk, bytes.
    pub size_bytes: u64,
    /// Whether the daemon made the file and removes it with its last user.
    pub owned: bool,
    /// What a disk that has it as its nearest layer shows, where that was known before its file was
    /// made: a merged layer shows what the newest of those that it was made of does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
