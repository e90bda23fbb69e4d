//! Pages that a process wrote since it last shared them by `fork()`.
//!
//! After a `fork()` both sides map the same anonymous pages, none of them as its own; the first
//! write makes a page the writer's own, by a copy or, when nobody else is left, in place. The kernel
//! keeps that as a mark of the page, which does not change when other processes end. `pagemap`
//! (proc(5)) has the page's number, `/proc/kpageflags` the mark: the flag that the kernel's own
//! `page-types` reads as `anon_exclusive`. That flag's place is not promised, so it is tried on this
//! process's own memory first.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

const PAGE_BYTES: u64 = 4096;
const ENTRY_BYTES: usize = 8;
/// Entries read at once: 32 MiB of addresses.
const CHUNK_ENTRIES: usize = 8192;
/// Page numbers that lie closer are read in one go.
const NEAR: u64 = 256;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
const MAPPED_ONCE: u64 = 1 << 56;
const PAGE_NUMBER: u64 = (1 << 55) - 1;
/// Flag of an anonymous page that belongs to one process alone (Linux >= 5.19).
const ANON_EXCLUSIVE: u64 = 1 << 34;

/// Memory that is written to find out whether the flag says what it should, bytes.
const TRIAL_BYTES: usize = 32 * PAGE_BYTES as usize;

/// Reader of one process's pages.
#[derive(Debug)]
pub(super) struct WrittenPages {
    pagemap: File,
    flags: File,
}

impl WrittenPages {
    /// Opens the pages of process `pid`; none where the kernel does not tell what is written.
    pub fn of(pid: i32) -> Option<Self> {
        static TOLD: OnceLock<bool> = OnceLock::new();
        let told = TOLD.get_or_init(|| {
            let told = Self::open(std::process::id() as i32).and_then(|own| own.tells());
            if told != Some(true) {
                tracing::warn!("the kernel does not tell which pages a VM wrote; figures of private memory rise when other clones end");
            }
            told == Some(true)
        });
        told.then(|| Self::open(pid)).flatten()
    }

    fn open(pid: i32) -> Option<Self> {
        Some(Self {
            pagemap: File::open(format!("/proc/{pid}/pagemap")).ok()?,
            flags: File::open("/proc/kpageflags").ok()?,
        })
    }

    /// Whether pages that this process has just written are marked so.
    fn tells(&self) -> Option<bool> {
        let written = vec![1u8; TRIAL_BYTES];
        let from = (written.as_ptr() as u64).next_multiple_of(PAGE_BYTES);
        let to = from + TRIAL_BYTES as u64 - PAGE_BYTES;
        let found = self.kib(from, to)?;
        drop(std::hint::black_box(written));
        Some(found == (to - from) >> 10)
    }

    /// Returns how much of the addresses `from..to` holds pages that the process wrote, KiB.
    pub fn kib(&self, from: u64, to: u64) -> Option<u64> {
        let (mut page, last) = (from / PAGE_BYTES, to / PAGE_BYTES);
        let mut bytes = vec![0; CHUNK_ENTRIES * ENTRY_BYTES];
        let mut numbers = Vec::new();
        let mut pages = 0;
        while page < last {
            let count = CHUNK_ENTRIES.min((last - page) as usize);
            let chunk = &mut bytes[..count * ENTRY_BYTES];
            let at = page * ENTRY_BYTES as u64;
            self.pagemap.read_exact_at(chunk, at).ok()?;
            for entry in entries(chunk) {
                if entry & SWAPPED != 0 {
                    pages += 1;
                } else if entry & (PRESENT | OF_FILE | MAPPED_ONCE) == PRESENT | MAPPED_ONCE {
                    // A number of 0 is what those without the right to know are told.
                    numbers.push(Some(entry & PAGE_NUMBER).filter(|n| *n != 0)?);
                }
            }
            pages += self.exclusive(&mut numbers)?;
            page += count as u64;
        }
        Some((pages * PAGE_BYTES) >> 10)
    }

    /// Counts the marked ones of the pages `numbers` and empties the list.
    fn exclusive(&self, numbers: &mut Vec<u64>) -> Option<u64> {
        numbers.sort_unstable();
        let mut marked = 0;
        let mut bytes = Vec::new();
        for run in numbers.chunk_by(|a, b| b - a <= NEAR) {
            let (first, last) = (*run.first()?, *run.last()?);
            bytes.resize((last - first + 1) as usize * ENTRY_BYTES, 0);
            let at = first * ENTRY_BYTES as u64;
            self.flags.read_exact_at(&mut bytes, at).ok()?;
            let flags = |number: &u64| {
                let at = (number - first) as usize * ENTRY_BYTES;
                entries(&bytes[at..at + ENTRY_BYTES]).next()
            };
            let exclusive = |number: &&u64| flags(number).is_some_and(|f| f & ANON_EXCLUSIVE != 0);
            marked += run.iter().filter(exclusive).count() as u64;
        }
        numbers.clear();
        Some(marked)
    }
}

fn entries(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (words, _) = bytes.as_chunks::<ENTRY_BYTES>();
    words.iter().map(|word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_pages_are_told_from_untouched_ones() {
        let own = std::process::id() as i32;
        let Some(pages) = WrittenPages::of(own) else {
            eprintln!("skipped: only root is told");
            return;
        };
        // Zeroed memory of this size is fresh from the kernel: no page of it is there yet.
        let mut memory = vec![0u8; 64 << 20];
        let from = (memory.as_ptr() as u64).next_multiple_of(PAGE_BYTES);
        let to = from + (63 << 20);
        assert_eq!(pages.kib(from, to), Some(0));
        let start = (from - memory.as_ptr() as u64) as usize;
        for page in 0..100 {
            memory[start + page * 5 * PAGE_BYTES as usize] = 1;
        }
        assert_eq!(pages.kib(from, to), Some(400));
    }
}
