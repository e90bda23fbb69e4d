//! The main thread: does what the daemon asks, one request after the other, and tells it what
//! happens in the VM.

mod change;
mod disks;
mod dump;
mod keep;

use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_protocol::ToGuest;
use anyhow::Context;
use guest_memory::{GuestRam, View};
use machine::{Checkpoint, ForkOutcome, ForkPlan, Machine, MachineEvent, PlatformEvent, Prepared};
use vmm_protocol::{
    Command, EndReason, Event, Fd, Fork, Forked, FromVmm, Outcome, Prepare, RamView, Reply,
    Request, Restore, Status, VERSION, VmState,
};

use crate::become_vm::{self, Descriptors};
use crate::control::{Control, Message};
use crate::holder::{self, Nest, Seat};
use keep::Kept;

/// Longest wait for a daemon that does not read, before its connection is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between the answer to a fork and what it leaves to do: clones come to life meanwhile, perhaps
/// on the only processor that the guest leaves free.
const FINISHING_WAIT: Duration = Duration::from_millis(4);

/// What a clone born by `fork()` brings along.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) ram: Arc<Mutex<GuestRam>>,
    pub(crate) checkpoint: Checkpoint,
    /// `/dev/kvm`, where the clone will need it.
    pub(crate) kvm: Option<OwnedFd>,
}

/// A clone's process right after its birth.
#[derive(Debug)]
pub(crate) struct Newborn {
    pub(crate) listener: UnixListener,
    pub(crate) inherited: Inherited,
}

/// What a process starts as.
#[derive(Debug)]
pub(crate) enum Start {
    Shell,
    Newborn(Inherited),
}

/// How serving one VM ended.
#[derive(Debug)]
pub(crate) enum Next {
    /// The VM ended; so does the process.
    End,
    /// This is another process now.
    Newborn(Newborn),
}

/// The state of this process.
pub(crate) struct Server {
    control: Control,
    inherited: Option<Inherited>,
    prepared: Option<Prepared>,
    machine: Option<Machine>,
    /// The fork point of a keeper.
    kept: Option<Kept>,
    /// A thread writes the inherited instant to files.
    dumping: bool,
    state: VmState,
    first_run_at_ns: Option<u64>,
    ready_at_ns: Option<u64>,
}

/// What follows a request.
enum After {
    Reply(Outcome, Vec<OwnedFd>),
    /// A thread does it; the reply follows.
    Later,
    End(EndReason),
    Newborn(Newborn),
}

impl Server {
    pub(crate) fn start(listener: UnixListener, start: Start) -> anyhow::Result<Self> {
        let control = Control::new(listener).context("nothing can be listened to")?;
        let inherited = match start {
            Start::Shell => None,
            Start::Newborn(inherited) => Some(inherited),
        };
        Ok(Self {
            control,
            inherited,
            prepared: None,
            machine: None,
            kept: None,
            dumping: false,
            state: VmState::Shell,
            first_run_at_ns: None,
            ready_at_ns: None,
        })
    }

    pub(crate) fn run(mut self) -> Next {
        loop {
            let message = match self.control.next() {
                Ok(message) => message,
                Err(error) => {
                    tracing::error!(%error, "nothing can be listened to any longer");
                    return self.end(EndReason::Requested);
                }
            };
            match message {
                Message::Connected(stream) => self.connected(&stream),
                Message::Disconnected => {
                    let useless = self.machine.is_none() && self.kept.is_none();
                    if useless && self.control.connections().is_empty() {
                        // A shell that its daemon left is of no use to anybody.
                        return Next::End;
                    }
                }
                Message::AgentSaid(event) => self.agent_said(event),
                Message::Typed { port, bytes } => self.typed(port, &bytes),
                Message::Machine(event) => {
                    if let Some(reason) = self.machine_event(event) {
                        return self.end(reason);
                    }
                }
                Message::Reminder => {
                    if let Some(machine) = self.machine.as_mut() {
                        machine.after_fork();
                    }
                }
                Message::Dumped(dumped) => self.dumped(dumped),
                Message::Request {
                    request,
                    fds,
                    connection,
                } => {
                    let id = request.id;
                    match self.carry_out(request, fds, &connection) {
                        After::Later => {}
                        After::Reply(outcome, fds) => {
                            let reply = FromVmm::Reply(Reply { id, outcome });
                            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                            self.send_to(&connection, &reply, &fds);
                            if self.machine.as_ref().is_some_and(Machine::has_finishing) {
                                self.control.remind_in(FINISHING_WAIT);
                            }
                        }
                        After::End(reason) => {
                            let reply = FromVmm::Reply(Reply {
                                id,
                                outcome: Outcome::Done,
                            });
                            self.send_to(&connection, &reply, &[]);
                            return self.end(reason);
                        }
                        After::Newborn(newborn) => {
                            // All of it belongs to the source's process.
                            mem::forget((self, connection));
                            return Next::Newborn(newborn);
                        }
                    }
                }
            }
        }
    }

    fn connected(&mut self, stream: &Arc<UnixStream>) {
        if let Err(error) = stream.set_write_timeout(Some(SEND_TIMEOUT)) {
            tracing::warn!(%error, "a daemon connection has no time limit");
        }
        if self.inherited.is_some() {
            let event = Event::Newborn {
                pid: std::process::id().cast_signed(),
            };
            self.send_to(stream, &FromVmm::Event(event), &[]);
            self.prepare_inherited();
        }
    }

    /// Builds what a clone born by `fork()` can, while the daemon prepares its order to run. What
    /// fails here fails again then, and is told.
    fn prepare_inherited(&mut self) {
        // While the instant is written its RAM is locked, and nothing is to be built.
        let Some(inherited) = self.inherited.as_mut().filter(|_| !self.dumping) else {
            return;
        };
        let kvm = inherited.kvm.take();
        if kvm.is_some() || inherited.checkpoint.is_of_soft() {
            let cpus = inherited.checkpoint.cpus;
            let sink = self.control.sink();
            self.prepared = Prepared::over(&inherited.ram, cpus, kvm, sink).ok();
        }
    }

    fn prepare(&mut self, order: Prepare, fds: Vec<OwnedFd>) -> anyhow::Result<Outcome> {
        self.need_shell()?;
        // Of another size, when it was built for a VM that did not come.
        self.prepared = None;
        let mut fds = Descriptors::new(fds);
        let kvm = order.kvm.map(|fd| fds.take(fd)).transpose()?;
        let sink = self.control.sink();
        let prepared = Prepared::ahead(order.memory_bytes, order.cpus, kvm, sink)?;
        self.prepared = Some(prepared);
        Ok(Outcome::Done)
    }

    fn send_to(&mut self, stream: &Arc<UnixStream>, message: &FromVmm, fds: &[BorrowedFd<'_>]) {
        if let Err(error) = fd_channel::send(stream, message, fds) {
            tracing::warn!(%error, "the daemon did not take a message");
            self.control.forget(stream);
        }
    }

    fn tell(&mut self, event: Event) {
        let message = FromVmm::Event(event);
        for stream in self.control.connections().to_vec() {
            self.send_to(&stream, &message, &[]);
        }
    }

    fn typed(&mut self, port: usize, bytes: &[u8]) {
        let machine = self.machine.as_ref();
        let taken = machine.map_or(bytes.len(), |machine| machine.serial_input(port, bytes));
        if taken < bytes.len() {
            self.control.keep_typed(port, &bytes[taken..]);
        }
    }

    fn agent_said(&mut self, event: Event) {
        if let Event::AgentReady { at_ns, .. } = event {
            self.ready_at_ns.get_or_insert(at_ns);
        }
        self.tell(event);
    }

    /// Reacts to the VM; returns why it ended, where it did.
    fn machine_event(&mut self, event: MachineEvent) -> Option<EndReason> {
        match event {
            MachineEvent::Platform(PlatformEvent::PowerOff) => Some(EndReason::GuestPowerOff),
            MachineEvent::Platform(PlatformEvent::Reset) | MachineEvent::TripleFault => {
                Some(EndReason::GuestReset)
            }
            MachineEvent::EngineFault(text) => Some(EndReason::EngineFault(text)),
            MachineEvent::Platform(PlatformEvent::Agent(stream)) => {
                self.control.add_agent(stream);
                None
            }
            MachineEvent::Platform(PlatformEvent::NoSpace { disk }) => {
                if let Some(machine) = self.machine.as_mut() {
                    machine.pause();
                    self.state = VmState::PausedNoSpace;
                    self.tell(Event::NoSpace { disk });
                }
                None
            }
            MachineEvent::Platform(PlatformEvent::DiskError { disk, message }) => {
                tracing::error!(disk, message, "a disk request failed on the host");
                None
            }
        }
    }

    fn end(mut self, reason: EndReason) -> Next {
        if let Some(machine) = self.machine.take() {
            machine.end();
        }
        tracing::info!(?reason, "the VM ended");
        self.tell(Event::Ended(reason));
        Next::End
    }

    fn carry_out(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
        connection: &Arc<UnixStream>,
    ) -> After {
        if request.version != VERSION {
            let message = format!("protocol version {}, this is {VERSION}", request.version);
            return failed(message);
        }
        let result = match request.command {
            Command::Fork(fork) => return self.fork(*fork, fds),
            Command::PowerOff => return After::End(EndReason::Requested),
            Command::Recall => return self.recall(),
            Command::Dump(order) => return self.dump(order, fds, request.id, connection),
            Command::Keep(order) => self.keep(order, fds),
            Command::BeginFlatten(order) => self.begin_flatten(order, fds),
            Command::FlattenNext(order) => self.flatten_next(order),
            Command::Prepare(order) => self.prepare(order, fds),
            Command::Boot(boot) => self.boot(&boot, fds),
            Command::Restore(restore) => self.restore(&restore, fds),
            Command::Status => Ok(Outcome::Status(self.status())),
            Command::SetIdentity(identity) => {
                self.control.set_identity(identity, true);
                Ok(Outcome::Done)
            }
            Command::TellAgent(message) => self.tell_agent(&message),
            Command::SetSerial(order) => self.set_serial(order, fds),
            Command::Rebase(order) => self.rebase(&order, fds),
            Command::InsertMedium(order) => self.insert_medium(&order, fds),
            other => self.drive(&other),
        };
        match result {
            Ok(outcome) => After::Reply(outcome, vec![]),
            Err(error) => failed(format!("{error:#}")),
        }
    }

    fn need_shell(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.machine.is_none(), "this process runs a VM already");
        anyhow::ensure!(self.kept.is_none(), "this process keeps a fork point");
        let dumping = "this process is still writing its instant to files";
        anyhow::ensure!(!self.dumping, dumping);
        Ok(())
    }

    fn boot(&mut self, boot: &vmm_protocol::Boot, fds: Vec<OwnedFd>) -> anyhow::Result<Outcome> {
        self.need_shell()?;
        self.prepared = None;
        self.control
            .set_identity(boot.backends.agent_identity.clone(), false);
        let (machine, peers) = become_vm::boot(boot, fds, self.control.sink())?;
        self.control.serve_serial(peers, &machine);
        Ok(self.first_run(machine, false))
    }

    fn restore(&mut self, restore: &Restore, fds: Vec<OwnedFd>) -> anyhow::Result<Outcome> {
        self.need_shell()?;
        self.control
            .set_identity(restore.backends.agent_identity.clone(), false);
        let inherited = self.inherited.take();
        let prepared = self.prepared.take();
        let sink = self.control.sink();
        let built = become_vm::restore(restore, fds, inherited, prepared, sink)?;
        let (machine, peers) = built;
        self.control.serve_serial(peers, &machine);
        Ok(self.first_run(machine, restore.paused))
    }

    fn first_run(&mut self, mut machine: Machine, paused: bool) -> Outcome {
        if paused {
            self.machine = Some(machine);
            self.state = VmState::Paused;
            return Outcome::Done;
        }
        let first_run_at_ns = machine.run();
        self.machine = Some(machine);
        self.state = VmState::Running;
        self.first_run_at_ns = Some(first_run_at_ns);
        Outcome::Running { first_run_at_ns }
    }

    fn drive(&mut self, command: &Command) -> anyhow::Result<Outcome> {
        let machine = self
            .machine
            .as_mut()
            .context("this process runs no VM yet")?;
        match command {
            Command::ForkDurable => machine.fork_is_durable(),
            Command::Pause => {
                machine.pause();
                if self.state == VmState::Running {
                    self.state = VmState::Paused;
                }
            }
            Command::Resume => {
                let entered_at_ns = machine.resume();
                self.state = VmState::Running;
                // A clone that was restored standing still runs here for the first time.
                self.first_run_at_ns = self.first_run_at_ns.or(entered_at_ns);
            }
            Command::PowerButton => {
                machine.press_power_button();
                let word = serde_json::to_string(&ToGuest::Shutdown { reboot: false })?;
                self.control.tell_agent(&word);
            }
            Command::SerialInput(bytes) => {
                let taken = machine.serial_input(0, bytes);
                anyhow::ensure!(
                    taken == bytes.len(),
                    "the guest's port took {taken} bytes only"
                );
            }
            Command::SetLink { nic, up } => {
                anyhow::ensure!(machine.set_link(*nic, *up), "there is no NIC {nic}");
            }
            other => anyhow::bail!("{other:?} is handled elsewhere"),
        }
        Ok(Outcome::Done)
    }

    fn status(&self) -> Status {
        let ram = self.machine.as_ref().map(|machine| {
            let ram = machine
                .ram()
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            let view = match ram.view() {
                View::Shared => RamView::Shared,
                View::Private => RamView::Private,
            };
            (view, (ram.host_address(), ram.host_address() + ram.len()))
        });
        Status {
            state: self.state,
            ram: ram.map(|(view, _)| view),
            ram_range: ram.map(|(_, range)| range),
            agent_ready: self.ready_at_ns.is_some(),
            first_run_at_ns: self.first_run_at_ns,
            ready_at_ns: self.ready_at_ns,
            engine: self
                .machine
                .as_ref()
                .map(|machine| machine.engine().to_owned()),
        }
    }

    fn fork(&mut self, fork: Fork, fds: Vec<OwnedFd>) -> After {
        let (plan, nest) = match plan_of(&fork, fds) {
            Ok(both) => both,
            Err(error) => return failed(format!("{error:#}")),
        };
        let Some(machine) = self.machine.as_mut() else {
            return failed("this process runs no VM yet".into());
        };
        match machine.fork(plan) {
            Ok(ForkOutcome::Source(report)) => {
                let forked = Forked {
                    stun_us: report.stun_us,
                    io_held_us: report.io_held_us,
                    layer: report.layer.as_ref().map(|_| Fd(0)),
                    steps_us: report.steps_us,
                    number: report.number,
                };
                After::Reply(Outcome::Forked(forked), report.layer.into_iter().collect())
            }
            Ok(ForkOutcome::Holder(held)) => match holder::hold(*held, nest) {
                Ok(newborn) => After::Newborn(newborn),
                Err(error) => {
                    tracing::error!("a clone ended at birth: {error:#}");
                    std::process::exit(1);
                }
            },
            Err(error) => {
                let (step, error) = (error.step, anyhow::Error::from(error));
                let message = format!("{error:#}");
                After::Reply(
                    Outcome::Failed {
                        message,
                        step: Some(step),
                    },
                    vec![],
                )
            }
        }
    }
}

fn failed(message: String) -> After {
    After::Reply(
        Outcome::Failed {
            message,
            step: None,
        },
        vec![],
    )
}

fn plan_of(fork: &Fork, fds: Vec<OwnedFd>) -> anyhow::Result<(ForkPlan, Nest)> {
    let mut fds = Descriptors::new(fds);
    let tops = fork.next_tops.iter().map(|top| fds.layer(*top));
    let next_tops = tops.collect::<anyhow::Result<_>>()?;
    let seat = |newborn: &vmm_protocol::Newborn| {
        Ok(Seat {
            listener: fds.take(newborn.listener)?,
            uid: newborn.uid,
        })
    };
    let seats = fork
        .newborns
        .iter()
        .map(seat)
        .collect::<anyhow::Result<_>>()?;
    let plan = ForkPlan {
        next_tops,
        checkpoint: fds.file(fork.checkpoint)?,
        disks_only: fork.disks_only,
        drain_ms_max: fork.drain_ms_max,
        fail_at: fork.fail_at,
    };
    let kvm = fork.kvm.map(|fd| fds.take(fd)).transpose()?;
    let nest = Nest { seats, kvm };
    Ok((plan, nest))
}
