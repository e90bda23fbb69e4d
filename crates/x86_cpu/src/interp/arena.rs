//! Memory of translated blocks and their headers: large pieces that only grow, so that blocks lie
//! side by side.
//!
//! Running code waits for its micro-ops more than for anything else: blocks spread over the heap cost
//! an entry of the host's TLB each. A dropped block's place is lost until all is cleared.

#![expect(unsafe_code, reason = "blocks are reached by pointer")]

use super::op::Slot;
use super::piece::{PIECE_MAX, Piece};

/// Smallest piece, bytes: a clone that idles runs little code.
const PIECE_MIN: usize = 64 << 10;

fn slots(piece: &Piece) -> usize {
    piece.bytes() / size_of::<Slot>()
}

/// See the module. Empty until something is added.
#[derive(Debug, Default)]
pub(super) struct Arena {
    pieces: Vec<Piece>,
    /// Slots of the last piece that are in use.
    used: usize,
    bytes: usize,
}

impl Arena {
    /// Copies a block, of at most some hundred slots, to a place where it stays until
    /// [`clear`](Self::clear).
    pub(super) fn add(&mut self, block: &[Slot]) -> *mut Slot {
        let room = |piece: &Piece| slots(piece) - self.used >= block.len();
        if !self.pieces.last().is_some_and(room) {
            let last = self.pieces.last().map_or(0, Piece::bytes);
            let bytes = (2 * last).clamp(PIECE_MIN, PIECE_MAX);
            self.pieces.push(Piece::new(bytes));
            self.used = 0;
        }
        let piece = self.pieces.last().expect("a piece was added");
        assert!(
            block.len() <= slots(piece),
            "a block is larger than a piece"
        );
        // SAFETY: `used` and the block's length together are within the piece, which does not
        // overlap the caller's slots.
        let place = unsafe {
            let place = piece.start().cast::<Slot>().add(self.used);
            place.copy_from_nonoverlapping(block.as_ptr(), block.len());
            place
        };
        self.used += block.len();
        self.bytes += size_of_val(block);
        place
    }

    /// Bytes handed out.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frees everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
