//! Near jumps, calls and returns, LOOP, JCXZ.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::interp::flags::{ZF, mask};
use crate::interp::operand::{RCX, RSP, Width, canonical};
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, SegmentName};

impl Cpu {
    fn checked_target(&self, target: u64, size: u32) -> Result<u64, Fault> {
        let target = target & mask(size);
        let good = match self.width() {
            Width::Bits64 => canonical(target),
            _ => target <= u64::from(self.segments[SegmentName::Cs as usize].limit),
        };
        if good {
            Ok(target)
        } else {
            Err(Fault::protection(0))
        }
    }

    /// Where a direct branch goes.
    fn direct_target(&self, instruction: &Instruction) -> Result<u64, Fault> {
        let size = Self::branch_size(instruction);
        let offset = instruction.near_branch_target();
        self.checked_target(self.code_base().wrapping_add(offset), size)
    }

    /// Takes a direct branch.
    pub(super) fn branch(&mut self, instruction: &Instruction) -> Result<Flow, Fault> {
        self.rip = self.direct_target(instruction)?;
        Ok(Flow::Leave)
    }

    /// JMP and CALL, direct and indirect.
    pub(super) fn jump(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let direct = matches!(
            instruction.op0_kind(),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
        );
        let target = match direct {
            true => self.direct_target(instruction)?,
            false => {
                let target = self.read_operand(env, instruction, 0)?;
                self.checked_target(target, Self::branch_size(instruction))?
            }
        };
        if instruction.mnemonic() == Mnemonic::Call {
            let size = instruction.stack_pointer_increment().unsigned_abs();
            self.push_sized(env, self.rip, size)?;
        }
        self.rip = target;
        Ok(Flow::Leave)
    }

    pub(super) fn near_return(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let extra = match instruction.op_count() {
            0 => 0,
            _ => u64::from(instruction.immediate16()),
        };
        let size = instruction.stack_pointer_increment() as u32 - extra as u32;
        let target = self.peek_stack(env, 0, size)?;
        let target = self.checked_target(target, size)?;
        let pointer = self.general[RSP].wrapping_add(u64::from(size) + extra);
        self.set_register(RSP, self.stack_size(), pointer);
        self.rip = target;
        Ok(Flow::Leave)
    }

    pub(super) fn loop_branch(&mut self, instruction: &Instruction) -> Result<Flow, Fault> {
        let size = count_size(instruction);
        let count = self.register(RCX, size).wrapping_sub(1) & mask(size);
        let zero = self.rflags & ZF != 0;
        let taken = count != 0
            && match instruction.mnemonic() {
                Mnemonic::Loope => zero,
                Mnemonic::Loopne => !zero,
                _ => true,
            };
        let target = self.direct_target(instruction);
        if taken {
            self.rip = target?;
        }
        self.set_register(RCX, size, count);
        Ok(Flow::Leave)
    }

    pub(super) fn jump_if_zero(&mut self, instruction: &Instruction) -> Result<Flow, Fault> {
        let size = match instruction.mnemonic() {
            Mnemonic::Jcxz => 2,
            Mnemonic::Jecxz => 4,
            _ => 8,
        };
        match self.register(RCX, size) {
            0 => self.branch(instruction),
            _ => Ok(Flow::Leave),
        }
    }
}

/// Length of LOOP's counter, which follows the address size, bytes.
fn count_size(instruction: &Instruction) -> u32 {
    use iced_x86::Code;
    match instruction.code() {
        Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 2,
        Code::Loop_rel8_16_ECX
        | Code::Loop_rel8_32_ECX
        | Code::Loop_rel8_64_ECX
        | Code::Loope_rel8_16_ECX
        | Code::Loope_rel8_32_ECX
        | Code::Loope_rel8_64_ECX
        | Code::Loopne_rel8_16_ECX
        | Code::Loopne_rel8_32_ECX
        | Code::Loopne_rel8_64_ECX => 4,
        _ => 8,
    }
}
