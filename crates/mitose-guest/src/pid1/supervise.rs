//! Process 1's loop: keeps the agent running, reaps, gives a shell on the console, shuts down.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use super::cmdline::Cmdline;
use super::reap::ended_children;
use super::{MARKER, shutdown};
use crate::agent::netlink;
use crate::linux::{self, Attachment};
use crate::log;
use crate::requests::command::BASE_PATH;

/// Least time between two starts of the agent.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Signals that process 1 acts on. USR1, USR2 and TERM mean what they mean to busybox's init, so
/// its `halt`, `poweroff` and `reboot` work.
const SIGNALS: [i32; 6] = [
    libc::SIGCHLD,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPWR,
];

/// Runs until shutdown.
pub(super) fn run(cmdline: &Cmdline) -> ! {
    let signals = match linux::signal_fd(&SIGNALS) {
        Ok(fd) => File::from(fd),
        Err(error) => {
            log(&format!("cannot wait for signals: {error}"));
            shutdown::now(shutdown::How::PowerOff)
        }
    };
    prepare_system();
    let mut init = Init {
        agent: None,
        agent_due: Instant::now(),
        services: spawn_self("services"),
        shell: None,
        console: (!cmdline.has("mitose.noshell"))
            .then(open_console)
            .flatten(),
    };
    loop {
        init.start_agent();
        init.wait(&signals);
        let how = take_signals(&signals);
        ended_children(|ended| init.note_end(ended.pid, ended.code));
        if let Some(how) = how {
            // An interactive shell ignores the signal that the others get.
            if let Some(shell) = init.shell {
                let _ = linux::kill_group(shell, libc::SIGHUP);
            }
            shutdown::orderly(how);
        }
    }
}

struct Init {
    agent: Option<Pid>,
    agent_due: Instant,
    services: Option<Pid>,
    shell: Option<Pid>,
    console: Option<OwnedFd>,
}

impl Init {
    fn start_agent(&mut self) {
        if self.agent.is_none() && Instant::now() >= self.agent_due {
            self.agent = spawn_self("agent");
            self.agent_due = Instant::now() + RESTART_PAUSE;
        }
    }

    /// Waits for a signal, a key on the console, or the time to start the agent again.
    fn wait(&mut self, signals: &File) {
        let timeout = self.agent.is_none().then(|| {
            let pause = self.agent_due.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: 0,
                tv_nsec: pause.subsec_nanos().into(),
            }
        });
        let console = self.console.as_ref().filter(|_| self.shell.is_none());
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        fds.extend(console.map(|console| PollFd::new(console, PollFlags::IN)));
        let _ = poll(&mut fds, timeout.as_ref());
        let key = fds.get(1).map_or(PollFlags::empty(), |fd| fd.revents());
        if key.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            self.console = None;
        } else if key.contains(PollFlags::IN) {
            self.open_shell();
        }
    }

    fn open_shell(&mut self) {
        let Some(console) = &self.console else { return };
        let mut typed = [0u8; 256];
        match rustix::io::read(console.as_fd(), &mut typed) {
            Ok(0) => self.console = None,
            Ok(_) => self.shell = spawn_shell(console),
            Err(_) => {}
        }
        if self.shell.is_none() {
            self.console = None;
        }
    }

    fn note_end(&mut self, pid: Pid, code: i32) {
        if self.agent == Some(pid) {
            log(&format!("agent ended with {code}, starting it again"));
            self.agent = None;
        } else if self.services == Some(pid) {
            self.services = None;
            if code != 0 {
                log(&format!("service ended with {code}"));
            }
        } else if self.shell == Some(pid) {
            self.shell = None;
            // The end of a session hangs its terminal up for everybody who had it open.
            self.console = open_console();
        }
    }
}

fn prepare_system() {
    if let Ok(name) = fs::read_to_string("/etc/hostname") {
        let _ = rustix::system::sethostname(name.trim().as_bytes());
    }
    if let Err(error) = netlink::set_up("lo", true) {
        log(&format!("cannot bring lo up: {error}"));
    }
    let marker = Path::new(MARKER);
    if let Some(dir) = marker.parent() {
        let _ = fs::create_dir_all(dir);
    }
    let _ = fs::write(marker, "mitose\n");
}

fn spawn_self(role: &str) -> Option<Pid> {
    let child = Command::new("/proc/self/exe")
        .arg0("mitose-guest")
        .arg(role)
        .env_clear()
        .env("PATH", BASE_PATH)
        .env("HOME", "/root")
        .stdin(Stdio::null())
        .spawn();
    match child {
        Ok(child) => Pid::from_raw(child.id().cast_signed()),
        Err(error) => {
            log(&format!("cannot start the {role}: {error}"));
            None
        }
    }
}

/// Opens the device behind /dev/console: only that one can control a session.
fn open_console() -> Option<OwnedFd> {
    let active = fs::read_to_string("/sys/class/tty/console/active").ok()?;
    let name = active.split_whitespace().next_back()?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(Path::new("/dev").join(name))
        .ok()?;
    Some(file.into())
}

fn spawn_shell(console: &OwnedFd) -> Option<Pid> {
    let shell = ["/bin/bash", "/bin/sh"]
        .into_iter()
        .find(|path| Path::new(path).exists())?;
    let stream = || {
        console
            .try_clone()
            .map_or_else(|_| Stdio::null(), Stdio::from)
    };
    let mut command = Command::new(shell);
    command
        .arg("-l")
        .env_clear()
        .env("PATH", BASE_PATH)
        .env("HOME", "/root")
        .env("USER", "root");
    command
        .env("TERM", "vt220")
        .env("SHELL", shell)
        .current_dir("/");
    command.stdin(stream()).stdout(stream()).stderr(stream());
    linux::attach(
        &mut command,
        Attachment {
            ids: None,
            terminal: true,
        },
    );
    Pid::from_raw(command.spawn().ok()?.id().cast_signed())
}

/// Reads all pending signals; the last one that asks for the end decides how.
fn take_signals(mut signals: &File) -> Option<shutdown::How> {
    /// Size of `struct signalfd_siginfo`, whose first field is the signal number.
    const RECORD: usize = 128;
    let mut how = None;
    let mut record = [0u8; RECORD];
    while matches!(signals.read(&mut record), Ok(RECORD)) {
        let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
        match number.cast_signed() {
            libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGPWR => how = Some(shutdown::How::PowerOff),
            libc::SIGTERM | libc::SIGINT => how = Some(shutdown::How::Restart),
            _ => {}
        }
    }
    how
}
