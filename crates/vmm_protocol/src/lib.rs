//! Messages between the daemon and the process of one VM.
//!
//! A VM process is started by root as `mitose-vmm shell --uid U --uid-range FIRST-LAST`, with its
//! listening control socket as its standard input; it jails itself, then accepts connections.
//!
//! A shell that is needed at once is not started but born: `mitose-vmm seed` takes the same
//! arguments and has a connected stream socket as its standard input. For each [`Sow`] it splits itself;
//! the child is a shell, jailed like the seed, with a user id of its own. The seed ends with its
//! connection.
//!
//! A message is a JSON document in one frame of a Unix stream socket; the descriptors that it
//! names ([`Fd`]) travel with the frame, numbered from 0. The daemon connects to the socket the
//! VM process listens on, sends [`Request`]s and gets one [`Reply`] for each, in any order;
//! [`Event`]s come unasked. After a restart the daemon connects again and asks for
//! [`Command::Status`].
//!
//! ```text
//! shell ──Boot──▶ running ◀──Resume/Pause──▶ paused
//!   │                │  └──Fork──▶ running (+ clones)
//!   └──Restore──▶ running                    any ──PowerOff, guest power-off──▶ process ends
//! newborn (born by fork()) ──Restore──▶ running
//!   └──Dump──▶ newborn (its instant is in two files)
//! shell ──Keep──▶ keeper (holds a fork point for a daemon that may restart) ──Recall──▶ keeper
//! ```

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use vm_spec::VmSpec;

/// Version of this protocol; a peer with another one is refused.
pub const VERSION: u32 = 2;
/// Largest frame, bytes.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Most descriptors of one frame (the kernel's `SCM_MAX_FD` is 253).
pub const MAX_FRAME_FDS: usize = 250;
/// Descriptor number on which a VM process finds its listening control socket when it starts: its
/// standard input, which a process can be given without a `fork()` of whoever starts it.
pub const CONTROL_FD: i32 = 0;

/// Index of a descriptor among those of the same frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd(pub u32);

/// Format of one disk layer; always told, never guessed from guest-written content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerFormat {
    /// Plain bytes.
    Raw,
    /// qcow2, version 2 or 3.
    Qcow2,
}

/// One open disk layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFd {
    /// Its file.
    pub fd: Fd,
    /// Its format.
    pub format: LayerFormat,
}

/// Back end of one disk: the writable top first, then what lies below it, nearest first.
///
/// A clone whose checkpoint knows a slot as empty can be given layers for it: the guest hears of the
/// medium when it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBackend {
    /// Layers, top first; the top is writable unless the disk is read-only. None at all: an empty
    /// slot, which the guest sees as a disk of 0 bytes.
    pub layers: Vec<LayerFd>,
}

/// Back end of one NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicBackend {
    /// Open TAP (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, header of 12 bytes), or none: link stays down.
    pub tap: Option<Fd>,
}

/// Who may type on a serial port and reads along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SerialPeer {
    /// Whoever connects to this listening Unix socket, one at a time.
    Listener(Fd),
    /// Both ends of a pseudo-terminal; the second is only held, so that the first stays usable
    /// while nobody has it open.
    Pty(Fd, Fd),
}

/// Back end of one serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialBackend {
    /// Where its output is appended.
    pub log: Fd,
    /// Who else is at its other end.
    pub peer: Option<SerialPeer>,
}

/// What the host provides to one VM, in the order of its [`VmSpec`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backends {
    /// `/dev/kvm` for the KVM engine, none for the software engine.
    pub kvm: Option<Fd>,
    /// One for each disk of the description.
    pub disks: Vec<DiskBackend>,
    /// One for each NIC of the description.
    pub nics: Vec<NicBackend>,
    /// One for each serial port of the description, COM1 first.
    pub serial: Vec<SerialBackend>,
    /// Listening Unix socket that reaches the guest's vsock ports (`CONNECT <port>\n`).
    pub vsock: Fd,
    /// One byte-stream message for the agent: the JSON of its identity message, sent whenever the
    /// agent says hello. Opaque to the VM process.
    pub agent_identity: String,
    /// UUID that the guest reads of its machine (SMBIOS); none leaves what it has.
    #[serde(default)]
    pub system_uuid: Option<String>,
}

/// Cold boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The machine.
    pub spec: VmSpec,
    /// Guest RAM: a memfd of the description's size, sealable.
    pub ram: Fd,
    /// Kernel file.
    pub kernel: Fd,
    /// Initial RAM disk.
    pub initrd: Option<Fd>,
    /// What the host provides.
    pub backends: Backends,
}

/// Size of the VM that a shell will become: what can be built before its fork point is there is
/// built at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// `/dev/kvm` for the KVM engine, none for the software engine.
    pub kvm: Option<Fd>,
    /// Guest RAM, bytes.
    pub memory_bytes: u64,
    /// Number of vCPUs.
    pub cpus: u8,
}

/// Where a clone finds the guest RAM of its fork point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloneRam {
    /// A sealed memory layer, opened read-only, mapped privately.
    Layer(Fd),
    /// Already in this process: it was born by `fork()`.
    Inherited,
}

/// Start as a clone of a fork point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The machine: as the source's, with the clone's own addresses.
    pub spec: VmSpec,
    /// Guest RAM.
    pub ram: CloneRam,
    /// File with the checkpoint, from offset 0 to its end; none where it was inherited.
    pub checkpoint: Option<Fd>,
    /// What the host provides.
    pub backends: Backends,
    /// New VM generation id (16 random bytes, hexadecimal); none where the instant has gone on nowhere
    /// else, so that its guest is no other machine than before.
    #[serde(default)]
    pub generation_id: Option<String>,
    /// Stay paused after loading.
    pub paused: bool,
    /// Whether the record and the directory entries of the clone's disk tops are durable; if not,
    /// the guest's flushes wait for [`Command::ForkDurable`].
    #[serde(default = "yes")]
    pub durable: bool,
}

fn yes() -> bool {
    true
}

/// Seat of a clone that is born by `fork()`. The newborn takes its user id itself (each VM process
/// keeps `CAP_SETUID` and `CAP_SETGID`, limited by seccomp to the range given when it started): no
/// user namespace or id map is involved. It serves the listener at once and waits for a
/// [`Command::Restore`] with [`CloneRam::Inherited`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newborn {
    /// Listening control socket.
    pub listener: Fd,
    /// User and group id of its own.
    pub uid: u32,
}

/// Asks a seed for a shell. With the frame come the shell's listening control socket and the file
/// that takes its log, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sow {
    /// User and group id of the shell.
    pub uid: u32,
}

/// A seed's answer to [`Sow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sown {
    /// The shell lives.
    Born {
        /// Its process id.
        pid: i32,
    },
    /// There is no shell.
    Failed(String),
}

/// Fork the running VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The source's next delta for each disk that has a medium and can be written to, in slot order,
    /// made on top of its present top.
    pub next_tops: Vec<LayerFd>,
    /// Empty memfd that takes the checkpoint; it stays empty where clones are born by `fork()`.
    pub checkpoint: Fd,
    /// For each clone what it needs if it is born by `fork()`; not used where the fork point is a
    /// memory layer.
    pub newborns: Vec<Newborn>,
    /// `/dev/kvm` for clones that are born by `fork()` and run on it: they build what they can before
    /// they are told to run.
    #[serde(default)]
    pub kvm: Option<Fd>,
    /// Only the disks of the instant are wanted: vCPUs run on, and RAM stays as it is.
    #[serde(default)]
    pub disks_only: bool,
    /// Longest time that requests in flight may take to finish before the call fails, milliseconds.
    pub drain_ms_max: u32,
    /// Name of a step of the fork at which to fail, for tests of the failure paths.
    #[serde(default)]
    pub fail_at: Option<ForkStep>,
}

/// Hold a fork point for as long as this process lives: descriptors outlive the daemon that made
/// them only in another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// Sealed memory layer.
    pub ram: Fd,
    /// Checkpoint file.
    pub checkpoint: Fd,
}

/// Write the instant that this process was born with to two files: it stays a newborn, so that it
/// can be asked for [`Command::PowerOff`] afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// Takes the guest RAM: an empty file, which gets the guest's size and holes for pages of
    /// zeros.
    pub ram: Fd,
    /// Takes the checkpoint: an empty file.
    pub checkpoint: Fd,
    /// `/proc/PID/pagemap` of this process, which its jail cannot open: it tells the pages that the
    /// guest wrote from those that only the layer has. Without it the whole RAM is mapped in, and
    /// the holes of a layer in memory fill with zeros.
    #[serde(default)]
    pub pagemap: Option<Fd>,
}

/// Begin to move guest RAM that is a private view onto a new memory layer, so that what was written
/// is no longer private and the next fork has less to copy. Each [`Command::FlattenNext`] moves one
/// piece. A layer that a view is being moved onto is left as it is, with what was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginFlatten {
    /// The new layer: an empty memory file that can be sealed. It gets the guest's size.
    pub writable: Fd,
    /// The same, opened read-only: what is mapped, and what processes born of this one get.
    pub layer: Fd,
    /// `/proc/PID/pagemap` of this process.
    pub pagemap: Fd,
}

/// Move the next piece of guest RAM onto the new layer: the guest stands still for as long as it
/// takes to compare and to map it. A failure ends the move, and the guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlattenNext {
    /// Longest time that requests in flight may take to finish before the call fails, milliseconds.
    pub drain_ms_max: u32,
}

/// Replace everything below the writable top of a disk by other layers with the same content,
/// sealed. The guest runs on; the disk's queue is held for a moment.
///
/// After [`Outcome::Rebased`] the process uses the new layers only, and the top's header names them,
/// not durably: the old files can go once the top's file was synced, by whoever. After a failure
/// the disk is as before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebase {
    /// Index of the disk.
    pub disk: usize,
    /// The new layers below the top, nearest first.
    pub below: Vec<LayerFd>,
    /// Name of the nearest of them, written as the backing file into the top's header.
    pub backing: String,
}

/// Put a medium into an empty slot: the guest is told of the new size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InsertMedium {
    /// Index of the disk.
    pub disk: usize,
    /// Its layers.
    pub backend: DiskBackend,
}

/// Give a serial port another back end while the VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetSerial {
    /// Index of the port, COM1 is 0.
    pub port: usize,
    /// Its back end.
    pub backend: SerialBackend,
}

/// Steps of a fork inside the VM process, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForkStep {
    /// Opening the next disk tops.
    PrepareTops,
    /// Waiting for requests in flight.
    Drain,
    /// Stopping vCPUs and device threads.
    Stop,
    /// Saving the checkpoint.
    Save,
    /// Swapping disk tops.
    SwapDisks,
    /// Switching or holding the guest RAM.
    SwapMemory,
    /// Writing the checkpoint out, after the source runs again.
    Publish,
}

/// What the daemon asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Build ahead what the clone of a VM of this size needs; the process stays a shell.
    Prepare(Prepare),
    /// Become a VM and boot.
    Boot(Box<Boot>),
    /// Become a clone and run.
    Restore(Box<Restore>),
    /// Fork the VM.
    Fork(Box<Fork>),
    /// The last fork's new tops, or those of this clone, are durable, with their directory entries and the record that names
    /// them: flushes that wait for it go on.
    ForkDurable,
    /// Stop vCPUs, keep everything.
    Pause,
    /// Go on; also retries a request that found no space.
    Resume,
    /// Press the ACPI power button and ask the agent to shut down.
    PowerButton,
    /// End the VM and its process at once.
    PowerOff,
    /// Tell state and figures.
    Status,
    /// Bytes typed on COM1.
    SerialInput(Vec<u8>),
    /// Set a NIC's link.
    SetLink {
        /// Index of the NIC.
        nic: usize,
        /// Whether the link is up.
        up: bool,
    },
    /// Replace the agent's identity message and send it now.
    SetIdentity(String),
    /// Send the agent one message, JSON of its protocol.
    TellAgent(String),
    /// Become the keeper of a fork point; the process stays one until it is told
    /// [`Command::PowerOff`], also without a daemon.
    Keep(Keep),
    /// Hand out the fork point that this keeper holds.
    Recall,
    /// Write the inherited instant to files.
    Dump(Dump),
    /// Begin to move guest RAM onto a new layer.
    BeginFlatten(BeginFlatten),
    /// Move the next piece of it.
    FlattenNext(FlattenNext),
    /// Shorten a disk's stack.
    Rebase(Rebase),
    /// Put a medium into an empty disk slot.
    InsertMedium(InsertMedium),
    /// Change a serial port's back end.
    SetSerial(SetSerial),
}

/// A command with the number its reply carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the daemon.
    pub id: u64,
    /// Must equal [`VERSION`].
    pub version: u32,
    /// What to do.
    pub command: Command,
}

/// State of the VM process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Empty: waits for [`Command::Boot`] or [`Command::Restore`].
    Shell,
    /// vCPUs run.
    Running,
    /// vCPUs stand still because somebody asked.
    Paused,
    /// vCPUs stand still because a guest write found no space on the host.
    PausedNoSpace,
    /// No VM: holds a fork point.
    Keeper,
}

/// Where the guest's RAM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RamView {
    /// One shared memfd: the VM was never forked.
    Shared,
    /// A private view of a layer.
    Private,
}

/// Answer to [`Command::Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it does.
    pub state: VmState,
    /// Where its RAM is; none for a shell.
    pub ram: Option<RamView>,
    /// Address range of the guest RAM in the process, for accounting through `/proc`.
    pub ram_range: Option<(u64, u64)>,
    /// The agent said that it is ready.
    pub agent_ready: bool,
    /// `CLOCK_MONOTONIC` of the first entry of the run loop, nanoseconds.
    pub first_run_at_ns: Option<u64>,
    /// `CLOCK_MONOTONIC` of the agent's word, nanoseconds.
    pub ready_at_ns: Option<u64>,
    /// Engine that runs the guest.
    pub engine: Option<String>,
}

/// Result of a fork, from the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forked {
    /// First vCPU kicked to last vCPU re-entered, microseconds.
    pub stun_us: u64,
    /// Disk queues gated to ungated, microseconds.
    pub io_held_us: u64,
    /// Memory layer of the fork point, or none where clones were born by `fork()` or only disks were
    /// wanted.
    pub layer: Option<Fd>,
    /// Parts of the stun, microseconds, by step.
    pub steps_us: Vec<(ForkStep, u64)>,
    /// How many forks this process has made, with this one where memory was wanted.
    #[serde(default)]
    pub number: u64,
}

/// What a command gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Done,
    /// The VM's vCPUs entered the run loop at this `CLOCK_MONOTONIC`, nanoseconds.
    Running {
        /// Time of entry.
        first_run_at_ns: u64,
    },
    /// State and figures.
    Status(Status),
    /// The fork's figures.
    Forked(Forked),
    /// A piece of guest RAM is on the new layer, or all that was to be moved.
    Flattened {
        /// First vCPU kicked to last vCPU re-entered, microseconds; 0 where they stood still.
        stun_us: u64,
        /// Size of the piece, KiB; 0 where nothing was left to be moved: the layer is sealed.
        moved_kib: u64,
    },
    /// A kept fork point; both descriptors come with the frame.
    Kept {
        /// Sealed memory layer.
        ram: Fd,
        /// Checkpoint file.
        checkpoint: Fd,
    },
    /// A disk stands on other layers.
    Rebased {
        /// Time that the disk's queue was held, microseconds.
        held_us: u64,
    },
    /// Nothing was changed.
    Failed {
        /// What failed and why, for a person.
        message: String,
        /// The step at which a fork failed.
        #[serde(default)]
        step: Option<ForkStep>,
    },
}

/// Answer to one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Number of the request.
    pub id: u64,
    /// What it gave.
    pub outcome: Outcome,
}

/// Why a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The guest powered itself off.
    GuestPowerOff,
    /// The guest asked for a reset (also a triple fault).
    GuestReset,
    /// The daemon asked.
    Requested,
    /// The engine gave up: the guest did something it cannot run.
    EngineFault(String),
}

/// What a VM process tells unasked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// First message on a connection to a process born by `fork()`: it has its own user id and
    /// waits for a [`Command::Restore`].
    Newborn {
        /// Its process id.
        pid: i32,
    },
    /// The guest agent said hello; the document is its own words and not to be trusted.
    AgentHello(String),
    /// The guest agent is ready; the document is its own words and not to be trusted.
    AgentReady {
        /// `CLOCK_MONOTONIC`, nanoseconds.
        at_ns: u64,
        /// What the agent said, JSON.
        message: String,
    },
    /// Another message of the agent, JSON.
    AgentMessage(String),
    /// A guest write found no space; vCPUs stand still until [`Command::Resume`].
    NoSpace {
        /// Index of the disk.
        disk: usize,
    },
    /// The VM ended; the process follows.
    Ended(EndReason),
}

/// Any frame from the VM process to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromVmm {
    /// Answer to a request.
    Reply(Reply),
    /// Unasked.
    Event(Event),
}
