//! MUL, IMUL, DIV, IDIV.

use iced_x86::Instruction;

use crate::interp::flags::{CF, OF, mask, of_result, sign_extend};
use crate::interp::operand::{RAX, RDX, operand_size};
use crate::state::Flow;
use crate::{Cpu, Environment, Fault};

impl Cpu {
    /// Writes a double-length value to AX or to (E/R)DX and (E/R)AX.
    fn set_pair(&mut self, size: u32, low: u64, high: u64) {
        if size == 1 {
            self.set_register(RAX, 2, low & 0xff | high << 8);
        } else {
            self.set_register(RAX, size, low);
            self.set_register(RDX, size, high);
        }
    }

    fn pair(&self, size: u32) -> u128 {
        match size {
            1 => self.register(RAX, 2).into(),
            _ => {
                let high = u128::from(self.register(RDX, size));
                high << (size * 8) | u128::from(self.register(RAX, size))
            }
        }
    }

    pub(super) fn multiply(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        signed: bool,
    ) -> Result<Flow, Fault> {
        let size = operand_size(instruction, 0);
        let b = self.read_operand(env, instruction, 0)?;
        let a = self.register(RAX, size);
        let (product, overflow) = if signed {
            signed_product(a, b, size)
        } else {
            let product = u128::from(a) * u128::from(b & mask(size));
            (product, product >> (size * 8) != 0)
        };
        let low = product as u64 & mask(size);
        self.set_pair(size, low, (product >> (size * 8)) as u64 & mask(size));
        self.set_product_flags(low, overflow, size);
        Ok(Flow::Next)
    }

    pub(super) fn signed_multiply(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let operands = instruction.op_count();
        if operands == 1 {
            return self.multiply(env, instruction, true);
        }
        let size = operand_size(instruction, 0);
        let a = self.read_operand(env, instruction, operands - 2)?;
        let b = self.read_operand(env, instruction, operands - 1)?;
        let (product, overflow) = signed_product(a, b, size);
        let low = product as u64 & mask(size);
        self.write_operand(env, instruction, 0, low)?;
        self.set_product_flags(low, overflow, size);
        Ok(Flow::Next)
    }

    fn set_product_flags(&mut self, low: u64, overflow: bool, size: u32) {
        let flags = if overflow { CF | OF } else { 0 };
        self.set_status(of_result(low, size) | flags);
    }

    pub(super) fn divide(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        signed: bool,
    ) -> Result<Flow, Fault> {
        let size = operand_size(instruction, 0);
        let bits = size * 8;
        let divisor = self.read_operand(env, instruction, 0)?;
        let dividend = self.pair(size);
        if divisor & mask(size) == 0 {
            return Err(Fault::DIVIDE);
        }
        let (quotient, remainder) = if signed {
            let unused = 128 - bits * 2;
            let dividend = (dividend << unused) as i128 >> unused;
            let divisor = i128::from(sign_extend(divisor, size) as i64);
            let quotient = dividend.checked_div(divisor).ok_or(Fault::DIVIDE)?;
            let fits = sign_extend(quotient as u64, size) as i64;
            if i128::from(fits) != quotient {
                return Err(Fault::DIVIDE);
            }
            (quotient as u64, (dividend % divisor) as u64)
        } else {
            let divisor = u128::from(divisor & mask(size));
            let quotient = dividend / divisor;
            if quotient >> bits != 0 {
                return Err(Fault::DIVIDE);
            }
            (quotient as u64, (dividend % divisor) as u64)
        };
        self.set_pair(size, quotient & mask(size), remainder & mask(size));
        Ok(Flow::Next)
    }
}

/// The double-length product, and whether it does not fit one length.
fn signed_product(a: u64, b: u64, size: u32) -> (u128, bool) {
    let extended = |value| i128::from(sign_extend(value, size) as i64);
    let product = extended(a) * extended(b);
    let fits = i128::from(sign_extend(product as u64, size) as i64);
    (product as u128, fits != product)
}
