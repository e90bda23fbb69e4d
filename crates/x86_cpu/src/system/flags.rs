//! RFLAGS: what PUSHF, POPF, CLI, STI and IRET may see and change.

use iced_x86::{Code, Instruction};

use super::delivery::iopl;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault};

pub(super) const TF: u64 = 1 << 8;
pub(super) const IF: u64 = 1 << 9;
pub(super) const IOPL: u64 = 3 << 12;
pub(super) const NT: u64 = 1 << 14;
pub(super) const RF: u64 = 1 << 16;
pub(super) const VM: u64 = 1 << 17;
pub(super) const AC: u64 = 1 << 18;
const ID: u64 = 1 << 21;
/// CF, PF, AF, ZF, SF, DF, OF.
const STATUS: u64 = 0xcd5;
/// Reads as one.
pub(super) const FIXED: u64 = 2;

/// Flags after POPF (or IRET, which also changes RF) of `size` bytes at level `cpl`.
pub(super) fn flags_after(old: u64, popped: u64, size: u64, cpl: u8, also: u64) -> u64 {
    let mut changed = STATUS | TF | NT | AC | ID | also;
    if cpl == 0 {
        changed |= IOPL;
    }
    if cpl <= iopl(old) {
        changed |= IF;
    }
    if size == 2 {
        changed &= 0xffff;
    }
    old & !changed | popped & changed | FIXED
}

/// Bytes that PUSHF and POPF move.
fn size_of_code(code: Code) -> u64 {
    match code {
        Code::Pushfw | Code::Popfw => 2,
        Code::Pushfd | Code::Popfd => 4,
        _ => 8,
    }
}

impl Cpu {
    pub(super) fn push_flags(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let mut stack = self.stack();
        let size = size_of_code(instruction.code());
        self.push_on(env, &mut stack, self.rflags & !(RF | VM), size)?;
        self.use_stack(&stack);
        Ok(Flow::Next)
    }

    pub(super) fn pop_flags(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let mut stack = self.stack();
        let size = size_of_code(instruction.code());
        let popped = self.pop_from(env, &mut stack, size)?;
        let old = self.rflags;
        self.use_stack(&stack);
        self.rflags = flags_after(old, popped, size, self.cpl(), 0) & !RF;
        if (old ^ self.rflags) & (IF | TF | AC) == 0 {
            return Ok(Flow::Next);
        }
        self.refresh();
        Ok(Flow::Leave)
    }

    fn check_interrupt_flag_rights(&self) -> Result<(), Fault> {
        if self.protected() && self.cpl() > iopl(self.rflags) {
            return Err(Fault::protection(0));
        }
        Ok(())
    }

    pub(super) fn clear_interrupts(&mut self) -> Result<Flow, Fault> {
        self.check_interrupt_flag_rights()?;
        self.rflags &= !IF;
        Ok(Flow::Next)
    }

    pub(super) fn set_interrupts(&mut self) -> Result<Flow, Fault> {
        self.check_interrupt_flag_rights()?;
        if self.rflags & IF != 0 {
            return Ok(Flow::Next);
        }
        self.rflags |= IF;
        self.interrupt_shadow = true;
        Ok(Flow::Leave)
    }
}
