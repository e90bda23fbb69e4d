//! Translated blocks: found by physical address, dropped by page.

#![expect(unsafe_code, reason = "blocks are reached by pointer")]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::arena::Arena;
use super::blocks::Blocks;
use super::copies::{Copies, Copy, PAGE};
use super::decode::INSTRUCTION_MAX;
use super::fast;
use super::op::{At, Handler, Header, HeaderAt, LinkAt, Place, Slot, TieAt};
use super::operand::Width;
use super::sheet::Sheet;

/// Entries of the jump cache.
const JUMPS: usize = 4096;
/// Entries of the table of blocks found lately.
const RECENT: usize = 16384;
/// Memory for blocks and copies of pages, bytes; beyond it everything is dropped.
const BYTES_MAX: usize = 48 << 20;
/// No page's address.
pub(super) const NO_PAGE: u64 = u64::MAX;
/// Most pages and straddlers: ops have their number.
const PLACES_MAX: usize = 1 << 16;
/// Places that one block may need.
const PLACES_SPARE: usize = 3;
/// What the tables keep of a block, bytes, about.
const BLOCK_BYTES: usize = 40;

/// Where a RIP leads.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Jump {
    tag: u64,
    generation: u64,
    entry: At,
    /// The handler of its first op, which is known sooner so than by way of the block.
    run: Handler,
}

/// A page with translated code.
#[derive(Debug)]
struct Page {
    /// Its bytes when code of it was first translated.
    copy: Copy,
    place: Place,
    /// The header of the last of its blocks; each leads to the one before.
    last: HeaderAt,
    /// Keys of straddlers that begin or end in it.
    straddlers: Vec<u64>,
}

/// Multiplicative hash of one integer.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

type Map<T> = HashMap<u64, T, BuildHasherDefault<KeyHasher>>;

/// See the module. Empty until code runs.
#[derive(Debug, Default)]
pub(super) struct Cache {
    pages: Map<Page>,
    blocks: Blocks,
    /// Blocks of instructions that straddle two pages, with the second one.
    straddlers: Map<(u64, At)>,
    arena: Arena,
    headers: Arena,
    /// Guest-physical pages of ops, by number: the page they are in, and the one where a straddler ends
    /// or [`NO_PAGE`].
    places: Vec<(u64, u64)>,
    /// Numbers that are not in use.
    free: Vec<Place>,
    copies: Copies,
    /// Blocks found lately, by key.
    recent: Sheet<Recent>,
    jumps: Sheet<Jump>,
    /// Bytes of pages and tables; blocks are the arena's.
    bytes: usize,
    /// Number of the present set of virtual translations, even; entries of others are void.
    local: u64,
    /// That of global translations, odd.
    global: u64,
    /// Hashed pages that entries lead to.
    used: Used,
    /// Link to tie to the block that is looked up next.
    pub(super) open_link: Option<OpenLink>,
}

/// A block found lately.
#[derive(Clone, Copy, Debug)]
struct Recent {
    key: u64,
    entry: At,
}

/// A set of addresses' upper parts, by hash: it may claim to have what it has not.
#[derive(Debug)]
struct Used([u64; 64]);

impl Default for Used {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl Used {
    fn place(part: u64) -> (usize, u64) {
        let bit = part ^ part >> 12;
        ((bit >> 6) as usize & 63, 1 << (bit & 63))
    }

    fn add(&mut self, part: u64) {
        let (word, bit) = Self::place(part);
        self.0[word] |= bit;
    }

    fn has(&self, part: u64) -> bool {
        let (word, bit) = Self::place(part);
        self.0[word] & bit != 0
    }
}

/// A link that was followed before it led anywhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenLink {
    pub(super) link: Open,
    pub(super) rip: u64,
}

/// See [`OpenLink`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Open {
    /// Within a page, which is the guest-physical one that the target must lie in.
    Within(TieAt, u64),
    /// To another page.
    Beyond(LinkAt),
}

// SAFETY: the pointers lead to blocks that this structure owns.
unsafe impl Send for Cache {}

fn key(gpa: u64, width: Width) -> u64 {
    gpa | (width as u64) << 62
}

fn recent_place(key: u64) -> usize {
    (key ^ key >> 14) as usize & (RECENT - 1)
}

/// The part of an address that says which mapping of 1 << `shift` bytes it is in, marked with the
/// size.
fn part(linear: u64, shift: u8) -> u64 {
    let page = if shift < 64 { linear >> shift } else { 0 };
    page ^ u64::from(shift) << 52
}

fn place(tag: u64) -> usize {
    ((tag ^ tag >> 12) as usize) & (JUMPS - 1)
}

impl Cache {
    pub(super) fn new() -> Self {
        let mut cache = Self::default();
        cache.forget_addresses();
        cache
    }

    /// Makes all virtual translations void.
    pub(super) fn forget_addresses(&mut self) {
        self.local += 2;
        self.global = self.local + 1;
        self.used = Used::default();
        self.open_link = None;
    }

    /// Makes the virtual translations void that are not global.
    pub(super) fn forget_local_addresses(&mut self) {
        self.local += 2;
        self.open_link = None;
    }

    /// Makes the virtual translation of an address void, others perhaps too.
    pub(super) fn forget_address(&mut self, linear: u64) {
        let sizes = [12, 21, 22, 30, 64];
        let used = sizes
            .iter()
            .any(|shift| self.used.has(part(linear, *shift)));
        if used {
            self.forget_addresses();
        }
    }

    /// Records that entries lead to an address, in a mapping of 1 << `shift` bytes; returns the
    /// generation they belong to.
    pub(super) fn use_address(&mut self, linear: u64, global: bool, shift: u8) -> u64 {
        self.used.add(part(linear, shift));
        if global { self.global } else { self.local }
    }

    /// Whether entries of a generation are valid.
    #[inline(always)]
    pub(super) fn is_valid(&self, generation: u64) -> bool {
        generation == self.local || generation == self.global
    }

    /// Finds the block for a tagged RIP, and the handler of its first op.
    #[inline(always)]
    pub(super) fn jump(&self, tag: u64) -> Option<(At, Handler)> {
        let jump = self.jumps.get(place(tag))?;
        let valid = jump.tag == tag && self.is_valid(jump.generation);
        valid.then_some((jump.entry, jump.run))
    }

    /// [`jump`](Self::jump), with the generation of the entry.
    pub(super) fn jump_and_generation(&self, tag: u64) -> Option<(At, u64)> {
        let jump = self.jumps.get(place(tag))?;
        let valid = jump.tag == tag && self.is_valid(jump.generation);
        valid.then_some((jump.entry, jump.generation))
    }

    /// Enters a block for a tagged RIP.
    pub(super) fn set_jump(&mut self, tag: u64, entry: At, generation: u64) {
        if self.jumps.is_empty() {
            let nowhere = Jump {
                tag: 1,
                generation: u64::MAX,
                entry: At::NULL,
                run: fast::generic,
            };
            self.jumps = Sheet::new(JUMPS, nowhere);
        }
        self.jumps[place(tag)] = Jump {
            tag,
            generation,
            entry,
            run: entry.op().run,
        };
    }

    /// Finds the block at a guest-physical address.
    pub(super) fn block(&mut self, gpa: u64, width: Width) -> Option<At> {
        let key = key(gpa, width);
        if let Some(recent) = self.recent.get(recent_place(key))
            && recent.key == key
        {
            return Some(recent.entry);
        }
        let entry = self.blocks.get(key)?;
        self.set_recent(key, entry);
        Some(entry)
    }

    fn set_recent(&mut self, key: u64, entry: At) {
        if self.recent.is_empty() {
            let none = Recent {
                key: u64::MAX,
                entry: At::NULL,
            };
            self.recent = Sheet::new(RECENT, none);
        }
        self.recent[recent_place(key)] = Recent { key, entry };
    }

    /// The copy of the page at `gpa`, where code of it is translated.
    pub(super) fn copy_of(&self, gpa: u64) -> Option<&[u8; PAGE]> {
        let page = self.pages.get(&gpa)?;
        Some(self.copies.get(&page.copy))
    }

    /// The bytes of the longest instruction at `offset` of the page at `gpa` as it was translated,
    /// where it ends with the page's last byte or goes on in the page at `second`; zeros follow.
    pub(super) fn joined(
        &self,
        gpa: u64,
        second: u64,
        offset: u64,
    ) -> Option<[u8; INSTRUCTION_MAX]> {
        let first = self.copy_of(gpa)?.get(offset as usize..)?;
        let mut bytes = [0; INSTRUCTION_MAX];
        let here = first.len().min(INSTRUCTION_MAX);
        bytes[..here].copy_from_slice(&first[..here]);
        if second != NO_PAGE {
            let rest = &mut bytes[here..];
            rest.copy_from_slice(&self.copy_of(second)?[..rest.len()]);
        }
        Some(bytes)
    }

    /// Whether nothing more should be added before all is dropped.
    pub(super) fn is_full(&self) -> bool {
        let places = PLACES_MAX - self.places.len() + self.free.len();
        let bytes = self.bytes + self.arena.bytes() + self.headers.bytes();
        bytes > BYTES_MAX || places < PLACES_SPARE
    }

    /// The pages of the ops with a number: theirs, and the one where a straddler ends or [`NO_PAGE`].
    pub(super) fn pages(&self, place: Place) -> (u64, u64) {
        self.places[usize::from(place.0)]
    }

    /// The number of the page at `gpa`, where code of it is translated.
    pub(super) fn place_of(&self, gpa: u64) -> Option<Place> {
        Some(self.pages.get(&gpa)?.place)
    }

    /// Numbers a page, or the two of a straddler; `None` where there are too many.
    pub(super) fn add_place(&mut self, gpa: u64, second: u64) -> Option<Place> {
        let pages = (gpa, second);
        if let Some(place) = self.free.pop() {
            self.places[usize::from(place.0)] = pages;
            return Some(place);
        }
        let place = Place(u16::try_from(self.places.len()).ok()?);
        self.places.push(pages);
        Some(place)
    }

    /// Adds a page that is not there, of which `read` makes a copy.
    pub(super) fn add_page(&mut self, gpa: u64, read: impl FnOnce(&mut [u8; PAGE])) {
        let Some(place) = self.add_place(gpa, NO_PAGE) else {
            debug_assert!(false, "a full cache is cleared before");
            return;
        };
        let copy = self.copies.make(read);
        self.bytes += PAGE + 128;
        let page = Page {
            copy,
            place,
            last: HeaderAt::NULL,
            straddlers: Vec::new(),
        };
        self.pages.insert(gpa, page);
    }

    /// Adds a block of the page at `gpa`, which is there.
    pub(super) fn add_block(
        &mut self,
        gpa: u64,
        offset: u64,
        width: Width,
        slots: &[Slot],
    ) -> Option<At> {
        let key = key(gpa | offset, width);
        let page = self.pages.get_mut(&gpa)?;
        let before = page.last;
        let header = Header { key, before };
        page.last = HeaderAt::new(self.headers.add(&[Slot { header }]));
        let entry = At::new(self.arena.add(slots));
        self.bytes += BLOCK_BYTES;
        self.blocks.insert(key, entry);
        Some(entry)
    }

    /// Finds the block of the 64-bit instruction at a guest-physical address that ends in the page at
    /// `second`.
    pub(super) fn straddler(&self, gpa: u64, second: u64) -> Option<At> {
        let found = self.straddlers.get(&key(gpa, Width::Bits64));
        found.filter(|found| found.0 == second).map(|found| found.1)
    }

    /// Adds the block of an instruction that begins in one page and ends in another, which has a place
    /// of its own; both pages are there. It goes when one of them goes.
    pub(super) fn add_straddler(
        &mut self,
        place: Place,
        offset: u64,
        slots: &[Slot],
    ) -> Option<At> {
        let (gpa, second) = self.pages(place);
        let key = key(gpa | offset, Width::Bits64);
        for page in [gpa, second] {
            self.pages.get_mut(&page)?.straddlers.push(key);
        }
        let entry = At::new(self.arena.add(slots));
        self.bytes += 2 * BLOCK_BYTES;
        // One with another second page may still be linked to, so it keeps its place until all goes.
        self.straddlers.insert(key, (second, entry));
        Some(entry)
    }

    /// Drops a page's blocks; returns whether it had any. No handler runs.
    pub(super) fn drop_page(&mut self, gpa: u64) -> bool {
        let Some(page) = self.pages.remove(&gpa) else {
            return false;
        };
        self.forget_addresses();
        self.bytes = self.bytes.saturating_sub(PAGE + 128);
        let mut count = page.straddlers.len();
        for key in &page.straddlers {
            let gone = self.straddlers.remove(key);
            self.free.extend(gone.map(|(_, entry)| entry.op().place));
        }
        let mut last = page.last;
        while let Some(Header { key, before }) = last.get() {
            self.blocks.remove(key);
            if let Some(recent) = self.recent.get_mut(recent_place(key)) {
                recent.key = u64::MAX;
            }
            count += 1;
            last = before;
        }
        self.free.push(page.place);
        self.copies.give_back(page.copy);
        self.bytes = self.bytes.saturating_sub(count * BLOCK_BYTES);
        true
    }

    /// Drops everything; returns the pages that had code. No handler runs.
    pub(super) fn clear(&mut self) -> Vec<u64> {
        self.forget_addresses();
        self.blocks.clear();
        self.straddlers.clear();
        self.recent = Sheet::default();
        self.arena.clear();
        self.headers.clear();
        self.places.clear();
        self.free.clear();
        self.bytes = 0;
        let gone = self.pages.keys().copied().collect();
        self.pages.clear();
        self.copies.clear();
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_again_and_their_end_is_fullness() {
        let mut cache = Cache::new();
        cache.add_page(0x1000, |_| {});
        cache.add_page(0x2000, |_| {});
        let place = cache.place_of(0x1000).expect("a page");
        assert_eq!(cache.pages(place), (0x1000, NO_PAGE));
        assert!(cache.drop_page(0x1000));
        assert_eq!(cache.place_of(0x1000), None);
        assert_eq!(cache.add_place(0x2000, 0x3000), Some(place));
        assert_eq!(cache.pages(place), (0x2000, 0x3000));
        let mut last = place;
        while !cache.is_full() {
            last = cache.add_place(0x2000, 0x3000).expect("not full yet");
        }
        assert_eq!(usize::from(last.0), PLACES_MAX - PLACES_SPARE);
        assert_eq!(cache.clear(), [0x2000]);
        assert!(!cache.is_full());
        assert_eq!(cache.add_place(0, NO_PAGE), Some(Place(0)));
    }
}
