//! A stand-in for the VM process in this crate's tests: speaks the protocol, runs no guest. Words of the kernel command
//! line choose how it behaves:
//!
//! | word | meaning |
//! | --- | --- |
//! | `agent` | an agent says hello and is ready at once |
//! | `fail=boot`, `fail=restore`, `fail=dump`, `fail=rebase`, `fail=insert` | that command fails |
//! | `fail=status` | it does not tell its state |
//! | `shy` | it closes the connection when it is asked for its state for the first time |
//! | `restore_ms=N` | a restore takes so long |
//! | `die=restore` | the process ends instead of restoring, after that time |
//! | `fork_ms=N`, `dump_ms=N` | a fork or a dump takes so long |
//! | `end=off`, `end=reset` | the guest powers off or resets itself at once |
//! | `deaf` | the power button does nothing |
//! | `grows` | the process has 4 MiB more of its own with each fork, until it is flattened |
//! | `fail=flatten` | moving a piece of RAM fails |
//! | `nospace` | a write finds no space until the first resume |
//! | `writes` | RAM that is dumped has 64 pages that stay, and two that each fork changes |
//!
//! Lines `say JSON` typed on COM1 are messages of the agent. `hang up` closes the daemon's connection,
//! `leave` also the socket for the next one; the process runs on.
//!
//! COM1's log tells what happened: `boot`, `restore` or, without a new generation, `resume`, `link N up`, then `told JSON` for each message to the
//! agent. A dump is the text `ram` in a file of the guest's size, and a checkpoint as of a fork.

mod memory;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command as Process;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vm_spec::VmSpec;
use vmm_protocol::{
    Backends, Boot, CloneRam, Command, DiskBackend, EndReason, Event, Fd, Fork, ForkStep, Forked,
    FromVmm, InsertMedium, LayerFormat, Outcome, RamView, Rebase, Reply, Request, Restore,
    SetSerial, Status, VmState,
};

/// What stands in for a checkpoint.
fn checkpoint_bytes() -> Vec<u8> {
    let kind = saved_state::Kind {
        tag: *b"FAKE",
        version: 1,
    };
    saved_state::encode(kind, &"checkpoint").expect("a text can be encoded")
}

/// What a process has become.
struct Machine {
    spec: VmSpec,
    ram: Option<OwnedFd>,
    view: RamView,
    paused: bool,
    no_space: bool,
    /// It was asked for its state.
    asked: bool,
    forks: u64,
    /// What stands in for pages that the guest wrote.
    written: Vec<Vec<u8>>,
    /// New layer that its RAM is being moved onto, and pieces that are left.
    flattening: Option<(OwnedFd, u32)>,
    /// Logs of its ports, COM1 first.
    serial: Vec<File>,
    first_run_at_ns: Option<u64>,
    ready_at_ns: Option<u64>,
    /// Layers of each disk, held open as a real one would.
    disks: Vec<Vec<OwnedFd>>,
    /// TAP interfaces, held open likewise.
    _taps: Vec<OwnedFd>,
}

/// What a process born of another has of it.
struct Inherited {
    memory_bytes: u64,
    cmdline: String,
    /// Number of the fork that it was born of.
    fork: u8,
}

struct Server {
    socket: UnixStream,
    inherited: Option<Inherited>,
    machine: Option<Machine>,
    /// Layer and checkpoint of a keeper.
    kept: Option<[OwnedFd; 2]>,
    /// How it is to go on without this connection.
    closes: Option<Closes>,
}

/// How a process goes on without its connection.
#[derive(PartialEq)]
enum Closes {
    /// It waits for the next.
    HangsUp,
    /// Nobody can connect to it.
    Leaves,
}

fn main() {
    let listener: UnixListener = jail::take_descriptor(vmm_protocol::CONTROL_FD)
        .expect("the control socket is standard input")
        .into();
    let mut args = std::env::args().skip(1);
    let newborn = args.next().as_deref() == Some("newborn");
    let mut inherited = newborn.then(|| Inherited {
        memory_bytes: args
            .next()
            .and_then(|bytes| bytes.parse().ok())
            .expect("a newborn is told its memory"),
        cmdline: args.next().expect("a newborn is told its command line"),
        fork: args
            .next()
            .and_then(|number| number.parse().ok())
            .expect("a newborn is told which fork it is of"),
    });
    let (mut machine, mut kept) = (None, None);
    loop {
        let Ok((socket, _)) = listener.accept() else {
            return;
        };
        let mut server = Server {
            socket,
            inherited,
            machine,
            kept,
            closes: None,
        };
        if server.inherited.is_some() {
            let pid = std::process::id() as i32;
            server.say(Event::Newborn { pid });
        }
        server.serve();
        if server.closes == Some(Closes::Leaves) {
            drop((listener, server.socket));
            loop {
                std::thread::park();
            }
        }
        // The daemon went away: a VM or a keeper waits for the next one, a shell ends.
        if server.machine.is_none() && server.kept.is_none() {
            return;
        }
        (inherited, machine, kept) = (server.inherited, server.machine, server.kept);
    }
}

impl Server {
    fn serve(&mut self) {
        while self.closes.is_none()
            && let Ok(frame) = fd_channel::receive::<Request>(&self.socket)
        {
            let Request { id, command, .. } = frame.message;
            if matches!(command, Command::Status) && self.word("shy") && self.first_time() {
                return;
            }
            let mut fds: Vec<Option<OwnedFd>> = frame.fds.into_iter().map(Some).collect();
            let ran = self.runs();
            let (outcome, answer_fds) = self.obey(command, &mut fds);
            let born = !ran && self.runs();
            let borrowed: Vec<_> = answer_fds.iter().map(AsFd::as_fd).collect();
            let reply = FromVmm::Reply(Reply { id, outcome });
            if fd_channel::send(&self.socket, &reply, &borrowed).is_err() {
                return;
            }
            if born {
                self.live();
            }
        }
    }

    fn obey(&mut self, command: Command, fds: &mut [Option<OwnedFd>]) -> (Outcome, Vec<OwnedFd>) {
        let plain = |outcome| (outcome, Vec::new());
        match command {
            Command::Boot(boot) => plain(self.boot(*boot, fds)),
            Command::Restore(restore) => plain(self.restore(*restore, fds)),
            Command::Fork(fork) => match self.fork(&fork, fds) {
                Ok((forked, layer)) => (Outcome::Forked(forked), layer.into_iter().collect()),
                Err(step) => plain(Outcome::Failed {
                    message: "made to fail".into(),
                    step: Some(step),
                }),
            },
            Command::Status if self.word("fail=status") => plain(refused("made to fail")),
            Command::Status => plain(Outcome::Status(self.status())),
            Command::Pause => plain(self.drive(|machine| machine.set_paused(true))),
            Command::Resume => plain(self.drive(|machine| machine.set_paused(false))),
            Command::PowerButton => {
                if !self.word("deaf") {
                    self.end(EndReason::GuestPowerOff);
                }
                plain(self.drive(|machine| machine.print(b"button\n")))
            }
            Command::PowerOff => self.end(EndReason::Requested),
            Command::SetLink { nic, up } => {
                let line = format!("link {nic} {}\n", if up { "up" } else { "down" });
                plain(self.drive(|machine| machine.print(line.as_bytes())))
            }
            Command::SerialInput(bytes) => plain(self.typed(&bytes)),
            Command::TellAgent(message) => plain(self.tell_agent(&message)),
            Command::SetSerial(order) => plain(self.set_serial(order, fds)),
            Command::Rebase(order) => plain(self.rebase(&order, fds)),
            Command::InsertMedium(order) => plain(self.insert_medium(&order, fds)),
            Command::Dump(order) => plain(self.dump(order, fds)),
            Command::BeginFlatten(order) => plain(self.begin_flatten(order, fds)),
            Command::FlattenNext(_) => plain(self.flatten_next()),
            Command::Keep(order) => plain(self.keep(order, fds)),
            Command::Recall => self.recall(),
            Command::SetIdentity(message) if self.word("agent") => plain(self.tell_agent(&message)),
            Command::Prepare(_) | Command::SetIdentity(_) | Command::ForkDurable => {
                plain(Outcome::Done)
            }
        }
    }

    fn boot(&mut self, boot: Boot, fds: &mut [Option<OwnedFd>]) -> Outcome {
        let Boot {
            spec,
            ram,
            kernel,
            initrd,
            backends,
        } = boot;
        assert!(fds[kernel.0 as usize].is_some(), "a kernel is passed");
        assert!(initrd.is_none_or(|fd| fds[fd.0 as usize].is_some()));
        let ram = Some(take(fds, ram));
        self.become_vm(spec, ram, RamView::Shared, &backends, "boot", fds)
    }

    fn restore(&mut self, restore: Restore, fds: &mut [Option<OwnedFd>]) -> Outcome {
        let Restore {
            spec,
            ram,
            checkpoint,
            backends,
            generation_id,
            paused,
            ..
        } = restore;
        assert!(generation_id.as_ref().is_none_or(|id| id.len() == 32));
        let layer = match ram {
            CloneRam::Layer(fd) => {
                assert!(checkpoint.is_some(), "a layer comes with its checkpoint");
                Some(take(fds, fd))
            }
            CloneRam::Inherited => {
                assert!(self.inherited.take().is_some(), "it was born by fork()");
                None
            }
        };
        let words = spec.cmdline.split(' ');
        let ms = words.filter_map(|word| word.strip_prefix("restore_ms="));
        for ms in ms.map(|ms| ms.parse().expect("a number")) {
            std::thread::sleep(Duration::from_millis(ms));
        }
        if spec.cmdline.split(' ').any(|w| w == "die=restore") {
            std::process::exit(3);
        }
        let how = match generation_id {
            Some(_) => "restore",
            None => "resume",
        };
        let outcome = self.become_vm(spec, layer, RamView::Private, &backends, how, fds);
        match &mut self.machine {
            Some(machine) if paused => {
                machine.paused = true;
                machine.first_run_at_ns = None;
                Outcome::Done
            }
            _ => outcome,
        }
    }

    fn become_vm(
        &mut self,
        spec: VmSpec,
        ram: Option<OwnedFd>,
        view: RamView,
        backends: &Backends,
        how: &str,
        fds: &mut [Option<OwnedFd>],
    ) -> Outcome {
        let fails = match how {
            "boot" => "fail=boot",
            _ => "fail=restore",
        };
        if spec.cmdline.split(' ').any(|word| word == fails) {
            return refused("made to fail");
        }
        assert_eq!(
            backends.disks.len(),
            spec.disks.len(),
            "one stack for each disk"
        );
        assert_eq!(
            backends.nics.len(),
            spec.nics.len(),
            "one back end for each NIC"
        );
        assert!(backends.kvm.is_some());
        assert!(backends.agent_identity.contains(r#""type":"identity""#));
        let logs = backends.serial.iter().map(|port| port.log);
        let serial = logs.map(|log| File::from(take(fds, log))).collect();
        let disks = backends.disks.iter();
        let disks = disks.map(|disk| layers_of(disk, fds)).collect();
        let taps = backends.nics.iter().filter_map(|nic| nic.tap);
        let taps = taps.map(|tap| take(fds, tap)).collect();
        let first_run_at_ns = now_ns();
        let machine = self.machine.insert(Machine {
            _taps: taps,
            ram,
            view,
            paused: false,
            no_space: false,
            asked: false,
            forks: 0,
            written: Vec::new(),
            flattening: None,
            serial,
            first_run_at_ns: Some(first_run_at_ns),
            ready_at_ns: None,
            disks,
            spec,
        });
        machine.print(format!("{how}\n").as_bytes());
        Outcome::Running { first_run_at_ns }
    }

    /// What the guest does as soon as it runs.
    fn live(&mut self) {
        if self.word("agent") {
            let hello = r#"{"type":"hello","protocol":1,"agent_version":"0","reason":"boot","ssh_host_key_kinds":["ed25519"],"hostname":"h"}"#;
            self.say(Event::AgentHello(hello.into()));
            let at_ns = now_ns();
            if let Some(machine) = &mut self.machine {
                machine.ready_at_ns = Some(at_ns);
            }
            let ready = r#"{"type":"ready","hostname":"h","machine_id":"m","macs":[],"errors":[]}"#;
            self.say(Event::AgentReady {
                at_ns,
                message: ready.into(),
            });
        }
        if self.word("nospace") {
            if let Some(machine) = &mut self.machine {
                machine.no_space = true;
            }
            self.say(Event::NoSpace { disk: 0 });
        }
        if self.word("end=off") {
            self.end(EndReason::GuestPowerOff);
        }
        if self.word("end=reset") {
            self.end(EndReason::GuestReset);
        }
    }

    fn fork(
        &mut self,
        fork: &Fork,
        fds: &mut [Option<OwnedFd>],
    ) -> Result<(Forked, Option<OwnedFd>), ForkStep> {
        let delay = self.value("fork_ms");
        let machine = self.machine.as_mut().expect("only a VM is forked");
        let media = machine.disks.iter().filter(|layers| !layers.is_empty());
        assert_eq!(fork.next_tops.len(), media.count());
        std::thread::sleep(Duration::from_millis(delay));
        if let Some(step) = fork.fail_at {
            return Err(step);
        }
        let media = machine.disks.iter_mut().filter(|layers| !layers.is_empty());
        for (disk, top) in media.zip(&fork.next_tops) {
            disk.insert(0, take(fds, top.fd));
        }
        if fork.disks_only {
            let forked = Forked {
                stun_us: 0,
                io_held_us: 7,
                layer: None,
                steps_us: vec![(ForkStep::SwapDisks, 7)],
                number: machine.forks,
            };
            return Ok((forked, None));
        }
        let mut checkpoint = File::from(take(fds, fork.checkpoint));
        checkpoint
            .write_all(&checkpoint_bytes())
            .expect("the checkpoint takes bytes");
        let layer = match machine.view {
            RamView::Shared => {
                let ram = machine.ram.as_ref().expect("a booted VM has RAM");
                Some(ram.try_clone().expect("a descriptor can be copied"))
            }
            RamView::Private => {
                for newborn in &fork.newborns {
                    let number = machine.forks as u8;
                    bear(&take(fds, newborn.listener), &machine.spec, number);
                }
                None
            }
        };
        machine.view = RamView::Private;
        machine.forks += 1;
        if machine.spec.cmdline.split(' ').any(|word| word == "grows") {
            machine.written.push(vec![1; 4 << 20]);
        }
        let forked = Forked {
            stun_us: if machine.paused { 0 } else { 5 },
            io_held_us: 7,
            layer: layer.as_ref().map(|_| Fd(0)),
            steps_us: vec![(ForkStep::Stop, 5)],
            number: machine.forks,
        };
        Ok((forked, layer))
    }

    /// Does something to the VM, where there is one.
    fn drive(&mut self, act: impl FnOnce(&mut Machine)) -> Outcome {
        match &mut self.machine {
            Some(machine) => {
                act(machine);
                Outcome::Done
            }
            None => refused("this process runs no VM yet"),
        }
    }

    /// What is typed is printed; lines `say JSON` make the agent of a running guest say that.
    fn typed(&mut self, bytes: &[u8]) -> Outcome {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let runs = self.machine.as_ref().is_some_and(|m| !m.paused);
        for said in text.lines().filter_map(|line| line.strip_prefix("say ")) {
            if runs && self.word("agent") {
                self.say(Event::AgentMessage(said.to_owned()));
            }
        }
        self.closes = text.lines().find_map(|line| match line {
            "hang up" => Some(Closes::HangsUp),
            "leave" => Some(Closes::Leaves),
            _ => None,
        });
        self.drive(|machine| machine.print(bytes))
    }

    /// Whether it is asked for its state for the first time.
    fn first_time(&mut self) -> bool {
        let machine = self.machine.as_mut();
        machine.is_some_and(|machine| !std::mem::replace(&mut machine.asked, true))
    }

    fn tell_agent(&mut self, message: &str) -> Outcome {
        if !self.word("agent") {
            return refused("no agent is connected");
        }
        self.drive(|machine| machine.print(format!("told {message}\n").as_bytes()))
    }

    fn set_serial(&mut self, order: SetSerial, fds: &mut [Option<OwnedFd>]) -> Outcome {
        let Some(machine) = &mut self.machine else {
            return refused("this process runs no VM yet");
        };
        let Some(serial) = machine.serial.get_mut(order.port) else {
            return refused("there is no such serial port");
        };
        *serial = File::from(take(fds, order.backend.log));
        Outcome::Done
    }

    fn rebase(&mut self, order: &Rebase, fds: &mut [Option<OwnedFd>]) -> Outcome {
        if self.word("fail=rebase") {
            return refused("made to fail");
        }
        assert!(!order.backing.is_empty(), "the nearest layer has a name");
        let below: Vec<_> = order
            .below
            .iter()
            .map(|layer| take(fds, layer.fd))
            .collect();
        let disk = self.disk(order.disk);
        let Some(disk) = disk.filter(|layers| !layers.is_empty()) else {
            return refused("there is no such disk");
        };
        let top = disk[0].try_clone().expect("a descriptor can be copied");
        let format = match order.below[0].format {
            LayerFormat::Raw => disk_layers::DiskFormat::Raw,
            LayerFormat::Qcow2 => disk_layers::DiskFormat::Qcow2,
        };
        disk_layers::set_backing(&File::from(top), &order.backing, format)
            .expect("the top can name its backing file");
        disk.truncate(1);
        disk.extend(below);
        Outcome::Rebased { held_us: 1 }
    }

    fn insert_medium(&mut self, order: &InsertMedium, fds: &mut [Option<OwnedFd>]) -> Outcome {
        if self.word("fail=insert") {
            return refused("made to fail");
        }
        let layers = layers_of(&order.backend, fds);
        match self.disk(order.disk) {
            Some(disk) if !disk.is_empty() => refused("the slot has a medium already"),
            Some(disk) => {
                *disk = layers;
                Outcome::Done
            }
            None => refused("there is no such disk"),
        }
    }

    fn disk(&mut self, index: usize) -> Option<&mut Vec<OwnedFd>> {
        self.machine.as_mut()?.disks.get_mut(index)
    }

    fn status(&self) -> Status {
        let machine = self.machine.as_ref();
        Status {
            state: match machine {
                None if self.kept.is_some() => VmState::Keeper,
                None => VmState::Shell,
                Some(m) if m.no_space => VmState::PausedNoSpace,
                Some(m) if m.paused => VmState::Paused,
                Some(_) => VmState::Running,
            },
            ram: machine.map(|m| m.view),
            ram_range: None,
            agent_ready: machine.is_some_and(|m| m.ready_at_ns.is_some()),
            first_run_at_ns: machine.and_then(|m| m.first_run_at_ns),
            ready_at_ns: machine.and_then(|m| m.ready_at_ns),
            engine: machine.map(|_| "kvm".into()),
        }
    }

    /// Whether the guest has been let run.
    fn runs(&self) -> bool {
        let machine = self.machine.as_ref();
        machine.is_some_and(|machine| machine.first_run_at_ns.is_some())
    }

    fn word(&self, word: &str) -> bool {
        let cmdline = self.machine.as_ref().map_or("", |m| &m.spec.cmdline);
        cmdline.split(' ').any(|w| w == word)
    }

    fn value(&self, name: &str) -> u64 {
        let cmdline = self.machine.as_ref().map_or("", |m| &m.spec.cmdline);
        let value = cmdline
            .split(' ')
            .find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
        value.map_or(0, |v| v.parse().expect("a number"))
    }

    fn say(&self, event: Event) {
        // A daemon that went away hears nothing.
        let _ = fd_channel::send(&self.socket, &FromVmm::Event(event), &[]);
    }

    fn end(&self, reason: EndReason) -> ! {
        self.say(Event::Ended(reason));
        std::process::exit(0)
    }
}

impl Machine {
    fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        self.no_space = false;
        if !paused {
            self.first_run_at_ns.get_or_insert_with(now_ns);
        }
    }

    /// Appends to COM1's log.
    fn print(&mut self, bytes: &[u8]) {
        let com1 = self.serial.first_mut().expect("a VM has COM1");
        com1.write_all(bytes).expect("the serial log takes bytes");
    }
}

fn refused(why: &str) -> Outcome {
    Outcome::Failed {
        message: why.into(),
        step: None,
    }
}

fn layers_of(disk: &DiskBackend, fds: &mut [Option<OwnedFd>]) -> Vec<OwnedFd> {
    let layers = disk.layers.iter();
    layers.map(|layer| take(fds, layer.fd)).collect()
}

#[expect(
    clippy::zombie_processes,
    reason = "it outlives this process or ends with the test"
)]
/// Starts a process in the place of one that is born by `fork()`.
fn bear(listener: &OwnedFd, spec: &VmSpec, fork: u8) {
    let program = std::env::current_exe().expect("this program has a file");
    let mut command = Process::new(program);
    command
        .args(["newborn", &spec.memory_bytes.to_string(), &spec.cmdline])
        .arg(fork.to_string())
        .stdin(listener.try_clone().expect("the descriptor is shared"));
    command.spawn().expect("a newborn starts");
}

fn take(fds: &mut [Option<OwnedFd>], fd: Fd) -> OwnedFd {
    fds[fd.0 as usize]
        .take()
        .expect("each descriptor is used once")
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
