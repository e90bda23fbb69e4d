//! Starting a process that finds a descriptor at a number it knows.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Starts `command` with `fd` as its descriptor `number`; every other descriptor that is marked
/// close-on-exec, as all of Rust's are, stays behind.
pub fn spawn_with_fd(
    command: &mut Command,
    fd: BorrowedFd<'_>,
    number: RawFd,
) -> io::Result<Child> {
    let from = fd.as_raw_fd();
    let place = move || {
        let result = if from == number {
            // SAFETY: fcntl with F_SETFD takes plain values and touches no memory.
            unsafe { libc::fcntl(from, libc::F_SETFD, 0) }
        } else {
            // SAFETY: dup2 takes plain values; `number` belongs to nobody in the child, which
            // executes another program next.
            unsafe { libc::dup2(from, number) }
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: between fork and exec the closure makes one async-signal-safe call and allocates
    // nothing.
    unsafe { command.pre_exec(place) };
    command.spawn()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_child_finds_the_descriptor_at_its_number() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "read line <&3; echo \"got $line\" >&3"]);
        let mut child = spawn_with_fd(&mut command, theirs.as_fd(), 3).unwrap();
        drop(theirs);
        (&ours).write_all(b"word\n").unwrap();
        let mut text = String::new();
        (&ours).read_to_string(&mut text).unwrap();
        assert_eq!(text, "got word\n");
        assert!(child.wait().unwrap().success());
    }
}
