//! BT and its kin, BSF, BSR, POPCNT, BSWAP, CRC32.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::interp::flags::{CF, STATUS, ZF, mask, of_result, sign_extend};
use crate::interp::operand::operand_size;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault};

/// The Castagnoli polynomial, reflected.
const CRC32_POLYNOMIAL: u32 = 0x82f6_3b78;

impl Cpu {
    pub(super) fn bit_test(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = operand_size(instruction, 0);
        let number = self.read_operand(env, instruction, 1)?;
        let bit = 1 << (number & u64::from(size * 8 - 1));
        let operation = instruction.mnemonic();
        let change = |a: u64| match operation {
            Mnemonic::Bts => a | bit,
            Mnemonic::Btr => a & !bit,
            Mnemonic::Btc => a ^ bit,
            _ => a,
        };
        let old = if instruction.op0_kind() == OpKind::Memory {
            // A bit number in a register reaches beyond the operand.
            let words = match instruction.op1_kind() {
                OpKind::Register => sign_extend(number, size) as i64 >> (3 + size.trailing_zeros()),
                _ => 0,
            };
            let address_size = match (instruction.memory_base(), instruction.memory_index()) {
                (Register::None, Register::None) => 8,
                (Register::None, index) => index.size() as u32,
                (first, _) => first.size() as u32,
            };
            let offset = self
                .effective_address(instruction)
                .wrapping_add((words * i64::from(size)) as u64)
                & mask(address_size);
            let segment = self.operand_segment(instruction);
            let write = operation != Mnemonic::Bt;
            let linear = self.linear(segment, offset, size, write)?;
            match write {
                true => {
                    self.modify_memory(env, linear, size, instruction.has_lock_prefix(), change)?
                }
                false => self.load_sized(env, linear, size)?,
            }
        } else if operation == Mnemonic::Bt {
            self.read_operand(env, instruction, 0)?
        } else {
            self.modify_operand(env, instruction, change)?
        };
        let carry = u64::from(old & bit != 0);
        self.set_status((self.rflags & STATUS & !CF) | carry);
        Ok(Flow::Next)
    }

    pub(super) fn bit_count(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = operand_size(instruction, 0);
        let value = self.read_operand(env, instruction, 1)? & mask(size);
        let result = match instruction.mnemonic() {
            Mnemonic::Popcnt => value.count_ones(),
            Mnemonic::Bsf => value.trailing_zeros(),
            _ => 63 - value.leading_zeros().min(63),
        };
        let zero = u64::from(value == 0) << 6;
        if instruction.mnemonic() == Mnemonic::Popcnt {
            self.set_status(zero);
            return self
                .write_operand(env, instruction, 0, result.into())
                .map(|()| Flow::Next);
        }
        // With a zero source the destination stays as it is, its upper half included.
        if value != 0 {
            self.write_operand(env, instruction, 0, result.into())?;
        }
        self.set_status((of_result(result.into(), size) & !ZF) | zero);
        Ok(Flow::Next)
    }

    pub(super) fn byte_swap(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let value = self.read_operand(env, instruction, 0)?;
        let swapped = match operand_size(instruction, 0) {
            8 => value.swap_bytes(),
            4 => u64::from((value as u32).swap_bytes()),
            _ => 0,
        };
        self.write_operand(env, instruction, 0, swapped)?;
        Ok(Flow::Next)
    }

    pub(super) fn crc32(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = operand_size(instruction, 1);
        let value = self.read_operand(env, instruction, 1)?;
        let mut crc = self.read_operand(env, instruction, 0)? as u32;
        for byte in value.to_le_bytes().iter().take(size as usize) {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ ((crc & 1) * CRC32_POLYNOMIAL);
            }
        }
        self.write_operand(env, instruction, 0, crc.into())?;
        Ok(Flow::Next)
    }
}
