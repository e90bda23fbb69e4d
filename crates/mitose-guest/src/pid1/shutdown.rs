//! The end: processes asked, then killed; file systems written and made read-only; power off.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::system::{RebootCommand, reboot};

use super::reap::ended_children;
use crate::{linux, log};

/// How long processes may take after SIGTERM.
const TERM_WAIT: Duration = Duration::from_secs(8);

/// How long they may take to disappear after SIGKILL.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// What the machine does at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    PowerOff,
    Restart,
}

/// Stops every process in order, then the machine.
pub(super) fn orderly(how: How) -> ! {
    linux::kill_everyone(libc::SIGTERM);
    // A stopped process takes its SIGTERM only when it goes on.
    linux::kill_everyone(libc::SIGCONT);
    if !wait_for_nobody(TERM_WAIT) {
        linux::kill_everyone(libc::SIGKILL);
        wait_for_nobody(KILL_WAIT);
    }
    now(how)
}

/// Writes file systems back and stops the machine.
pub(super) fn now(how: How) -> ! {
    rustix::fs::sync();
    unmount_all();
    rustix::fs::sync();
    let command = match how {
        How::PowerOff => RebootCommand::PowerOff,
        How::Restart => RebootCommand::Restart,
    };
    if let Err(error) = reboot(command) {
        log(&format!("cannot stop the machine: {error}"));
    }
    // Process 1 must not return; a machine that cannot power off halts here.
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn wait_for_nobody(limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while ended_children(|_| {}) {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Unmounts what can be unmounted, latest first, and makes block file systems read-only.
fn unmount_all() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ');
        let (Some(source), Some(target)) = (fields.next(), fields.next()) else {
            continue;
        };
        if !source.starts_with("/dev/") {
            continue;
        }
        let target = target.replace("\\040", " ");
        if target != "/" && unmount(target.as_str(), UnmountFlags::empty()).is_ok() {
            continue;
        }
        let read_only = mount_remount(Path::new(&target), MountFlags::RDONLY, "");
        if let Err(error) = read_only {
            log(&format!("cannot make {target} read-only: {error}"));
        }
    }
}
