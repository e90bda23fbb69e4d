//! The seed: a jailed process with one thread, of which shells are born when they are needed at
//! once. Starting a program, linking it and building its jail takes milliseconds; `fork()` of a
//! process that has all that behind it takes a tenth.

use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context, bail};
use fd_channel::ChannelError;
use jail::{Forked, SoleThread};
use vmm_protocol::{Sow, Sown};

/// Serves the daemon until it is gone. Returns in each shell, with its control socket; in the seed
/// itself it returns nothing.
pub(crate) fn sow(socket: UnixStream, thread: SoleThread) -> anyhow::Result<Option<UnixListener>> {
    loop {
        let frame = match fd_channel::receive::<Sow>(&socket) {
            Ok(frame) => frame,
            Err(ChannelError::Closed) => return Ok(None),
            Err(error) => return Err(error).context("the daemon's connection failed"),
        };
        let answer = match <[OwnedFd; 2]>::try_from(frame.fds) {
            Err(fds) => Sown::Failed(format!("{} descriptors, 2 are needed", fds.len())),
            Ok([listener, log]) => match thread.fork() {
                Err(error) => Sown::Failed(error.to_string()),
                Ok(Forked::Parent { child }) => Sown::Born { pid: child },
                Ok(Forked::Child(_)) => {
                    let shell = become_shell(listener, log, frame.message.uid);
                    // The seed's connection was closed.
                    mem::forget(socket);
                    return shell.map(Some);
                }
            },
        };
        fd_channel::send(&socket, &answer, &[]).context("the daemon's connection failed")?;
    }
}

fn become_shell(listener: OwnedFd, log: OwnedFd, uid: u32) -> anyhow::Result<UnixListener> {
    jail::redirect_messages(&log).context("cannot open the log")?;
    drop(log);
    jail::close_all_but(&[listener.as_raw_fd()]).context("cannot close the seed's descriptors")?;
    jail::take_own_uid(uid).context("cannot take the shell's user id")?;
    Ok(listener.into())
}

/// Returns the proof that the seed may split itself.
pub(crate) fn sole_thread() -> anyhow::Result<SoleThread> {
    match jail::sole_thread().context("cannot count the threads")? {
        Some(thread) => Ok(thread),
        None => bail!("a seed must have one thread"),
    }
}
