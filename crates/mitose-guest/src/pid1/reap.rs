//! Collecting ended children, own and adopted.

use rustix::process::{Pid, WaitOptions, wait};

/// A child that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) pid: Pid,
    /// Exit code, or 128 + signal.
    pub(super) code: i32,
}

/// Calls `each` for every child that has ended by now; false when there are no children left.
pub(super) fn ended_children(mut each: impl FnMut(Ended)) -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let code = status
                    .exit_status()
                    .or_else(|| status.terminating_signal().map(|s| 128 + s))
                    .unwrap_or(0);
                each(Ended { pid, code });
            }
            Ok(None) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
