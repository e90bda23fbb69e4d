//! Writing the RAM of one instant to a file: a memory layer made of a private view.
//!
//! A page is either the guest's own or what the layer below shows. Which one it is tells the
//! process's page map (proc(5)): own pages are copied out of the mapping, where they are present,
//! and all others out of the layer's file. Nothing is mapped in for it, and no hole of a layer in
//! memory is filled, so that the RAM is neither doubled nor made whole by being read.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::layers::Layers;
use crate::pagemap::{Entry, PageMap, PageMapError};
use crate::ram::{GuestRam, PAGE, ram_ranges};
use rustix::fs::{SeekFrom, ftruncate};
use rustix::io::Errno;

/// What is copied at a time, bytes.
const CHUNK_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = PAGE as usize;

/// Guest RAM could not be written to a file.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The file has content: what is not written would show it.
    #[error("the file for guest RAM is not empty: it has {0} bytes")]
    NotEmpty(u64),
    /// The page map is of no use.
    #[error(transparent)]
    PageMap(#[from] PageMapError),
    /// A host call failed.
    #[error("cannot {action}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// The host's error.
        #[source]
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> DumpError {
    move |error| DumpError::Host {
        action,
        source: error.into(),
    }
}

impl GuestRam {
    /// Writes the RAM to `out`, an empty file that gets the size of the RAM, with holes where pages
    /// are zero. Nothing writes to the RAM meanwhile. `pagemap` is `/proc/PID/pagemap` of this
    /// process; without it all RAM is mapped in by being read.
    pub fn dump(&self, out: &File, pagemap: Option<&File>) -> Result<(), DumpError> {
        // fstat itself: the call behind `File::metadata` takes paths, which a jail denies.
        let stat = rustix::fs::fstat(out).map_err(failed("read the size of the file"))?;
        if stat.st_size != 0 {
            return Err(DumpError::NotEmpty(stat.st_size.cast_unsigned()));
        }
        ftruncate(out, self.len()).map_err(failed("give the file the size of the RAM"))?;
        let map = pagemap.map(PageMap::of_this_process).transpose()?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut below = Below::new(&self.layers);
        for range in ram_ranges(self.len()) {
            for start in (0..range.len).step_by(CHUNK_BYTES) {
                let len = (range.len - start).min(CHUNK_BYTES as u64);
                let offset = range.offset + start;
                let chunk = &mut chunk[..len as usize];
                copy_piece(self, offset, map.as_ref(), &mut below, chunk)?;
                write_pages(out, offset, chunk).map_err(failed("write guest RAM"))?;
            }
        }
        Ok(())
    }
}

/// Copies the RAM from `offset` on into `piece`, without mapping anything in where `map` tells which
/// pages are the process's own.
pub(crate) fn copy_piece(
    ram: &GuestRam,
    offset: u64,
    map: Option<&PageMap<'_>>,
    below: &mut Below<'_>,
    piece: &mut [u8],
) -> Result<(), DumpError> {
    let page = (ram.host_address() + offset) / PAGE;
    let pages = piece.len().div_ceil(PAGE_BYTES);
    let own: Vec<_> = match map {
        Some(map) => {
            let entries = map.entries(page..page + pages as u64)?;
            entries.into_iter().map(Entry::is_own).collect()
        }
        None => vec![true; pages],
    };
    let mut at = 0;
    for run in own.chunk_by(|one, next| one == next) {
        let end = piece.len().min(at + run.len() * PAGE_BYTES);
        let part = &mut piece[at..end];
        let offset = offset + at as u64;
        if run[0] {
            let read = ram.read_at(offset, part);
            read.map_err(failed("read guest RAM"))?;
        } else {
            let read = below.read(part, offset);
            read.map_err(failed("read the memory layer"))?;
        }
        at = end;
    }
    Ok(())
}

/// Writes those pages of `chunk` that are not all zeros.
pub(crate) fn write_pages(out: &File, offset: u64, chunk: &[u8]) -> io::Result<()> {
    let pages: Vec<_> = chunk.chunks(PAGE_BYTES).collect();
    // Without an early end, so that many bytes are looked at in one step.
    let is_zero = |page: &[u8]| page.iter().fold(0, |found, byte| found | byte) == 0;
    let zero: Vec<_> = pages.iter().map(|page| is_zero(page)).collect();
    let mut at = 0;
    for run in zero.chunk_by(|one, next| one == next) {
        let end = chunk.len().min(at + run.len() * PAGE_BYTES);
        if !run[0] {
            out.write_all_at(&chunk[at..end], offset + at as u64)?;
        }
        at = end;
    }
    Ok(())
}

/// What lies below a view, and the place of the data that was found last.
pub(crate) struct Below<'a> {
    layers: &'a Layers,
    /// Where the same layer shows on.
    part_end: u64,
    data: Range<u64>,
}

impl<'a> Below<'a> {
    pub(crate) fn new(layers: &'a Layers) -> Self {
        Self {
            layers,
            part_end: 0,
            data: 0..0,
        }
    }

    /// Reads `part` from `offset` on, holes as zeros; reads follow each other in order.
    fn read(&mut self, part: &mut [u8], offset: u64) -> io::Result<()> {
        part.fill(0);
        let end = offset + part.len() as u64;
        let mut at = offset;
        while at < end {
            let (file, part_end) = self.layers.at(at);
            if at >= self.part_end {
                (self.part_end, self.data) = (part_end, 0..0);
            }
            if at >= self.data.end {
                self.data = data_after(file, at)?;
            }
            let stop = end.min(part_end);
            let from = at.max(self.data.start).min(stop);
            let to = stop.min(self.data.end).max(from);
            let inside = (from - offset) as usize..(to - offset) as usize;
            file.read_exact_at(&mut part[inside], from)?;
            at = to;
        }
        Ok(())
    }
}

/// Returns where the first data of `file` at or after `at` lies; beyond all files, where there is
/// none.
fn data_after(file: &File, at: u64) -> io::Result<Range<u64>> {
    let seek = |position| rustix::fs::seek(file, position);
    match seek(SeekFrom::Data(at)) {
        Ok(start) => Ok(start..seek(SeekFrom::Hole(start))?),
        Err(Errno::NXIO) => Ok(u64::MAX..u64::MAX),
        // A file system that does not tell: all of it is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(0..u64::MAX),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests;
