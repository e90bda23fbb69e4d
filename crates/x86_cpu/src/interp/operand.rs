//! Operands of decoded instructions: registers, memory, immediates.

use iced_x86::{Instruction, OpKind, Register};

use super::flags::{mask, sign_extend};
use crate::{Cpu, Environment, Fault, SegmentName};

pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const RBP: usize = 5;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

/// A register operand: where it is in the register file, and its length, bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) offset: u8,
    pub(crate) size: u32,
}

/// Returns the place of a general register; `None` for any other register.
pub(crate) fn slot(register: Register) -> Option<Slot> {
    let number = register as u32;
    let at = |first: Register| (number - first as u32) as u8;
    let (offset, size) = match number {
        n if n < Register::AL as u32 => return None,
        n if (Register::AH as u32..=Register::BH as u32).contains(&n) => {
            (at(Register::AH) * 8 + 1, 1)
        }
        n if n <= Register::BL as u32 => (at(Register::AL) * 8, 1),
        n if n <= Register::R15L as u32 => (at(Register::SPL) * 8 + 32, 1),
        n if n <= Register::R15W as u32 => (at(Register::AX) * 8, 2),
        n if n <= Register::R15D as u32 => (at(Register::EAX) * 8, 4),
        n if n <= Register::R15 as u32 => (at(Register::RAX) * 8, 8),
        _ => return None,
    };
    Some(Slot { offset, size })
}

/// Returns the number of a segment register, where it is one.
pub(crate) fn segment(register: Register) -> Option<usize> {
    let first = Register::ES as u32;
    let number = (register as u32).wrapping_sub(first);
    (number < 6).then_some(number as usize)
}

/// Returns the segment of a memory operand in 64-bit mode, where prefixes other than FS and GS are
/// ignored: they do not change #SS to #GP either.
fn long_segment(instruction: &Instruction) -> usize {
    let prefix = match instruction.segment_prefix() {
        prefix @ (Register::FS | Register::GS) => segment(prefix),
        _ => None,
    };
    let on_stack = matches!(
        instruction.memory_base(),
        Register::RSP | Register::RBP | Register::ESP | Register::EBP
    );
    let usual = if on_stack {
        SegmentName::Ss
    } else {
        SegmentName::Ds
    };
    prefix.unwrap_or(usual as usize)
}

/// How instructions are decoded: the code segment's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Bits16,
    Bits32,
    Bits64,
}

/// Returns whether an address is canonical (48 bits).
pub(crate) fn canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

impl Cpu {
    /// Returns how the code segment has instructions decoded.
    pub(crate) fn width(&self) -> Width {
        let access = self.segments[SegmentName::Cs as usize].access;
        match (self.efer >> 10 & 1, access >> 13 & 1, access >> 14 & 1) {
            (1, 1, _) => Width::Bits64,
            (_, _, 1) => Width::Bits32,
            _ => Width::Bits16,
        }
    }

    /// Reads a register operand.
    #[inline]
    pub(crate) fn slot(&self, slot: Slot) -> u64 {
        let register = self.general[usize::from(slot.offset >> 3) & 15];
        register >> ((slot.offset & 7) * 8) & mask(slot.size)
    }

    /// Writes a register operand; 32 bits zero the upper half.
    #[inline]
    pub(crate) fn set_slot(&mut self, slot: Slot, value: u64) {
        let register = &mut self.general[usize::from(slot.offset >> 3) & 15];
        let shift = (slot.offset & 7) * 8;
        *register = match slot.size {
            8 => value,
            4 => value & mask(4),
            size => (*register & !(mask(size) << shift)) | (value & mask(size)) << shift,
        };
    }

    /// Reads the low `size` bytes of a general register.
    pub(crate) fn register(&self, number: usize, size: u32) -> u64 {
        self.general[number & 15] & mask(size)
    }

    /// Writes the low `size` bytes of a general register; 32 bits zero the upper half.
    pub(crate) fn set_register(&mut self, number: usize, size: u32, value: u64) {
        let offset = (number as u8 & 15) * 8;
        self.set_slot(Slot { offset, size }, value);
    }

    /// Returns the offset within its segment that a memory operand names.
    pub(crate) fn effective_address(&self, instruction: &Instruction) -> u64 {
        let of = |register: Register| slot(register).map_or(0, |slot| self.slot(slot));
        let displacement = instruction.memory_displacement64();
        let (first, index) = (instruction.memory_base(), instruction.memory_index());
        let size = match (first, index) {
            (Register::RIP, _) => return self.code_base().wrapping_add(displacement),
            (Register::EIP, _) => {
                return self.code_base().wrapping_add(displacement) & mask(4);
            }
            (Register::None, Register::None) => return displacement,
            (Register::None, index) => index.size() as u32,
            (first, _) => first.size() as u32,
        };
        let scaled = of(index).wrapping_mul(u64::from(instruction.memory_index_scale()));
        let sum = of(first).wrapping_add(scaled).wrapping_add(displacement);
        sum & mask(size)
    }

    /// Returns the linear address of `len` bytes at `offset` in a segment, checked.
    pub(crate) fn linear(
        &self,
        segment: usize,
        offset: u64,
        len: u32,
        write: bool,
    ) -> Result<u64, Fault> {
        let register = &self.segments[segment % 6];
        let fault = match segment == SegmentName::Ss as usize {
            true => Fault {
                vector: 12,
                ..Fault::protection(0)
            },
            false => Fault::protection(0),
        };
        if self.width() == Width::Bits64 {
            let long_base = match segment >= SegmentName::Fs as usize {
                true => register.base,
                false => 0,
            };
            let address = long_base.wrapping_add(offset);
            // What is not one access is looked at piece by piece later.
            let last = match len {
                1..=8 | 16 => address.wrapping_add(u64::from(len) - 1),
                _ => address,
            };
            let inside = canonical(address) && canonical(last);
            return inside.then_some(address).ok_or(fault);
        }
        let access = register.access;
        let last = offset + u64::from(len.max(1)) - 1;
        let limit = u64::from(register.limit);
        let (code, movable) = (access & 8 != 0, access & 2 != 0);
        let inside = if !code && access & 4 != 0 {
            let end = if access >> 14 & 1 != 0 {
                mask(4)
            } else {
                0xffff
            };
            offset > limit && last <= end
        } else {
            last <= limit
        };
        let allowed = match write {
            true => !code && movable,
            false => !code || movable,
        };
        if access >> 16 & 1 != 0 || !inside || (!allowed && self.cr0 & 1 != 0) {
            return Err(fault);
        }
        Ok(register.base.wrapping_add(offset) & mask(4))
    }

    /// Returns the linear address of an instruction's memory operand, checked.
    pub(crate) fn place(
        &self,
        instruction: &Instruction,
        len: u32,
        write: bool,
    ) -> Result<u64, Fault> {
        let segment = self.operand_segment(instruction);
        self.linear(segment, self.effective_address(instruction), len, write)
    }

    /// Returns the number of the segment that a memory operand lies in.
    pub(crate) fn operand_segment(&self, instruction: &Instruction) -> usize {
        match self.width() {
            Width::Bits64 => long_segment(instruction),
            _ => segment(instruction.memory_segment()).unwrap_or(SegmentName::Ds as usize),
        }
    }

    /// Loads `size` bytes.
    pub(crate) fn load_sized(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        size: u32,
    ) -> Result<u64, Fault> {
        Ok(match size {
            1 => self.load::<u8>(env, linear)?.into(),
            2 => self.load::<u16>(env, linear)?.into(),
            4 => self.load::<u32>(env, linear)?.into(),
            _ => self.load::<u64>(env, linear)?,
        })
    }

    /// Stores the low `size` bytes of `value`.
    pub(crate) fn store_sized(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        size: u32,
        value: u64,
    ) -> Result<(), Fault> {
        match size {
            1 => self.store::<u8>(env, linear, value as u8),
            2 => self.store::<u16>(env, linear, value as u16),
            4 => self.store::<u32>(env, linear, value as u32),
            _ => self.store::<u64>(env, linear, value),
        }
    }

    /// Reads operand `number`: zero-extended, immediates sign-extended to 64 bits.
    pub(crate) fn read_operand(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        number: u32,
    ) -> Result<u64, Fault> {
        match instruction.op_kind(number) {
            OpKind::Register => {
                let register = instruction.op_register(number);
                Ok(match slot(register) {
                    Some(slot) => self.slot(slot),
                    None => self.selector(register),
                })
            }
            OpKind::Memory => {
                let size = instruction.memory_size().size() as u32;
                let linear = self.place(instruction, size, false)?;
                self.load_sized(env, linear, size)
            }
            OpKind::Immediate8 => Ok(sign_extend(instruction.immediate8().into(), 1)),
            OpKind::Immediate16 => Ok(sign_extend(instruction.immediate16().into(), 2)),
            OpKind::Immediate32 => Ok(sign_extend(instruction.immediate32().into(), 4)),
            OpKind::Immediate8_2nd => Ok(instruction.immediate8_2nd().into()),
            _ => Ok(instruction.immediate(number)),
        }
    }

    /// Writes operand `number`, of `size` bytes.
    pub(crate) fn write_operand(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        number: u32,
        value: u64,
    ) -> Result<(), Fault> {
        if let Some(slot) = slot(instruction.op_register(number)) {
            self.set_slot(slot, value);
            return Ok(());
        }
        let size = instruction.memory_size().size() as u32;
        let linear = self.place(instruction, size, true)?;
        self.store_sized(env, linear, size, value)
    }

    fn selector(&self, register: Register) -> u64 {
        segment(register).map_or(0, |number| self.segments[number].selector.into())
    }
}

/// Returns the length of operand `number`, bytes.
pub(crate) fn operand_size(instruction: &Instruction, number: u32) -> u32 {
    match instruction.op_kind(number) {
        OpKind::Register => instruction.op_register(number).size() as u32,
        _ => instruction.memory_size().size() as u32,
    }
}
