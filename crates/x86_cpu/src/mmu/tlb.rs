//! The software TLB: direct-mapped, separate tags for reads, writes and fetches. Entries that lost
//! their place lately are kept aside: pages that want the same place would be walked for in turns.
//!
//! A tag is the linear address of a page, or [`NO_TAG`]. A page has only the tags whose accesses
//! need nothing but the host address: a write tag is given when the dirty bit is set and no
//! processor has translated code of the page; device memory and watched pages get none.

#![expect(unsafe_code, reason = "the bounds check of the hottest load")]

use super::walk::Mapping;

/// Entries of one bank.
pub(super) const ENTRIES: usize = 1024;
const BANKS: usize = 3;
/// Entries that are kept aside.
const VICTIMS: usize = 8;
/// Equal to no page address.
const NO_TAG: u64 = 1;

/// Which entries an access looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Bank {
    /// CPL 0 to 2, and accesses to descriptor tables and task segments.
    Supervisor = 0,
    /// CPL 3.
    User = ENTRIES as u16,
    /// CPL 3 with alignment checks: never filled, so that each access is looked at.
    Checked = 2 * ENTRIES as u16,
}

/// What the fast path needs of a page.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(super) struct Entry {
    pub(super) read: u64,
    pub(super) write: u64,
    pub(super) execute: u64,
    /// Host address minus linear address.
    pub(super) addend: u64,
}

const NO_ENTRY: Entry = Entry {
    read: NO_TAG,
    write: NO_TAG,
    execute: NO_TAG,
    addend: 0,
};

/// What only slow paths need of a page.
#[derive(Clone, Copy, Debug, Default)]
struct Detail {
    page: u64,
    gpa: u64,
    /// log2 of the size of the mapping it is part of.
    shift: u8,
    global: bool,
    /// A write tag was refused because of code in the page, not because of rights.
    code: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tlb {
    entries: [Entry; ENTRIES * BANKS],
    details: Box<[Detail; ENTRIES * 2]>,
    /// Entries that have a tag.
    used: [u64; ENTRIES * 2 / 64],
    /// Entries that lost their place, with the place.
    victims: [Option<(usize, Entry, Detail)>; VICTIMS],
    /// The oldest of them.
    victim: usize,
}

fn place(linear: u64, bank: Bank) -> usize {
    ((linear >> 12) as usize & (ENTRIES - 1)) + bank as usize
}

impl Tlb {
    pub(super) fn new() -> Self {
        Self {
            entries: [NO_ENTRY; ENTRIES * BANKS],
            details: Box::new([Detail::default(); ENTRIES * 2]),
            used: [0; ENTRIES * 2 / 64],
            victims: [None; VICTIMS],
            victim: 0,
        }
    }

    /// Returns the entry that would hold the page of `linear`.
    #[inline(always)]
    pub(super) fn entry(&self, linear: u64, bank: Bank) -> &Entry {
        // SAFETY: the masked index is below `ENTRIES`, and `bank` is a multiple of it below
        // `ENTRIES * BANKS`.
        unsafe { self.entries.get_unchecked(place(linear, bank)) }
    }

    /// Enters the page of `linear`, at `host` and `gpa`.
    pub(super) fn fill(
        &mut self,
        linear: u64,
        bank: Bank,
        host: u64,
        mapping: &Mapping,
        tags: Tags,
    ) {
        if bank == Bank::Checked {
            return;
        }
        let (page, index) = (linear & !0xfff, place(linear, bank));
        let tag = |given| if given { page } else { NO_TAG };
        if self.is_used(index) && self.details[index].page != page {
            self.victims[self.victim] = Some((index, self.entries[index], self.details[index]));
            self.victim = (self.victim + 1) % VICTIMS;
        }
        self.entries[index] = Entry {
            read: tag(tags.read),
            write: tag(tags.write),
            execute: tag(tags.execute),
            addend: host.wrapping_sub(page),
        };
        self.details[index] = Detail {
            page,
            gpa: mapping.gpa & !0xfff,
            shift: mapping.shift,
            global: mapping.global,
            code: tags.code,
        };
        self.used[index / 64] |= 1 << (index % 64);
    }

    fn is_used(&self, index: usize) -> bool {
        self.used[index / 64] >> (index % 64) & 1 != 0
    }

    /// Puts the page of `linear` back in its place, if its entry is kept aside.
    pub(super) fn recall(&mut self, linear: u64, bank: Bank) {
        let (page, index) = (linear & !0xfff, place(linear, bank));
        let wanted = |victim: &&mut Option<(usize, Entry, Detail)>| {
            victim.is_some_and(|(place, _, detail)| place == index && detail.page == page)
        };
        let Some(victim) = self.victims.iter_mut().find(wanted) else {
            return;
        };
        let used = self.used[index / 64] >> (index % 64) & 1 != 0;
        let present = used.then_some((index, self.entries[index], self.details[index]));
        if let Some((_, entry, detail)) = std::mem::replace(victim, present) {
            self.entries[index] = entry;
            self.details[index] = detail;
            self.used[index / 64] |= 1 << (index % 64);
        }
    }

    /// Returns guest-physical and host address of `linear` where the only reason for its missing
    /// write tag is code in the page.
    pub(super) fn code_page(&self, linear: u64, bank: Bank) -> Option<(u64, u64)> {
        if bank == Bank::Checked {
            return None;
        }
        let index = place(linear, bank);
        let (entry, detail) = (&self.entries[index], &self.details[index]);
        let hit = detail.code && entry.read == linear & !0xfff;
        hit.then(|| {
            (
                detail.gpa | linear & 0xfff,
                linear.wrapping_add(entry.addend),
            )
        })
    }

    /// Returns the guest-physical page of `linear` where it has an execute tag.
    pub(super) fn executable(&self, linear: u64, bank: Bank) -> Option<(u64, u64)> {
        let bank = if bank == Bank::Checked {
            Bank::User
        } else {
            bank
        };
        let index = place(linear, bank);
        let (entry, page) = (&self.entries[index], linear & !0xfff);
        let hit = entry.execute == page;
        hit.then(|| (self.details[index].gpa, page.wrapping_add(entry.addend)))
    }

    /// Returns whether the mapping that the page of `linear` has an execute tag of is global, and
    /// log2 of its size.
    pub(super) fn mapping(&self, linear: u64, bank: Bank) -> Option<(bool, u8)> {
        self.executable(linear, bank)?;
        let bank = if bank == Bank::Checked {
            Bank::User
        } else {
            bank
        };
        let detail = &self.details[place(linear, bank)];
        Some((detail.global, detail.shift))
    }

    /// Removes every entry for which `goes` (given the linear page, the shift, whether global).
    fn remove(&mut self, goes: impl Fn(u64, u8, bool) -> bool) {
        self.victims = [None; VICTIMS];
        for (word, used) in self.used.iter_mut().enumerate() {
            let mut rest = *used;
            while rest != 0 {
                let bit = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                let index = word * 64 + bit;
                let detail = &self.details[index];
                if goes(detail.page, detail.shift, detail.global) {
                    self.entries[index] = NO_ENTRY;
                    *used &= !(1 << bit);
                }
            }
        }
    }

    /// Removes everything.
    pub(super) fn flush(&mut self) {
        self.remove(|_, _, _| true);
    }

    /// Removes what is not global.
    pub(super) fn flush_local(&mut self) {
        self.remove(|_, _, global| !global);
    }

    /// Removes the mapping of `linear`, all of it where it is large.
    pub(super) fn flush_page(&mut self, linear: u64) {
        self.remove(|page, shift, _| page >> shift == linear >> shift);
    }

    /// Removes the write tags of the pages for which `goes` (given the guest-physical page).
    pub(super) fn remove_write_tags(&mut self, goes: impl Fn(u64) -> bool) {
        self.victims = [None; VICTIMS];
        for (word, used) in self.used.iter().enumerate() {
            let mut rest = *used;
            while rest != 0 {
                let index = word * 64 + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                if self.entries[index].write != NO_TAG && goes(self.details[index].gpa) {
                    self.entries[index].write = NO_TAG;
                    self.details[index].code = true;
                }
            }
        }
    }
}

/// Tags to give to a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tags {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) execute: bool,
    /// Writes are allowed but for code in the page.
    pub(super) code: bool,
}
