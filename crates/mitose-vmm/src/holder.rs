//! The other side of a split: the holder keeps the instant until all clones are born of it.
//!
//! ```text
//! source ──fork()──▶ holder ──fork()──▶ clone 1 … clone n
//!                      └─ tells the daemon that all are born, waits for its word, ends
//! ```
//!
//! Nothing of the source's process is used here but RAM, the checkpoint and the descriptors named
//! below: all others are closed first.

use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use anyhow::Context;
use jail::{Forked, SoleThread};
use machine::Held;

use crate::server::{Inherited, Newborn};

/// What a clone is born with.
pub(crate) struct Seat {
    pub(crate) listener: OwnedFd,
    pub(crate) uid: u32,
}

/// Goes on as the holder. Returns in each clone; the holder itself ends here.
pub(crate) fn hold(held: Held, seats: Vec<Seat>, done: Option<OwnedFd>) -> anyhow::Result<Newborn> {
    let Held {
        ram,
        checkpoint,
        thread,
    } = held;
    let layer = {
        let ram = ram.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        ram.file().as_raw_fd()
    };
    let mut kept: Vec<_> = seats.iter().map(|seat| seat.listener.as_raw_fd()).collect();
    kept.extend(done.as_ref().map(AsRawFd::as_raw_fd));
    kept.push(layer);
    jail::close_all_but(&kept).context("cannot close the source's descriptors")?;
    for seat in &seats {
        match thread.fork() {
            Ok(Forked::Parent { .. }) => {}
            Ok(Forked::Child(sole)) => {
                let (listener, uid) = (seat.listener.as_raw_fd(), seat.uid);
                jail::close_all_but(&[listener, layer])
                    .context("cannot close the siblings' descriptors")?;
                let mine = seats.into_iter().fold(None, |mine, seat| {
                    if seat.listener.as_raw_fd() == listener {
                        return Some(seat.listener);
                    }
                    // Closed above: dropping it would close somebody else's.
                    mem::forget(seat.listener);
                    mine
                });
                mem::forget(done);
                let listener = mine.context("the clone's socket is gone")?;
                return born(sole, listener, uid, Inherited { ram, checkpoint });
            }
            // The daemon sees that nobody listens on this clone's socket.
            Err(error) => tracing::error!(%error, "a clone could not be born"),
        }
    }
    drop(seats);
    if let Some(done) = done {
        wait_for_daemon(&done);
    }
    std::process::exit(0)
}

fn born(
    _: SoleThread,
    listener: OwnedFd,
    uid: u32,
    inherited: Inherited,
) -> anyhow::Result<Newborn> {
    jail::take_own_uid(uid).context("cannot take the clone's user id")?;
    Ok(Newborn {
        listener: UnixListener::from(listener),
        inherited,
    })
}

/// Tells the daemon that all clones are born and waits until it closes its end: until then it can
/// read this process's page map, the record of what the fork point held.
fn wait_for_daemon(done: &OwnedFd) {
    let mut byte = [1];
    if rustix::io::write(done, &byte).is_ok() {
        while matches!(
            rustix::io::read(done.as_fd(), &mut byte),
            Ok(1) | Err(rustix::io::Errno::INTR)
        ) {}
    }
}
