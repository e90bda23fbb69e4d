//! What `fork()` alone costs a process on this host: the floor under every fork of a VM that runs
//! on a private view, since that is a `fork()` of its process.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, waitpid};

const PAGE_BYTES: usize = 4096;

/// A private view of a memory file that is all there, as a VM has of its layer.
struct PrivateView {
    start: NonNull<u8>,
    bytes: usize,
}

impl PrivateView {
    fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: the name is a string that ends in zero; the descriptor is ours alone.
        let file = unsafe {
            let fd = libc::memfd_create(c"mitose-floor".as_ptr(), libc::MFD_CLOEXEC);
            check(fd)?;
            File::from_raw_fd(fd)
        };
        file.set_len(bytes as u64)?;
        let map = |flags| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    flags,
                    file.as_raw_fd(),
                    0,
                )
            };
            let start = NonNull::new(start.cast()).filter(|_| start != libc::MAP_FAILED);
            let start = start.ok_or_else(io::Error::last_os_error)?;
            Ok::<_, io::Error>(Self { start, bytes })
        };
        // The file has all its pages before it is mapped privately.
        map(libc::MAP_SHARED)?.write(1);
        map(libc::MAP_PRIVATE)
    }

    /// Writes one word into each page whose number is a multiple of `every`.
    fn write(&self, every: usize) {
        for page in (0..self.bytes / PAGE_BYTES).step_by(every) {
            // SAFETY: inside of the mapping, which is writable and nobody else's; page starts are
            // aligned.
            unsafe {
                let word = self.start.add(page * PAGE_BYTES).cast::<u64>();
                word.write_volatile(page as u64);
            }
        }
    }
}

impl Drop for PrivateView {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, to which no reference is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Returns how long `fork()` takes in a process that has a private view of a memory file of `bytes`
/// and has written one page in `every` of it. Takes as much memory meanwhile.
pub fn fork_cost(bytes: usize, every: usize) -> io::Result<Duration> {
    let view = PrivateView::new(bytes)?;
    view.write(every.max(1));
    let from = Instant::now();
    // SAFETY: the child calls nothing but `_exit`, whatever other threads were doing.
    let child = unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        child
    };
    let took = from.elapsed();
    check(child)?;
    waitpid(Pid::from_raw(child), WaitOptions::empty())?;
    Ok(took)
}

fn check(returned: i32) -> io::Result<()> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_is_timed() {
        let took = fork_cost(1 << 20, 10).expect("a fork");
        assert!(took > Duration::ZERO);
        fork_cost(0, 1).expect_err("a view of nothing");
    }

    #[test]
    fn a_view_that_cannot_be_is_an_error() {
        assert!(fork_cost(usize::MAX / 2, 1).is_err());
    }
}
