//! The page walk: SDM 3A 4.3 to 4.8.
//!
//! Page tables outside RAM read as not present.

use std::sync::atomic::Ordering;

use crate::{Fault, Ram};

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// Form of the page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paging {
    /// CR0.PG is clear.
    Off,
    /// 32-bit entries, two levels.
    Legacy,
    /// 64-bit entries, three levels.
    Pae,
    /// 64-bit entries, four levels.
    Long,
}

/// Control bits that a walk obeys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) paging: Paging,
    pub(crate) cr3: u64,
    /// CR0.WP.
    pub(crate) write_protect: bool,
    /// EFER.NXE.
    pub(crate) no_execute: bool,
    /// CR4.SMEP.
    pub(crate) smep: bool,
    /// CR4.PSE (legacy paging only).
    pub(crate) large_pages: bool,
    /// CR4.PGE.
    pub(crate) global_pages: bool,
    /// CPUID offers 1 GiB pages.
    pub(crate) huge_pages: bool,
    /// Width of physical addresses.
    pub(crate) physical_bits: u8,
}

/// Where a linear address leads, and what its privilege may do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Guest-physical address.
    pub(crate) gpa: u64,
    /// log2 of the size of the mapping.
    pub(crate) shift: u8,
    /// Writes are allowed and the dirty bit is set.
    pub(crate) write: bool,
    /// Fetches are allowed.
    pub(crate) execute: bool,
    /// It survives a change of CR3.
    pub(crate) global: bool,
}

pub(super) const PRESENT: u64 = 1;
pub(super) const WRITABLE: u64 = 1 << 1;
pub(super) const USER: u64 = 1 << 2;
pub(super) const ACCESSED: u64 = 1 << 5;
pub(super) const DIRTY: u64 = 1 << 6;
pub(super) const LARGE: u64 = 1 << 7;
pub(super) const GLOBAL: u64 = 1 << 8;
pub(super) const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Error code bits of a page fault.
pub(super) const ERROR_PRESENT: u32 = 1;
pub(super) const ERROR_WRITE: u32 = 1 << 1;
pub(super) const ERROR_USER: u32 = 1 << 2;
pub(super) const ERROR_RESERVED: u32 = 1 << 3;
pub(super) const ERROR_FETCH: u32 = 1 << 4;

/// A changing table is walked again so often; then what was read is used as it was.
const RETRIES: usize = 100;

/// One walk.
struct Walk<'a> {
    ram: &'a Ram,
    rules: &'a Rules,
    linear: u64,
    access: Access,
    user: bool,
    /// Whether entries that changed under the walk start it again.
    strict: bool,
}

/// Why a walk ended without a mapping.
enum End {
    Fault(Fault),
    /// An entry changed between its reading and the setting of its bits.
    Changed,
}

/// Finds where `linear` leads; sets accessed and dirty bits.
///
/// `linear` is canonical in long mode and has 32 bits otherwise.
pub(crate) fn walk(
    ram: &Ram,
    rules: &Rules,
    linear: u64,
    access: Access,
    user: bool,
) -> Result<Mapping, Fault> {
    for attempt in 0..=RETRIES {
        let mut walk = Walk {
            ram,
            rules,
            linear,
            access,
            user,
            strict: attempt < RETRIES,
        };
        let result = match rules.paging {
            Paging::Off => return Ok(unpaged(linear)),
            Paging::Legacy => walk.legacy(),
            Paging::Pae => walk.extended(),
            Paging::Long => walk.levels(rules.cr3 & FRAME, 3, Rights::ALL),
        };
        match result {
            Ok(mapping) => return Ok(mapping),
            Err(End::Fault(fault)) => return Err(fault),
            Err(End::Changed) => {}
        }
    }
    // The last attempt is not strict, so it never ends with a change.
    Err(Fault::page(0, linear))
}

fn unpaged(linear: u64) -> Mapping {
    Mapping {
        gpa: linear,
        shift: 12,
        write: true,
        execute: true,
        global: false,
    }
}

/// Rights that all levels so far give.
#[derive(Clone, Copy)]
struct Rights {
    writable: bool,
    user: bool,
    execute: bool,
}

impl Rights {
    const ALL: Self = Self {
        writable: true,
        user: true,
        execute: true,
    };

    fn and(self, entry: u64) -> Self {
        Self {
            writable: self.writable && entry & WRITABLE != 0,
            user: self.user && entry & USER != 0,
            execute: self.execute && entry & NO_EXECUTE == 0,
        }
    }
}

impl Walk<'_> {
    fn fault(&self, mut error: u32) -> End {
        if self.access == Access::Write {
            error |= ERROR_WRITE;
        }
        if self.user {
            error |= ERROR_USER;
        }
        let fetches_differ =
            self.rules.no_execute && self.rules.paging != Paging::Legacy || self.rules.smep;
        if self.access == Access::Execute && fetches_differ {
            error |= ERROR_FETCH;
        }
        End::Fault(Fault::page(error, self.linear))
    }

    /// Bits that must be zero in every 64-bit entry.
    fn reserved(&self) -> u64 {
        let address = FRAME & !((1 << self.rules.physical_bits) - 1);
        let no_execute = if self.rules.no_execute { 0 } else { NO_EXECUTE };
        let high = match self.rules.paging {
            Paging::Pae => 0x7ff << 52,
            _ => 0,
        };
        address | no_execute | high
    }

    /// Three levels: four pointers, then tables as in long mode.
    fn extended(&mut self) -> Result<Mapping, End> {
        let gpa = (self.rules.cr3 & 0xffff_ffe0) + (self.linear >> 30 & 3) * 8;
        let pointer = self.ram.read64(gpa).unwrap_or(0);
        if pointer & PRESENT == 0 {
            return Err(self.fault(0));
        }
        let reserved = self.reserved() | NO_EXECUTE | 0x1e6;
        if pointer & reserved != 0 {
            return Err(self.fault(ERROR_PRESENT | ERROR_RESERVED));
        }
        self.levels(pointer & FRAME, 1, Rights::ALL)
    }

    /// Tables of 512 entries from `table` down; `level` 3 to 0.
    fn levels(&mut self, mut table: u64, top: u8, mut rights: Rights) -> Result<Mapping, End> {
        let reserved = self.reserved();
        for level in (0..=top).rev() {
            let shift = 12 + 9 * level;
            let gpa = table + (self.linear >> shift & 0x1ff) * 8;
            let entry = self.ram.read64(gpa).unwrap_or(0);
            if entry & PRESENT == 0 {
                return Err(self.fault(0));
            }
            let large = level > 0 && entry & LARGE != 0;
            let large_allowed = level == 1 || level == 2 && self.rules.huge_pages;
            let misplaced =
                large && (!large_allowed || entry & FRAME & ((1 << shift) - 1) & !0x1000 != 0);
            if entry & reserved != 0 || misplaced {
                return Err(self.fault(ERROR_PRESENT | ERROR_RESERVED));
            }
            rights = rights.and(entry);
            if level == 0 || large {
                let set = self.leaf_bits(rights)?;
                self.mark64(gpa, entry, set)?;
                return Ok(self.mapping(entry | set, entry & FRAME, shift, rights));
            }
            self.mark64(gpa, entry, ACCESSED)?;
            table = entry & FRAME;
        }
        Err(self.fault(0))
    }

    /// 32-bit entries.
    fn legacy(&mut self) -> Result<Mapping, End> {
        let mut table = self.rules.cr3 & 0xffff_f000;
        let mut rights = Rights::ALL;
        for (shift, leaf) in [(22, false), (12, true)] {
            let gpa = table + (self.linear >> shift & 0x3ff) * 4;
            let entry = self.ram.read32(gpa).unwrap_or(0);
            let wide = u64::from(entry);
            if wide & PRESENT == 0 {
                return Err(self.fault(0));
            }
            let large = !leaf && self.rules.large_pages && wide & LARGE != 0;
            if large && wide & 0x003f_e000 != 0 {
                return Err(self.fault(ERROR_PRESENT | ERROR_RESERVED));
            }
            rights = rights.and(wide);
            if leaf || large {
                let set = self.leaf_bits(rights)?;
                self.mark32(gpa, entry, set as u32)?;
                return Ok(self.mapping(wide | set, wide & 0xffff_f000, shift, rights));
            }
            self.mark32(gpa, entry, ACCESSED as u32)?;
            table = wide & 0xffff_f000;
        }
        Err(self.fault(0))
    }

    /// Checks the rights at the last level; returns the bits to set there.
    fn leaf_bits(&self, rights: Rights) -> Result<u64, End> {
        let denied = self.user && !rights.user
            || match self.access {
                Access::Read => false,
                Access::Write => !self.may_write(rights),
                Access::Execute => !self.may_execute(rights),
            };
        match (denied, self.access) {
            (true, _) => Err(self.fault(ERROR_PRESENT)),
            (false, Access::Write) => Ok(ACCESSED | DIRTY),
            (false, _) => Ok(ACCESSED),
        }
    }

    fn may_write(&self, rights: Rights) -> bool {
        rights.writable || !self.user && !self.rules.write_protect
    }

    fn may_execute(&self, rights: Rights) -> bool {
        rights.execute && (self.user || !rights.user || !self.rules.smep)
    }

    fn mapping(&self, entry: u64, frame: u64, shift: u8, rights: Rights) -> Mapping {
        let offset = (1 << shift) - 1;
        Mapping {
            gpa: frame & !offset | self.linear & offset,
            shift,
            write: self.may_write(rights) && entry & DIRTY != 0,
            execute: self.may_execute(rights),
            global: self.rules.global_pages && entry & GLOBAL != 0,
        }
    }

    /// Sets bits of the entry at `gpa`, unless another processor changed it since it was read.
    fn mark64(&self, gpa: u64, entry: u64, set: u64) -> Result<(), End> {
        if entry & set == set {
            return Ok(());
        }
        let Some(place) = self.ram.entry64(gpa) else {
            return Ok(());
        };
        let (order, new) = (Ordering::SeqCst, entry | set);
        match place.compare_exchange(entry, new, order, Ordering::Relaxed) {
            Err(_) if self.strict => Err(End::Changed),
            _ => Ok(()),
        }
    }

    fn mark32(&self, gpa: u64, entry: u32, set: u32) -> Result<(), End> {
        if entry & set == set {
            return Ok(());
        }
        let Some(place) = self.ram.entry32(gpa) else {
            return Ok(());
        };
        let (order, new) = (Ordering::SeqCst, entry | set);
        match place.compare_exchange(entry, new, order, Ordering::Relaxed) {
            Err(_) if self.strict => Err(End::Changed),
            _ => Ok(()),
        }
    }
}
