//! One running command: its streams joined to a connection by a single polling thread.
//!
//! ```text
//! running ─ command exits ─► drain what is buffered, EXIT; later output goes nowhere
//!         ─ host closes ──► the command's process group is asked to end, then killed
//!         ─ guest forked ─► (clone only) the command runs on without a host
//! ```
//! Input that the command does not take stops the reading of the connection, and a host that does
//! not take output stops the command, so nothing here grows without bound.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use agent_protocol::frame::FrameBuffer;
use agent_protocol::request::DATA_MAX;
use agent_protocol::{Exit, Reply, Request, Signal, Start, WindowSize};
use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use rustix::process::{Pid, PidfdFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::{Server, command, refuse};
use crate::linux;

/// Input kept for a command that does not read, in bytes.
const PENDING_MAX: usize = 256 << 10;

/// Time that a command without a host has for putting its things away, before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two looks at what is left of a command.
const END_INTERVAL: Duration = Duration::from_millis(20);

/// What Ctrl-D sends.
const END_OF_FILE: u8 = 4;

/// Exit codes that shells use for a program that is missing or cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;

/// Runs the command to its end.
pub(super) fn run(server: &Server, mut stream: File, start: &Start) {
    let mut session = match Session::start(server, &stream, start) {
        Ok(Started::Running(session)) => session,
        Ok(Started::Missing(code, text)) => {
            let _ = Reply::Started.write(&mut stream);
            let _ = Reply::Stderr(text.into_bytes()).write(&mut stream);
            let _ = Reply::Exit(Exit::Code(code)).write(&mut stream);
            return;
        }
        Err(error) => return refuse(&mut stream, &format!("{error:#}")),
    };
    match session.run() {
        Outcome::Exited(status) => session.finish(status),
        Outcome::HostGone if server.link.was_forked() => session.run_on_alone(),
        Outcome::HostGone => session.kill(),
    }
}

enum Started {
    Running(Box<Session>),
    Missing(i32, String),
}

enum Outcome {
    Exited(ExitStatus),
    HostGone,
}

/// Where a command's output comes from.
struct Output {
    file: File,
    is_stderr: bool,
}

struct Session {
    stream: File,
    child: Child,
    group: Option<Pid>,
    exited: OwnedFd,
    /// Standard input or the terminal's master; gone after end of input.
    input: Option<File>,
    input_ended: bool,
    pending: Vec<u8>,
    /// The last byte that the host typed.
    last_typed: Option<u8>,
    outputs: Vec<Output>,
    terminal: Option<File>,
    frames: FrameBuffer,
}

impl Session {
    fn start(server: &Server, stream: &File, start: &Start) -> Result<Started> {
        let mut command = command::build(&server.root, start)?;
        let terminal = start.tty.map(open_terminal).transpose()?;
        if let Some((_, slave)) = &terminal {
            command.stdin(slave.try_clone()?).stdout(slave.try_clone()?);
            command.stderr(slave.try_clone()?);
        } else {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
        }
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return missing(&start.argv, error),
        };
        // The command object keeps the terminal's slave open, which would hide its hang-up.
        drop(command);
        let pid = Pid::from_raw(child.id().cast_signed()).context("child has no process id")?;
        let exited = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .context("cannot watch the command")?;
        let mut stream = stream.try_clone()?;
        let terminal = terminal.map(|(master, _)| master);
        let (input, outputs) = match &terminal {
            Some(master) => {
                let output = Output {
                    file: master.try_clone()?,
                    is_stderr: false,
                };
                (Some(master.try_clone()?), vec![output])
            }
            None => (child.stdin.take().map(into_file), pipes(&mut child)),
        };
        for file in input.iter().chain(outputs.iter().map(|o| &o.file)) {
            rustix::io::ioctl_fionbio(file, true)?;
        }
        let _ = Reply::Started.write(&mut stream);
        Ok(Started::Running(Box::new(Self {
            stream,
            child,
            group: Some(pid),
            exited,
            input,
            input_ended: false,
            pending: Vec::new(),
            last_typed: None,
            outputs,
            terminal,
            frames: FrameBuffer::default(),
        })))
    }

    /// Moves bytes until the command ends or the host is gone.
    fn run(&mut self) -> Outcome {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(_) => return Outcome::HostGone,
            };
            for index in (0..self.outputs.len()).rev() {
                if ready.outputs[index] && self.forward(index).is_err() {
                    return Outcome::HostGone;
                }
            }
            if ready.input {
                self.feed();
            }
            if ready.exited
                && let Ok(Some(status)) = self.child.try_wait()
            {
                return Outcome::Exited(status);
            }
            if ready.stream && self.take_requests().is_err() {
                return Outcome::HostGone;
            }
            if ready.stream_closed {
                return Outcome::HostGone;
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let wants_more = self.pending.len() < PENDING_MAX;
        let stream_wants = if wants_more {
            PollFlags::IN | PollFlags::RDHUP
        } else {
            PollFlags::RDHUP
        };
        let mut fds = vec![
            PollFd::new(&self.stream, stream_wants),
            PollFd::new(&self.exited, PollFlags::IN),
        ];
        fds.extend(
            self.outputs
                .iter()
                .map(|o| PollFd::new(&o.file, PollFlags::IN)),
        );
        let input = self.input.as_ref().filter(|_| !self.pending.is_empty());
        fds.extend(input.map(|file| PollFd::new(file, PollFlags::OUT)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let outputs = self.outputs.len();
        let seen = |index: usize| fds[index].revents();
        let stream = seen(0);
        let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
        // With input pending, only a closed connection can wake this; otherwise what was sent
        // before the close is read first, and reading finds the end.
        let closed = gone | PollFlags::RDHUP;
        Ok(Ready {
            stream: wants_more && stream.intersects(PollFlags::IN | closed),
            stream_closed: !wants_more && stream.intersects(closed),
            exited: !seen(1).is_empty(),
            outputs: (2..2 + outputs).map(|i| !seen(i).is_empty()).collect(),
            input: input.is_some() && !seen(2 + outputs).is_empty(),
        })
    }

    /// Sends one piece of output; an output that has ended is dropped.
    fn forward(&mut self, index: usize) -> Result<usize, agent_protocol::FrameError> {
        let mut piece = vec![0u8; DATA_MAX];
        let output = &mut self.outputs[index];
        match output.file.read(&mut piece) {
            Ok(n) if n > 0 => {
                piece.truncate(n);
                let reply = if output.is_stderr {
                    Reply::Stderr(piece)
                } else {
                    Reply::Stdout(piece)
                };
                reply.write(&mut self.stream).map(|()| n)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(0)
            }
            // A terminal whose last user is gone reads as EIO.
            Ok(_) | Err(_) => {
                self.outputs.remove(index);
                Ok(0)
            }
        }
    }

    fn feed(&mut self) {
        let Some(input) = &mut self.input else { return };
        match input.write(&self.pending) {
            Ok(n) => drop(self.pending.drain(..n)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            // The command closed its input: the rest has no reader.
            Err(_) => {
                self.input = None;
                self.pending.clear();
            }
        }
        self.end_input_when_written();
    }

    fn end_input_when_written(&mut self) {
        if self.input_ended && self.pending.is_empty() {
            self.input = None;
        }
    }

    /// Reads what the connection has and acts on every whole frame.
    fn take_requests(&mut self) -> Result<()> {
        let mut bytes = [0u8; 64 << 10];
        let received = rustix::net::recv(&self.stream, &mut bytes[..], RecvFlags::DONTWAIT);
        match received {
            Ok((_, 0)) => anyhow::bail!("connection closed"),
            Ok((_, n)) => self.frames.push(&bytes[..n]),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        while let Some(raw) = self.frames.next_raw()? {
            match Request::decode(raw)? {
                Request::Stdin(bytes) if self.input.is_some() && !self.input_ended => {
                    self.last_typed = bytes.last().copied().or(self.last_typed);
                    self.pending.extend(bytes);
                }
                Request::Stdin(_) => {}
                Request::StdinEof => self.end_input(),
                Request::Resize(size) => self.resize(size),
                Request::Signal(signal) => self.signal(signal),
                other => anyhow::bail!("unexpected {} frame", other.name()),
            }
        }
        Ok(())
    }

    fn end_input(&mut self) {
        if self.terminal.is_some() {
            // The terminal itself stays open for output. Behind a line that has no end, Ctrl-D only
            // hands that line over: the next one is the end.
            let at_start = [None, Some(b'\n'), Some(b'\r'), Some(END_OF_FILE)];
            let in_a_line = !at_start.contains(&self.last_typed);
            self.pending.extend(in_a_line.then_some(END_OF_FILE));
            self.pending.push(END_OF_FILE);
            self.last_typed = Some(END_OF_FILE);
            return;
        }
        self.input_ended = true;
        self.end_input_when_written();
    }

    fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            let _ = rustix::termios::tcsetwinsize(terminal, winsize(size));
        }
    }

    fn signal(&self, Signal { signal }: Signal) {
        if let Some(group) = self.group.filter(|_| (1..=64).contains(&signal)) {
            let _ = linux::kill_group(group, signal);
        }
    }

    /// Sends the output that is still buffered, then the status. Processes that the command left
    /// behind keep a reader for their output, so that they do not die of writing it.
    fn finish(mut self, status: ExitStatus) {
        /// A pipe holds 64 KiB: this reads it empty twice over, but not a stream without end.
        const PIECES_MAX: usize = 32;
        for index in (0..self.outputs.len()).rev() {
            for _ in 0..PIECES_MAX {
                let before = self.outputs.len();
                match self.forward(index) {
                    Ok(0) => break,
                    Ok(_) if self.outputs.len() == before => {}
                    _ => break,
                }
            }
        }
        let _ = Reply::Exit(exit_of(status)).write(&mut self.stream);
        // A terminal hangs up on whoever is left, as every terminal does.
        if self.terminal.is_none() {
            for output in std::mem::take(&mut self.outputs) {
                discard_in_background(output.file);
            }
        }
    }

    /// Asks the command to end, as a terminal that hangs up and then a shutdown do, and kills what
    /// is left of it after a while.
    fn kill(mut self) {
        if let Some(group) = self.group {
            // One that stands still hears the others only when it goes on.
            for signal in [libc::SIGHUP, libc::SIGCONT, libc::SIGTERM] {
                let _ = linux::kill_group(group, signal);
            }
            if !self.wait_gone(group) {
                let _ = linux::kill_group(group, libc::SIGKILL);
            }
        }
        let _ = self.child.wait();
    }

    /// Waits for the end of the command and of those in its group; says whether it came in time.
    /// Throws output away meanwhile: who cannot write does not end either.
    fn wait_gone(&mut self, group: Pid) -> bool {
        let deadline = Instant::now() + END_PATIENCE;
        let mut piece = vec![0u8; DATA_MAX];
        loop {
            let ended = !matches!(self.child.try_wait(), Ok(None));
            // The number stays the group's until its last member has ended.
            if ended && linux::kill_group(group, 0).is_err() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // Nothing tells of the end of a group, so it is looked for.
            let pause = if ended { left.min(END_INTERVAL) } else { left };
            let outputs = self.outputs.iter().map(|output| &output.file);
            let mut fds: Vec<_> = outputs
                .map(|file| PollFd::new(file, PollFlags::IN))
                .collect();
            if !ended {
                fds.push(PollFd::new(&self.exited, PollFlags::IN));
            }
            let _ = poll(&mut fds, Timespec::try_from(pause).ok().as_ref());
            self.outputs.retain_mut(|output| {
                let read = output.file.read(&mut piece).map_err(|error| error.kind());
                let goes_on = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted];
                read.map_or_else(|kind| goes_on.contains(&kind), |count| count > 0)
            });
        }
    }

    /// In a clone nobody asked for the command to end: it goes on, its output unseen and its
    /// input silent.
    fn run_on_alone(mut self) {
        for output in std::mem::take(&mut self.outputs) {
            discard_in_background(output.file);
        }
        let _ = self.child.wait();
    }
}

/// Which descriptors have something to say.
struct Ready {
    stream: bool,
    stream_closed: bool,
    exited: bool,
    outputs: Vec<bool>,
    input: bool,
}

fn missing(argv: &[String], error: io::Error) -> Result<Started> {
    let program = argv.first().map_or("", String::as_str);
    match error.kind() {
        io::ErrorKind::NotFound => Ok(Started::Missing(
            NOT_FOUND,
            format!("{program}: command not found in the guest\n"),
        )),
        io::ErrorKind::PermissionDenied => Ok(Started::Missing(
            NOT_RUNNABLE,
            format!("{program}: permission denied\n"),
        )),
        _ => Err(error).with_context(|| format!("cannot run {program:?}")),
    }
}

fn open_terminal(size: WindowSize) -> Result<(File, File)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags).context("cannot open a terminal")?;
    rustix::pty::grantpt(&master).context("cannot grant a terminal")?;
    rustix::pty::unlockpt(&master).context("cannot unlock a terminal")?;
    rustix::termios::tcsetwinsize(&master, winsize(size)).context("cannot size a terminal")?;
    let slave =
        rustix::pty::ioctl_tiocgptpeer(&master, flags).context("cannot open a terminal's end")?;
    Ok((master.into(), slave.into()))
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn pipes(child: &mut Child) -> Vec<Output> {
    let stdout = child.stdout.take().map(|f| Output {
        file: into_file(f),
        is_stderr: false,
    });
    let stderr = child.stderr.take().map(|f| Output {
        file: into_file(f),
        is_stderr: true,
    });
    stdout.into_iter().chain(stderr).collect()
}

fn into_file(stream: impl Into<OwnedFd>) -> File {
    File::from(stream.into())
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}

/// Reads a stream to its end and throws it away.
fn discard_in_background(file: File) {
    let _ = rustix::io::ioctl_fionbio(file.as_fd(), false);
    let discard = move || {
        let mut file = file;
        let _ = io::copy(&mut file, &mut io::sink());
    };
    let _ = thread::Builder::new()
        .name("discard".into())
        .stack_size(64 << 10)
        .spawn(discard);
}
