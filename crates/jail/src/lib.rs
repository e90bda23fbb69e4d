//! The jail of a VM process: an own user id, no file system, no network, a short list of system
//! calls. Everything the process works with is passed to it as open descriptors.
//!
//! A VM process must be able to `fork()` clones of the VM it runs, and each clone gets a user id
//! of its own. It therefore keeps `CAP_SETUID` and `CAP_SETGID` in its permitted set (not
//! effective), and the system-call filter lets it take only ids of the range that belongs to VM
//! processes ([`UidRange`]). An id alone opens nothing: not even a process that takes another VM's
//! id can reach a file, a socket or that VM, since every call that would is absent. Threads
//! interrupt each other with timers, which cannot signal another process.

#![expect(
    unsafe_code,
    reason = "credentials, capabilities and fork() have no safe interface"
)]

mod credentials;
mod filesystem;
mod fork;
mod syscalls;

use std::io;

pub use credentials::UidRange;
pub use fork::{
    Forked, SoleThread, close_all_but, fork_process, ignore_children, redirect_messages,
    sole_thread, spare_memory, take_descriptor, take_own_uid,
};

/// What the jail leaves to a VM process.
#[derive(Clone, Copy, Debug)]
pub struct Jail {
    /// User and group id of this process.
    pub uid: u32,
    /// Ids that clones born of this process may take.
    pub range: UidRange,
}

/// Which file-system barrier holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Landlock denies every path.
    Landlock,
    /// The mount namespace is empty.
    EmptyMounts,
}

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const LANDLOCK_VERSION: libc::c_long = 1;

impl Barrier {
    /// The better one of those that this kernel has.
    fn of_this_kernel() -> Self {
        // SAFETY: asks for the version of Landlock, which takes no structure.
        let version =
            unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, LANDLOCK_VERSION) };
        if version > 0 {
            Self::Landlock
        } else {
            Self::EmptyMounts
        }
    }
}

/// The jail could not be built; the process must not go on.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A host call failed.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// The kernel does not enforce the landlock rules.
    #[error("landlock rules have no effect here")]
    NoLandlock,
    /// The landlock rules were refused.
    #[error("cannot apply landlock rules")]
    Landlock(#[from] landlock::RulesetError),
    /// The system-call filter could not be made or loaded.
    #[error("cannot apply the system-call filter")]
    Filter(#[from] seccompiler::Error),
    /// The id is not in the range.
    #[error("user id {uid} is not in the range {range:?} of VM processes")]
    Uid {
        /// The id.
        uid: u32,
        /// The range.
        range: UidRange,
    },
}

fn last_error(action: &'static str) -> JailError {
    JailError::Host {
        action,
        source: io::Error::last_os_error(),
    }
}

fn check(result: i64, action: &'static str) -> Result<(), JailError> {
    if result == 0 {
        Ok(())
    } else {
        Err(last_error(action))
    }
}

impl Jail {
    /// Jails the calling process, which is root and has one thread, for good: behind Landlock where
    /// the kernel has it, else in an empty mount namespace.
    pub fn enter(&self) -> Result<Barrier, JailError> {
        let barrier = Barrier::of_this_kernel();
        self.enter_behind(barrier)?;
        Ok(barrier)
    }

    /// The same with a barrier of the caller's choice.
    pub fn enter_behind(&self, barrier: Barrier) -> Result<(), JailError> {
        self.range.check(self.uid)?;
        // SAFETY: plain process attributes without pointers; a failure of setsid only means that
        // the process leads a session already.
        unsafe {
            libc::setsid();
            libc::umask(0o077);
        }
        // The file-system barrier may need root, so it comes before the user id.
        filesystem::close(barrier)?;
        credentials::drop_to(self.uid)?;
        syscalls::confine(self.range)
    }
}
