//! The run loop: finds blocks, runs them, takes events between them.

use super::cache::{Open, OpenLink};
use super::flags::IF;
use super::op::At;
use super::operand::{RSP, Width};
use super::{flags, generic, span, translate};
use crate::mmu::CodePage;
use crate::state::Flow;
use crate::system::TripleFault;
use crate::{Cpu, Environment, Fault, Stop};

/// Most instructions of a block.
pub(super) const BLOCK_MAX: usize = 64;
/// Instructions between two looks at calls from other threads. Without optimisation every op is a
/// stack frame.
const QUANTUM: i64 = if cfg!(debug_assertions) { 400 } else { 8192 };
/// PAUSEs in a row that make a processor yield.
const PAUSES_MAX: u32 = 32;
/// Instructions between PAUSEs that are in a row, about.
const PAUSE_DISTANCE: i64 = 2 * QUANTUM;
/// Added to RIPs of CPL 3 to tell them from the same addresses at another level.
const USER_TAG: u64 = 1 << 62;

/// Why handlers came back, beyond the end of the quantum and an unknown successor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Exit {
    /// Nothing else.
    #[default]
    Find,
    /// An interrupt may be possible now.
    Leave,
    /// [`Cpu::run`] returns.
    Stop(Stop),
    /// An instruction raised it; RIP is at the instruction.
    Raise(Fault),
}

impl Cpu {
    pub(super) fn run_slice(&mut self, env: &mut dyn Environment) -> Result<Stop, TripleFault> {
        let mut look = true;
        loop {
            if self.attention.take() {
                return Ok(Stop::Budget);
            }
            if self.stale_waits() {
                self.drop_stale();
            }
            if look && !self.interrupt_shadow {
                self.settle_flags();
                self.take_events(env)?;
                look = false;
            }
            let left = self.interp.left;
            if left <= self.interp.spare {
                return Ok(Stop::Budget);
            }
            let alone = self.interrupt_shadow || self.stepping() || left <= BLOCK_MAX as i64;
            let exit = match alone {
                true => self.step(env),
                false => match self.find(env) {
                    Ok(Some(entry)) => self.run_blocks(env, entry, left),
                    Ok(None) => self.step(env),
                    Err(fault) => Exit::Raise(fault),
                },
            };
            look |= std::mem::take(&mut self.interp.look);
            match exit {
                Exit::Find => {}
                Exit::Leave => look = true,
                Exit::Stop(stop) => return Ok(stop),
                Exit::Raise(fault) => {
                    // Deliveries count: each could lead to the next one without an instruction.
                    self.interp.left -= 1;
                    self.settle_flags();
                    self.deliver_fault(env, fault)?;
                    self.mirror_segments();
                    look = true;
                }
            }
        }
    }

    fn run_blocks(&mut self, env: &mut dyn Environment, entry: At, left: i64) -> Exit {
        let quantum = (left - BLOCK_MAX as i64).clamp(1, QUANTUM);
        let rest = (entry.op().run)(self, &mut &mut *env, entry, quantum);
        let withheld = std::mem::take(&mut self.interp.withheld);
        self.interp.left = left - (quantum - rest - withheld);
        std::mem::take(&mut self.interp.exit)
    }

    /// PAUSE: many of them without much in between are a loop that waits for another processor.
    pub(super) fn pause(&mut self) -> Flow {
        let since = self.interp.pause_left - self.interp.left;
        self.interp.pauses = match (0..PAUSE_DISTANCE).contains(&since) {
            true => self.interp.pauses + 1,
            false => 1,
        };
        self.interp.pause_left = self.interp.left;
        if self.interp.pauses < PAUSES_MAX {
            return Flow::Next;
        }
        self.interp.pauses = 0;
        Flow::Stop(Stop::Yield)
    }

    /// Delivers the interrupt that waits, if one does and can be taken.
    fn take_events(&mut self, env: &mut dyn Environment) -> Result<(), TripleFault> {
        if !self.nmi_blocked && env.take_nmi() {
            self.deliver_nmi(env)?;
            self.mirror_segments();
        }
        if self.rflags & IF != 0
            && let Some(vector) = env.take_interrupt()
        {
            self.deliver_interrupt(env, vector)?;
            self.mirror_segments();
        }
        Ok(())
    }

    /// Executes one instruction in its decoded form.
    fn step(&mut self, env: &mut dyn Environment) -> Exit {
        let start = self.rip;
        self.settle_flags();
        self.interrupt_shadow = false;
        self.interp.instruction_rip = start;
        let stepping = self.stepping();
        // Traps come after each iteration of a repeated instruction.
        let iterations_max = if stepping { 1 } else { self.interp.left };
        self.interp.budget = iterations_max;
        let stepped = match stepping {
            true => self.before_step(),
            false => Ok(false),
        };
        let trap = match stepped {
            Ok(trap) => trap,
            Err(fault) => return Exit::Raise(fault),
        };
        let mut goes_on = false;
        let done = self.decode_here(env).and_then(|instruction| {
            let next = self.code_base().wrapping_add(instruction.next_ip());
            self.rip = next & self.interp.rip_mask;
            let done = generic::execute(self, env, &instruction);
            goes_on = instruction.is_string_instruction() && self.rip == start;
            done
        });
        let iterations = iterations_max - self.interp.budget;
        self.interp.left -= iterations.max(1);
        if stepping && goes_on {
            self.resume_past_breakpoint();
        }
        if stepping
            && done.is_ok()
            && let Some(fault) = self.after_step(trap)
        {
            return Exit::Raise(fault);
        }
        match done {
            Ok(Flow::Next) => Exit::Find,
            Ok(Flow::Leave) => Exit::Leave,
            Ok(Flow::Stop(stop)) => Exit::Stop(stop),
            Err(fault) => {
                self.rip = start;
                Exit::Raise(fault)
            }
        }
    }

    /// Runs the decoded form of an op; `None` where the block has to be left, with what is left of
    /// the budget.
    pub(super) fn execute_op(
        &mut self,
        env: &mut dyn Environment,
        at: At,
        budget: i64,
        run: impl FnOnce(&mut Self, &mut dyn Environment) -> Result<Flow, Fault>,
    ) -> (bool, i64) {
        let op = at.op();
        let before = i64::from(op.number);
        let start = self.code_base().wrapping_add(op.start.into());
        self.settle_flags();
        self.interp.instruction_rip = start & self.interp.rip_mask;
        self.rip = start.wrapping_add(op.len.into()) & self.interp.rip_mask;
        self.interp.budget = budget;
        let done = run(self, env);
        let iterations = budget - self.interp.budget;
        let after = budget - before - iterations.max(1);
        // A device may have asked for an interrupt in answer to the access.
        let leaves = self.code_changed() || self.attention.waits();
        match done {
            Ok(Flow::Next) if !leaves => (true, budget - (iterations - 1).max(0)),
            Ok(Flow::Next) => (false, after),
            Ok(Flow::Leave) => {
                self.interp.exit = Exit::Leave;
                (false, after)
            }
            Ok(Flow::Stop(stop)) => {
                self.interp.exit = Exit::Stop(stop);
                (false, after)
            }
            Err(fault) => {
                self.rip = self.interp.instruction_rip;
                self.interp.exit = Exit::Raise(fault);
                (false, budget - before - iterations)
            }
        }
    }

    /// Finds or makes the block at RIP; `None` where the instruction straddles two pages.
    fn find(&mut self, env: &mut dyn Environment) -> Result<Option<At>, Fault> {
        let mut open = self.interp.cache.open_link.take();
        let (width, tag) = (self.width(), self.rip ^ self.interp.mode_tag);
        let long = width == Width::Bits64;
        if long && let Some((entry, generation)) = self.interp.cache.jump_and_generation(tag) {
            self.set_code_base(self.rip & !0xfff);
            self.tie(open, entry, tag, generation);
            return Ok(Some(entry));
        }
        let linear = self.code_address()?;
        let page = self.fetch_page(env, linear)?;
        let offset = linear & 0xfff;
        self.set_code_base(self.rip.wrapping_sub(offset));
        if page.fresh {
            self.compare_page(page.gpa, page.host);
        }
        let entry = match self.interp.cache.block(page.gpa | offset, width) {
            Some(entry) => entry,
            None => {
                if self.make_room(page) {
                    open = None;
                }
                let cache = &mut self.interp.cache;
                match translate::translate(cache, page.gpa, offset, width) {
                    Some(entry) => entry,
                    None if long => return Ok(self.find_straddler(env, linear, page, open)),
                    None => return Ok(None),
                }
            }
        };
        if long {
            let (global, shift) = self.code_mapping(linear);
            let cache = &mut self.interp.cache;
            let generation = cache.use_address(linear, global, shift);
            cache.set_jump(tag, entry, generation);
            self.tie(open, entry, tag, generation);
        }
        Ok(Some(entry))
    }

    /// Makes the block of the 64-bit instruction at `linear` that goes on in the page behind `page`;
    /// `None` where that one cannot be fetched from, or there is no instruction.
    fn find_straddler(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        page: CodePage,
        mut open: Option<OpenLink>,
    ) -> Option<At> {
        let next = (linear | 0xfff).wrapping_add(1);
        let second = self.fetch_page(env, next).ok()?;
        if second.fresh {
            self.compare_page(second.gpa, second.host);
        }
        let (first, rest) = (self.code_mapping(linear), self.code_mapping(next));
        let entry = match self
            .interp
            .cache
            .straddler(linear & 0xfff | page.gpa, second.gpa)
        {
            Some(entry) => entry,
            None => {
                // What makes room for one drops the other.
                if self.make_room(second) | self.make_room(page) {
                    open = None;
                }
                let pages = (page.gpa, second.gpa);
                translate::translate_straddler(&mut self.interp.cache, pages, linear & 0xfff)?
            }
        };
        let cache = &mut self.interp.cache;
        let global = first.0 && rest.0;
        cache.use_address(next, global, rest.1);
        let generation = cache.use_address(linear, global, first.1);
        let tag = self.rip ^ self.interp.mode_tag;
        cache.set_jump(tag, entry, generation);
        self.tie(open, entry, tag, generation);
        Some(entry)
    }

    fn tie(&mut self, open: Option<OpenLink>, entry: At, tag: u64, generation: u64) {
        let open = open.filter(|open| open.rip == self.rip);
        match open.map(|open| open.link) {
            Some(Open::Within(link, gpa)) if self.interp.cache.pages(entry.op().place).0 == gpa => {
                link.tie(entry);
            }
            Some(Open::Beyond(link)) => link.tie(entry, tag, generation),
            _ => {}
        }
    }

    /// Forgets where RIPs lead: all of them.
    pub(crate) fn forget_addresses(&mut self) {
        self.interp.cache.forget_addresses();
    }

    /// Forgets where RIPs lead that are not in global pages.
    pub(crate) fn forget_local_addresses(&mut self) {
        self.interp.cache.forget_local_addresses();
    }

    /// Forgets where the RIPs of a page lead.
    pub(crate) fn forget_address(&mut self, linear: u64) {
        self.interp.cache.forget_address(linear);
    }

    /// Makes sure that the cache knows the page and has room for a block; returns whether everything
    /// was dropped for that.
    fn make_room(&mut self, page: CodePage) -> bool {
        let full = self.interp.cache.is_full();
        if full {
            for gone in self.interp.cache.clear() {
                self.unmark_code_page(gone);
            }
        }
        if self.interp.cache.copy_of(page.gpa).is_none() {
            self.mark_code_page(page.gpa);
            let read = |copy: &mut [u8; 4096]| span::read(page.host, copy);
            self.interp.cache.add_page(page.gpa, read);
        }
        full
    }

    /// Drops a page's blocks if it is no longer what they were made from.
    pub(super) fn compare_page(&mut self, gpa: u64, host: u64) {
        let cache = &mut self.interp.cache;
        if let Some(copy) = cache.copy_of(gpa)
            && !span::equal(host, copy)
        {
            cache.drop_page(gpa);
            self.unmark_code_page(gpa);
        }
    }

    fn drop_stale(&mut self) {
        let (mut stale, mut suspects) = (Vec::new(), Vec::new());
        self.take_stale(&mut stale, &mut suspects);
        for gpa in stale {
            self.interp.cache.drop_page(gpa);
        }
        for gpa in suspects {
            if let Some(host) = self.ram.page(gpa) {
                self.compare_page(gpa, host);
            }
        }
    }

    /// Copies what micro-ops need of the segments and the mode to where they look; after each change.
    pub(crate) fn mirror_segments(&mut self) {
        let long = self.width() == Width::Bits64;
        for (number, segment) in self.segments.iter().enumerate() {
            let used = !long || number >= crate::SegmentName::Fs as usize;
            self.extra[1 + number] = if used { segment.base } else { 0 };
        }
        self.interp.rip_mask = if long { u64::MAX } else { flags::mask(4) };
        self.interp.fp_ready = self.fp_allowed(x86_fp::Unit::Sse).is_ok();
        self.interp.mode_tag = if self.cpl() == 3 { USER_TAG } else { 0 };
    }

    /// RIP of the first byte of the page that code runs in.
    #[inline(always)]
    pub(super) fn code_base(&self) -> u64 {
        self.extra[7]
    }

    #[inline(always)]
    pub(super) fn set_code_base(&mut self, value: u64) {
        self.extra[7] = value;
    }

    /// The stack pointer.
    #[inline(always)]
    pub(super) fn stack_pointer(&self) -> u64 {
        self.general[RSP]
    }
}
