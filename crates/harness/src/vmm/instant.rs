//! Instants that outlive their source: dumps, keepers, clones that stand still.

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use vmm_protocol::{
    BeginFlatten, Command, Dump, Fd, FlattenNext, Forked, Keep, Outcome, SerialBackend, SerialPeer,
    SetSerial, Status,
};

use super::{Frame, Point, StartOptions, TIMEOUT, VmProcess, memory_file};

/// An instant in two files.
#[derive(Debug)]
pub struct InstantFiles {
    /// Guest RAM.
    pub ram: File,
    /// State.
    pub checkpoint: File,
}

impl InstantFiles {
    /// Empty files in memory.
    pub fn in_memory() -> anyhow::Result<Self> {
        Ok(Self {
            ram: memory_file(0)?,
            checkpoint: memory_file(0)?,
        })
    }

    /// Empty files in `folder`.
    pub fn in_folder(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let create = |kind: &str| {
            let path = folder.join(format!("{name}.{kind}"));
            let mut options = File::options();
            options.read(true).write(true).create_new(true).open(path)
        };
        Ok(Self {
            ram: create("ram")?,
            checkpoint: create("checkpoint")?,
        })
    }

    fn add_to(&self, frame: &mut Frame) -> anyhow::Result<(Fd, Fd)> {
        let ram = frame.add(self.ram.try_clone()?);
        Ok((ram, frame.add(self.checkpoint.try_clone()?)))
    }
}

fn done(outcome: Outcome) -> anyhow::Result<()> {
    match outcome {
        Outcome::Done | Outcome::Running { .. } => Ok(()),
        Outcome::Failed { message, .. } => bail!("{message}"),
        other => bail!("unexpected outcome {other:?}"),
    }
}

impl VmProcess {
    /// Forks the VM without clones, with next tops for its disks: figures and fork point.
    pub fn fork_point(&mut self, tops: &[PathBuf]) -> anyhow::Result<(Forked, InstantFiles)> {
        let Point {
            forked,
            layer,
            checkpoint,
        } = self.fork_for(&[], tops, None)?;
        let ram = layer.context("the VM runs on a private view: nothing has its instant")?;
        Ok((forked, InstantFiles { ram, checkpoint }))
    }

    /// Forks a VM that runs on a private view: the newborns of these names wait for what they are
    /// to do.
    pub fn bear(
        &mut self,
        names: &[&str],
        tops: &[PathBuf],
    ) -> anyhow::Result<(Forked, Vec<Self>)> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let point = self.fork_for(&names, tops, None)?;
        ensure!(point.layer.is_none(), "the VM was never forked");
        let newborns = names.iter().map(|name| self.meet(name));
        Ok((point.forked, newborns.collect::<anyhow::Result<_>>()?))
    }

    /// Starts a shell beside this VM and makes it a clone of it.
    pub fn restored(
        &self,
        name: &str,
        instant: &InstantFiles,
        options: StartOptions,
    ) -> anyhow::Result<Self> {
        let mut vm = Self::shell(&self.folder, name)?;
        let point = (&instant.ram, &instant.checkpoint);
        vm.restore(self, Some(point), options)?;
        Ok(vm)
    }

    /// Makes this newborn a clone of `source`.
    pub fn restore_inherited(
        &mut self,
        source: &Self,
        options: StartOptions,
    ) -> anyhow::Result<()> {
        self.restore(source, None, options).map(drop)
    }

    /// Has this newborn write its instant.
    pub fn dump(&mut self, files: &InstantFiles) -> anyhow::Result<()> {
        let id = self.start_dump(files)?;
        self.finish_dump(id)
    }

    /// Waits for the reply to [`start_dump`](Self::start_dump), the next one.
    pub fn finish_dump(&mut self, id: u64) -> anyhow::Result<()> {
        done(self.reply_to(id)?.0)
    }

    /// Has this newborn begin to write its instant; returns the request's number.
    pub fn start_dump(&mut self, files: &InstantFiles) -> anyhow::Result<u64> {
        let mut frame = Frame::default();
        let (ram, checkpoint) = files.add_to(&mut frame)?;
        let pagemap = linux_sys::open_pagemap(self.pid())?;
        let dump = Dump {
            ram,
            checkpoint,
            pagemap: Some(frame.add(pagemap)),
        };
        self.post(Command::Dump(dump), frame.0)
    }

    /// Begins to move this VM's RAM onto a new layer, of which a descriptor is returned.
    pub fn begin_flatten(&mut self) -> anyhow::Result<File> {
        let layer = memory_file(0)?;
        let mut frame = Frame::default();
        let order = BeginFlatten {
            layer: frame.add(File::open(format!("/proc/self/fd/{}", layer.as_raw_fd()))?),
            writable: frame.add(layer.try_clone()?),
            pagemap: frame.add(linux_sys::open_pagemap(self.pid())?),
        };
        done(self.call_with(Command::BeginFlatten(order), frame.0)?.0)?;
        Ok(layer)
    }

    /// Moves the next piece. Returns the stun in microseconds and the size of the piece in KiB,
    /// which is 0 when all was moved.
    pub fn flatten_next(&mut self) -> anyhow::Result<(u64, u64)> {
        let order = FlattenNext { drain_ms_max: 250 };
        match self.call_with(Command::FlattenNext(order), vec![])?.0 {
            Outcome::Flattened { stun_us, moved_kib } => Ok((stun_us, moved_kib)),
            Outcome::Failed { message, .. } => bail!("{message}"),
            other => bail!("unexpected outcome {other:?}"),
        }
    }

    /// Moves all that is to be moved; returns the stuns in microseconds.
    pub fn flatten(&mut self) -> anyhow::Result<Vec<u64>> {
        self.begin_flatten()?;
        let mut stuns = vec![];
        loop {
            match self.flatten_next()? {
                (_, 0) => return Ok(stuns),
                (stun_us, _) => stuns.push(stun_us),
            }
        }
    }

    /// Makes this shell the keeper of `instant`.
    pub fn keep(&mut self, instant: &InstantFiles) -> anyhow::Result<()> {
        let mut frame = Frame::default();
        let (ram, checkpoint) = instant.add_to(&mut frame)?;
        let keep = Keep { ram, checkpoint };
        done(self.call_with(Command::Keep(keep), frame.0)?.0)
    }

    /// Asks this keeper for what it keeps.
    pub fn recall(&mut self) -> anyhow::Result<InstantFiles> {
        let (outcome, fds) = self.call_with(Command::Recall, vec![])?;
        match outcome {
            Outcome::Kept {
                ram: Fd(0),
                checkpoint: Fd(1),
            } => {}
            Outcome::Failed { message, .. } => bail!("{message}"),
            other => bail!("unexpected outcome {other:?}"),
        }
        let files = <[OwnedFd; 2]>::try_from(fds);
        let files = files.map_err(|fds| anyhow::anyhow!("{} files were handed out", fds.len()));
        let [ram, checkpoint] = files?.map(File::from);
        Ok(InstantFiles { ram, checkpoint })
    }

    /// Drops the connection and makes a new one, as a daemon that was started again.
    pub fn reconnect(&mut self) -> anyhow::Result<()> {
        self.socket.shutdown(Shutdown::Both)?;
        let path = self.folder.join(format!("{}.sock", self.name));
        self.socket = UnixStream::connect(path).context("the process is gone")?;
        self.socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(())
    }

    /// Drops the connection for good and waits until the process has ended.
    pub fn leave(&mut self) -> anyhow::Result<()> {
        self.socket.shutdown(Shutdown::Both)?;
        let deadline = Instant::now() + TIMEOUT;
        let stat = format!("/proc/{}/stat", self.pid());
        // One that nobody has waited for yet is gone too.
        let lives = || std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        while lives() {
            ensure!(Instant::now() < deadline, "the process lives on");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Gives serial port `port` another log, with a listener beside it.
    pub fn set_serial(
        &mut self,
        port: usize,
        log: &File,
        listener: Option<UnixListener>,
    ) -> anyhow::Result<()> {
        let mut frame = Frame::default();
        let backend = SerialBackend {
            log: frame.add(log.try_clone()?),
            peer: listener.map(|listener| SerialPeer::Listener(frame.add(listener))),
        };
        let order = SetSerial { port, backend };
        done(self.call_with(Command::SetSerial(order), frame.0)?.0)
    }

    /// Does `command`, which answers nothing but that it is done.
    pub fn order(&mut self, command: Command) -> anyhow::Result<()> {
        done(self.call(command)?)
    }

    /// Returns state and figures.
    pub fn status(&mut self) -> anyhow::Result<Status> {
        match self.call(Command::Status)? {
            Outcome::Status(status) => Ok(status),
            other => bail!("status gave {other:?}"),
        }
    }
}
