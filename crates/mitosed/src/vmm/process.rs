//! Processes of VMs: ending them, waiting for their end, finding forgotten ones.

use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use linux_sys::{ProcessEnd, process_end};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};

/// Environment variable that marks the VM processes of one data directory.
pub const HOME_MARK: &str = "MITOSE_VM_OF";
/// How a process ended, where that is known.
pub type Ending = Option<String>;

/// Longest wait for the parent of a process that has ended to put it away.
const PUT_AWAY_WITHIN: Duration = Duration::from_millis(500);

/// A process that was sent SIGKILL. It is held, so that its number is nobody else's in the wait.
#[derive(Debug)]
pub struct Killed {
    pid: Pid,
    pid_fd: OwnedFd,
}

/// Ends a process by SIGKILL and waits for it.
pub fn kill(pid: i32) -> Ending {
    send_kill(pid)?.wait()
}

/// Has a process ended by SIGKILL: it runs nothing any more, and what it has is freed by and by.
/// None where there is no such process.
pub fn send_kill(pid: i32) -> Option<Killed> {
    let pid = Pid::from_raw(pid)?;
    let pid_fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let _ = pidfd_send_signal(&pid_fd, Signal::KILL);
    Some(Killed { pid, pid_fd })
}

impl Killed {
    /// Waits until it has ended.
    pub fn wait(self) -> Ending {
        wait_end(&self.pid_fd, Duration::from_secs(10));
        status_of(self.pid)
    }
}

/// Waits until a process has ended, and takes its status where it is a child.
pub fn wait_gone(pid: i32, timeout: Duration) -> Ending {
    let pid = Pid::from_raw(pid)?;
    if let Ok(pid_fd) = pidfd_open(pid, PidfdFlags::empty()) {
        wait_end(&pid_fd, timeout);
    }
    status_of(pid)
}

/// Whether a process is there that has not ended. One that cannot be looked at counts as there.
pub fn lives(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else {
        return false;
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pid_fd) => !has_ended(&pid_fd),
        Err(errno) => errno != Errno::SRCH,
    }
}

/// Whether a process has ended.
pub(super) fn has_ended(pid_fd: &OwnedFd) -> bool {
    wait_end(pid_fd, Duration::ZERO)
}

/// Waits for the end of a process; returns whether it came in time.
fn wait_end(pid_fd: &OwnedFd, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(pid_fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Err(Errno::INTR) if !left.is_zero() => {}
            polled => return polled.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Takes the status of a child that has ended.
fn status_of(pid: Pid) -> Ending {
    match waitpid(Some(pid), WaitOptions::NOHANG) {
        Ok(Some((_, status))) => status
            .terminating_signal()
            .map(by_signal)
            .or_else(|| status.exit_status().map(with_code)),
        _ => None,
    }
}

/// How a process has ended that is no child of this daemon, where the kernel tells that.
pub fn ending_of(pid_fd: BorrowedFd<'_>) -> Ending {
    Some(match process_end(pid_fd, PUT_AWAY_WITHIN)? {
        ProcessEnd::Signal(signal) => by_signal(signal),
        ProcessEnd::Exit(code) => with_code(code),
    })
}

/// Whether a process came to its own end, as far as is known.
pub fn is_orderly(ending: &Ending) -> bool {
    ending.as_ref().is_none_or(|ending| *ending == with_code(0))
}

fn by_signal(signal: i32) -> String {
    format!("killed by signal {signal}")
}

fn with_code(code: i32) -> String {
    format!("exit code {code}")
}

/// Returns the VM processes that belong to the data directory `home`.
pub fn orphans_of(home: &Path, known: impl Fn(i32) -> bool) -> Vec<i32> {
    let mark = mark_of(home);
    let own = std::process::id() as i32;
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own && !known(*pid))
        .filter(|pid| environment(*pid).is_ok_and(|env| has_mark(&env, &mark)))
        .collect()
}

/// Whether `pid` is the number of a VM process of the data directory `home`, or of one that cannot be
/// looked at: a number on record may be another process's by now.
pub fn may_be_of(home: &Path, pid: i32) -> bool {
    match environment(pid) {
        Ok(env) => has_mark(&env, &mark_of(home)),
        Err(_) => lives(pid),
    }
}

/// Returns the effective user id of a process.
pub fn uid_of(pid: i32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn mark_of(home: &Path) -> String {
    format!("{HOME_MARK}={}", home.display())
}

fn environment(pid: i32) -> std::io::Result<Vec<u8>> {
    fs::read(format!("/proc/{pid}/environ"))
}

fn has_mark(env: &[u8], mark: &str) -> bool {
    env.split(|b| *b == 0).any(|entry| entry == mark.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn marked_processes_are_found_and_ended() {
        let home = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep")
            .arg("1000")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .env(HOME_MARK, home.path())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        // The kernel shows the environment a moment after it starts the program.
        let deadline = Instant::now() + Duration::from_secs(20);
        while orphans_of(home.path(), |_| false) != [pid] && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(orphans_of(home.path(), |known| known == pid).is_empty());
        let other = tempfile::tempdir().unwrap();
        let seen = || (lives(pid), may_be_of(home.path(), pid));
        assert_eq!(seen(), (true, true));
        assert!(!may_be_of(other.path(), pid));
        assert_eq!(kill(pid).as_deref(), Some("killed by signal 9"));
        assert_eq!(seen(), (false, false));
        assert!(orphans_of(home.path(), |_| false).is_empty());
        // The status was taken above.
        assert!(child.wait().is_err());
    }
}
