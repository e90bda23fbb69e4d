//! Instructions of a code, and states to run them on.

use iced_x86::{Code, Instruction, MemoryOperand, OpCodeOperandKind, OpKind, Register};

use super::native::Frame;
use crate::MXCSR_DEFAULT;

/// A small generator of numbers that look random (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Instructions of `code`: register and memory form where both exist, several immediates.
pub fn instruction_of(code: Code, random: &mut Random) -> std::vec::IntoIter<Instruction> {
    let info = code.op_code();
    let kinds = info.op_kinds();
    let immediate = kinds.contains(&OpCodeOperandKind::imm8);
    let mut found = Vec::new();
    for _ in 0..if immediate { 16 } else { 4 } {
        for memory in [false, true] {
            found.extend(build(code, kinds, memory, random));
        }
    }
    found.into_iter()
}

/// One instruction, with a memory operand or none; `None` where the code has no such form.
fn build(
    code: Code,
    kinds: &[OpCodeOperandKind],
    memory: bool,
    random: &mut Random,
) -> Option<Instruction> {
    use OpCodeOperandKind as K;
    let mut instruction = Instruction::new();
    instruction.set_code(code);
    instruction.set_code_size(iced_x86::CodeSize::Code64);
    let mut has_memory = false;
    for (operand, kind) in kinds.iter().enumerate() {
        let operand = operand as u32;
        let either = matches!(
            kind,
            K::xmm_or_mem | K::mm_or_mem | K::r32_or_mem | K::r64_or_mem
        );
        if *kind == K::mem || either && memory {
            let at = MemoryOperand::with_base(Register::R15);
            instruction.set_op_kind(operand, OpKind::Memory);
            instruction.set_memory_base(at.base);
            has_memory = true;
            continue;
        }
        let register = match kind {
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm => Register::XMM0 + random.below(16) as u32,
            K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + random.below(8) as u32,
            K::r32_or_mem | K::r32_reg => {
                random.pick(&[Register::EAX, Register::ECX, Register::EDX, Register::R9D])
            }
            K::r64_or_mem | K::r64_reg => {
                random.pick(&[Register::RAX, Register::RCX, Register::RDX, Register::R9])
            }
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + random.below(8) as u32,
            K::ax => Register::AX,
            K::imm8 => {
                instruction.set_op_kind(operand, OpKind::Immediate8);
                instruction.set_immediate8(random.next() as u8);
                continue;
            }
            K::seg_rDI => {
                instruction.set_op_kind(operand, OpKind::MemorySegRDI);
                has_memory = true;
                continue;
            }
            other => panic!("{code:?} has an operand {other:?}"),
        };
        instruction.set_op_kind(operand, OpKind::Register);
        instruction.set_op_register(operand, register);
    }
    let fixed = kinds.contains(&K::mem) || kinds.contains(&K::seg_rDI);
    (has_memory == memory || fixed && memory).then_some(instruction)
}

/// A state; rounds differ in what they stress.
pub fn random_frame(random: &mut Random, instruction: &Instruction, round: usize) -> Frame {
    let mut frame = Frame::new();
    // Rounding, FTZ, DAZ and flags of any kind; exceptions stay masked.
    let mxcsr = match round % 4 {
        0 => MXCSR_DEFAULT,
        2 => MXCSR_DEFAULT | 0x20,
        _ => MXCSR_DEFAULT | random.next() as u32 & 0xe07f,
    };
    // Of x87 exceptions some are unmasked, but none is pending.
    let mask = if round.is_multiple_of(3) {
        random.next() as u16 & 0x3f
    } else {
        0x3f
    };
    let control = random.next() as u16 & 0xf00 | 0x40 | mask;
    let status = random.next() as u16 & (0x7f40 | mask);
    frame.image[0..2].copy_from_slice(&control.to_le_bytes());
    frame.image[2..4].copy_from_slice(&status.to_le_bytes());
    frame.image[4] = match round % 4 {
        0 => 0xff,
        1 => random.next() as u8 | random.next() as u8,
        2 => random.next() as u8,
        _ => 0xff ^ 1 << random.below(8),
    };
    frame.image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    frame.image[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
    for slot in frame.image[32..160].as_chunks_mut::<16>().0 {
        slot[..10].copy_from_slice(&extended(random));
    }
    let wide = random.below(2) == 0;
    for slot in frame.image[160..416].as_chunks_mut::<16>().0 {
        *slot = vector(random, wide);
    }
    for register in &mut frame.general {
        *register = integer(random);
    }
    frame.flags = random.next() & 0x8d5 | 0x202;
    for slot in frame.memory.as_chunks_mut::<16>().0 {
        *slot = vector(random, wide);
    }
    match instruction.memory_size().size() {
        10 => frame.memory[..10].copy_from_slice(&ten_bytes(random, instruction)),
        512 => frame.memory[24..28].copy_from_slice(&mxcsr.to_le_bytes()),
        4 if instruction.code() == Code::Ldmxcsr_m32 => {
            frame.memory[..4].copy_from_slice(&mxcsr.to_le_bytes());
        }
        _ => {}
    }
    frame
}

/// A state with unmasked SSE exceptions and perhaps a pending x87 exception.
pub fn faulting_frame(random: &mut Random, instruction: &Instruction, round: usize) -> Frame {
    let mut frame = random_frame(random, instruction, round);
    let mxcsr = random.next() as u32 & 0xffff;
    // No flag is raised yet whose exception is unmasked.
    let mxcsr = mxcsr & !(!mxcsr >> 7 & 0x3f);
    frame.image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    if round.is_multiple_of(4) {
        frame.image[2] |= 0x80 | 1 << random.below(6);
        frame.image[3] |= 0x80;
        frame.image[0] &= !frame.image[2] | 0xc0;
    }
    frame
}

/// A state in which at most "inexact" is raised and results lie where numbers end, or are exact.
pub fn edge_frame(random: &mut Random, instruction: &Instruction, round: usize) -> Frame {
    let mut frame = random_frame(random, instruction, round);
    let mxcsr = random.pick(&[MXCSR_DEFAULT, MXCSR_DEFAULT | 0x20]);
    frame.image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    let (image, memory) = (&mut frame.image[160..416], &mut frame.memory[..16]);
    let slots = image.as_chunks_mut::<16>().0.iter_mut();
    for slot in slots.chain(memory.as_chunks_mut::<16>().0) {
        let value = random.next();
        // Exponents whose sums and differences lie near the smallest, the largest and one.
        let bits = if random.below(2) == 0 {
            let exponent = random.pick(&[0, 1, 2, 0x1ff, 0x200, 0x3ff, 0x5ff, 0x7fe, 0x7ff]);
            value & !(0x7ff << 52) | ((exponent + random.below(2)) & 0x7ff) << 52
        } else {
            let exponent = random.pick(&[0, 1, 2, 0x3f, 0x40, 0x7f, 0xbf, 0xc0, 0xfe, 0xff]);
            value & !(0xff << 23) | ((exponent + random.below(2)) & 0xff) << 23
        };
        // Often few bits are set, so that results are exact or ties.
        let bits = match random.below(6) {
            0 => bits & !0xffff_ffff_ffff,
            1 => bits & !0x7f_ffff,
            2 => (random.below(1 << 20) as f64).to_bits(),
            3 => u64::from((random.below(1 << 10) as f32 / 16.0).to_bits()),
            _ => bits,
        };
        slot[..8].copy_from_slice(&bits.to_le_bytes());
    }
    frame
}

/// BCD digits for FBLD, an extended number for others.
fn ten_bytes(random: &mut Random, instruction: &Instruction) -> [u8; 10] {
    if instruction.code() != Code::Fbld_m80bcd {
        return extended(random);
    }
    let mut digits = [0; 10];
    digits.fill_with(|| (random.below(10) | random.below(10) << 4) as u8);
    digits[9] = (random.below(2) << 7) as u8;
    digits
}

/// 16 bytes of numbers: doubles where `wide`, singles, or integers.
fn vector(random: &mut Random, wide: bool) -> [u8; 16] {
    let mut bytes = [0; 16];
    match random.below(4) {
        0 => bytes.fill_with(|| random.next() as u8),
        1 => {
            let text = b"abcab\0cAAzz\0\0ba0";
            bytes.fill_with(|| random.pick(text));
        }
        _ if wide => {
            for slot in bytes.as_chunks_mut::<8>().0 {
                *slot = double(random).to_le_bytes();
            }
        }
        _ => {
            for slot in bytes.as_chunks_mut::<4>().0 {
                *slot = single(random).to_le_bytes();
            }
        }
    }
    bytes
}

fn single(random: &mut Random) -> u32 {
    let sign = (random.below(2) << 31) as u32;
    sign | match random.below(12) {
        0 => 0,
        1 => 0x7f80_0000,
        2 => 0x7fc0_0000 | random.next() as u32 & 0xf,
        3 => 0x7f80_0001,
        4 => random.next() as u32 & 0x7f_ffff,
        5 => 0x0080_0000,
        6 => 0x7f7f_ffff,
        7 => (random.below(1000) as f32).to_bits(),
        8 => (random.below(1000) as f32 + 0.5).to_bits(),
        9 => 0x4f00_0000,
        _ => 0x3f80_0000 ^ random.next() as u32 & 0x07ff_ffff,
    }
}

fn double(random: &mut Random) -> u64 {
    let sign = random.below(2) << 63;
    sign | match random.below(14) {
        0 => 0,
        1 => 0x7ff0 << 48,
        2 => 0x7ff8 << 48 | random.next() & 0xf,
        3 => 0x7ff0 << 48 | 1,
        4 => random.next() & 0xf_ffff_ffff_ffff,
        5 => 0x0010 << 48,
        6 => 0x7fef_ffff_ffff_ffff,
        7 => (random.below(1000) as f64).to_bits(),
        8 => (random.below(1000) as f64 + 0.5).to_bits(),
        9 => 0x41e0 << 48,
        10 => 0x43e0 << 48,
        11 => 0x3810 << 48 | random.next() & 0xf_ffff_ffff_ffff,
        _ => 0x3ff0 << 48 ^ random.next() & 0x00ff_ffff_ffff_ffff,
    }
}

/// An extended number, sometimes one that is no number (unnormal, pseudo-denormal).
fn extended(random: &mut Random) -> [u8; 10] {
    let sign = (random.below(2) << 15) as u16;
    let top = 1 << 63;
    let (exponent, mantissa) = match random.below(16) {
        0 => (0, 0),
        1 => (0x7fff, top),
        2 => (0x7fff, 3 << 62 | random.next() & 0xff),
        3 => (0x7fff, top | random.next() & 0xffff | 1),
        4 => (0, random.next() >> 1),
        5 => (0, random.next() | top),
        6 => (random.below(0x7fff) as u16, random.next() >> 1),
        7 => (1, random.next() | top),
        8 => (0x7ffe, u64::MAX),
        9 => {
            let shift = random.below(60) as u32;
            (
                0x3fff + shift as u16,
                random.next() >> (60 - shift) << (60 - shift) | top,
            )
        }
        10 => (0x3fff, top),
        11 => (0x3ffe, random.next() | top),
        12 => (0x7fff, random.next() >> 1),
        _ => (0x3ff0 + random.below(80) as u16, random.next() | top),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&u64::to_le_bytes(mantissa));
    bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
    bytes
}

fn integer(random: &mut Random) -> u64 {
    match random.below(5) {
        0 => random.below(20).wrapping_sub(10),
        1 => random.next() & 0xffff_ffff,
        2 => 1 << random.below(64),
        _ => random.next(),
    }
}
