//! Operands of system instructions.

use iced_x86::{CodeSize, Instruction, OpKind, Register};

use crate::{Cpu, Environment, Fault, SegmentName};

/// Returns the segment register that iced names `register`.
pub(super) fn segment_name(register: Register) -> Option<SegmentName> {
    Some(match register {
        Register::ES => SegmentName::Es,
        Register::CS => SegmentName::Cs,
        Register::SS => SegmentName::Ss,
        Register::DS => SegmentName::Ds,
        Register::FS => SegmentName::Fs,
        Register::GS => SegmentName::Gs,
        _ => return None,
    })
}

/// Keeps the low `size` bytes.
pub(super) fn truncate(value: u64, size: u64) -> u64 {
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

impl Cpu {
    /// Returns a general register of at least 16 bits, as far as `register` goes.
    pub(super) fn named_register(&self, register: Register) -> u64 {
        let value = self.general[register.number() & 15];
        truncate(value, register.size() as u64)
    }

    /// Sets a general register of at least 16 bits; 32-bit ones are zero-extended.
    pub(super) fn set_named_register(&mut self, register: Register, value: u64) {
        let place = &mut self.general[register.number() & 15];
        *place = match register.size() {
            2 => *place & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// Returns the offset of the memory operand in its segment.
    pub(super) fn offset(&self, instruction: &Instruction) -> u64 {
        if instruction.is_ip_rel_memory_operand() {
            // The instruction may have been decoded where another mapping shows the same page.
            let moved = self.rip.wrapping_sub(instruction.next_ip());
            let offset = instruction.ip_rel_memory_address().wrapping_add(moved);
            return match instruction.memory_base() {
                Register::EIP => offset & 0xffff_ffff,
                _ => offset,
            };
        }
        let value = |register: Register, _, _| {
            let segment = register.is_segment_register();
            Some(if segment {
                0
            } else {
                self.named_register(register)
            })
        };
        let memory = (0..instruction.op_count()).find(|op| is_memory(instruction.op_kind(*op)));
        let address = instruction.virtual_address(memory.unwrap_or(0), 0, value);
        address.unwrap_or(0)
    }

    /// In 64-bit mode only FS and GS override: other prefixes do not change #SS to #GP either.
    fn memory_segment(instruction: &Instruction) -> SegmentName {
        let named = segment_name(instruction.memory_segment()).unwrap_or(SegmentName::Ds);
        let on_stack = matches!(
            instruction.memory_base(),
            Register::RSP | Register::RBP | Register::ESP | Register::EBP
        );
        match (instruction.code_size(), named) {
            (CodeSize::Code64, SegmentName::Fs | SegmentName::Gs) => named,
            (CodeSize::Code64, _) if on_stack => SegmentName::Ss,
            (CodeSize::Code64, _) => SegmentName::Ds,
            _ => named,
        }
    }

    /// Returns the linear address of `size` bytes, `distance` bytes after the start of the memory
    /// operand.
    pub(super) fn memory_at(
        &self,
        instruction: &Instruction,
        distance: u64,
        size: u64,
        write: bool,
    ) -> Result<u64, Fault> {
        let offset = self.offset(instruction).wrapping_add(distance);
        self.linear_address(Self::memory_segment(instruction), offset, size, write)
    }

    /// Makes a #GP(0) of the memory operand a #SS(0) where it is in the stack segment.
    fn memory_fault(instruction: &Instruction, fault: Fault) -> Fault {
        match Self::memory_segment(instruction) {
            SegmentName::Ss => fault.on_stack(),
            _ => fault,
        }
    }

    /// Loads `size` bytes, `distance` bytes after the start of the memory operand.
    pub(super) fn load_memory(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        distance: u64,
        size: u64,
    ) -> Result<u64, Fault> {
        let linear = self.memory_at(instruction, distance, size, false)?;
        let loaded = match size {
            1 => self.load::<u8>(env, linear).map(u64::from),
            2 => self.load::<u16>(env, linear).map(u64::from),
            4 => self.load::<u32>(env, linear).map(u64::from),
            _ => self.load::<u64>(env, linear),
        };
        loaded.map_err(|fault| Self::memory_fault(instruction, fault))
    }

    /// Stores `bytes` in the memory operand.
    pub(super) fn store_memory(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        let linear = self.memory_at(instruction, 0, bytes.len() as u64, true)?;
        let stored = self.write_bytes(env, linear, bytes);
        stored.map_err(|fault| Self::memory_fault(instruction, fault))
    }

    /// Reads operand `number`: a register as far as it goes, or `size` bytes of memory.
    pub(super) fn operand(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        number: u32,
        size: u64,
    ) -> Result<u64, Fault> {
        match instruction.op_kind(number) {
            OpKind::Register => Ok(truncate(
                self.named_register(instruction.op_register(number)),
                size,
            )),
            _ => self.load_memory(env, instruction, 0, size),
        }
    }

    /// Writes operand `number`: the whole register, or `size` bytes of memory.
    pub(super) fn set_operand(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        number: u32,
        value: u64,
        size: usize,
    ) -> Result<(), Fault> {
        match instruction.op_kind(number) {
            OpKind::Register => self.set_named_register(instruction.op_register(number), value),
            _ => self.store_memory(env, instruction, &value.to_le_bytes()[..size])?,
        }
        Ok(())
    }
}

fn is_memory(kind: OpKind) -> bool {
    !matches!(
        kind,
        OpKind::Register
            | OpKind::NearBranch16
            | OpKind::NearBranch32
            | OpKind::NearBranch64
            | OpKind::FarBranch16
            | OpKind::FarBranch32
            | OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}
