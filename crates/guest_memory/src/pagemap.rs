//! The process's own page map (proc(5)): whose each page is.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::ram::PAGE;

const ENTRY_BYTES: usize = 8;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// A page map could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PageMapError {
    /// It is none, or that of another process.
    #[error("the page map is not that of this process")]
    Foreign,
    /// It could not be read.
    #[error("cannot read the page map")]
    Read(#[source] io::Error),
}

/// What the kernel tells of one page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry(u64);

impl Entry {
    /// The process wrote it, and its file below does not show; it may lie in swap.
    pub(crate) fn is_own(self) -> bool {
        self.0 & SWAPPED != 0 || self.0 & (PRESENT | OF_FILE) == PRESENT
    }
}

/// The page map of this process.
#[derive(Debug)]
pub(crate) struct PageMap<'a>(&'a File);

impl<'a> PageMap<'a> {
    /// Takes `/proc/PID/pagemap` of this process; tries it on a page that was just written.
    pub(crate) fn of_this_process(file: &'a File) -> Result<Self, PageMapError> {
        let map = Self(file);
        let written = Box::new([1u8; PAGE as usize]);
        let page = std::hint::black_box(&written).as_ptr() as u64 / PAGE;
        let entries = map.entries(page..page + 1)?;
        if entries.into_iter().all(Entry::is_own) {
            Ok(map)
        } else {
            Err(PageMapError::Foreign)
        }
    }

    /// Takes the page map that was tried before.
    pub(crate) fn trusted(file: &'a File) -> Self {
        Self(file)
    }

    /// Returns what is told of each page, numbered by address.
    pub(crate) fn entries(&self, pages: Range<u64>) -> Result<Vec<Entry>, PageMapError> {
        let count = (pages.end - pages.start) as usize;
        let mut bytes = vec![0; count * ENTRY_BYTES];
        match self
            .0
            .read_exact_at(&mut bytes, pages.start * ENTRY_BYTES as u64)
        {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(PageMapError::Foreign)
            }
            read => read.map_err(PageMapError::Read),
        }?;
        let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
        let entry = |bytes: &[u8; ENTRY_BYTES]| Entry(u64::from_ne_bytes(*bytes));
        Ok(entries.iter().map(entry).collect())
    }
}
