//! IRET in all modes (SDM 2A IRET). Task returns and virtual-8086 mode are not supported: #GP(0).

use iced_x86::{Code, Instruction};

use super::descriptors::{BIG, LONG, PRESENT, index, is_null};
use super::flags::{FIXED, NT, RF, VM, flags_after};
use super::stack::Stack;
use crate::mmu::canonical;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, Segment, SegmentName};

/// Where a far return leads.
pub(super) struct Return {
    pub(super) code: Segment,
    pub(super) rip: u64,
    pub(super) cpl: u8,
}

impl Cpu {
    pub(super) fn interrupt_return(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = match instruction.code() {
            Code::Iretw => 2,
            Code::Iretd => 4,
            _ => 8,
        };
        let mut stack = self.stack();
        if self.protected() {
            self.iret_protected(env, &mut stack, size)?;
        } else {
            self.iret_real(env, &mut stack, size)?;
        }
        self.nmi_blocked = false;
        if !self.stepping() {
            // The flag means something to instruction breakpoints only, and the next instruction
            // would clear it.
            self.rflags &= !RF;
        }
        self.refresh();
        Ok(Flow::Leave)
    }

    fn iret_real(
        &mut self,
        env: &mut dyn Environment,
        stack: &mut Stack,
        size: u64,
    ) -> Result<(), Fault> {
        let rip = self.pop_from(env, stack, size)?;
        let cs = self.pop_from(env, stack, size)? as u16;
        let flags = self.pop_from(env, stack, size)?;
        if rip > u64::from(self.segment(SegmentName::Cs).limit) {
            return Err(Fault::protection(0));
        }
        self.use_stack(stack);
        self.set_real_segment(SegmentName::Cs, cs);
        self.rip = rip;
        self.rflags = flags_after(self.rflags, flags & !VM, size, 0, RF);
        Ok(())
    }

    fn iret_protected(
        &mut self,
        env: &mut dyn Environment,
        stack: &mut Stack,
        size: u64,
    ) -> Result<(), Fault> {
        if self.rflags & NT != 0 {
            return Err(Fault::protection(0));
        }
        let was_long_code = self.long_code();
        let rip = self.pop_from(env, stack, size)?;
        let cs = self.pop_from(env, stack, size)? as u16;
        let flags = self.pop_from(env, stack, size)?;
        if !self.long_mode() && flags & VM != 0 && self.cpl() == 0 {
            return Err(Fault::protection(0));
        }
        let target = self.return_target(env, cs, rip)?;
        let old_cpl = self.cpl();
        let with_stack = was_long_code || target.cpl > old_cpl;
        let ss = if with_stack {
            let pointer = self.pop_from(env, stack, size)?;
            let selector = self.pop_from(env, stack, size)? as u16;
            Some(self.return_stack(env, selector, pointer, &target)?)
        } else {
            None
        };
        let long_target = self.long_mode() && target.code.access & LONG != 0;
        self.rflags = flags_after(self.rflags, flags, size, old_cpl, RF) | FIXED;
        self.return_to(&target);
        match ss {
            Some((segment, pointer)) => self.take_stack(segment, pointer, long_target),
            None => self.use_stack(stack),
        }
        if target.cpl > old_cpl {
            self.drop_privileged_segments(target.cpl);
        }
        Ok(())
    }

    /// Sets SS and RSP after a return to code that is `long` or not.
    pub(super) fn take_stack(&mut self, segment: Segment, pointer: u64, long: bool) {
        self.segments[SegmentName::Ss as usize] = segment;
        let cpl = (segment.access >> 5 & 3) as u8;
        let stack = if long {
            Stack::flat(pointer, cpl)
        } else {
            Stack::segmented(segment, pointer, cpl)
        };
        self.use_stack(&stack);
    }

    /// Sets CS and RIP; CPL follows with SS.
    pub(super) fn return_to(&mut self, target: &Return) {
        self.segments[SegmentName::Cs as usize] = target.code;
        self.rip = target.rip;
    }

    /// Checks the code segment of a far return or IRET.
    pub(super) fn return_target(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        rip: u64,
    ) -> Result<Return, Fault> {
        if is_null(selector) {
            return Err(Fault::protection(0));
        }
        let error = index(selector);
        let descriptor = self.descriptor(env, selector, Fault::protection)?;
        let rpl = (selector & 3) as u8;
        let level_fits = if descriptor.is_plain_code() {
            descriptor.dpl() == rpl
        } else {
            descriptor.dpl() <= rpl
        };
        let both = self.long_mode() && descriptor.is(LONG | BIG);
        if !descriptor.is_code() || rpl < self.cpl() || !level_fits || both {
            return Err(Fault::protection(error));
        }
        if !descriptor.is(PRESENT) {
            return Err(Fault::not_present(error));
        }
        let code = descriptor.segment(selector);
        let reachable = if self.long_mode() && descriptor.is(LONG) {
            canonical(rip)
        } else {
            rip <= u64::from(code.limit)
        };
        if !reachable {
            return Err(Fault::protection(0));
        }
        self.mark_accessed(env, &descriptor)?;
        Ok(Return {
            code,
            rip,
            cpl: rpl,
        })
    }

    /// Checks the stack segment that a return to `target` loads.
    pub(super) fn return_stack(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        pointer: u64,
        target: &Return,
    ) -> Result<(Segment, u64), Fault> {
        let long_target = self.long_mode() && target.code.access & LONG != 0;
        if is_null(selector) {
            let level = (selector & 3) as u8;
            if long_target && target.cpl < 3 && level == target.cpl {
                let segment = super::descriptors::null_segment(selector, target.cpl);
                return Ok((segment, pointer));
            }
            return Err(Fault::protection(0));
        }
        let descriptor = self.descriptor(env, selector, Fault::protection)?;
        let segment =
            self.stack_segment_of(env, selector, &descriptor, target.cpl, Fault::protection)?;
        Ok((segment, pointer))
    }
}
