//! Paging, TLBs and access to guest memory.
//!
//! Whoever executes an instruction reaches memory through the functions on [`Cpu`] in `access`
//! (values, bytes, atomic changes) and `pages` (whole pages, fetches). All of them take *linear*
//! addresses: segment bases are added and limits checked before. Addresses have 32 bits unless the
//! code segment is a 64-bit one; a non-canonical one is #GP(0), which the caller turns into #SS(0)
//! with [`Fault::on_stack`](crate::Fault::on_stack) where the stack segment was used.
//!
//! An access either succeeds wholly or changes nothing but accessed and dirty bits.

mod access;
mod code_pages;
mod features;
mod pages;
mod tlb;
mod value;
mod walk;
mod watch;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use code_pages::CodePages;
pub use code_pages::PROCESSORS_MAX;
pub(crate) use features::Features;
pub(crate) use pages::CodePage;
pub(crate) use tlb::Bank;
pub(crate) use value::Value;
pub(crate) use walk::Access;

use crate::{Cpu, Environment, Fault, Ram};
use code_pages::Member;
use tlb::{Tags, Tlb};
use walk::{Mapping, Paging, Rules, walk};
use watch::Watch;

pub(crate) const CR0_PE: u64 = 1;
pub(crate) const CR0_WP: u64 = 1 << 16;
pub(crate) const CR0_AM: u64 = 1 << 18;
pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_PSE: u64 = 1 << 4;
pub(crate) const CR4_PAE: u64 = 1 << 5;
pub(crate) const CR4_PGE: u64 = 1 << 7;
pub(crate) const CR4_SMEP: u64 = 1 << 20;
pub(crate) const EFER_LMA: u64 = 1 << 10;
pub(crate) const EFER_NXE: u64 = 1 << 11;
const FLAG_AC: u64 = 1 << 18;

/// TLBs and what belongs to them.
#[derive(Debug)]
pub(crate) struct Mmu {
    tlb: Tlb,
    /// Where ordinary accesses look: follows CPL and alignment checking.
    bank: Bank,
    member: Member,
    watch: Watch,
    features: Option<Features>,
}

impl Mmu {
    /// Makes the part of a new processor of `ram`.
    pub(crate) fn new(ram: &Ram) -> Self {
        Self {
            tlb: Tlb::new(),
            bank: Bank::Supervisor,
            member: Member::new(ram),
            watch: Watch::default(),
            features: None,
        }
    }
}

/// What a guest-physical page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// RAM at this host address.
    Ram { host: u64, gpa: u64 },
    /// A device.
    Device { gpa: u64 },
}

impl Cpu {
    /// Makes what is derived of CPL, flags and control registers follow them; called after each of
    /// their changes (CPL, RFLAGS.AC, CR0.AM, DR7).
    pub(crate) fn refresh(&mut self) {
        let checked = self.cr0 & CR0_AM != 0 && self.rflags & FLAG_AC != 0;
        self.mmu.bank = match (self.cpl(), checked) {
            (3, true) => Bank::Checked,
            (3, false) => Bank::User,
            _ => Bank::Supervisor,
        };
    }

    /// Forgets everything derived of the architectural state: after registers were set from
    /// outside, or CPUID changed.
    pub fn state_replaced(&mut self) {
        self.mmu.features = None;
        self.watch_registers_changed();
        self.flush_tlb();
        self.refresh();
    }

    /// Removes all translations, global ones too.
    pub(crate) fn flush_tlb(&mut self) {
        self.forget_addresses();
        self.mmu.tlb.flush();
    }

    /// Removes the translations that are not global.
    pub(crate) fn flush_tlb_local(&mut self) {
        self.forget_local_addresses();
        self.mmu.tlb.flush_local();
    }

    /// Removes the translation of the page of `linear` (INVLPG).
    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.forget_address(linear);
        self.mmu.tlb.flush_page(linear);
    }

    /// What CPUID offers of what the processor itself has to know.
    pub(crate) fn features(&mut self, env: &mut dyn Environment) -> Features {
        *self.mmu.features.get_or_insert_with(|| Features::ask(env))
    }

    /// Whether the code segment is a 64-bit one.
    #[inline(always)]
    pub(crate) fn long_code(&self) -> bool {
        self.efer & EFER_LMA != 0
            && self.segments[crate::SegmentName::Cs as usize].access & 1 << 13 != 0
    }

    fn rules(&mut self, env: &mut dyn Environment) -> Rules {
        let features = self.features(env);
        let paging = if self.cr0 & CR0_PG == 0 {
            Paging::Off
        } else if self.efer & EFER_LMA != 0 {
            Paging::Long
        } else if self.cr4 & CR4_PAE != 0 {
            Paging::Pae
        } else {
            Paging::Legacy
        };
        Rules {
            paging,
            cr3: self.cr3,
            write_protect: self.cr0 & CR0_WP != 0,
            no_execute: self.efer & EFER_NXE != 0,
            smep: self.cr4 & CR4_SMEP != 0,
            large_pages: self.cr4 & CR4_PSE != 0,
            global_pages: self.cr4 & CR4_PGE != 0,
            huge_pages: features.huge_pages,
            physical_bits: features.physical_bits,
        }
    }

    /// Walks the page tables for `linear` and enters what it finds in the TLB.
    fn translate(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        access: Access,
        bank: Bank,
    ) -> Result<Place, Fault> {
        let rules = self.rules(env);
        match rules.paging {
            Paging::Long if !canonical(linear) => return Err(Fault::protection(0)),
            Paging::Long => {}
            _ if linear >> 32 != 0 => return Err(Fault::protection(0)),
            _ => {}
        }
        let user = bank != Bank::Supervisor;
        let mapping = walk(&self.ram, &rules, linear, access, user)?;
        let Some(page) = self.ram.page(mapping.gpa) else {
            return Ok(Place::Device { gpa: mapping.gpa });
        };
        let tags = self.tags(linear, &mapping);
        self.mmu.tlb.fill(linear, bank, page, &mapping, tags);
        Ok(Place::Ram {
            host: page + (linear & 0xfff),
            gpa: mapping.gpa,
        })
    }

    fn tags(&self, linear: u64, mapping: &Mapping) -> Tags {
        let watched = self.mmu.watch.covers_page(linear);
        let number = self.ram.page_number(mapping.gpa);
        let code = number.is_some_and(|number| self.ram.code().has_code(number));
        Tags {
            read: !watched,
            write: !watched && mapping.write && !code,
            execute: mapping.execute,
            code: mapping.write && code,
        }
    }

    /// Linear address `distance` bytes after `linear`, as the mode wraps it.
    fn linear_after(&self, linear: u64, distance: u64) -> u64 {
        let sum = linear.wrapping_add(distance);
        if self.long_code() {
            sum
        } else {
            sum & 0xffff_ffff
        }
    }
}

/// Whether bits 63 to 47 are equal.
#[inline(always)]
pub(crate) fn canonical(linear: u64) -> bool {
    ((linear << 16) as i64 >> 16) as u64 == linear
}
