//! A stand-in for the VM process in this crate's tests: speaks the protocol, runs no guest. Words of the kernel command
//! line choose how it behaves:
//!
//! | word | meaning |
//! | --- | --- |
//! | `agent` | an agent says hello and is ready at once |
//! | `fail=boot`, `fail=restore` | that command fails |
//! | `die=restore` | the process ends instead of restoring |
//! | `fork_ms=N` | a fork takes so long |
//! | `end=off`, `end=reset` | the guest powers off or resets itself at once |
//! | `deaf` | the power button does nothing |
//! | `nospace` | a write finds no space until the first resume |

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vm_spec::VmSpec;
use vmm_protocol::{
    Backends, Boot, CloneRam, Command, EndReason, Event, Fd, Fork, ForkStep, Forked, FromVmm,
    Outcome, RamView, Reply, Request, Restore, Status, VmState,
};

/// What a process has become.
struct Machine {
    spec: VmSpec,
    ram: Option<OwnedFd>,
    view: RamView,
    paused: bool,
    no_space: bool,
    serial: File,
    first_run_at_ns: u64,
    ready_at_ns: Option<u64>,
    /// Held open as a real one would.
    _disks: Vec<OwnedFd>,
}

struct Server {
    socket: UnixStream,
    machine: Option<Machine>,
}

fn main() {
    let listener: UnixListener = jail::take_descriptor(vmm_protocol::CONTROL_FD)
        .expect("the control socket is descriptor 3")
        .into();
    let newborn = std::env::args().nth(1).as_deref() == Some("newborn");
    let mut machine = None;
    loop {
        let Ok((socket, _)) = listener.accept() else {
            return;
        };
        let mut server = Server { socket, machine };
        if newborn && server.machine.is_none() {
            let pid = std::process::id() as i32;
            server.say(Event::Newborn { pid });
        }
        server.serve();
        // The daemon went away: a VM waits for the next one, a shell ends.
        if server.machine.is_none() {
            return;
        }
        machine = server.machine;
    }
}

impl Server {
    fn serve(&mut self) {
        while let Ok(frame) = fd_channel::receive::<Request>(&self.socket) {
            let Request { id, command, .. } = frame.message;
            let mut fds: Vec<Option<OwnedFd>> = frame.fds.into_iter().map(Some).collect();
            let (outcome, answer_fds) = self.obey(command, &mut fds);
            let done = matches!(outcome, Outcome::Running { .. });
            let borrowed: Vec<_> = answer_fds.iter().map(AsFd::as_fd).collect();
            let reply = FromVmm::Reply(Reply { id, outcome });
            if fd_channel::send(&self.socket, &reply, &borrowed).is_err() {
                return;
            }
            if done {
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
            Command::Status => plain(Outcome::Status(self.status())),
            Command::Pause => plain(self.set_paused(true)),
            Command::Resume => plain(self.set_paused(false)),
            Command::PowerButton => {
                if !self.word("deaf") {
                    self.end(EndReason::GuestPowerOff);
                }
                plain(Outcome::Done)
            }
            Command::PowerOff => self.end(EndReason::Requested),
            Command::SerialInput(bytes) => {
                if let Some(machine) = &mut self.machine {
                    machine
                        .serial
                        .write_all(&bytes)
                        .expect("the serial log takes bytes");
                }
                plain(Outcome::Done)
            }
            Command::Prepare(_)
            | Command::SetLink { .. }
            | Command::SetIdentity(_)
            | Command::ForkDurable => plain(Outcome::Done),
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
            ..
        } = restore;
        assert_eq!(generation_id.len(), 32);
        let layer = match ram {
            CloneRam::Layer(fd) => {
                assert!(checkpoint.is_some(), "a layer comes with its checkpoint");
                Some(take(fds, fd))
            }
            CloneRam::Inherited => None,
        };
        if spec.cmdline.split(' ').any(|w| w == "die=restore") {
            std::process::exit(3);
        }
        self.become_vm(spec, layer, RamView::Private, &backends, "restore", fds)
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
        if spec.cmdline.split(' ').any(|w| w == format!("fail={how}")) {
            return Outcome::Failed {
                message: "made to fail".into(),
                step: None,
            };
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
        let mut serial = File::from(take(fds, backends.serial[0].log));
        writeln!(serial, "{how}").expect("the serial log takes a line");
        let layers = backends.disks.iter().flat_map(|disk| &disk.layers);
        let disks = layers
            .filter_map(|layer| fds[layer.fd.0 as usize].take())
            .collect();
        let first_run_at_ns = now_ns();
        self.machine = Some(Machine {
            ram,
            view,
            paused: false,
            no_space: false,
            serial,
            first_run_at_ns,
            ready_at_ns: None,
            _disks: disks,
            spec,
        });
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
        assert_eq!(fork.next_tops.len(), machine.spec.disks.len());
        std::thread::sleep(Duration::from_millis(delay));
        if let Some(step) = fork.fail_at {
            return Err(step);
        }
        let mut checkpoint = File::from(take(fds, fork.checkpoint));
        checkpoint
            .write_all(b"checkpoint")
            .expect("the checkpoint takes bytes");
        let layer = match machine.view {
            RamView::Shared => {
                let ram = machine.ram.as_ref().expect("a booted VM has RAM");
                Some(ram.try_clone().expect("a descriptor can be copied"))
            }
            RamView::Private => {
                for newborn in &fork.newborns {
                    bear(&take(fds, newborn.listener));
                }
                None
            }
        };
        machine.view = RamView::Private;
        let forked = Forked {
            stun_us: 5,
            io_held_us: 7,
            layer: layer.as_ref().map(|_| Fd(0)),
            steps_us: vec![(ForkStep::Stop, 5)],
        };
        Ok((forked, layer))
    }

    fn set_paused(&mut self, paused: bool) -> Outcome {
        if let Some(machine) = &mut self.machine {
            machine.paused = paused;
            machine.no_space = false;
        }
        Outcome::Done
    }

    fn status(&self) -> Status {
        let machine = self.machine.as_ref();
        Status {
            state: match machine {
                None => VmState::Shell,
                Some(m) if m.no_space => VmState::PausedNoSpace,
                Some(m) if m.paused => VmState::Paused,
                Some(_) => VmState::Running,
            },
            ram: machine.map(|m| m.view),
            ram_range: None,
            agent_ready: machine.is_some_and(|m| m.ready_at_ns.is_some()),
            first_run_at_ns: machine.map(|m| m.first_run_at_ns),
            ready_at_ns: machine.and_then(|m| m.ready_at_ns),
            engine: machine.map(|_| "kvm".into()),
        }
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

#[expect(
    clippy::zombie_processes,
    reason = "it outlives this process or ends with the test"
)]
/// Starts a process in the place of one that is born by `fork()`.
fn bear(listener: &OwnedFd) {
    let program = std::env::current_exe().expect("this program has a file");
    let mut command = Process::new(program);
    command.arg("newborn").stdin(Stdio::null());
    linux_sys::spawn_with_fd(&mut command, listener.as_fd(), vmm_protocol::CONTROL_FD)
        .expect("a newborn starts");
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
