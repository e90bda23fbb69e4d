//! How long a thread runs at a stretch (sched_setattr(2), `sched_runtime` of an ordinary thread).
//!
//! A thread's slice does not change its share of the processor. A thread that wakes up is let in
//! at once where its slice is shorter than that of the thread that runs (Linux 6.12,
//! `PREEMPT_SHORT`); otherwise it may wait for all of the other's, which is milliseconds beside a
//! vCPU that never sleeps. Older kernels ignore it.

/// Who lets whom wait: of two threads, the one with the shorter slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hurry {
    /// Somebody waits for the answers of all others: a quarter of the usual slice.
    Daemon,
    /// It answers the daemon, which goes on meanwhile: half of the usual slice.
    VmProcess,
}

impl Hurry {
    fn share(self) -> u64 {
        match self {
            Self::Daemon => 4,
            Self::VmProcess => 2,
        }
    }
}

/// Gives the calling thread, and those that it starts from now on, short slices.
///
/// Where the kernel refuses, nothing changes.
pub fn take_short_slices(hurry: Hurry) {
    // What was inherited is somebody else's.
    set_slice(0);
    if let Some(usual_ns) = slice() {
        set_slice(usual_ns / hurry.share());
    }
}

/// Lets the calling thread, and those that it starts from now on, sleep no longer than they ask for:
/// the kernel adds up to 50 us else (prctl(2), `PR_SET_TIMERSLACK`).
pub fn take_exact_timers() {
    // SAFETY: the option takes a number of nanoseconds and changes nothing but the thread's timers.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// Gives the calling thread, and those that it starts from now on, the kernel's usual slices.
///
/// Where the kernel refuses, nothing changes.
pub fn take_usual_slices() {
    set_slice(0);
}

/// Gives the calling thread slices of so many nanoseconds; 0 for the usual ones.
pub(crate) fn set_slice(slice_ns: u64) {
    let Some(mut attributes) = attributes() else {
        return;
    };
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return;
    }
    attributes.sched_runtime = slice_ns;
    // SAFETY: the structure is valid and only read; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// The slices of the calling thread, nanoseconds, where the kernel tells them.
pub(crate) fn slice() -> Option<u64> {
    attributes().map(|attributes| attributes.sched_runtime)
}

/// What the scheduler knows of the calling thread; its slice is told since Linux 6.12.
fn attributes() -> Option<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the structure has the size that is told; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    (result == 0).then_some(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_inherit_a_slice_and_may_leave_it() {
        // In a thread of its own: others of this process keep theirs.
        let told = std::thread::spawn(|| {
            let before = slice();
            take_short_slices(Hurry::VmProcess);
            let in_vm = slice();
            take_short_slices(Hurry::Daemon);
            let of_child = std::thread::spawn(slice).join().unwrap();
            let own = slice();
            take_usual_slices();
            (before, in_vm, own, of_child, slice())
        });
        let (before, in_vm, own, of_child, after) = told.join().unwrap();
        assert_eq!(own, of_child);
        assert_eq!(after, before);
        // A kernel that has no slices tells none.
        if let Some(usual) = before.filter(|ns| *ns != 0) {
            assert_eq!((in_vm, own), (Some(usual / 2), Some(usual / 4)));
        }
    }
}
