//! The other side of a split: the holder has the instant, and all clones are born of it.
//!
//! ```text
//! source ──fork()──▶ holder ──fork()──▶ clone 1 … clone n-1
//!                      └─ tells the daemon that all are born and goes on as clone n
//! ```
//!
//! Nothing of the source's process is used here but RAM, the checkpoint and the descriptors named
//! below: all others are closed first.

use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use anyhow::Context;
use jail::Forked;
use machine::Held;

use crate::server::{Inherited, Newborn};

/// What a clone is born with.
pub(crate) struct Seat {
    pub(crate) listener: OwnedFd,
    pub(crate) uid: u32,
}

/// Goes on as the holder. Returns in each clone; without any the holder ends here.
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
    // One fork() less: the page tables are copied each time.
    let (mut number, last) = (0, seats.len().saturating_sub(1));
    while number < last {
        match thread.fork() {
            Ok(Forked::Parent { .. }) => {}
            Ok(Forked::Child(_)) => break,
            // The daemon sees that nobody listens on this clone's socket.
            Err(error) => tracing::error!(%error, "a clone could not be born"),
        }
        number += 1;
    }
    if number == last {
        tell_daemon(done.as_ref());
    }
    if seats.is_empty() {
        std::process::exit(0);
    }
    let own = seats[number].listener.as_raw_fd();
    jail::close_all_but(&[own, layer]).context("cannot close the siblings' descriptors")?;
    // Closed above: dropping them would close somebody else's.
    mem::forget(done);
    let mut mine = None;
    for (index, seat) in seats.into_iter().enumerate() {
        if index == number {
            mine = Some((seat.listener, seat.uid));
        } else {
            mem::forget(seat.listener);
        }
    }
    let (listener, uid) = mine.context("the clone's socket is gone")?;
    jail::take_own_uid(uid).context("cannot take the clone's user id")?;
    Ok(Newborn {
        listener: UnixListener::from(listener),
        inherited: Inherited { ram, checkpoint },
    })
}

/// Tells the daemon that all clones are born.
fn tell_daemon(done: Option<&OwnedFd>) {
    if let Some(done) = done {
        // A daemon that is gone need not know.
        let _ = rustix::io::write(done, &[1]);
    }
}
