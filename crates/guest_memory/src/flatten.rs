//! Moving a private view onto a new layer, piece by piece, so that what was written into it is no
//! longer private: a process with fewer private pages is split faster.
//!
//! ```text
//! for each block of the RAM that has own pages, for each piece of it:
//!     copy the piece to the new layer                         the guest runs
//!     copy what changed since, map the layer in its place     the guest stands still
//! ```
//!
//! Between two pieces the view is whole, on two layers, and may be split: a child process has both.
//! The guest stands still for as long as it takes to compare one piece and to map it, whatever the
//! size of the RAM. Blocks without own pages stay on the layer that they are on.

use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate};

use crate::dump::{Below, DumpError, copy_piece, write_pages};
use crate::layers::Displaced;
use crate::mapping::MapError;
use crate::pagemap::{Entry, PageMap, PageMapError};
use crate::ram::{GuestRam, PAGE, View};

/// What is moved while the guest stands still once, bytes.
const PIECE_BYTES: u64 = 1 << 20;
/// What stays where it is if none of it is private, bytes: a mapping for each.
const BLOCK_BYTES: u64 = 64 << 20;
/// A view that is on so many layers is moved whole, since each of them stays as long as a part of it
/// is in use.
const LAYERS_MAX: usize = 3;

/// Guest RAM could not be moved onto another layer; it is where it was.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// The RAM is not a private view.
    #[error("guest RAM is a shared view: it has no layer")]
    Shared,
    /// The new layer has content, which would show where nothing is written, or another size.
    #[error("the new layer is not empty: it has {0} bytes")]
    NotEmpty(u64),
    /// It was not begun, or has ended.
    #[error("guest RAM is not being moved onto a layer")]
    NotBegun,
    /// The page map is of no use.
    #[error(transparent)]
    PageMap(#[from] PageMapError),
    /// The piece could not be copied.
    #[error(transparent)]
    Copy(#[from] DumpError),
    /// The new layer could not be written.
    #[error("cannot {action} the new layer")]
    Layer {
        /// What was tried.
        action: &'static str,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// A mapping failed.
    #[error("cannot put guest RAM on another layer")]
    Map(#[from] MapError),
}

fn layer_failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> FlattenError {
    move |error| FlattenError::Layer {
        action,
        source: error.into(),
    }
}

/// What a view is moved onto.
#[derive(Debug)]
pub struct NewLayer {
    /// A memory file without content that can be sealed: empty, or of the RAM's size.
    pub writable: File,
    /// The same, opened read-only: what is mapped, and what child processes get.
    pub read_only: File,
    /// `/proc/PID/pagemap` of this process.
    pub pagemap: File,
}

/// A view on its way onto a new layer.
#[derive(Debug)]
pub(crate) struct Flattening {
    writable: File,
    layer: Arc<File>,
    pagemap: File,
    /// Offset of the next piece.
    at: u64,
    /// Blocks without own pages are moved too.
    whole: bool,
    /// Offset of a piece that was copied and not put in its place.
    copied: Option<u64>,
    moved: u64,
    /// That piece as it was copied.
    then: Vec<u8>,
    /// Room for the same piece as it is now, which costs no page fault in the stun.
    now: Vec<u8>,
}

/// A piece that was copied to the new layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    offset: u64,
    len: usize,
}

impl Piece {
    /// Returns its size, bytes; it is never empty.
    #[expect(clippy::len_without_is_empty, reason = "a piece is never empty")]
    pub fn len(&self) -> u64 {
        self.len as u64
    }
}

impl GuestRam {
    /// Begins to move the view onto `new`. One that is on its way onto another layer stays on both.
    pub fn begin_flatten(&mut self, new: NewLayer) -> Result<(), FlattenError> {
        if self.view() != View::Private {
            return Err(FlattenError::Shared);
        }
        let NewLayer {
            writable,
            read_only,
            pagemap,
        } = new;
        // fstat itself: the call behind `File::metadata` takes paths, which a jail denies.
        let stat = rustix::fs::fstat(&writable).map_err(layer_failed("read the size of"))?;
        let size = stat.st_size.cast_unsigned();
        if stat.st_blocks != 0 || ![0, self.len()].contains(&size) {
            return Err(FlattenError::NotEmpty(size));
        }
        PageMap::of_this_process(&pagemap)?;
        if size == 0 {
            ftruncate(&writable, self.len()).map_err(layer_failed("give its size to"))?;
        }
        // Children that are born meanwhile map it: it must not become shorter.
        let seals = SealFlags::GROW | SealFlags::SHRINK;
        fcntl_add_seals(&writable, seals).map_err(layer_failed("seal"))?;
        self.flattening = Some(Flattening {
            writable,
            layer: Arc::new(read_only),
            pagemap,
            at: 0,
            whole: self.layers.count() >= LAYERS_MAX,
            copied: None,
            moved: 0,
            then: vec![0; PIECE_BYTES as usize],
            now: vec![1; PIECE_BYTES as usize],
        });
        Ok(())
    }

    /// Copies the next piece to the new layer, while the guest may write to it; the same again, if it
    /// was not put in its place. Returns none when all was moved: the layer is sealed then. A failure
    /// ends the move.
    pub fn next_piece(&mut self) -> Result<Option<Piece>, FlattenError> {
        let mut flattening = self.flattening.take().ok_or(FlattenError::NotBegun)?;
        let Some(offset) = self.next_own(&flattening)? else {
            fcntl_add_seals(&flattening.writable, SealFlags::WRITE)
                .map_err(layer_failed("seal"))?;
            return Ok(None);
        };
        let len = PIECE_BYTES.min(self.len() - offset) as usize;
        let mut then = mem::take(&mut flattening.then);
        self.copy_at(&flattening, offset, &mut then[..len])?;
        if flattening.copied == Some(offset) {
            // Only pages that are not zero are written.
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let punched = fallocate(&flattening.writable, flags, offset, len as u64);
            punched.map_err(layer_failed("punch a hole into"))?;
        }
        write_pages(&flattening.writable, offset, &then[..len]).map_err(layer_failed("write"))?;
        flattening.then = then;
        flattening.at = offset;
        flattening.copied = Some(offset);
        self.flattening = Some(flattening);
        Ok(Some(Piece { offset, len }))
    }

    /// Puts the RAM of `piece` on the new layer, with what was written since. Nothing may access the
    /// RAM meanwhile. A failure ends the move; what was moved before stays on the new layer. What is
    /// returned is dropped when the guest runs again.
    pub fn switch_piece(&mut self, piece: &Piece) -> Result<Displaced, FlattenError> {
        let mut flattening = self.flattening.take().ok_or(FlattenError::NotBegun)?;
        let Piece { offset, len } = *piece;
        if flattening.copied != Some(offset) {
            return Err(FlattenError::NotBegun);
        }
        let mut now = mem::take(&mut flattening.now);
        self.copy_at(&flattening, offset, &mut now[..len])?;
        let page = PAGE as usize;
        let pages = now[..len].chunks(page).zip(flattening.then.chunks(page));
        for (index, (now, then)) in pages.enumerate() {
            if now != &then[..now.len()] {
                let at = offset + index as u64 * PAGE;
                let written = flattening.writable.write_all_at(now, at);
                written.map_err(layer_failed("write"))?;
            }
        }
        self.mapping.map_part(&*flattening.layer, offset, len)?;
        let end = offset + len as u64;
        let displaced = self.layers.put(offset..end, &flattening.layer);
        flattening.now = now;
        flattening.at = end;
        flattening.copied = None;
        flattening.moved += len as u64;
        self.flattening = Some(flattening);
        Ok(displaced)
    }

    /// Returns how many bytes were put on the new layer, and how many are looked at still.
    pub fn flatten_progress(&self) -> Option<(u64, u64)> {
        let flattening = self.flattening.as_ref()?;
        Some((flattening.moved, self.len() - flattening.at))
    }

    /// In a child process: forgets what belongs to its parent, whose descriptors it does not have.
    pub fn forget_flattening(&mut self) {
        if let Some(flattening) = self.flattening.take() {
            let Flattening {
                writable,
                layer,
                pagemap,
                ..
            } = flattening;
            mem::forget((writable, layer, pagemap));
        }
    }

    /// Returns where the next piece is that is to be moved: in a block that was begun, or in the next
    /// one that has own pages.
    fn next_own(&self, flattening: &Flattening) -> Result<Option<u64>, FlattenError> {
        let map = PageMap::trusted(&flattening.pagemap);
        let (mut at, first) = (flattening.at, self.host_address() / PAGE);
        while at < self.len() {
            let end = self.len().min(at + BLOCK_BYTES);
            if flattening.whole || !at.is_multiple_of(BLOCK_BYTES) {
                return Ok(Some(at));
            }
            let pages = first + at / PAGE..first + end.div_ceil(PAGE);
            if map.entries(pages)?.into_iter().any(Entry::is_own) {
                return Ok(Some(at));
            }
            at = end;
        }
        Ok(None)
    }

    fn copy_at(
        &self,
        flattening: &Flattening,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), FlattenError> {
        let map = PageMap::trusted(&flattening.pagemap);
        let mut below = Below::new(&self.layers);
        copy_piece(self, offset, Some(&map), &mut below, bytes)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
