//! Guest RAM by the page: digests that tell which pages differ from an earlier export, the member
//! that has only these, and putting them in their places.
//!
//! A *table* has 16 bytes for each page: the first of its SHA-256, or zeros for a page of zeros. It
//! is a sparse file of 1/256 of the RAM's size.
//!
//! The member `memory/changes` is a list of runs by rising page number, each with a header of 16 bytes
//! (little endian) and, where its pages are not zeros, their content:
//!
//! ```text
//! first page  u64  │ pages  u32, 1 to 256 │ kind  u32: 0 zeros, 1 content │ pages × 4096 bytes
//! ```

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use sha2::{Digest, Sha256};

use crate::content::{ZEROS, broken, hex, proceed};
use crate::{ArchiveError, Blob, Watch};

#[cfg(test)]
mod tests;

/// Size of a page, bytes.
pub const PAGE_BYTES: u64 = 4096;
/// Bytes that a page has in a table.
const ENTRY: usize = 16;
/// Pages that are handled at once, and the most of a run.
const STEP_PAGES: usize = 256;
const PAGE: usize = PAGE_BYTES as usize;
const STEP: usize = STEP_PAGES * PAGE;
/// Header of a run, bytes.
const HEADER: usize = 16;
const ZERO_ENTRY: [u8; ENTRY] = [0; ENTRY];

/// What a reading of guest RAM told.
#[derive(Debug)]
pub struct Survey {
    /// The whole RAM.
    pub ram: Blob,
    /// The table that was written; nothing where it could not be.
    pub table: Option<Blob>,
    /// Pages that are not zeros.
    pub full_pages: u64,
    /// What differs from the earlier table, where one was given.
    pub changes: Option<Changes>,
}

/// Pages that differ from those of an earlier export.
#[derive(Debug, Default)]
pub struct Changes {
    runs: Vec<Run>,
    /// Pages whose content is in the member.
    pub full_pages: u64,
}

/// Pages side by side. Small, since there are many of a guest that writes here and there: at most one
/// for each page, 1/512 of its RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u32,
    count: u16,
    full: bool,
}

impl Run {
    fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&u64::from(self.first).to_le_bytes());
        header[8..12].copy_from_slice(&u32::from(self.count).to_le_bytes());
        header[12..].copy_from_slice(&u32::from(self.full).to_le_bytes());
        header
    }

    /// The run of a header, where it can be one: it begins at page `next` or later, and ends within
    /// RAM of `pages`.
    fn parse(header: [u8; HEADER], next: u64, pages: u64) -> Option<Self> {
        let (first, rest) = header.split_at(8);
        let (count, kind) = rest.split_at(4);
        let first = u64::from_le_bytes(first.try_into().ok()?);
        let run = Self {
            first: u32::try_from(first).ok()?,
            count: u16::try_from(u32::from_le_bytes(count.try_into().ok()?)).ok()?,
            full: match u32::from_le_bytes(kind.try_into().ok()?) {
                0 => false,
                1 => true,
                _ => return None,
            },
        };
        let counted = (1..=STEP_PAGES).contains(&usize::from(run.count));
        (counted && first >= next && run.end() <= pages).then_some(run)
    }

    /// The page after the last one.
    fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }

    /// Where it begins, bytes.
    fn at(self) -> u64 {
        u64::from(self.first) * PAGE_BYTES
    }

    fn bytes(self) -> usize {
        usize::from(self.count) * PAGE
    }
}

impl Changes {
    /// Length and SHA-256 of the member `memory/changes` that has these pages of `ram`.
    pub fn digest(&self, ram: &File, watch: &mut Watch<'_>) -> Result<Blob, ArchiveError> {
        let failed = |source| ArchiveError::File {
            action: "read",
            member: "the memory".to_owned(),
            source,
        };
        let mut content = self.content(ram.try_clone().map_err(failed)?);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; STEP];
        let mut bytes = 0;
        loop {
            let count = content.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                let sha256 = hex(&hash.finalize());
                return Ok(Blob { sha256, bytes });
            }
            hash.update(&buffer[..count]);
            bytes += count as u64;
            proceed(watch, count)?;
        }
    }

    /// The content of the member.
    pub fn content(&self, ram: File) -> impl Read + use<> {
        ChangesContent {
            ram,
            runs: self.runs.clone().into_iter(),
            buffer: Vec::new(),
            at: 0,
        }
    }

    fn note(&mut self, page: u32, full: bool) {
        self.full_pages += u64::from(full);
        match self.runs.last_mut() {
            Some(run)
                if run.full == full
                    && run.end() == u64::from(page)
                    && usize::from(run.count) < STEP_PAGES =>
            {
                run.count += 1;
            }
            _ => self.runs.push(Run {
                first: page,
                count: 1,
                full,
            }),
        }
    }
}

/// The bytes of the member, made of the RAM as they are read.
struct ChangesContent {
    ram: File,
    runs: std::vec::IntoIter<Run>,
    buffer: Vec<u8>,
    at: usize,
}

impl Read for ChangesContent {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.at == self.buffer.len() {
            let Some(run) = self.runs.next() else {
                return Ok(0);
            };
            self.at = 0;
            self.buffer.clear();
            self.buffer.extend(run.header());
            if run.full {
                self.buffer.resize(HEADER + run.bytes(), 0);
                let pages = &mut self.buffer[HEADER..];
                self.ram.read_exact_at(pages, run.at())?;
            }
        }
        let count = to.len().min(self.buffer.len() - self.at);
        to[..count].copy_from_slice(&self.buffer[self.at..][..count]);
        self.at += count;
        Ok(count)
    }
}

/// Longest member `memory/changes` for RAM of this size, bytes.
pub(crate) fn max_changes_bytes(ram_bytes: u64) -> u64 {
    let pages = ram_bytes / PAGE_BYTES;
    ram_bytes + pages * HEADER as u64
}

/// Reads guest RAM of whole pages once: its SHA-256, its table of page digests, which is written to
/// the empty file `table` where one is given, and what differs from `earlier`, the table of RAM of the
/// same size.
pub fn survey(
    ram: &File,
    table: Option<&File>,
    earlier: Option<&File>,
    watch: &mut Watch<'_>,
) -> Result<Survey, ArchiveError> {
    let failed = |source| ArchiveError::File {
        action: "read",
        member: "the memory".to_owned(),
        source,
    };
    let too_large = || failed(io::ErrorKind::FileTooLarge.into());
    let bytes = ram.metadata().map_err(failed)?.len();
    let mut hash = Sha256::new();
    let mut table = Table::new(table, bytes);
    let mut changes = earlier.map(|_| Changes::default());
    let (mut buffer, mut before) = (vec![0; STEP], vec![0; STEP_PAGES * ENTRY]);
    let (mut at, mut full_pages) = (0, 0);
    while at < bytes {
        let count = STEP.min((bytes - at) as usize);
        let pages = count.div_ceil(PAGE);
        let hole = is_hole(ram, at, count as u64);
        let chunk = if hole {
            &ZEROS[..count]
        } else {
            ram.read_exact_at(&mut buffer[..count], at)
                .map_err(failed)?;
            &buffer[..count]
        };
        hash.update(chunk);
        let entries = match hole {
            true => vec![ZERO_ENTRY; pages],
            false => chunk.chunks(PAGE).map(entry_of).collect(),
        };
        full_pages += entries.iter().filter(|e| **e != ZERO_ENTRY).count() as u64;
        let first = at / PAGE_BYTES;
        table.put(first, entries.as_flattened());
        if let (Some(changes), Some(earlier)) = (&mut changes, earlier) {
            let before = &mut before[..pages * ENTRY];
            earlier
                .read_exact_at(before, first * ENTRY as u64)
                .map_err(failed)?;
            let pairs = entries.iter().zip(before.as_chunks::<ENTRY>().0);
            for (page, (now, then)) in (first..).zip(pairs) {
                if now != then {
                    let page = u32::try_from(page).map_err(|_| too_large())?;
                    changes.note(page, *now != ZERO_ENTRY);
                }
            }
        }
        at += count as u64;
        proceed(watch, count)?;
    }
    Ok(Survey {
        ram: Blob {
            sha256: hex(&hash.finalize()),
            bytes,
        },
        table: table.finish(),
        full_pages,
        changes,
    })
}

fn entry_of(page: &[u8]) -> [u8; ENTRY] {
    if page == &ZEROS[..page.len()] {
        return ZERO_ENTRY;
    }
    let digest = Sha256::digest(page);
    std::array::from_fn(|index| digest[index])
}

/// Whether all of a range is a hole.
fn is_hole(file: &File, at: u64, bytes: u64) -> bool {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => data >= at + bytes,
        Err(error) => error == rustix::io::Errno::NXIO,
    }
}

/// A table that is being written. It only saves work later, so that one which cannot be written is
/// none.
struct Table<'a> {
    /// Nothing once a write failed.
    file: Option<&'a File>,
    hash: Sha256,
    bytes: u64,
}

impl<'a> Table<'a> {
    fn new(file: Option<&'a File>, ram_bytes: u64) -> Self {
        let bytes = ram_bytes.div_ceil(PAGE_BYTES) * ENTRY as u64;
        Self {
            file: file.filter(|file| file.set_len(bytes).is_ok()),
            hash: Sha256::new(),
            bytes,
        }
    }

    fn put(&mut self, first: u64, entries: &[u8]) {
        self.hash.update(entries);
        let zero = entries == &ZEROS[..entries.len()];
        if let Some(file) = self.file.filter(|_| !zero)
            && file.write_all_at(entries, first * ENTRY as u64).is_err()
        {
            self.file = None;
        }
    }

    fn finish(self) -> Option<Blob> {
        self.file.map(|_| Blob {
            sha256: hex(&self.hash.finalize()),
            bytes: self.bytes,
        })
    }
}

/// Puts the pages of a member `memory/changes` into the RAM `to`, which is what they differ from, and
/// has `ram_bytes`; refuses a member that is not `expected`.
pub(crate) fn apply(
    member: &str,
    from: &mut impl Read,
    expected: &Blob,
    to: &File,
    ram_bytes: u64,
    watch: &mut Watch<'_>,
) -> Result<(), ArchiveError> {
    let failed = |source| ArchiveError::File {
        action: "write",
        member: member.to_owned(),
        source,
    };
    if to.metadata().map_err(failed)?.len() != ram_bytes {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    let cut = |error| broken(member, error);
    let damaged = || ArchiveError::Damaged {
        member: member.to_owned(),
    };
    let pages = ram_bytes / PAGE_BYTES;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; STEP];
    let (mut left, mut next) = (expected.bytes, 0);
    while left > 0 {
        let mut header = [0; HEADER];
        if left < HEADER as u64 {
            return Err(damaged());
        }
        from.read_exact(&mut header).map_err(cut)?;
        hash.update(header);
        left -= HEADER as u64;
        let run = Run::parse(header, next, pages).ok_or_else(damaged)?;
        next = run.end();
        let at = run.at();
        if run.full {
            let content = &mut buffer[..run.bytes()];
            left = left.checked_sub(content.len() as u64).ok_or_else(damaged)?;
            from.read_exact(content).map_err(cut)?;
            hash.update(&*content);
            to.write_all_at(content, at).map_err(failed)?;
        } else {
            clear(to, at, run.bytes()).map_err(failed)?;
        }
        proceed(watch, HEADER + if run.full { run.bytes() } else { 0 })?;
    }
    if hex(&hash.finalize()) == expected.sha256 {
        Ok(())
    } else {
        Err(damaged())
    }
}

/// Makes a range zeros, as a hole where the file system knows them.
fn clear(file: &File, at: u64, bytes: usize) -> io::Result<()> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, punch, at, bytes as u64) {
        Ok(()) => Ok(()),
        Err(_) => file.write_all_at(&ZEROS[..bytes], at),
    }
}
