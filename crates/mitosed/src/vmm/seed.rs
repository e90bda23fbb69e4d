//! The seed: a jailed process of which shells are born when the pool is empty.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use vmm_protocol::{Sow, Sown};

/// Longest time for a birth, the seed's own start included.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A seed; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Seed {
    socket: UnixStream,
    /// Its process id.
    pub pid: i32,
    /// Its user id, taken from the daemon's range.
    pub uid: u32,
}

impl Seed {
    /// Starts it by the command that `command` makes for its control socket.
    pub fn start(
        command: impl FnOnce(OwnedFd) -> anyhow::Result<Command>,
        uid: u32,
    ) -> anyhow::Result<Self> {
        let (socket, far) = UnixStream::pair().context("cannot make a socket pair")?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let child = command(far.into())?
            .spawn()
            .context("cannot start the process of which VM processes are born")?;
        Ok(Self {
            socket,
            pid: child.id() as i32,
            uid,
        })
    }

    /// Has a shell born that listens on `listener` and logs to `log`; returns its process id.
    pub fn shell(&self, listener: &UnixListener, log: &File, uid: u32) -> anyhow::Result<i32> {
        let fds: [BorrowedFd<'_>; 2] = [listener.as_fd(), log.as_fd()];
        fd_channel::send(&self.socket, &Sow { uid }, &fds)?;
        match fd_channel::receive::<Sown>(&self.socket)?.message {
            Sown::Born { pid } => Ok(pid),
            Sown::Failed(reason) => bail!("no VM process was born: {reason}"),
        }
    }
}
