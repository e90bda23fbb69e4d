//! ADD, ADC, SUB, SBB, AND, OR, XOR, CMP, TEST, INC, DEC, NEG, NOT.

use iced_x86::{Instruction, Mnemonic};

use crate::interp::flags::{CF, STATUS, mask, of_difference, of_result, of_sum};
use crate::interp::operand::operand_size;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault};

/// Result and status flags of a two-operand operation; `flags` are the present ones.
fn evaluate(operation: Mnemonic, a: u64, b: u64, flags: u64, size: u32) -> (u64, u64) {
    let carry = flags & CF;
    let (a, b) = (a & mask(size), b & mask(size));
    let sum = |carry: u64| {
        let result = a.wrapping_add(b).wrapping_add(carry) & mask(size);
        (result, of_sum(a, b, result, size))
    };
    let difference = |borrow: u64| {
        let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
        (result, of_difference(a, b, result, size))
    };
    let logic = |result| (result, of_result(result, size));
    match operation {
        Mnemonic::Add => sum(0),
        Mnemonic::Adc => sum(carry),
        Mnemonic::Sub | Mnemonic::Cmp => difference(0),
        Mnemonic::Sbb => difference(carry),
        Mnemonic::And | Mnemonic::Test => logic(a & b),
        Mnemonic::Or => logic(a | b),
        _ => logic(a ^ b),
    }
}

impl Cpu {
    pub(super) fn arithmetic(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let (operation, flags) = (instruction.mnemonic(), self.rflags);
        let size = operand_size(instruction, 0);
        let b = self.read_operand(env, instruction, 1)?;
        let a = self.modify_operand(env, instruction, |a| {
            evaluate(operation, a, b, flags, size).0
        })?;
        self.set_status(evaluate(operation, a, b, flags, size).1);
        Ok(Flow::Next)
    }

    pub(super) fn compare(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = operand_size(instruction, 0);
        let a = self.read_operand(env, instruction, 0)?;
        let b = self.read_operand(env, instruction, 1)?;
        self.set_status(evaluate(instruction.mnemonic(), a, b, self.rflags, size).1);
        Ok(Flow::Next)
    }

    pub(super) fn arithmetic_unary(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let operation = instruction.mnemonic();
        let size = operand_size(instruction, 0);
        let a = self.modify_operand(env, instruction, |a| match operation {
            Mnemonic::Inc => a.wrapping_add(1),
            Mnemonic::Dec => a.wrapping_sub(1),
            Mnemonic::Neg => a.wrapping_neg(),
            _ => !a,
        })?;
        let carry = self.rflags & CF;
        let flags = match operation {
            Mnemonic::Inc => (evaluate(Mnemonic::Add, a, 1, 0, size).1 & !CF) | carry,
            Mnemonic::Dec => (evaluate(Mnemonic::Sub, a, 1, 0, size).1 & !CF) | carry,
            Mnemonic::Neg => evaluate(Mnemonic::Sub, 0, a, 0, size).1,
            _ => self.rflags & STATUS,
        };
        self.set_status(flags);
        Ok(Flow::Next)
    }
}
