//! Clones born by `fork()`: the split itself, descriptors, the new user id.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::{JailError, credentials, last_error};

/// Which side of a fork the caller is on.
#[derive(Debug, PartialEq, Eq)]
pub enum Forked {
    /// The process that called.
    Parent {
        /// Process id of the child.
        child: i32,
    },
    /// The new process, with this thread only.
    Child(SoleThread),
}

/// Proof that the process was born by `fork()` with one thread. Its holder starts no thread before
/// it is used up.
#[derive(Debug, PartialEq, Eq)]
pub struct SoleThread(PhantomData<*mut ()>);

impl SoleThread {
    /// Splits the process again; with one thread there is nobody to disturb.
    pub fn fork(&self) -> Result<Forked, JailError> {
        // SAFETY: the type is the proof that no other thread exists.
        unsafe { fork_process() }
    }
}

/// Returns the proof that this process has one thread, or `None` where it has more. Only before the
/// jail: it looks into `/proc`.
pub fn sole_thread() -> io::Result<Option<SoleThread>> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    Ok((threads == 1).then_some(SoleThread(PhantomData)))
}

/// Splits the process.
///
/// # Safety
/// Every other thread of the process must stand still outside any lock that the child takes
/// later, and stay so until the call returns in the parent. The child must never use or drop what
/// belongs to other threads or to descriptors it closes.
pub unsafe fn fork_process() -> Result<Forked, JailError> {
    // SAFETY: the caller's promise; libc brings its own allocator locks into order.
    match unsafe { libc::fork() } {
        -1 => Err(last_error("fork the VM process")),
        0 => Ok(Forked::Child(SoleThread(PhantomData))),
        child => Ok(Forked::Parent { child }),
    }
}

/// Closes every descriptor but standard error and those in `kept`. Call it first in a child born
/// by `fork()`; what it closes must not be used or dropped afterwards.
pub fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .collect();
    kept.push(2);
    kept.sort_unstable();
    let mut from = 0;
    for fd in kept {
        if fd > from {
            close_range(from, fd - 1)?;
        }
        from = from.max(fd + 1);
    }
    close_range(from, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: plain numbers; the caller gives up what is behind the descriptors.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes ownership of descriptor `number`, which whoever started the process left open.
pub fn take_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only asks whether the descriptor is open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by the contract of starting this program it belongs to the caller,
    // who calls this once, before anything else opens descriptors.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends what this process writes to its standard error to `file` from here on.
pub fn redirect_messages(file: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain numbers; standard error belongs to the whole process and stays open.
    match unsafe { libc::dup3(file.as_raw_fd(), libc::STDERR_FILENO, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Keeps the allocator from giving each thread a heap of its own: a VM process has many threads
/// that allocate little, and hundreds of such processes share a host.
pub fn spare_memory() {
    // SAFETY: plain numbers; a refusal only costs memory.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Takes the user id of a clone: what tells its process from its parent's.
pub fn take_own_uid(uid: u32) -> Result<(), JailError> {
    credentials::move_to(uid)
}

/// Lets the kernel reap children: nobody waits for clones here, the daemon watches them.
pub fn ignore_children() -> io::Result<()> {
    // SAFETY: SIG_IGN is a valid disposition for SIGCHLD.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
