//! Signals that a program reads in place of being ended by them (signalfd(2)).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};

/// Signals that wait to be read.
#[derive(Debug)]
pub struct Signals(File);

impl Signals {
    /// Takes signals from the calling thread and from those that it starts later: a thread that runs
    /// already still meets them. What the process ignores, as under nohup(1), stays ignored.
    pub fn take(numbers: &[i32]) -> io::Result<Self> {
        // SAFETY: sigset_t is plain data that sigemptyset initialises fully.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: set is a live sigset_t.
        check(unsafe { libc::sigemptyset(&raw mut set) })?;
        for &number in numbers {
            if !is_ignored(number)? {
                // SAFETY: set is initialised; a number that is no signal is refused.
                check(unsafe { libc::sigaddset(&raw mut set, number) })?;
            }
        }
        // SAFETY: set is initialised and -1 asks for a new descriptor.
        let fd = check(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) })?;
        // SAFETY: the kernel has just returned this descriptor and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: set is initialised and the mask before is not asked for.
        match unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
        } {
            0 => Ok(Self(fd.into())),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for a signal and returns its number.
    pub fn wait(&self) -> io::Result<i32> {
        // The number is the first member of what the kernel tells.
        let mut told = [0; size_of::<libc::signalfd_siginfo>()];
        (&self.0).read_exact(&mut told)?;
        let number = u32::from_ne_bytes([told[0], told[1], told[2], told[3]]);
        Ok(number.cast_signed())
    }
}

fn is_ignored(number: i32) -> io::Result<bool> {
    // SAFETY: all bytes zero are a valid sigaction, and the call overwrites it.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed, and what is so goes to a live sigaction.
    check(unsafe { libc::sigaction(number, std::ptr::null(), &raw mut action) })?;
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_and_ignored_ones_stay_so() {
        // Of several that wait, the lowest number is read first.
        let (ignored, read) = (libc::SIGUSR1, libc::SIGUSR2);
        // SAFETY: no code is named, and nothing else here uses the signal.
        unsafe { libc::signal(ignored, libc::SIG_IGN) };
        let signals = Signals::take(&[read, ignored]).unwrap();
        for number in [ignored, read] {
            // SAFETY: it is ignored, or waits for this thread.
            assert_eq!(unsafe { libc::raise(number) }, 0);
        }
        assert_eq!(signals.wait().unwrap(), read);
        assert!(Signals::take(&[1000]).is_err());
    }
}
