//! A table in memory that a `fork()` of the process does not copy: see [`Piece`].

#![expect(unsafe_code, reason = "a slice over mapped memory")]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use super::piece::Piece;

const PAGE: usize = 4096;

/// A fixed number of plain values; by default none.
#[derive(Debug)]
pub(super) struct Sheet<T> {
    start: NonNull<T>,
    len: usize,
    /// Where they are.
    _piece: Option<Piece>,
}

impl<T> Default for Sheet<T> {
    fn default() -> Self {
        Self {
            start: NonNull::dangling(),
            len: 0,
            _piece: None,
        }
    }
}

impl<T: Copy> Sheet<T> {
    /// Makes one of `len` times `value`.
    pub(super) fn new(len: usize, value: T) -> Self {
        let piece = Piece::new((len * size_of::<T>()).next_multiple_of(PAGE).max(PAGE));
        let start = NonNull::new(piece.start().cast::<T>()).expect("memory is not at 0");
        assert!(align_of::<T>() <= PAGE);
        for index in 0..len {
            // SAFETY: within the piece, which has room for `len` values and is aligned to a page.
            unsafe { start.add(index).write(value) };
        }
        Self {
            start,
            len,
            _piece: Some(piece),
        }
    }
}

impl<T> Deref for Sheet<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `new` wrote `len` values there, and the piece lives as long as this structure.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Sheet<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}
