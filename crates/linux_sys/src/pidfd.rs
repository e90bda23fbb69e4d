//! How a process ended that is no child of this one (`PIDFD_GET_INFO`, Linux 6.15).

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use libc::{c_int, c_ulong};

/// `_IOWR(0xff, 11, struct pidfd_info)`, its first version of 64 bytes.
const GET_INFO: c_ulong = 0xc040_ff0b;
/// The kernel has kept the status.
const HAS_EXIT: u64 = 1 << 3;

/// `struct pidfd_info` of `linux/pidfd.h`.
#[repr(C)]
#[derive(Default)]
struct Told {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    /// By itself, with this code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// Waits until the process of a pidfd has been put away by its parent, at most `patience`, and
/// returns how it ended. None where it has not, or where the kernel does not tell; the pidfd must
/// have been opened while the process lived.
pub fn process_end(pidfd: BorrowedFd<'_>, patience: Duration) -> Option<ProcessEnd> {
    let first = ask(pidfd)?;
    if first.mask & HAS_EXIT == 0 {
        let mut poll = libc::pollfd {
            fd: pidfd.as_raw_fd(),
            // Only the hang-up, which comes with the status; POLLIN comes with the end.
            events: 0,
            revents: 0,
        };
        let millis = c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the call writes to one pollfd, which lives.
        unsafe { libc::poll(&raw mut poll, 1, millis) };
    }
    let told = ask(pidfd).filter(|told| told.mask & HAS_EXIT != 0)?;
    // As wait(2) has it: a signal in the low bits, else a code above them.
    Some(match told.exit_code & 0x7f {
        0 => ProcessEnd::Exit(told.exit_code >> 8 & 0xff),
        signal => ProcessEnd::Signal(signal),
    })
}

fn ask(pidfd: BorrowedFd<'_>) -> Option<Told> {
    let mut told = Told {
        mask: HAS_EXIT,
        ..Told::default()
    };
    // SAFETY: the kernel reads and writes the 64 bytes that the number of the call names, and
    // `Told` has as many.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut told) };
    (result == 0).then_some(told)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

    use super::*;

    #[test]
    fn the_structure_is_as_long_as_the_call_says() {
        assert_eq!(size_of::<Told>() as c_ulong, GET_INFO >> 16 & 0x3fff);
    }

    #[test]
    fn the_end_of_a_grandchild_is_told() {
        // A parent that ignores SIGCHLD has its children put away by the kernel, as VM processes.
        let mut parent = Command::new("sh")
            .args(["-c", "trap '' CHLD; sleep 1000 & echo $!; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(parent.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let pid = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let told = ask(pidfd.as_fd()).is_some();
        assert_eq!(process_end(pidfd.as_fd(), Duration::from_millis(1)), None);
        pidfd_send_signal(&pidfd, Signal::SEGV).unwrap();
        let end = process_end(pidfd.as_fd(), Duration::from_secs(20));
        drop(parent.stdin.take());
        parent.wait().unwrap();
        // Kernels before 6.15 do not tell.
        let version = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = version.split('.').map(|word| word.parse().unwrap_or(0));
        let newer = (numbers.next(), numbers.next()) >= (Some(6), Some(15));
        assert!(told || !newer, "{version}");
        assert_eq!(end, newer.then_some(ProcessEnd::Signal(11)));
    }
}
