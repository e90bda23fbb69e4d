//! Random operands for an instruction.

use iced_x86::{Code, Instruction, OpCodeOperandKind as O, OpKind, Register};

use super::values;
use crate::Random;
use crate::layout::{DATA, DATA_END, HIGH, PAGE, READ_ONLY};
use crate::state::State;

/// General registers in encoding order.
pub const GENERAL: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// Registers whose value is known until an instruction writes them.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Register and value.
    pub registers: Vec<(Register, u64)>,
}

impl Known {
    /// Forgets what an instruction writes.
    pub fn forget(&mut self, written: &[Register]) {
        self.registers
            .retain(|(register, _)| !written.contains(register));
    }

    fn has(&self, register: Register) -> bool {
        self.registers.iter().any(|(known, _)| *known == register)
    }

    /// Gives some registers of `state` values that operands can be addressed by.
    pub fn choose(random: &mut Random, state: &mut State) -> Self {
        let mut known = Self::default();
        let junk = random.bits() << 32;
        let index = random.below(64).wrapping_sub(random.below(32));
        let values = [
            DATA + random.below(DATA_END - DATA),
            DATA + 16 * random.below(1024),
            HIGH + random.below(PAGE),
            (DATA + random.below(0x4000)) | junk,
            index,
        ];
        for value in values {
            let number = random.pick(&[3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
            if !known.has(GENERAL[number]) {
                known.registers.push((GENERAL[number], value));
                state.general[number] = value;
            }
        }
        known
    }
}

/// Makes operands.
#[derive(Debug)]
pub struct Operands<'a> {
    /// Source of all choices.
    pub random: &'a mut Random,
    /// Registers with known values.
    pub known: &'a Known,
    /// In how many of 100 memory operands an access faults.
    pub faults: u64,
}

impl Operands<'_> {
    /// Returns a general register that may be overwritten.
    pub fn number(&mut self) -> usize {
        for _ in 0..8 {
            let number = self.random.index(16);
            let precious = number == 4 || self.known.has(GENERAL[number]);
            if !precious || self.random.chance(3) {
                return number;
            }
        }
        0
    }

    /// Returns a general register of `size` bytes.
    pub fn register(&mut self, size: usize) -> Register {
        let number = self.number();
        let from = |first: Register| first + number as u32;
        match size {
            1 if self.random.chance(25) => {
                let high = [Register::AH, Register::CH, Register::DH, Register::BH];
                self.random.pick(&high)
            }
            1 if number < 4 => from(Register::AL),
            1 => Register::SPL + (number as u32 - 4),
            2 => from(Register::AX),
            4 => from(Register::EAX),
            _ => from(Register::RAX),
        }
    }

    /// Chooses the address of a memory operand of `size` bytes.
    pub fn address(&mut self, size: u64, aligned: bool) -> u64 {
        let random = &mut *self.random;
        let size = size.max(1);
        let writable = READ_ONLY - DATA;
        if random.chance(self.faults) {
            return match random.below(8) {
                0 => DATA - 1 - random.below(size),
                1 => DATA_END - random.below(size),
                2 => DATA_END + random.below(PAGE),
                3 => READ_ONLY - random.below(size),
                4 => READ_ONLY + random.below(PAGE - size),
                5 => HIGH + PAGE - random.below(size),
                6 => random.bits() | 1 << 62,
                _ => values::integer(random),
            };
        }
        let inside = match random.below(20) {
            0..14 => DATA + random.below(writable - size),
            14 | 15 => DATA + PAGE * (1 + random.below(3)) - random.below(size),
            16 => HIGH + random.below(PAGE - size),
            17 => HIGH,
            18 => DATA,
            _ => READ_ONLY - size,
        };
        let mask = if aligned && random.chance(90) {
            15
        } else if random.chance(50) {
            size.next_power_of_two().min(16) - 1
        } else {
            0
        };
        inside & !mask
    }

    /// Makes operand `operand` of `instruction` a memory operand at `address`.
    pub fn place(&mut self, instruction: &mut Instruction, operand: u32, address: u64) {
        instruction.set_op_kind(operand, OpKind::Memory);
        instruction.set_memory_base(Register::None);
        instruction.set_memory_index(Register::None);
        instruction.set_memory_index_scale(1);
        if self.random.chance(4) {
            let prefixes = [Register::DS, Register::ES, Register::CS, Register::GS];
            instruction.set_segment_prefix(self.random.pick(&prefixes));
        }
        let fits = |value: u64| i64::from(value as i32) as u64 == value;
        for _ in 0..6 {
            if self.try_form(instruction, address) {
                return;
            }
        }
        if fits(address) {
            instruction.set_memory_displ_size(8);
            instruction.set_memory_displacement64(address);
        } else {
            // Nothing known is near it: relative to whatever a register holds.
            instruction.set_memory_base(self.random.pick(&GENERAL));
            instruction.set_memory_displ_size(1);
            instruction.set_memory_displacement64(0);
        }
    }

    fn try_form(&mut self, instruction: &mut Instruction, address: u64) -> bool {
        let random = &mut *self.random;
        let fits = |value: u64| i64::from(value as i32) as u64 == value;
        let known = &self.known.registers;
        let form = random.below(10);
        if form == 0 && fits(address) {
            instruction.set_memory_base(Register::RIP);
            instruction.set_memory_displ_size(8);
            instruction.set_memory_displacement64(address);
            return true;
        }
        if known.is_empty() || form == 1 {
            return false;
        }
        let (base, base_value) = random.pick(known);
        let (index, index_value) = random.pick(known);
        let scale = 1 << random.below(4);
        let short = random.chance(15) && address < 1 << 32;
        let scaled = if form < 6 {
            0
        } else {
            index_value.wrapping_mul(scale)
        };
        let based = if form == 9 { 0 } else { base_value };
        let mut displacement = address.wrapping_sub(based).wrapping_sub(scaled);
        if short {
            displacement = i64::from(displacement as i32) as u64;
        }
        if !fits(displacement) {
            return false;
        }
        let part = |register: Register| {
            if short {
                Register::EAX + register.number() as u32
            } else {
                register
            }
        };
        instruction.set_memory_base(if form == 9 {
            Register::None
        } else {
            part(base)
        });
        instruction.set_memory_index(if form < 6 {
            Register::None
        } else {
            part(index)
        });
        instruction.set_memory_index_scale(if form < 6 { 1 } else { scale as u32 });
        let byte = i64::from(displacement as i8) as u64 == displacement;
        let size = if byte && form != 9 {
            1
        } else if short {
            4
        } else {
            8
        };
        let none = displacement == 0 && form != 9 && !matches!(base.number(), 5 | 13);
        instruction.set_memory_displ_size(if none { 0 } else { size });
        let value = if short {
            displacement & 0xffff_ffff
        } else {
            displacement
        };
        instruction.set_memory_displacement64(value);
        true
    }

    fn immediate(&mut self, instruction: &mut Instruction, operand: u32, kind: O) {
        let value = values::integer(self.random);
        let kind = match kind {
            O::imm8 | O::imm8_const_1
                if operand > 0 && instruction.op_kind(operand - 1) == OpKind::Immediate16 =>
            {
                OpKind::Immediate8_2nd
            }
            O::imm8 | O::imm8_const_1 | O::imm4_m2z => OpKind::Immediate8,
            O::imm8sex16 => OpKind::Immediate8to16,
            O::imm8sex32 => OpKind::Immediate8to32,
            O::imm8sex64 => OpKind::Immediate8to64,
            O::imm16 => OpKind::Immediate16,
            O::imm32 => OpKind::Immediate32,
            O::imm32sex64 => OpKind::Immediate32to64,
            _ => OpKind::Immediate64,
        };
        instruction.set_op_kind(operand, kind);
        match kind {
            OpKind::Immediate8_2nd => instruction.set_immediate8_2nd(self.random.below(5) as u8),
            OpKind::Immediate8 => instruction.set_immediate8(value as u8),
            OpKind::Immediate8to16 => instruction.set_immediate8to16((value as i8).into()),
            OpKind::Immediate8to32 => instruction.set_immediate8to32((value as i8).into()),
            OpKind::Immediate8to64 => instruction.set_immediate8to64((value as i8).into()),
            OpKind::Immediate16 => instruction.set_immediate16(value as u16),
            OpKind::Immediate32 => instruction.set_immediate32(value as u32),
            OpKind::Immediate32to64 => instruction.set_immediate32to64((value as i32).into()),
            _ => instruction.set_immediate64(value),
        }
    }

    /// Fixes operand `operand`, which is a register of one choice or of many.
    fn register_operand(&mut self, kind: O) -> Option<Register> {
        Some(match kind {
            O::r8_reg | O::r8_opcode | O::r8_or_mem => self.register(1),
            O::r16_reg | O::r16_rm | O::r16_opcode | O::r16_reg_mem | O::r16_or_mem => {
                self.register(2)
            }
            O::r32_reg | O::r32_rm | O::r32_opcode | O::r32_reg_mem | O::r32_or_mem => {
                self.register(4)
            }
            O::r64_reg | O::r64_rm | O::r64_opcode | O::r64_reg_mem | O::r64_or_mem => {
                self.register(8)
            }
            O::mm_reg | O::mm_rm | O::mm_or_mem => Register::MM0 + self.random.below(8) as u32,
            O::xmm_reg | O::xmm_rm | O::xmm_or_mem => Register::XMM0 + self.random.below(16) as u32,
            O::seg_reg => {
                let segments = [Register::ES, Register::SS, Register::DS, Register::GS];
                self.random.pick(&segments)
            }
            O::cr_reg => self
                .random
                .pick(&[Register::CR0, Register::CR3, Register::CR8]),
            O::dr_reg => self
                .random
                .pick(&[Register::DR0, Register::DR3, Register::DR7]),
            O::es => Register::ES,
            O::cs => Register::CS,
            O::ss => Register::SS,
            O::ds => Register::DS,
            O::fs => Register::FS,
            O::gs => Register::GS,
            O::al => Register::AL,
            O::cl => Register::CL,
            O::ax => Register::AX,
            O::dx => Register::DX,
            O::eax => Register::EAX,
            O::rax => Register::RAX,
            O::st0 => Register::ST0,
            O::sti_opcode => Register::ST0 + self.random.below(8) as u32,
            _ => return None,
        })
    }

    /// Returns an instruction of `code` with random operands; `None` where it has an operand of a
    /// kind that nothing here makes.
    pub fn instruction(&mut self, code: Code) -> Option<Instruction> {
        let about = code.op_code();
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        let mut memory = None;
        let narrow = self.random.chance(8);
        for (operand, kind) in about.op_kinds().iter().enumerate() {
            let operand = operand as u32;
            match *kind {
                O::mem | O::mem_offs | O::mem_mib => memory = Some(operand),
                O::r8_or_mem
                | O::r16_or_mem
                | O::r32_or_mem
                | O::r64_or_mem
                | O::mm_or_mem
                | O::xmm_or_mem
                    if self.random.chance(55) =>
                {
                    memory = Some(operand);
                }
                O::seg_rSI | O::es_rDI | O::seg_rDI | O::seg_rBX_al => {
                    implied_memory(&mut instruction, operand, *kind, narrow);
                }
                O::br64_1 | O::br64_4 => instruction.set_op_kind(operand, OpKind::NearBranch64),
                O::imm8_const_1 => {
                    instruction.set_op_kind(operand, OpKind::Immediate8);
                    instruction.set_immediate8(1);
                }
                kind @ (O::imm8
                | O::imm8sex16
                | O::imm8sex32
                | O::imm8sex64
                | O::imm16
                | O::imm32
                | O::imm32sex64
                | O::imm64) => {
                    self.immediate(&mut instruction, operand, kind);
                }
                kind => {
                    let register = self.register_operand(kind)?;
                    instruction.set_op_kind(operand, OpKind::Register);
                    instruction.set_op_register(operand, register);
                }
            }
        }
        if let Some(operand) = memory {
            self.memory_operand(&mut instruction, operand);
        }
        Some(instruction)
    }

    fn memory_operand(&mut self, instruction: &mut Instruction, operand: u32) {
        instruction.set_op_kind(operand, OpKind::Memory);
        let size = instruction.memory_size().size() as u64;
        let about = instruction.op_code();
        let packed = size == 16;
        if about.op_kind(operand) == O::mem_offs {
            let address = self.address(size, false);
            let short = address < 1 << 32 && self.random.chance(30);
            instruction.set_memory_displ_size(if short { 4 } else { 8 });
            instruction.set_memory_displacement64(address);
            return;
        }
        // What stores a lot may leave a part of it behind where a later page is missing.
        let address = if size > 16 {
            let inside = DATA + 16 * self.random.below((READ_ONLY - DATA - 512) / 16);
            if self.random.chance(self.faults) {
                DATA_END + 16 * self.random.below(9)
            } else {
                inside
            }
        } else {
            self.address(size, packed)
        };
        self.place(instruction, operand, address);
        if about.can_use_lock_prefix() && operand == 0 {
            instruction.set_has_lock_prefix(self.random.chance(40));
        }
    }
}

/// Sets a memory operand whose registers are implied, with 32-bit addresses where `narrow`.
fn implied_memory(instruction: &mut Instruction, operand: u32, kind: O, narrow: bool) {
    let kind = match (kind, narrow) {
        (O::seg_rSI, false) => OpKind::MemorySegRSI,
        (O::seg_rSI, true) => OpKind::MemorySegESI,
        (O::es_rDI, false) => OpKind::MemoryESRDI,
        (O::es_rDI, true) => OpKind::MemoryESEDI,
        (O::seg_rDI, false) => OpKind::MemorySegRDI,
        (O::seg_rDI, true) => OpKind::MemorySegEDI,
        _ => {
            instruction.set_memory_base(Register::RBX);
            instruction.set_memory_index(Register::AL);
            OpKind::Memory
        }
    };
    instruction.set_op_kind(operand, kind);
}
