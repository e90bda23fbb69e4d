//! Shifts and rotates.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::interp::flags::{AF, CF, OF, STATUS, mask, of_result, sign_extend, top};
use crate::interp::operand::operand_size;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault};

/// Result, CF and OF of a shift of `a` by `count` (not 0, masked to 31 or 63).
pub(crate) fn shifted(operation: Mnemonic, a: u64, count: u32, size: u32) -> (u64, bool, bool) {
    let bits = size * 8;
    let wide = u128::from(a & mask(size));
    match operation {
        Mnemonic::Shr => {
            let result = (wide >> count) as u64;
            (result, wide >> (count - 1) & 1 != 0, a & top(size) != 0)
        }
        Mnemonic::Sar => {
            let signed = i128::from(sign_extend(a, size) as i64);
            let result = (signed >> count) as u64 & mask(size);
            (result, signed >> (count - 1) & 1 != 0, false)
        }
        _ => {
            let full = wide << count;
            let result = full as u64 & mask(size);
            let carry = full >> bits & 1 != 0;
            (result, carry, carry != (result & top(size) != 0))
        }
    }
}

/// Result and CF of a rotate of `a` by `count`; through the carry for RCL and RCR.
fn rotated(operation: Mnemonic, a: u64, count: u32, carry: bool, size: u32) -> (u64, bool) {
    let bits = size * 8;
    let a = a & mask(size);
    match operation {
        Mnemonic::Rol | Mnemonic::Ror => {
            let left = match operation {
                Mnemonic::Rol => count % bits,
                _ => (bits - count % bits) % bits,
            };
            let wide = u128::from(a) << left;
            let result = (wide | wide >> bits) as u64 & mask(size);
            let carry = match operation {
                Mnemonic::Rol => result & 1 != 0,
                _ => result & top(size) != 0,
            };
            (result, carry)
        }
        _ => {
            let whole = bits + 1;
            let left = match operation {
                Mnemonic::Rcl => count % whole,
                _ => (whole - count % whole) % whole,
            };
            let ring = u128::from(a) | u128::from(carry) << bits;
            let turned = match left {
                0 => ring,
                _ => ring << left | ring >> (whole - left),
            };
            (turned as u64 & mask(size), turned >> bits & 1 != 0)
        }
    }
}

fn flag(holds: bool, bit: u64) -> u64 {
    if holds { bit } else { 0 }
}

impl Cpu {
    fn count(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        operand: u32,
        size: u32,
    ) -> Result<u32, Fault> {
        let count = match instruction.op_kind(operand) {
            OpKind::Register => self.read_operand(env, instruction, operand)?,
            _ => instruction.immediate(operand),
        };
        Ok(count as u32 & if size == 8 { 63 } else { 31 })
    }

    pub(super) fn shift(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let operation = instruction.mnemonic();
        let size = operand_size(instruction, 0);
        let count = self.count(env, instruction, 1, size)?;
        if count == 0 {
            self.modify_operand(env, instruction, |a| a)?;
            return Ok(Flow::Next);
        }
        let a = self.modify_operand(env, instruction, |a| shifted(operation, a, count, size).0)?;
        let (result, carry, overflow) = shifted(operation, a, count, size);
        let flags = of_result(result, size) | flag(carry, CF) | flag(overflow, OF);
        self.set_status(flags);
        Ok(Flow::Next)
    }

    pub(super) fn rotate(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let operation = instruction.mnemonic();
        let size = operand_size(instruction, 0);
        let count = self.count(env, instruction, 1, size)?;
        let old_carry = self.rflags & CF != 0;
        if count == 0 {
            self.modify_operand(env, instruction, |a| a)?;
            return Ok(Flow::Next);
        }
        let a = self.modify_operand(env, instruction, |a| {
            rotated(operation, a, count, old_carry, size).0
        })?;
        let (result, carry) = rotated(operation, a, count, old_carry, size);
        let high = result & top(size) != 0;
        let overflow = match operation {
            Mnemonic::Rol | Mnemonic::Rcl => high != carry,
            _ => high != (result & top(size) >> 1 != 0),
        };
        let flags = (self.rflags & STATUS & !(CF | OF)) | flag(carry, CF) | flag(overflow, OF);
        self.set_status(flags);
        Ok(Flow::Next)
    }

    pub(super) fn double_shift(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let left = instruction.mnemonic() == Mnemonic::Shld;
        let size = operand_size(instruction, 0);
        let bits = size * 8;
        let fill = self.read_operand(env, instruction, 1)? & mask(size);
        let count = self.count(env, instruction, 2, size)?;
        if count == 0 {
            self.modify_operand(env, instruction, |a| a)?;
            return Ok(Flow::Next);
        }
        // Counts above 16 of the 16-bit forms are undefined: the filler goes on with the operand.
        let evaluate = |a: u64| {
            let (a, fill) = (u128::from(a & mask(size)), u128::from(fill));
            if left {
                let ring = match size {
                    2 => a << 32 | fill << 16 | a,
                    _ => a << bits | fill,
                };
                let width = if size == 2 { bits * 3 } else { bits * 2 };
                let result = (ring << count >> (width - bits)) as u64 & mask(size);
                (result, ring >> (width - count) & 1 != 0)
            } else {
                let ring = fill << bits | a;
                let ring = if size == 2 {
                    ring | a << (bits * 2)
                } else {
                    ring
                };
                (
                    (ring >> count) as u64 & mask(size),
                    ring >> (count - 1) & 1 != 0,
                )
            }
        };
        let a = self.modify_operand(env, instruction, |a| evaluate(a).0)?;
        let (result, carry) = evaluate(a);
        let overflow = (a ^ result) & top(size) != 0;
        let flags = of_result(result, size) | flag(carry, CF) | flag(overflow, OF);
        self.set_status(flags & !AF);
        Ok(Flow::Next)
    }
}
