//! Interrupting a thread that is inside `KVM_RUN`.
//!
//! `immediate_exit` makes the next `KVM_RUN` return at once, the signal ends one that is under way;
//! both together leave no window in which a kick is lost (KVM API, `KVM_RUN`).

use std::sync::Mutex;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};

use vcpu::{EngineError, Kick};

/// Returns the signal that ends `KVM_RUN`: the only one that threads of a VM send each other.
pub fn signal_number() -> i32 {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the empty handler, once in a process.
pub(crate) fn install_handler() -> Result<(), EngineError> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = vmm_sys_util::signal::register_signal_handler(signal_number(), on_kick).map_err(
            |error| EngineError::Call {
                call: "sigaction",
                source: std::io::Error::from_raw_os_error(error.errno()),
            },
        );
    });
    result
}

#[derive(Debug)]
struct Target {
    immediate_exit: *const AtomicU8,
    process: i32,
    thread: i32,
}

/// Kicks one vCPU; does nothing after the vCPU is gone.
#[derive(Debug)]
pub(crate) struct KvmKick(Mutex<Option<Target>>);

// SAFETY: the pointer is used only under the mutex and only while the vCPU, which owns the mapping
// it points into, has not called `detach`; the byte it points to is atomic.
unsafe impl Send for KvmKick {}
// SAFETY: as for `Send`; all access goes through the mutex.
unsafe impl Sync for KvmKick {}

impl KvmKick {
    /// Makes a kick for the calling thread. `immediate_exit` must stay valid until `detach`.
    pub(crate) fn for_this_thread(immediate_exit: *const AtomicU8) -> Self {
        // SAFETY: both calls only return numbers.
        let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
        Self(Mutex::new(Some(Target {
            immediate_exit,
            process,
            thread,
        })))
    }

    /// Forgets the vCPU.
    pub(crate) fn detach(&self) {
        *self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    }
}

impl Kick for KvmKick {
    fn kick(&self) {
        let target = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(target) = &*target {
            // SAFETY: not detached, so the mapping that holds the byte is still there.
            unsafe { &*target.immediate_exit }.store(1, Ordering::SeqCst);
            let (process, thread) = (i64::from(target.process), i64::from(target.thread));
            // SAFETY: sends a signal with an empty handler to a thread of this process.
            unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal_number()) };
        }
    }
}
