//! Memory of what is made from guest code, in pieces that a `fork()` of the process does not copy.
//!
//! A VM is forked by a `fork()` of its process, and the new process runs vCPUs of its own that translate
//! afresh: tens of megabytes that nobody reads would have their page tables copied while the guest
//! stands still, and each page that the source writes to after it.

#![expect(unsafe_code, reason = "memory is mapped and given back")]

use std::alloc::{Layout, handle_alloc_error};
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Largest piece of what grows by pieces, and alignment from there on: a huge page of the host.
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
    /// Maps `bytes`, whole pages.
    pub(super) fn new(bytes: usize) -> Self {
        let large = bytes >= PIECE_MAX;
        let start = if large {
            map_aligned(bytes)
        } else {
            map(bytes)
        };
        // A host that does not take the advice is only slower.
        for advice in [Advice::LinuxDontFork, Advice::LinuxHugepage] {
            if advice == Advice::LinuxDontFork || large {
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

/// Maps `bytes` at a multiple of [`PIECE_MAX`].
fn map_aligned(bytes: usize) -> *mut u8 {
    let around = map(bytes + PIECE_MAX);
    let before = around.addr().wrapping_neg() % PIECE_MAX;
    let start = around.wrapping_add(before);
    let rest = [
        (around, before),
        (start.wrapping_add(bytes), PIECE_MAX - before),
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
        let large = [PIECE_MAX, 2 * PIECE_MAX + 4096].map(Piece::new);
        for piece in &large {
            assert_eq!(piece.start().addr() % PIECE_MAX, 0);
        }
        for piece in large.into_iter().chain([Piece::new(4096)]) {
            // SAFETY: within the piece, which nobody else has.
            let (first, last) = unsafe {
                let last = piece.start().add(piece.bytes() - 1);
                (piece.start().read(), last.read())
            };
            assert_eq!((first, last), (0, 0));
            let maps = std::fs::read_to_string("/proc/self/smaps").expect("a file of the kernel");
            // Neighbours may be one mapping.
            let start = piece.start().addr();
            let has_it = |line: &&str| {
                let range = line
                    .split(' ')
                    .next()
                    .and_then(|range| range.split_once('-'));
                let number = |text| usize::from_str_radix(text, 16).ok();
                range.is_some_and(|(from, to)| {
                    number(from).is_some_and(|from| from <= start)
                        && number(to).is_some_and(|to| start < to)
                })
            };
            let mut mapping = maps.lines().skip_while(|line| !has_it(line));
            let flags = mapping.find(|line| line.starts_with("VmFlags"));
            assert!(
                flags.is_some_and(|flags| flags.contains(" dc")),
                "{flags:?}"
            );
        }
    }
}
