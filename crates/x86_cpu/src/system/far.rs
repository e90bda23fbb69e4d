//! Far jumps, calls and returns (SDM 2A JMP, CALL, RET). Jumps and calls to task segments and task
//! gates are not supported: they are faults of their selector.

use iced_x86::{Code, Instruction, OpKind};

use super::delivery::inner_level;
use super::descriptors::{
    BIG, Descriptor, LONG, PRESENT, TYPE_CALL_GATE, TYPE_CALL_GATE16, index, is_null, null_segment,
};
use super::stack::{RSP, Stack};
use crate::mmu::canonical;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, Segment, SegmentName};

/// A call gate.
struct CallGate {
    selector: u16,
    offset: u64,
    /// Values copied from the caller's stack.
    parameters: u64,
    /// Bytes of each value pushed.
    size: u64,
}

impl Cpu {
    /// Far JMP and CALL, direct and through memory; RIP is already after it.
    pub(super) fn far_branch(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        call: bool,
    ) -> Result<Flow, Fault> {
        let (selector, offset, size) = self.far_target(env, instruction)?;
        if self.protected() {
            self.far_protected(env, selector, offset, size, call)?;
        } else {
            self.far_real(env, selector, offset, size, call)?;
        }
        self.refresh();
        Ok(Flow::Leave)
    }

    fn far_target(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<(u16, u64, u64), Fault> {
        match instruction.op_kind(0) {
            OpKind::FarBranch16 => {
                let offset = instruction.far_branch16().into();
                return Ok((instruction.far_branch_selector(), offset, 2));
            }
            OpKind::FarBranch32 => {
                let offset = instruction.far_branch32().into();
                return Ok((instruction.far_branch_selector(), offset, 4));
            }
            _ => {}
        }
        // With REX.W the offset has 8 bytes, as Intel's processors have it. Those of the vendor that
        // CPUID names read 4 (APM 3 JMP FAR), so only code made for Intel's has such an instruction.
        let size = match instruction.code() {
            Code::Jmp_m1616 | Code::Call_m1616 => 2,
            Code::Jmp_m1632 | Code::Call_m1632 => 4,
            _ => 8,
        };
        let offset = self.load_memory(env, instruction, 0, size)?;
        let selector = self.load_memory(env, instruction, size, 2)? as u16;
        Ok((selector, offset, size))
    }

    fn far_real(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        offset: u64,
        size: u64,
        call: bool,
    ) -> Result<(), Fault> {
        if offset > u64::from(self.segment(SegmentName::Cs).limit) {
            return Err(Fault::protection(0));
        }
        if call {
            self.push_return(env, size)?;
        }
        self.set_real_segment(SegmentName::Cs, selector);
        self.rip = offset;
        Ok(())
    }

    /// Pushes CS and RIP on the stack in use.
    fn push_return(&mut self, env: &mut dyn Environment, size: u64) -> Result<(), Fault> {
        let mut stack = self.stack();
        let cs = self.segment(SegmentName::Cs).selector;
        self.push_on(env, &mut stack, cs.into(), size)?;
        self.push_on(env, &mut stack, self.rip, size)?;
        self.use_stack(&stack);
        Ok(())
    }

    fn far_protected(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        offset: u64,
        size: u64,
        call: bool,
    ) -> Result<(), Fault> {
        if is_null(selector) {
            return Err(Fault::protection(0));
        }
        let error = index(selector);
        let descriptor = self.descriptor(env, selector, Fault::protection)?;
        match descriptor.system_type() {
            None => {}
            Some(TYPE_CALL_GATE) => {
                return self.through_gate(env, selector, &descriptor, call);
            }
            Some(TYPE_CALL_GATE16) if !self.long_mode() => {
                return self.through_gate(env, selector, &descriptor, call);
            }
            Some(_) => return Err(Fault::protection(error)),
        }
        let (rpl, cpl) = ((selector & 3) as u8, self.cpl());
        let level_fits = if descriptor.is_plain_code() {
            rpl <= cpl && descriptor.dpl() == cpl
        } else {
            descriptor.dpl() <= cpl
        };
        if !descriptor.is_code() || !level_fits {
            return Err(Fault::protection(error));
        }
        let code = self.code_segment(env, selector, &descriptor, cpl)?;
        self.check_target(&code, offset)?;
        if call {
            self.push_return(env, size)?;
        }
        self.segments[SegmentName::Cs as usize] = code;
        self.rip = offset;
        Ok(())
    }

    /// Makes CS of a code descriptor that may be entered at `cpl`.
    fn code_segment(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        descriptor: &Descriptor,
        cpl: u8,
    ) -> Result<Segment, Fault> {
        if self.long_mode() && descriptor.is(LONG | BIG) {
            return Err(Fault::protection(index(selector)));
        }
        if !descriptor.is(PRESENT) {
            return Err(Fault::not_present(index(selector)));
        }
        self.mark_accessed(env, descriptor)?;
        Ok(descriptor.segment(selector & !3 | u16::from(cpl)))
    }

    fn check_target(&self, code: &Segment, offset: u64) -> Result<(), Fault> {
        let reachable = if self.long_mode() && code.access & LONG != 0 {
            canonical(offset)
        } else {
            offset <= u64::from(code.limit)
        };
        reachable.then_some(()).ok_or(Fault::protection(0))
    }

    fn call_gate(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        descriptor: &Descriptor,
    ) -> Result<CallGate, Fault> {
        let error = index(selector);
        if descriptor.dpl() < self.cpl().max((selector & 3) as u8) {
            return Err(Fault::protection(error));
        }
        if !descriptor.is(PRESENT) {
            return Err(Fault::not_present(error));
        }
        let wide = descriptor.system_type() == Some(TYPE_CALL_GATE);
        let high = if wide {
            descriptor.high & 0xffff_0000
        } else {
            0
        };
        let offset = u64::from(descriptor.low & 0xffff | high);
        let upper = if self.long_mode() {
            self.upper_base(env, selector, descriptor)?
        } else {
            0
        };
        Ok(CallGate {
            selector: (descriptor.low >> 16) as u16,
            offset: offset | upper,
            parameters: u64::from(descriptor.high & 0x1f),
            size: match (self.long_mode(), wide) {
                (true, _) => 8,
                (false, true) => 4,
                (false, false) => 2,
            },
        })
    }

    fn through_gate(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        descriptor: &Descriptor,
        call: bool,
    ) -> Result<(), Fault> {
        let gate = self.call_gate(env, selector, descriptor)?;
        if is_null(gate.selector) {
            return Err(Fault::protection(0));
        }
        let error = index(gate.selector);
        let target = self.descriptor(env, gate.selector, Fault::protection)?;
        let cpl = self.cpl();
        let wrong_size = self.long_mode() && target.access() & (LONG | BIG) != LONG;
        if !target.is_code() || target.dpl() > cpl || wrong_size {
            return Err(Fault::protection(error));
        }
        let level = inner_level(&target, cpl);
        if !call && level != cpl {
            return Err(Fault::protection(error));
        }
        let code = self.code_segment(env, gate.selector, &target, level)?;
        self.check_target(&code, gate.offset)?;
        if call && level < cpl {
            self.switch_stack(env, &gate, level)?;
        } else if call {
            self.push_return(env, gate.size)?;
        }
        self.segments[SegmentName::Cs as usize] = code;
        self.rip = gate.offset;
        Ok(())
    }

    /// Goes to the stack of an inner level with the caller's SS, RSP, parameters, CS and RIP on it.
    fn switch_stack(
        &mut self,
        env: &mut dyn Environment,
        gate: &CallGate,
        level: u8,
    ) -> Result<(), Fault> {
        let (old_ss, old_rsp) = (self.segment(SegmentName::Ss).selector, self.general[RSP]);
        let mut old = self.stack();
        let (mut new, segment) = if self.long_mode() {
            let pointer = self.task_pointer(env, level)?;
            (
                Stack::flat(pointer, level),
                null_segment(level.into(), level),
            )
        } else {
            let stack = self.task_stack(env, level, 0)?;
            (stack, stack.segment())
        };
        self.push_on(env, &mut new, old_ss.into(), gate.size)?;
        self.push_on(env, &mut new, old_rsp, gate.size)?;
        if !self.long_mode() {
            old.skip(gate.parameters * gate.size);
            for _ in 0..gate.parameters {
                old.skip(gate.size.wrapping_neg());
                let mut at = old;
                let value = self.pop_from(env, &mut at, gate.size)?;
                self.push_on(env, &mut new, value, gate.size)?;
            }
        }
        let cs = self.segment(SegmentName::Cs).selector;
        self.push_on(env, &mut new, cs.into(), gate.size)?;
        self.push_on(env, &mut new, self.rip, gate.size)?;
        self.segments[SegmentName::Ss as usize] = segment;
        self.use_stack(&new);
        Ok(())
    }

    /// Far RET, with or without bytes to drop.
    pub(super) fn far_return(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let (size, dropped) = match instruction.code() {
            Code::Retfw => (2, 0),
            Code::Retfd => (4, 0),
            Code::Retfq => (8, 0),
            Code::Retfw_imm16 => (2, instruction.immediate16()),
            Code::Retfd_imm16 => (4, instruction.immediate16()),
            _ => (8, instruction.immediate16()),
        };
        let mut stack = self.stack();
        let rip = self.pop_from(env, &mut stack, size)?;
        let selector = self.pop_from(env, &mut stack, size)? as u16;
        stack.skip(dropped.into());
        if !self.protected() {
            if rip > u64::from(self.segment(SegmentName::Cs).limit) {
                return Err(Fault::protection(0));
            }
            self.use_stack(&stack);
            self.set_real_segment(SegmentName::Cs, selector);
            self.rip = rip;
            self.refresh();
            return Ok(Flow::Leave);
        }
        let target = self.return_target(env, selector, rip)?;
        if target.cpl > self.cpl() {
            let pointer = self.pop_from(env, &mut stack, size)?;
            let selector = self.pop_from(env, &mut stack, size)? as u16;
            let (segment, pointer) = self.return_stack(env, selector, pointer, &target)?;
            let long = self.long_mode() && target.code.access & LONG != 0;
            self.return_to(&target);
            self.take_stack(segment, pointer, long);
            let mut stack = self.stack();
            stack.skip(dropped.into());
            self.use_stack(&stack);
            self.drop_privileged_segments(target.cpl);
        } else {
            self.use_stack(&stack);
            self.return_to(&target);
        }
        self.refresh();
        Ok(Flow::Leave)
    }
}
