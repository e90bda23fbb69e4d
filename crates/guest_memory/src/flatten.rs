//! Putting a private view on another layer: one that has all that was written before an instant, so
//! that only pages written since stay private. A process with fewer private pages is split faster.
//!
//! The instant is the last split of this process. A page of this process's own that another process
//! has too was not written since then, and the layer has it; all others are copied. That holds
//! whoever of the family has ended: it only makes more pages count as written.

use std::fs::File;
use std::io;

use crate::mapping::{MapError, Sharing};
use crate::pagemap::{Entry, PageMap, PageMapError};
use crate::ram::{GuestRam, PAGE, SealedView, View};

/// Pages that are looked at in one go: 64 MiB.
const CHUNK_PAGES: u64 = 1 << 14;

/// The RAM stays on the layer that it was on.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// The RAM is not a private view.
    #[error("guest RAM is a shared view: it has no layer")]
    Shared,
    /// The layer is shorter than the RAM.
    #[error("the layer has {found} bytes, the RAM {wanted}")]
    Short {
        /// Size of the file, bytes.
        found: u64,
        /// Size of the RAM, bytes.
        wanted: u64,
    },
    /// The layer's size could not be read.
    #[error("cannot read the size of the layer")]
    Stat(#[source] io::Error),
    /// The page map is of no use.
    #[error(transparent)]
    PageMap(#[from] PageMapError),
    /// A mapping failed.
    #[error("cannot put guest RAM on another layer")]
    Map(#[from] MapError),
}

impl GuestRam {
    /// Puts the RAM on `layer`, which has its bytes of the instant at which this process was last
    /// split; what was written since is copied. Nothing may access the RAM meanwhile. Returns the
    /// view as it was, and how many pages were copied.
    pub fn flatten(
        &mut self,
        layer: File,
        pagemap: &File,
    ) -> Result<(SealedView, u64), FlattenError> {
        if self.view() != View::Private {
            return Err(FlattenError::Shared);
        }
        // fstat itself: the call behind `File::metadata` takes paths, which a jail denies.
        let stat = rustix::fs::fstat(&layer).map_err(|errno| FlattenError::Stat(errno.into()))?;
        let (found, wanted) = (stat.st_size.cast_unsigned(), self.len());
        if found < wanted {
            return Err(FlattenError::Short { found, wanted });
        }
        let written = self.written(&PageMap::of_this_process(pagemap)?)?;
        self.prepare_seal()?;
        let spare = self.spare.take().expect("prepared above");
        self.mapping.move_to(&spare)?;
        if let Err(error) = self.mapping.map(&layer, Sharing::Private) {
            spare
                .move_to(&self.mapping)
                .expect("moving a mapping back to its own free range");
            spare.forget();
            return Err(error.into());
        }
        for page in &written {
            self.mapping
                .copy_from(&spare, (page * PAGE) as usize, PAGE as usize);
        }
        self.file = layer;
        Ok((SealedView::moved(spare), written.len() as u64))
    }

    /// Returns the pages that were written since the last split, numbered from the RAM's first.
    fn written(&self, map: &PageMap<'_>) -> Result<Vec<u64>, PageMapError> {
        let first = self.host_address() / PAGE;
        let count = self.len().div_ceil(PAGE);
        let mut written = vec![];
        for start in (0..count).step_by(CHUNK_PAGES as usize) {
            let end = count.min(start + CHUNK_PAGES);
            let entries = map.entries(first + start..first + end)?;
            let alone = (start..end)
                .zip(entries)
                .filter(|(_, e): &(u64, Entry)| e.is_alone());
            written.extend(alone.map(|(page, _)| page));
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests;
