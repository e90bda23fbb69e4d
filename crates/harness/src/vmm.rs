//! A VM process driven as the daemon drives it: sockets, descriptors, messages.

mod disks;
mod instant;

pub use self::instant::InstantFiles;

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_spec::VmSpec;
use vmm_protocol::{
    Backends, Boot, CloneRam, Command as VmmCommand, DiskBackend, Event, Fd, Fork, ForkStep,
    Forked, FromVmm, LayerFd, LayerFormat, Newborn, NicBackend, Outcome, Request, Restore,
    SerialBackend, VERSION,
};

/// User ids of VM processes in tests.
const UID_FIRST: u32 = 0x6e00_0000;
const UID_LAST: u32 = 0x6eff_ffff;
/// Longest wait for a reply.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Says whether `/dev/kvm` can be opened here.
pub fn kvm_present() -> bool {
    open_kvm().is_ok()
}

fn open_kvm() -> anyhow::Result<File> {
    let device = File::options().read(true).write(true).open("/dev/kvm");
    device.context("cannot open /dev/kvm")
}

/// Returns an empty memfd of `bytes`, sealable.
pub fn memory_file(bytes: u64) -> anyhow::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("guest-ram", flags).context("memfd_create")?;
    ftruncate(&fd, bytes).context("ftruncate")?;
    Ok(fd.into())
}

/// One disk: its layers, top first.
#[derive(Debug)]
pub struct Disk {
    /// Path and format of each layer.
    pub layers: Vec<(PathBuf, LayerFormat)>,
}

/// How a VM process is started and booted.
#[derive(Debug, Default)]
pub struct SpawnOptions {
    /// Disks in slot order.
    pub disks: Vec<Disk>,
    /// Open TAPs in slot order.
    pub taps: Vec<Option<OwnedFd>>,
    /// Runs on the software engine; so do clones of it.
    pub soft: bool,
}

/// How a fork is made.
#[derive(Debug, Default)]
pub struct ForkOptions {
    /// Next tops of the source's disks.
    pub next_tops: Vec<PathBuf>,
    /// Number of clones.
    pub clones: usize,
    /// For each clone the layers of its disks; as many as clones, or empty without disks.
    pub clone_disks: Vec<Vec<Disk>>,
    /// Step at which to fail.
    pub fail_at: Option<ForkStep>,
}

/// How a clone starts.
#[derive(Debug, Default)]
pub struct StartOptions {
    /// Disks in slot order.
    pub disks: Vec<Disk>,
    /// It stands still.
    pub paused: bool,
}

/// A clone and when it first ran.
#[derive(Debug)]
pub struct Clone {
    /// Its process.
    pub vm: VmProcess,
    /// `CLOCK_MONOTONIC`, ns.
    pub first_run_at_ns: u64,
}

/// A VM process and the folder of its files.
#[derive(Debug)]
pub struct VmProcess {
    socket: UnixStream,
    process: Process,
    next_id: u64,
    events: Vec<Event>,
    folder: PathBuf,
    name: String,
    spec: Option<VmSpec>,
    soft: bool,
}

/// What a fork gave.
struct Point {
    forked: Forked,
    /// None where newborns have inherited it.
    layer: Option<File>,
    checkpoint: File,
}

#[derive(Debug)]
enum Process {
    Child(Child),
    /// Born by `fork()`: not our child.
    Other(i32),
}

/// Collects descriptors of one frame.
#[derive(Default)]
struct Frame(Vec<OwnedFd>);

impl Frame {
    fn add(&mut self, fd: impl Into<OwnedFd>) -> Fd {
        self.0.push(fd.into());
        Fd(self.0.len() as u32 - 1)
    }

    fn disks(&mut self, disks: &[Disk]) -> anyhow::Result<Vec<DiskBackend>> {
        let open = |(index, (path, format)): (usize, &(PathBuf, LayerFormat))| {
            let file = File::options().read(true).write(index == 0).open(path);
            let fd = self.add(file.with_context(|| format!("cannot open {}", path.display()))?);
            anyhow::Ok(LayerFd {
                fd,
                format: *format,
            })
        };
        let mut open = open;
        disks
            .iter()
            .map(|disk| {
                let layers = disk.layers.iter().enumerate().map(&mut open);
                Ok(DiskBackend {
                    layers: layers.collect::<anyhow::Result<_>>()?,
                })
            })
            .collect()
    }
}

fn next_uid() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    UID_FIRST + (std::process::id() % 0xffff) * 0x100 + NEXT.fetch_add(1, Ordering::SeqCst) % 0x100
}

impl VmProcess {
    /// Starts an empty shell; its files go to `folder` under `name`.
    pub fn shell(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let path = folder.join(format!("{name}.sock"));
        let listener = UnixListener::bind(&path)?;
        let log = File::create(folder.join(format!("{name}.log")))?;
        let mut command = Command::new(crate::program("mitose-vmm")?);
        command
            .args(["shell", "--uid", &next_uid().to_string()])
            .args(["--uid-range", &format!("{UID_FIRST}-{UID_LAST}")])
            .stdin(OwnedFd::from(listener))
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn()?;
        let socket = UnixStream::connect(&path)?;
        Self::over(socket, Process::Child(child), folder, name)
    }

    fn over(
        socket: UnixStream,
        process: Process,
        folder: &Path,
        name: &str,
    ) -> anyhow::Result<Self> {
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self {
            socket,
            process,
            next_id: 1,
            events: vec![],
            folder: folder.into(),
            name: name.into(),
            spec: None,
            soft: false,
        })
    }

    /// Starts a VM process and boots `kernel`.
    pub fn boot(
        folder: &Path,
        name: &str,
        spec: VmSpec,
        kernel: &Path,
        initrd: Option<&Path>,
        options: SpawnOptions,
    ) -> anyhow::Result<Self> {
        let mut vm = Self::shell(folder, name)?;
        vm.soft = options.soft;
        let mut frame = Frame::default();
        let ram = frame.add(memory_file(spec.memory_bytes)?);
        let kernel = frame.add(File::open(kernel)?);
        let initrd = initrd
            .map(|path| anyhow::Ok(frame.add(File::open(path)?)))
            .transpose()?;
        let backends = vm.backends(&mut frame, options)?;
        vm.spec = Some(spec.clone());
        let boot = Boot {
            spec,
            ram,
            kernel,
            initrd,
            backends,
        };
        match vm.call_with(VmmCommand::Boot(Box::new(boot)), frame.0)?.0 {
            Outcome::Running { .. } => Ok(vm),
            other => bail!("boot gave {other:?}; log: {}", vm.process_log()),
        }
    }

    fn backends(&self, frame: &mut Frame, options: SpawnOptions) -> anyhow::Result<Backends> {
        let kvm = self.engine(frame)?;
        let serial = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{}.serial", self.name)))?;
        let vsock = UnixListener::bind(self.folder.join(format!("{}.vsock", self.name)))?;
        let disks = frame.disks(&options.disks)?;
        let plug = |tap: Option<OwnedFd>| NicBackend {
            tap: tap.map(|tap| frame.add(tap)),
        };
        let nics = options.taps.into_iter().map(plug).collect();
        let (serial, vsock) = (frame.add(serial), frame.add(vsock));
        Ok(Backends {
            kvm,
            disks,
            nics,
            serial: vec![SerialBackend {
                log: serial,
                peer: None,
            }],
            vsock,
            agent_identity: "{}".into(),
            system_uuid: None,
        })
    }

    /// `/dev/kvm` where the VM runs on it.
    fn engine(&self, frame: &mut Frame) -> anyhow::Result<Option<Fd>> {
        let kvm = (!self.soft).then(open_kvm).transpose()?;
        Ok(kvm.map(|kvm| frame.add(kvm)))
    }

    /// Sends `command` and waits for its outcome.
    pub fn call(&mut self, command: VmmCommand) -> anyhow::Result<Outcome> {
        Ok(self.call_with(command, vec![])?.0)
    }

    fn call_with(
        &mut self,
        command: VmmCommand,
        fds: Vec<OwnedFd>,
    ) -> anyhow::Result<(Outcome, Vec<OwnedFd>)> {
        let id = self.post(command, fds)?;
        self.reply_to(id)
    }

    /// Sends `command`; returns its number.
    fn post(&mut self, command: VmmCommand, fds: Vec<OwnedFd>) -> anyhow::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let request = Request {
            id,
            version: VERSION,
            command,
        };
        fd_channel::send(&self.socket, &request, &borrowed)?;
        Ok(id)
    }

    /// Waits for the reply to request `id`, which comes next.
    fn reply_to(&mut self, id: u64) -> anyhow::Result<(Outcome, Vec<OwnedFd>)> {
        loop {
            let frame = fd_channel::receive::<FromVmm>(&self.socket)
                .with_context(|| format!("no reply; log: {}", self.process_log()))?;
            match frame.message {
                FromVmm::Reply(reply) if reply.id == id => return Ok((reply.outcome, frame.fds)),
                FromVmm::Reply(reply) => bail!("reply to {} instead of {id}", reply.id),
                FromVmm::Event(event) => self.events.push(event),
            }
        }
    }

    /// Waits for an event that `wanted` accepts.
    pub fn wait_event(&mut self, wanted: impl Fn(&Event) -> bool) -> anyhow::Result<Event> {
        loop {
            if let Some(at) = self.events.iter().position(&wanted) {
                return Ok(self.events.remove(at));
            }
            match fd_channel::receive::<FromVmm>(&self.socket)?.message {
                FromVmm::Event(event) => self.events.push(event),
                FromVmm::Reply(reply) => bail!("unexpected reply {reply:?}"),
            }
        }
    }

    /// Forks the VM: the source's figures, and the running clones.
    pub fn fork(&mut self, options: ForkOptions) -> anyhow::Result<(Forked, Vec<Clone>)> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let names: Vec<_> = (0..options.clones)
            .map(|i| format!("{}.{number}.{i}", self.name))
            .collect();
        let point = self.fork_for(&names, &options.next_tops, options.fail_at)?;
        let mut clones = vec![];
        let mut disks = options.clone_disks.into_iter();
        for name in names {
            let disks = disks.next().unwrap_or_default();
            clones.push(self.start_clone(&name, &point, disks)?);
        }
        Ok((point.forked, clones))
    }

    /// Forks the VM, with a seat for a newborn of each name.
    fn fork_for(
        &mut self,
        names: &[String],
        tops: &[PathBuf],
        fail_at: Option<ForkStep>,
    ) -> anyhow::Result<Point> {
        let mut frame = Frame::default();
        let mut next_tops = vec![];
        for path in tops {
            let fd = frame.add(File::options().read(true).write(true).open(path)?);
            next_tops.push(LayerFd {
                fd,
                format: LayerFormat::Qcow2,
            });
        }
        let checkpoint = memory_file(0)?;
        let checkpoint_fd = frame.add(checkpoint.try_clone()?);
        let mut newborns = vec![];
        for name in names {
            let listener = UnixListener::bind(self.folder.join(format!("{name}.sock")))?;
            newborns.push(Newborn {
                listener: frame.add(listener),
                uid: next_uid(),
            });
        }
        let kvm = self.engine(&mut frame)?;
        let fork = Fork {
            next_tops,
            checkpoint: checkpoint_fd,
            newborns,
            kvm,
            disks_only: false,
            drain_ms_max: 250,
            fail_at,
        };
        let (outcome, fds) = self.call_with(VmmCommand::Fork(Box::new(fork)), frame.0)?;
        let forked = match outcome {
            Outcome::Forked(forked) => forked,
            Outcome::Failed { message, .. } => bail!("{message}"),
            other => bail!("fork gave {other:?}"),
        };
        Ok(Point {
            forked,
            layer: fds.into_iter().next().map(File::from),
            checkpoint,
        })
    }

    fn start_clone(&self, name: &str, point: &Point, disks: Vec<Disk>) -> anyhow::Result<Clone> {
        let mut vm = match &point.layer {
            Some(_) => Self::shell_again(&self.folder, name)?,
            None => self.meet(name)?,
        };
        let point = point.layer.as_ref().map(|layer| (layer, &point.checkpoint));
        let options = StartOptions {
            disks,
            paused: false,
        };
        let first_run_at_ns = vm.restore(self, point, options)?;
        Ok(Clone {
            vm,
            first_run_at_ns: first_run_at_ns.context("the clone does not run")?,
        })
    }

    /// Connects to a newborn.
    fn meet(&self, name: &str) -> anyhow::Result<Self> {
        let socket = UnixStream::connect(self.folder.join(format!("{name}.sock")))?;
        let mut vm = Self::over(socket, Process::Other(0), &self.folder, name)?;
        let born = vm.wait_event(|event| matches!(event, Event::Newborn { .. }))?;
        if let Event::Newborn { pid } = born {
            vm.process = Process::Other(pid);
        }
        Ok(vm)
    }

    /// Makes this process a clone of `source`: of a fork point's layer and checkpoint, or of what
    /// it was born with. Returns when it ran, unless it is to stand still.
    fn restore(
        &mut self,
        source: &Self,
        point: Option<(&File, &File)>,
        options: StartOptions,
    ) -> anyhow::Result<Option<u64>> {
        let StartOptions { disks, paused } = options;
        let spec = source.spec.clone();
        let mut spec = spec.context("the source was not booted here")?;
        self.soft = source.soft;
        let mut frame = Frame::default();
        let (ram, checkpoint) = match point {
            Some((layer, mut checkpoint)) => {
                let path = format!("/proc/self/fd/{}", layer.as_raw_fd());
                let ram = CloneRam::Layer(frame.add(File::open(path)?));
                checkpoint.seek(SeekFrom::Start(0))?;
                (ram, Some(frame.add(checkpoint.try_clone()?)))
            }
            None => (CloneRam::Inherited, None),
        };
        for (index, nic) in spec.nics.iter_mut().enumerate() {
            let [a, b, c, d] = next_uid().to_be_bytes();
            nic.mac = vm_spec::MacAddr::local([2, index as u8, a, b, c, d]);
        }
        self.spec = Some(spec.clone());
        let options = SpawnOptions {
            disks,
            taps: spec.nics.iter().map(|_| None).collect(),
            ..SpawnOptions::default()
        };
        let backends = self.backends(&mut frame, options)?;
        let generation_id = format!("{:032x}", u128::from(next_uid()));
        let restore = Restore {
            spec,
            ram,
            checkpoint,
            backends,
            generation_id: Some(generation_id),
            paused,
            durable: true,
        };
        let command = VmmCommand::Restore(Box::new(restore));
        match self.call_with(command, frame.0)?.0 {
            Outcome::Running { first_run_at_ns } => Ok(Some(first_run_at_ns)),
            Outcome::Done if paused => Ok(None),
            other => bail!("restore gave {other:?}; log: {}", self.process_log()),
        }
    }

    /// A shell for a name whose socket was bound for a newborn that is not needed.
    fn shell_again(folder: &Path, name: &str) -> anyhow::Result<Self> {
        std::fs::remove_file(folder.join(format!("{name}.sock")))?;
        Self::shell(folder, name)
    }

    /// Returns what the guest wrote on COM1.
    pub fn serial(&self) -> String {
        let path = self.folder.join(format!("{}.serial", self.name));
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// Waits until COM1's output satisfies `wanted` and returns it.
    pub fn wait_serial(&self, wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let text = self.serial();
            if wanted(&text) {
                return Ok(text);
            }
            ensure!(
                Instant::now() < deadline,
                "serial output stayed at {text:?}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns the process's own log.
    pub fn process_log(&self) -> String {
        std::fs::read_to_string(self.folder.join(format!("{}.log", self.name))).unwrap_or_default()
    }

    /// Returns the process id.
    pub fn pid(&self) -> i32 {
        match &self.process {
            Process::Child(child) => child.id().cast_signed(),
            Process::Other(pid) => *pid,
        }
    }

    /// Returns the folder of its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for VmProcess {
    fn drop(&mut self) {
        match &mut self.process {
            Process::Child(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Process::Other(pid) => {
                if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }
}
