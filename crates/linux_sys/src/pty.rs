//! Opening a pseudo-terminal (pts(4), ioctl_tty(2)).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Both sides of a new pseudo-terminal that passes bytes unchanged.
#[derive(Debug)]
pub struct Pty {
    /// The side that a program holds in place of a line; it does not block.
    pub controller: OwnedFd,
    /// The side that looks like a terminal.
    pub terminal: OwnedFd,
    /// Where others open the terminal.
    pub path: PathBuf,
}

/// Opens a pseudo-terminal in raw mode.
pub fn open_pty() -> io::Result<Pty> {
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC);
    let controller = options.open("/dev/ptmx")?;
    let (unlocked, mut number): (libc::c_int, libc::c_uint) = (0, 0);
    // SAFETY: the descriptor is open and the argument points to an int, which the call reads.
    check(unsafe {
        libc::ioctl(
            controller.as_raw_fd(),
            libc::TIOCSPTLCK,
            &raw const unlocked,
        )
    })?;
    // SAFETY: the descriptor is open and the argument points to an int, which the call writes.
    check(unsafe { libc::ioctl(controller.as_raw_fd(), libc::TIOCGPTN, &raw mut number) })?;
    let path = PathBuf::from(format!("/dev/pts/{number}"));
    let terminal = options.open(&path)?;
    // SAFETY: all bytes zero are a valid termios, and the call overwrites it.
    let mut mode: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and the structure is ours.
    check(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut mode) })?;
    // SAFETY: changes the structure alone.
    unsafe { libc::cfmakeraw(&raw mut mode) };
    // SAFETY: the descriptor is open and the structure was filled above.
    check(unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const mode) })?;
    Ok(Pty {
        controller: controller.into(),
        terminal: terminal.into(),
        path,
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn bytes_pass_unchanged() {
        let Ok(pty) = open_pty() else {
            eprintln!("skipped: this place has no pseudo-terminals");
            return;
        };
        let mut other = File::options()
            .read(true)
            .write(true)
            .open(&pty.path)
            .expect("the path is the terminal's");
        let mut controller = File::from(pty.controller);
        other.write_all(b"a\n\x03").expect("write");
        let mut bytes = [0; 3];
        controller.read_exact(&mut bytes).expect("read");
        assert_eq!(&bytes, b"a\n\x03");
        controller.write_all(b"b\r\n").expect("write");
        other.read_exact(&mut bytes).expect("read");
        assert_eq!(&bytes, b"b\r\n");
    }
}
