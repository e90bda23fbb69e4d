//! Memory of what is made from guest code, in pieces that a `fork()` of the process does not copy.
//!
//! A VM is forked by a `fork()` of its process, and the new process runs vCPUs of its own that translate
//! afresh: tens of megabytes that nobody reads would have their page tables copied while the guest
//! stands still, and each page that the source writes to after it.

#![expect(unsafe_code, reason = "memory is mapped and given back")]

use std::alloc::{Layout, handle_alloc_error};
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Largest piece, and its alignment: a huge page of the host.
pub(super) const PIECE_MAX: usize = 2 << 20;

/// Zeroed memory at a place of its own. It is not there in a child process, which must neither use nor
/// drop it.
#[derive(Debug)]
pub(super) struct Piece {
    start: *mut u8,
    bytes: usize,
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: the mapping is this structure's own, and whoever had pointers into it is done.
        let unmapped = unsafe { munmap(self.start.cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of this structure's own");
    }
}

impl Piece {
    /// Maps `bytes`, whole pages of at most [`PIECE_MAX`] bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let start = if bytes == PIECE_MAX {
            map_aligned()
        } else {
            map(bytes)
        };
        // A host that does not take the advice is only slower.
        for advice in [Advice::LinuxDontFork, Advice::LinuxHugepage] {
            if advice == Advice::LinuxDontFork || bytes == PIECE_MAX {
                // SAFETY: the mapping is this structure's own; the advice changes no content here.
                let _ = unsafe { madvise(start.cast(), bytes, advice) };
            }
        }
        Self { start, bytes }
    }

    /// Where it begins; aligned to a page.
    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }

    /// Its length.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn map(bytes: usize) -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at a place that the kernel chooses.
    match unsafe { mmap_anonymous(ptr::null_mut(), bytes, access, MapFlags::PRIVATE) } {
        Ok(start) => start.cast(),
        Err(_) => handle_alloc_error(Layout::from_size_align(bytes, 4096).expect("few bytes")),
    }
}

/// Maps [`PIECE_MAX`] bytes at a multiple of that.
fn map_aligned() -> *mut u8 {
    let around = map(2 * PIECE_MAX);
    let before = around.addr().wrapping_neg() % PIECE_MAX;
    let start = around.wrapping_add(before);
    let rest = [
        (around, before),
        (start.wrapping_add(PIECE_MAX), PIECE_MAX - before),
    ];
    for (from, bytes) in rest {
        if bytes > 0 {
            // SAFETY: a part of the new mapping that nothing points into.
            let unmapped = unsafe { munmap(from.cast(), bytes) };
            debug_assert!(unmapped.is_ok(), "a part of the new mapping");
        }
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zeroed_aligned_and_not_in_a_child() {
        let large = Piece::new(PIECE_MAX);
        assert_eq!(large.start().addr() % PIECE_MAX, 0);
        for piece in [Piece::new(4096), large] {
            // SAFETY: within the piece, which nobody else has.
            let (first, last) = unsafe {
                let last = piece.start().add(piece.bytes() - 1);
                (piece.start().read(), last.read())
            };
            assert_eq!((first, last), (0, 0));
            let maps = std::fs::read_to_string("/proc/self/smaps").expect("a file of the kernel");
            let line = format!("{:x}-", piece.start().addr());
            let mapping = maps.split(&line).nth(1).expect("the piece is a mapping");
            let flags = mapping.lines().find(|line| line.starts_with("VmFlags"));
            assert!(
                flags.is_some_and(|flags| flags.contains(" dc")),
                "{flags:?}"
            );
        }
    }
}
