//! Copies of guest pages as they were when code of them was translated.

#![expect(unsafe_code, reason = "copies are reached by pointer")]

use super::piece::{PIECE_MAX, Piece};

pub(super) const PAGE: usize = 4096;
/// Smallest piece, bytes.
const PIECE_MIN: usize = 16 * PAGE;

/// A copy; it is good until it is given back.
#[derive(Debug)]
pub(super) struct Copy(*mut [u8; PAGE]);

/// Room for copies. Empty until one is made.
#[derive(Debug, Default)]
pub(super) struct Copies {
    pieces: Vec<Piece>,
    free: Vec<Copy>,
}

impl Copies {
    /// Returns a copy that `fill` writes.
    pub(super) fn make(&mut self, fill: impl FnOnce(&mut [u8; PAGE])) -> Copy {
        if self.free.is_empty() {
            let last = self.pieces.last().map_or(0, Piece::bytes);
            let piece = Piece::new((2 * last).clamp(PIECE_MIN, PIECE_MAX));
            let pages = 0..piece.bytes() / PAGE;
            let start = piece.start().cast::<[u8; PAGE]>();
            self.free
                .extend(pages.rev().map(|page| Copy(start.wrapping_add(page))));
            self.pieces.push(piece);
        }
        let copy = self.free.pop().expect("a piece was added");
        // SAFETY: a page of a piece that this structure owns; it is not given out twice.
        fill(unsafe { &mut *copy.0 });
        copy
    }

    /// What `copy`, one of these, holds.
    pub(super) fn get(&self, copy: &Copy) -> &[u8; PAGE] {
        // SAFETY: pieces go only when every copy goes; nothing writes while it is borrowed.
        unsafe { &*copy.0 }
    }

    /// Takes a copy back.
    pub(super) fn give_back(&mut self, copy: Copy) {
        self.free.push(copy);
    }

    /// Frees everything; there are no copies left.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_apart_and_are_used_again() {
        let mut copies = Copies::default();
        let made: Vec<_> = (0..100_u8)
            .map(|byte| copies.make(|page| page.fill(byte)))
            .collect();
        for (byte, copy) in (0..).zip(&made) {
            assert!(copies.get(copy).iter().all(|found| *found == byte));
        }
        let pieces = copies.pieces.len();
        for copy in made {
            copies.give_back(copy);
        }
        for _ in 0..100 {
            copies.make(|page| page.fill(0));
        }
        assert_eq!(copies.pieces.len(), pieces);
    }
}
