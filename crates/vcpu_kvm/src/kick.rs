//! Interrupting a thread that is inside `KVM_RUN`.
//!
//! `immediate_exit` makes the next `KVM_RUN` return at once, the signal ends one that is under way;
//! both together leave no window in which a kick is lost (KVM API, `KVM_RUN`).
//!
//! The signal comes from a timer of this process: unlike `tgkill` it cannot reach another process,
//! so the jail of a VM process allows it and no call that sends signals. It costs about 15 µs more.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, Once};
use std::{io, ptr};

use vcpu::{EngineError, Kick};

/// The signal that ends `KVM_RUN`.
fn signal_number() -> i32 {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn failed_call(call: &'static str) -> impl FnOnce(io::Error) -> EngineError {
    move |source| EngineError::Call { call, source }
}

/// Installs the empty handler, once in a process.
pub(crate) fn install_handler() -> Result<(), EngineError> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        result = vmm_sys_util::signal::register_signal_handler(signal_number(), on_kick)
            .map_err(|error| failed_call("sigaction")(io::Error::from_raw_os_error(error.errno())));
    });
    result
}

/// A timer that signals one thread of this process when it is set.
#[derive(Debug)]
struct SignalTimer(libc::timer_t);

impl SignalTimer {
    fn for_this_thread() -> io::Result<Self> {
        // SAFETY: plain data, for which zeros are valid.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal_number();
        // SAFETY: only returns a number.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = ptr::null_mut();
        let clock = libc::CLOCK_MONOTONIC;
        // SAFETY: both pointers lead to live variables.
        match unsafe { libc::timer_create(clock, &raw mut event, &raw mut timer) } {
            0 => Ok(Self(timer)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends the signal: the time it is set to has passed long ago.
    fn fire(&self) {
        const LONG_AGO: libc::timespec = libc::timespec {
            tv_sec: 0,
            tv_nsec: 1,
        };
        let once = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: LONG_AGO,
        };
        let no_old = ptr::null_mut();
        // SAFETY: the timer lives as long as `self`; the value is valid, so the call cannot fail.
        unsafe { libc::timer_settime(self.0, libc::TIMER_ABSTIME, &raw const once, no_old) };
    }
}

impl Drop for SignalTimer {
    fn drop(&mut self) {
        // SAFETY: made by `for_this_thread` and deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[derive(Debug)]
struct Target {
    immediate_exit: *const AtomicU8,
    timer: SignalTimer,
}

/// Kicks one vCPU; does nothing after the vCPU is gone.
#[derive(Debug)]
pub(crate) struct KvmKick(Mutex<Option<Target>>);

// SAFETY: the pointer is used only under the mutex and only while the vCPU, which owns the mapping
// it points into, has not called `detach`; the byte it points to is atomic. Timers belong to the
// process, not to a thread.
unsafe impl Send for KvmKick {}
// SAFETY: as for `Send`; all access goes through the mutex.
unsafe impl Sync for KvmKick {}

impl KvmKick {
    /// Makes a kick for the calling thread. `immediate_exit` must stay valid until `detach`.
    pub(crate) fn for_this_thread(immediate_exit: *const AtomicU8) -> Result<Self, EngineError> {
        let timer = SignalTimer::for_this_thread().map_err(failed_call("timer_create"))?;
        Ok(Self(Mutex::new(Some(Target {
            immediate_exit,
            timer,
        }))))
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
            target.timer.fire();
        }
    }
}
