//! Whole pages: repeated string instructions, the decoder, and the record of pages with code.

use super::{Access, Bank, Place};
use crate::{Cpu, Environment, Fault};

/// Bytes of RAM in one page of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Host address of the first byte.
    pub(crate) host: u64,
    /// Length, bytes; not zero.
    pub(crate) len: u64,
}

/// A page that code is fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodePage {
    /// Guest-physical address of the page.
    pub(crate) gpa: u64,
    /// Host address of the page.
    pub(crate) host: u64,
    /// It had no execute tag: devices may have written the page since it was last looked at.
    pub(crate) fresh: bool,
}

impl Cpu {
    /// Returns the part of `len` bytes upwards from `linear` that lies in its page, to be accessed
    /// as a whole; `None` where each access has to be made alone (devices, pages with code when
    /// `write`, watched pages, alignment checks).
    pub(crate) fn page_span(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        len: u64,
        write: bool,
    ) -> Result<Option<Span>, Fault> {
        let bank = self.mmu.bank;
        let page = linear & !0xfff;
        let span = |addend| Span {
            host: linear.wrapping_add(addend),
            len: len.min(0x1000 - (linear & 0xfff)),
        };
        for attempt in 0..2 {
            let entry = self.mmu.tlb.entry(linear, bank);
            let tag = if write { entry.write } else { entry.read };
            if tag == page {
                return Ok(Some(span(entry.addend)));
            }
            if attempt == 0 {
                let access = if write { Access::Write } else { Access::Read };
                self.translate(env, linear, access, bank)?;
            }
        }
        Ok(None)
    }

    /// Finds the page that code at `linear` is fetched from; #UD where it is no RAM.
    #[inline]
    pub(crate) fn fetch_page(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
    ) -> Result<CodePage, Fault> {
        let bank = match self.mmu.bank {
            Bank::Checked => Bank::User,
            bank => bank,
        };
        if let Some((gpa, host)) = self.mmu.tlb.executable(linear, bank) {
            return Ok(CodePage {
                gpa,
                host,
                fresh: false,
            });
        }
        match self.translate(env, linear, Access::Execute, bank)? {
            Place::Ram { host, gpa } => Ok(CodePage {
                gpa: gpa & !0xfff,
                host: host & !0xfff,
                fresh: true,
            }),
            Place::Device { .. } => Err(Fault::UNDEFINED),
        }
    }

    /// Returns whether the page that code at `linear` was just fetched from is a global one, and
    /// log2 of the size of the mapping it is part of.
    pub(crate) fn code_mapping(&self, linear: u64) -> (bool, u8) {
        let mapping = self.mmu.tlb.mapping(linear, self.mmu.bank);
        mapping.unwrap_or((false, 64))
    }

    /// Records that code of the page at `gpa` is about to be translated: stores to it are noticed
    /// from now on. Called before the bytes that are translated are read.
    ///
    /// In a machine with several processors the page is unsettled for a while; see
    /// [`take_stale`](Self::take_stale).
    pub(crate) fn mark_code_page(&mut self, gpa: u64) {
        self.mmu.member.mark(gpa);
        self.sync_code_pages();
    }

    /// Records that no translations of the page at `gpa` are left here, so that stores to it are
    /// fast again. Pages that [`take_stale`](Self::take_stale) gave are unmarked already.
    pub(crate) fn unmark_code_page(&mut self, gpa: u64) {
        self.mmu.member.unmark(gpa);
    }

    /// Returns whether a page with translations of this processor was stored to. To be asked after a
    /// store that took the slow path: if so, the block must be left after the instruction.
    #[inline(always)]
    pub(crate) fn code_changed(&self) -> bool {
        self.mmu.member.changed()
    }

    /// Gives up write tags of pages that have become code pages of other processors, and returns
    /// whether [`take_stale`](Self::take_stale) has something to say. To be asked between blocks at
    /// least once in a slice, before an interrupt is delivered, and after each
    /// [`Flow`](crate::state::Flow) other than `Next` (which every serialising instruction returns).
    #[inline(always)]
    pub(crate) fn stale_waits(&mut self) -> bool {
        self.sync_code_pages();
        self.mmu.member.any()
    }

    /// Moves guest-physical pages to `stale` (drop their translations) and `compare` (drop their
    /// translations if the page differs from the copy that they were made from; also call
    /// [`unmark_code_page`](Self::unmark_code_page) then).
    pub(crate) fn take_stale(&mut self, stale: &mut Vec<u64>, compare: &mut Vec<u64>) {
        self.mmu.member.take(stale, compare);
    }

    /// Gives up write tags of pages that have become code pages of any processor. To be called at
    /// the start of each slice.
    #[inline(always)]
    pub(crate) fn sync_code_pages(&mut self) {
        if self.mmu.member.behind() {
            self.drop_code_write_tags();
        }
    }

    #[cold]
    fn drop_code_write_tags(&mut self) {
        let epoch = self.mmu.member.epoch();
        let ram = &self.ram;
        let has_code = |gpa| {
            ram.page_number(gpa)
                .is_some_and(|page| ram.code().has_code(page))
        };
        self.mmu.tlb.remove_write_tags(has_code);
        self.mmu.member.caught_up(epoch);
    }

    /// To be called when [`Cpu::run`] begins.
    pub(crate) fn begin_slice(&mut self) {
        self.mmu.member.enter();
        self.sync_code_pages();
        self.refresh();
    }

    /// To be called before [`Cpu::run`] returns; nothing is stored until it begins again.
    pub(crate) fn end_slice(&mut self) {
        self.mmu.member.leave();
    }
}
