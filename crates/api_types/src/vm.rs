//! Requests and answers about VMs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vm_spec::{EngineChoice, MacAddr};

/// Format of a disk file that a user gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Plain bytes.
    Raw,
    /// qcow2.
    Qcow2,
}

/// One disk of a new VM: the file stays as it is, writes go to a delta of the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRequest {
    /// Absolute path.
    pub path: PathBuf,
    /// Its format; told by the file's first bytes where not given.
    #[serde(default)]
    pub format: Option<ImageFormat>,
    /// The guest cannot write.
    #[serde(default)]
    pub read_only: bool,
}

/// One NIC of a new VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetRequest {
    /// Name of an existing TAP interface; none for a NIC without a link.
    #[serde(default)]
    pub tap: Option<String>,
    /// Hardware address; a random one where not given.
    #[serde(default)]
    pub mac: Option<MacAddr>,
}

/// Back end of a serial port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SerialRequest {
    /// A log in the VM's home folder.
    #[default]
    Log,
    /// Nothing.
    None,
    /// Output is appended to this file.
    File(PathBuf),
    /// A pseudo-terminal of the host, beside the log.
    Pty,
    /// A Unix socket at this path that takes one connection at a time, beside the log.
    Unix(PathBuf),
}

/// One serial port of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialDetail {
    /// Its name: COM1 to COM4.
    pub port: String,
    /// Its back end.
    pub backend: SerialRequest,
    /// File that its output is appended to.
    pub log: Option<String>,
    /// Where to type and read: the pseudo-terminal of a running VM, or the socket.
    pub path: Option<String>,
}

fn default_cpus() -> u32 {
    1
}

fn default_memory_bytes() -> u64 {
    512 << 20
}

/// Make a VM and start it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Its name, unique on the host.
    pub name: String,
    /// Image to boot.
    #[serde(default)]
    pub image: Option<String>,
    /// Kernel file to boot; also replaces an image's own.
    #[serde(default)]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk; also replaces an image's own.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Kernel command line; also replaces an image's own.
    #[serde(default)]
    pub cmdline: Option<String>,
    /// Disks behind those of the image.
    #[serde(default)]
    pub disks: Vec<DiskRequest>,
    /// Number of vCPUs.
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// Guest RAM, bytes.
    #[serde(default = "default_memory_bytes")]
    pub memory_bytes: u64,
    /// Most host memory that the VM takes, bytes; guest RAM and what its process needs beside where
    /// not given.
    #[serde(default)]
    pub memory_limit_bytes: Option<u64>,
    /// NICs.
    #[serde(default)]
    pub nets: Vec<NetRequest>,
    /// Back end of COM1.
    #[serde(default)]
    pub serial: SerialRequest,
    /// Back ends of COM2, COM3 and COM4, as many as are given.
    #[serde(default)]
    pub more_serial: Vec<SerialRequest>,
    /// Engine.
    #[serde(default)]
    pub engine: EngineChoice,
    /// Entry address that overrides the kernel file's own.
    #[serde(default)]
    pub entry: Option<u64>,
    /// Longest wait for the agent of an image that has one, seconds; 0 does not wait.
    #[serde(default)]
    pub wait_ready_s: Option<u64>,
}

/// Answer to [`RunRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReply {
    /// The VM.
    #[serde(flatten)]
    pub vm: Vm,
    /// Arrival of the request to the first entry of the guest, microseconds.
    pub first_run_us: u64,
    /// Arrival of the request to the agent's word, microseconds; none without an agent or waiting.
    pub ready_us: Option<u64>,
    /// What the user should know, one line each.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A VM as `ls` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// `creating`, `running`, `paused`, `paused: no space`, `poweredOff` or `out of memory`.
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
    /// The guest's agent said that it is ready.
    pub ready: bool,
}

/// Host memory of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// Allocated bytes of its own tops.
    pub delta_bytes: u64,
}

/// One disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDetail {
    /// Serial number that the guest reads.
    pub serial: String,
    /// The guest cannot write.
    pub read_only: bool,
    /// Files of the stack, the writable top first.
    pub layers: Vec<String>,
}

/// One NIC of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicDetail {
    /// Hardware address.
    pub mac: MacAddr,
    /// TAP interface.
    pub tap: Option<String>,
}

/// One fork of a VM, as its source saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    pub steps_us: Vec<(String, u64)>,
}

/// What a guest's agent said about itself; not to be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmDetail {
    /// What `ls` shows.
    #[serde(flatten)]
    pub vm: Vm,
    /// Its id, never used again.
    pub id: String,
    /// Instance and BIOS UUID.
    pub uuid: String,
    /// Machine id that the agent is told.
    pub machine_id: String,
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
    /// Unix socket that reaches the guest's vsock ports (`CONNECT <port>\n`).
    pub vsock: String,
    /// Where COM1's output goes.
    pub serial: Option<String>,
    /// Serial ports.
    #[serde(default)]
    pub serial_ports: Vec<SerialDetail>,
}

/// How a clone is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// Clone a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// Names of the clones.
    pub names: Vec<String>,
    /// How.
    #[serde(default)]
    pub mode: CloneMode,
    /// NICs of the clone, in the source's order, where only one is made.
    #[serde(default)]
    pub nets: Vec<NetRequest>,
    /// Back ends of the clone's serial ports, COM1 first, where only one is made. Those not given
    /// are logs, or pseudo-terminals where the source has such.
    #[serde(default)]
    pub serial: Vec<SerialRequest>,
    /// The clones keep the source's hardware addresses and links.
    #[serde(default)]
    pub keep_mac: bool,
    /// Most host memory that each clone takes beside the layers that it shares, bytes; the source's
    /// where not given.
    #[serde(default)]
    pub memory_limit_bytes: Option<u64>,
    /// Longest wait for the agents of the clones, seconds; 0 does not wait.
    #[serde(default)]
    pub wait_ready_s: Option<u64>,
    /// Longest time that disk requests in flight may take, milliseconds.
    #[serde(default)]
    pub drain_ms_max: Option<u32>,
    /// Step of the fork at which to fail, for tests of the failure paths.
    #[serde(default)]
    pub fail_at: Option<String>,
}

/// One clone of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// Answer to [`ForkRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloned {
    /// Name of the source.
    pub source: String,
    /// First vCPU stopped to last vCPU running again, microseconds.
    pub stun_us: u64,
    /// Disk queues held, microseconds.
    pub io_held_us: u64,
    /// `layer` or `fork`.
    pub memory: String,
    /// Parts of the stun, microseconds, by step.
    #[serde(default)]
    pub steps_us: Vec<(String, u64)>,
    /// Arrival of the request to the end of each phase of the daemon's own work, microseconds.
    #[serde(default)]
    pub phases_us: Vec<(String, u64)>,
    /// The clones in the order of the request.
    pub clones: Vec<ClonedVm>,
}

/// Power a VM off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// At once, without asking the guest.
    #[serde(default)]
    pub force: bool,
    /// Longest wait for the guest, seconds.
    #[serde(default)]
    pub timeout_s: Option<u64>,
}
