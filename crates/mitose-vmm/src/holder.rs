//! The other side of a split: the holder has the instant, and all clones are born of it.
//!
//! ```text
//! source ──fork()──▶ holder = clone 1 ──fork()──▶ clone 3 ──fork()──▶ clone 4
//!                                     └─fork()──▶ clone 2
//! ```
//!
//! Each `fork()` copies the page tables of all that the source wrote: those born help in bearing
//! the rest, so that all processors do it.
//!
//! Nothing of the source's process is used here but RAM, the checkpoint and the descriptors named
//! below: all others are closed first.

use std::mem;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
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

/// What all clones of a call are born with.
pub(crate) struct Nest {
    pub(crate) seats: Vec<Seat>,
    /// `/dev/kvm`, where they run on it.
    pub(crate) kvm: Option<OwnedFd>,
}

/// Goes on as the holder. Returns in each clone; without any the holder ends here.
pub(crate) fn hold(held: Held, nest: Nest) -> anyhow::Result<Newborn> {
    let Held {
        ram,
        checkpoint,
        thread,
    } = held;
    let Nest { seats, kvm } = nest;
    let mut shared: Vec<_> = {
        let mut ram = ram.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        ram.forget_flattening();
        ram.files().map(AsRawFd::as_raw_fd).collect()
    };
    shared.extend(kvm.as_ref().map(AsRawFd::as_raw_fd));
    let mut kept: Vec<_> = seats.iter().map(|seat| seat.listener.as_raw_fd()).collect();
    kept.extend(&shared);
    jail::close_all_but(&kept).context("cannot close the source's descriptors")?;
    if seats.is_empty() {
        std::process::exit(0);
    }
    let number = bear(thread, 0..seats.len());
    shared.push(seats[number].listener.as_raw_fd());
    jail::close_all_but(&shared).context("cannot close the siblings' descriptors")?;
    let mut mine = None;
    for (index, seat) in seats.into_iter().enumerate() {
        if index == number {
            mine = Some((seat.listener, seat.uid));
        } else {
            // Closed above: dropping it would close somebody else's.
            mem::forget(seat.listener);
        }
    }
    let (listener, uid) = mine.context("the clone's socket is gone")?;
    jail::take_own_uid(uid).context("cannot take the clone's user id")?;
    Ok(Newborn {
        listener: UnixListener::from(listener),
        inherited: Inherited {
            ram,
            checkpoint,
            kvm,
        },
    })
}

/// Bears the clones numbered by `clones`, which are not none; returns the number of the one that
/// this process is. Those that cannot be born have nobody on their sockets, which the daemon sees.
fn bear(mut thread: SoleThread, mut clones: Range<usize>) -> usize {
    while clones.len() > 1 {
        let middle = clones.start + clones.len().div_ceil(2);
        match thread.fork() {
            Ok(Forked::Parent { .. }) => clones.end = middle,
            Ok(Forked::Child(own)) => {
                thread = own;
                clones.start = middle;
            }
            Err(error) => {
                tracing::error!(%error, "{} clones could not be born", clones.end - middle);
                clones.end = middle;
            }
        }
    }
    clones.start
}
