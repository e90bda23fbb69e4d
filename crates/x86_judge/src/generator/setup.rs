//! What some instructions need before them, so that they do more than fault.

use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

use super::codes::text;
use super::operands::{Known, Operands};
use super::values;
use crate::Random;
use crate::draft::{Piece, Target};
use crate::layout::{DATA, HIGH, PAGE, READ_ONLY, offset_of};
use crate::state::Extended;

/// Makes pieces.
#[derive(Debug)]
pub struct Maker<'a> {
    /// Source of all choices.
    pub random: &'a mut Random,
    /// Registers with known values.
    pub known: &'a Known,
    /// In how many of 100 memory operands an access faults.
    pub faults: u64,
    /// Content of the memory at the start.
    pub memory: &'a mut [u8],
}

/// `MOV register, value`.
fn set(register: Register, value: u64) -> Instruction {
    let made = if value <= u64::from(u32::MAX) {
        let narrow = Register::EAX + register.number() as u32;
        Instruction::with2(Code::Mov_r32_imm32, narrow, value as u32)
    } else {
        Instruction::with2(Code::Mov_r64_imm64, register, value)
    };
    made.expect("a general register and an immediate")
}

fn two(code: Code, first: Register, second: Register) -> Instruction {
    Instruction::with2(code, first, second).expect("two registers")
}

/// `LEA register, [target]`.
fn address_of_target(register: Register) -> Instruction {
    let place = MemoryOperand::with_base_displ_size(Register::RIP, 0, 8);
    Instruction::with2(Code::Lea_r64_m, register, place).expect("LEA of an address")
}

fn push(register: Register) -> Instruction {
    Instruction::with1(Code::Push_r64, register).expect("PUSH of a register")
}

/// Flags that POPF may set: status flags, DF, IF (which it ignores) and ID.
const POPPED_FLAGS: u64 = 0x20_0ed5;

impl Maker<'_> {
    fn operands(&mut self) -> Operands<'_> {
        Operands {
            random: self.random,
            known: self.known,
            faults: self.faults,
        }
    }

    /// Returns a piece that ends with an instruction of `code`.
    pub fn piece(&mut self, code: Code) -> Option<Piece> {
        let instruction = self.operands().instruction(code)?;
        let mut piece = Piece::default();
        if text(code) {
            self.string(&mut piece, instruction);
        } else {
            self.prepare(&mut piece, instruction)?;
        }
        Some(piece)
    }

    fn string(&mut self, piece: &mut Piece, mut instruction: Instruction) {
        let compares = matches!(
            instruction.code(),
            Code::Cmpsb_m8_m8
                | Code::Cmpsw_m16_m16
                | Code::Cmpsd_m32_m32
                | Code::Cmpsq_m64_m64
                | Code::Scasb_AL_m8
                | Code::Scasw_AX_m16
                | Code::Scasd_EAX_m32
                | Code::Scasq_RAX_m64
        );
        let size = instruction.memory_size().size() as u64;
        let repeated = self.random.chance(75);
        if repeated {
            match self.random.below(2) {
                1 if compares => instruction.set_has_repne_prefix(true),
                _ => instruction.set_has_rep_prefix(true),
            }
        }
        let count = match self.random.below(10) {
            0 => 0,
            1 => self.random.below(0x1800),
            2 => self.random.below(600),
            _ => self.random.below(40),
        };
        let backwards = self.random.chance(25);
        let span = if repeated { count * size } else { size };
        let start = |random: &mut Random, faults: u64| {
            let room = (READ_ONLY - DATA).saturating_sub(span);
            if room == 0 || random.chance(faults * 2) {
                return DATA + random.below(5 * PAGE);
            }
            if random.chance(6) && span < PAGE {
                return HIGH + if backwards { span } else { 0 };
            }
            let lowest = DATA + random.below(room);
            let lowest = if random.chance(50) {
                lowest & !(size - 1)
            } else {
                lowest
            };
            if backwards {
                lowest + span.saturating_sub(size)
            } else {
                lowest
            }
        };
        let from = start(self.random, self.faults);
        let to = if self.random.chance(20) {
            from.wrapping_add(self.random.below(64)).wrapping_sub(32)
        } else {
            start(self.random, self.faults)
        };
        piece.add(set(Register::RSI, from));
        piece.add(set(Register::RDI, to));
        if repeated {
            piece.add(set(Register::RCX, count));
        }
        if self.random.chance(if backwards { 100 } else { 60 }) {
            let code = if backwards { Code::Std } else { Code::Cld };
            piece.add(Instruction::with(code));
        }
        piece.add(instruction);
    }

    /// Adds `instruction` with what it needs before it.
    fn prepare(&mut self, piece: &mut Piece, instruction: Instruction) -> Option<()> {
        use Mnemonic as M;
        let common = self.random.chance(85);
        match instruction.mnemonic() {
            M::Div | M::Idiv if common => self.divide(piece, &instruction),
            M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd => return self.shift(piece, instruction),
            M::Bt | M::Bts | M::Btr | M::Btc if instruction.op0_kind() == OpKind::Memory => {
                self.bit_string(piece, &instruction);
            }
            M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz if common => {
                piece.add(set(Register::RCX, self.random.below(3)));
            }
            M::Jmp | M::Call | M::Ret | M::Retf | M::Iret | M::Iretd | M::Iretq => {
                return self.transfer(piece, instruction);
            }
            M::Leave if common => {
                piece.add(set(Register::RBP, DATA + self.random.below(0x3000)));
            }
            M::Enter => return self.enter(piece, instruction),
            M::Popf | M::Popfq | M::Popfd => {
                let flags = self.random.bits() & POPPED_FLAGS;
                let push = Instruction::with1(Code::Pushq_imm32, flags as i32).ok()?;
                piece.add(push);
            }
            M::Xlatb if common => piece.add(set(Register::RBX, DATA + self.random.below(0x3f00))),
            M::Maskmovq | M::Maskmovdqu => {
                let place = DATA + self.random.below(READ_ONLY - DATA - 16);
                piece.add(set(Register::RDI, place));
            }
            M::Cmpxchg if self.random.chance(60) => self.equal(piece, &instruction),
            M::Cmpxchg8b | M::Cmpxchg16b if self.random.chance(60) => {
                self.equal_pair(piece, &instruction);
            }
            M::Int => return self.interrupt(piece, instruction),
            M::Mov | M::Push | M::Pop | M::Lss | M::Lgs if loads_segment(&instruction) => {
                return self.segment(piece, instruction);
            }
            _ => {}
        }
        self.content(&instruction);
        if !jumps(&instruction) {
            piece.add(instruction);
        } else {
            let count = 1 + self.random.index(3);
            piece.add_to(instruction, Target::Piece(count));
        }
        Some(())
    }

    /// Gives the dividend a value that mostly does not overflow.
    fn divide(&mut self, piece: &mut Piece, instruction: &Instruction) {
        let size = match instruction.op0_kind() {
            OpKind::Memory => instruction.memory_size().size(),
            _ => instruction.op0_register().size(),
        };
        let signed = instruction.mnemonic() == Mnemonic::Idiv;
        let code = match (size, signed) {
            (1, true) => Some(Code::Cbw),
            (2, true) => Some(Code::Cwd),
            (4, true) => Some(Code::Cdq),
            (_, true) => Some(Code::Cqo),
            (1, false) => None,
            _ => {
                let high = if self.random.chance(70) {
                    0
                } else {
                    self.random.below(0x8000)
                };
                piece.add(set(Register::RDX, high));
                return;
            }
        };
        piece.add(match code {
            Some(code) => Instruction::with(code),
            None => two(Code::Movzx_r32_rm8, Register::EAX, Register::AL),
        });
    }

    /// Keeps counts out whose result is undefined.
    fn shift(&mut self, piece: &mut Piece, mut instruction: Instruction) -> Option<()> {
        use Mnemonic as M;
        let size = match instruction.op0_kind() {
            OpKind::Memory => instruction.memory_size().size(),
            _ => instruction.op0_register().size(),
        } as u64;
        let bits = 8 * size;
        let limit = match instruction.mnemonic() {
            M::Shld | M::Shrd if size == 2 => 17,
            M::Shl | M::Sal | M::Shr if size < 4 => bits,
            _ => 256,
        };
        let count = match self.random.below(8) {
            0 => 0,
            1 => 1,
            2 => limit.min(bits) - 1,
            _ => self.random.below(limit),
        };
        let last = instruction.op_count() - 1;
        if instruction.op_kind(last) == OpKind::Immediate8 {
            if !one_only(instruction.code()) {
                instruction.set_immediate8(count as u8);
            }
        } else if limit < 256 || self.random.chance(50) {
            let cl = Instruction::with2(Code::Mov_r8_imm8, Register::CL, count as u32);
            piece.add(cl.ok()?);
        }
        piece.add(instruction);
        Some(())
    }

    /// Makes the bit offset small enough to stay in the data pages.
    fn bit_string(&mut self, piece: &mut Piece, instruction: &Instruction) {
        if instruction.op1_kind() != OpKind::Register || self.random.chance(self.faults) {
            return;
        }
        let register = instruction.op1_register();
        let offset = self.random.below(4000) as i64 - 1000;
        let address = [instruction.memory_base(), instruction.memory_index()];
        let full = register.full_register();
        if address.iter().all(|part| part.full_register() != full) {
            let code = match register.size() {
                2 => Code::Mov_rm16_imm16,
                4 => Code::Mov_rm32_imm32,
                _ => Code::Mov_rm64_imm32,
            };
            if let Ok(set) = Instruction::with2(code, register, offset as i32) {
                piece.add(set);
            }
        }
    }

    fn transfer(&mut self, piece: &mut Piece, mut instruction: Instruction) -> Option<()> {
        let forward = Target::Piece(1 + self.random.index(3));
        if instruction.op0_kind() == OpKind::NearBranch64 {
            piece.add_to(instruction, forward);
            return Some(());
        }
        let scratch = self
            .random
            .pick(&[Register::RAX, Register::RDX, Register::R11]);
        match instruction.code() {
            Code::Retnq | Code::Retnq_imm16 => {
                piece.add_to(address_of_target(scratch), forward);
                piece.add(push(scratch));
                if instruction.op_count() > 0 {
                    instruction.set_immediate16(8 * self.random.below(8) as u16);
                }
            }
            Code::Jmp_rm64 | Code::Call_rm64 => {
                piece.add_to(address_of_target(scratch), forward);
                if instruction.op0_kind() == OpKind::Register {
                    instruction.set_op0_register(scratch);
                } else {
                    let mut store = instruction;
                    store.set_code(Code::Mov_rm64_r64);
                    store.set_op1_kind(OpKind::Register);
                    store.set_op1_register(scratch);
                    let parts = [instruction.memory_base(), instruction.memory_index()];
                    if parts.iter().any(|part| part.full_register() == scratch) {
                        return None;
                    }
                    piece.add(store);
                }
            }
            Code::Iretq => {
                let rsp = DATA + 8 * self.random.below(0x600);
                piece.add(Instruction::with1(Code::Pushq_imm8, 0x2b).ok()?);
                piece.add(Instruction::with1(Code::Pushq_imm32, rsp as i32).ok()?);
                let flags = self.random.bits() & POPPED_FLAGS | 2;
                piece.add(Instruction::with1(Code::Pushq_imm32, flags as i32).ok()?);
                piece.add(Instruction::with1(Code::Pushq_imm8, 0x33).ok()?);
                piece.add_to(address_of_target(scratch), forward);
                piece.add(push(scratch));
            }
            Code::Retfq | Code::Retfq_imm16 => {
                piece.add(Instruction::with1(Code::Pushq_imm8, 0x33).ok()?);
                piece.add_to(address_of_target(scratch), forward);
                piece.add(push(scratch));
                if instruction.op_count() > 0 {
                    instruction.set_immediate16(8 * self.random.below(8) as u16);
                }
            }
            // Far transfers with short offsets lead out of the code pages.
            _ => return None,
        }
        piece.add(instruction);
        Some(())
    }

    fn enter(&mut self, piece: &mut Piece, mut instruction: Instruction) -> Option<()> {
        instruction.set_immediate16(self.random.below(0x100) as u16);
        instruction.set_immediate8_2nd(self.random.pick(&[0, 0, 1, 2, 3, 31, 33]));
        piece.add(set(Register::RBP, DATA + 0x800 + self.random.below(0x2800)));
        piece.add(instruction);
        Some(())
    }

    /// Makes the accumulator equal to the destination.
    fn equal(&mut self, piece: &mut Piece, instruction: &Instruction) {
        let (code, accumulator) = match instruction.op1_register().size() {
            1 => (Code::Mov_r8_rm8, Register::AL),
            2 => (Code::Mov_r16_rm16, Register::AX),
            4 => (Code::Mov_r32_rm32, Register::EAX),
            _ => (Code::Mov_r64_rm64, Register::RAX),
        };
        let mut load = *instruction;
        load.set_has_lock_prefix(false);
        load.set_code(code);
        load.set_op1_kind(instruction.op0_kind());
        if instruction.op0_kind() == OpKind::Register {
            load.set_op1_register(instruction.op0_register());
        }
        load.set_op0_kind(OpKind::Register);
        load.set_op0_register(accumulator);
        piece.add(load);
    }

    fn equal_pair(&mut self, piece: &mut Piece, instruction: &Instruction) {
        let wide = instruction.mnemonic() == Mnemonic::Cmpxchg16b;
        let parts = [instruction.memory_base(), instruction.memory_index()];
        let used = |register| {
            parts
                .iter()
                .any(|part: &Register| part.full_register() == register)
        };
        if used(Register::RAX) || used(Register::RDX) || instruction.memory_displ_size() == 1 {
            return;
        }
        let (code, low, high, step) = if wide {
            (Code::Mov_r64_rm64, Register::RAX, Register::RDX, 8)
        } else {
            (Code::Mov_r32_rm32, Register::EAX, Register::EDX, 4)
        };
        for (register, offset) in [(low, 0), (high, step)] {
            let mut load = *instruction;
            load.set_has_lock_prefix(false);
            load.set_code(code);
            load.set_op1_kind(OpKind::Memory);
            load.set_op0_kind(OpKind::Register);
            load.set_op0_register(register);
            if offset > 0 {
                let displacement = load.memory_displacement64().wrapping_add(offset);
                load.set_memory_displacement64(displacement);
                if load.memory_displ_size() == 0 {
                    load.set_memory_displ_size(8);
                }
            }
            piece.add(load);
        }
    }

    fn interrupt(&mut self, piece: &mut Piece, mut instruction: Instruction) -> Option<()> {
        /// The host kernel's gate for 32-bit system calls.
        const SYSTEM_CALL: u8 = 0x80;
        if instruction.immediate8() == SYSTEM_CALL {
            instruction.set_immediate8(SYSTEM_CALL + 1);
        }
        piece.add(instruction);
        Some(())
    }

    /// Loads of DS, ES, SS and GS, mostly with a selector that may be loaded.
    fn segment(&mut self, piece: &mut Piece, instruction: Instruction) -> Option<()> {
        let selector: u16 = match self.random.below(8) {
            0 => self.random.below(4) as u16,
            1 => self
                .random
                .pick(&[0x33, 0x23, 0x10, 0x18, 0x28, 0x2c, 0x400, 0xfff8]),
            _ => 0x2b,
        };
        match (instruction.mnemonic(), instruction.op1_kind()) {
            (Mnemonic::Pop, _) => {
                piece.add(Instruction::with1(Code::Pushq_imm32, i32::from(selector)).ok()?);
            }
            (Mnemonic::Mov, OpKind::Register) => {
                let register = instruction.op1_register();
                let narrow = Register::EAX + register.number() as u32;
                piece.add(
                    Instruction::with2(Code::Mov_r32_imm32, narrow, u32::from(selector)).ok()?,
                );
            }
            (Mnemonic::Mov, _) => self.poke(&instruction, &selector.to_le_bytes(), 0),
            _ => {
                let size = instruction.memory_size().size();
                self.poke(&instruction, &selector.to_le_bytes(), size - 2);
            }
        }
        piece.add(instruction);
        Some(())
    }

    /// Puts `bytes` at the memory operand of `instruction`, as far as its address is known.
    fn poke(&mut self, instruction: &Instruction, bytes: &[u8], offset: usize) {
        let Some(start) = self.operand_offset(instruction) else {
            return;
        };
        if let Some(place) = self
            .memory
            .get_mut(start + offset..start + offset + bytes.len())
        {
            place.copy_from_slice(bytes);
        }
    }

    /// Returns where the memory operand of `instruction` lies in the memory.
    fn operand_offset(&self, instruction: &Instruction) -> Option<usize> {
        let operand = (0..instruction.op_count())
            .find(|operand| instruction.op_kind(*operand) == OpKind::Memory)?;
        let value = |register: Register, _, _| {
            if register.is_segment_register() {
                return Some(0);
            }
            let full = register.full_register();
            let mut known = self.known.registers.iter();
            let (_, value) = known.find(|(known, _)| *known == full)?;
            Some(if register.size() == 4 {
                *value & 0xffff_ffff
            } else {
                *value
            })
        };
        let address = instruction.virtual_address(operand, 0, value)?;
        offset_of(address)
    }

    /// Gives the memory operand content that is legal.
    fn content(&mut self, instruction: &Instruction) {
        use Mnemonic as M;
        let sane = self.random.chance(85);
        match instruction.mnemonic() {
            M::Fldcw if sane => {
                let word = values::x87_control(self.random);
                self.poke(instruction, &word.to_le_bytes(), 0);
            }
            M::Ldmxcsr if sane => {
                let word = values::mxcsr(self.random);
                self.poke(instruction, &word.to_le_bytes(), 0);
            }
            M::Fxrstor | M::Fxrstor64 if sane => {
                let image = values::registers(self.random).extended.to_image();
                // The reserved end of the image keeps whatever is there.
                self.poke(instruction, &image[..416], 0);
            }
            M::Fldenv | M::Frstor if sane => {
                let wide = !matches!(
                    instruction.code(),
                    Code::Fldenv_m14byte | Code::Frstor_m94byte
                );
                let environment = self.environment(wide);
                self.poke(instruction, &environment, 0);
            }
            _ => {}
        }
    }

    /// An x87 environment without pending exceptions.
    fn environment(&mut self, wide: bool) -> Vec<u8> {
        let Extended {
            control, status, ..
        } = values::registers(self.random).extended;
        let tags = self.random.bits() as u16;
        let words = [control, status & !0x3f | status & control & 0x3f, tags];
        let step = if wide { 4 } else { 2 };
        let mut bytes = vec![0; 7 * step];
        for (index, word) in words.iter().enumerate() {
            bytes[index * step..index * step + 2].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// Says whether the code has a fixed count of 1.
fn one_only(code: Code) -> bool {
    let kinds = code.op_code();
    kinds
        .op_kinds()
        .contains(&iced_x86::OpCodeOperandKind::imm8_const_1)
}

fn jumps(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::NearBranch64
}

fn loads_segment(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Lss | Mnemonic::Lgs)
        || (instruction.mnemonic() != Mnemonic::Push
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_segment_register())
}

/// Says whether the rest of a sequence would see what `instruction` stores undefined.
pub fn must_be_last(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Fxsave | M::Fxsave64 | M::Fnstenv | M::Fnsave
    )
}
