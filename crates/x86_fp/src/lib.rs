//! x87, MMX and SSE instructions as functions on the floating-point state.
//!
//! [`resolve`] is asked once, when an instruction is decoded; what it returns is run each time. The
//! caller moves memory operands and checks what is the processor's business (CR0.EM, CR0.TS,
//! CR4.OSFXSR, alignment, translation).
//!
//! The host's own x87 and SSE units compute, under the guest's control words with every exception
//! masked, so the crate needs an x86-64 host with SSE4.2 ([`missing_on_host`]).

#![expect(unsafe_code, reason = "the host's instructions are inline assembly")]

mod convert;
mod entry;
mod environment;
pub mod fast;
mod flags;
mod float;
mod host;
mod image;
mod immediate;
mod integer;
mod mmx;
mod moves;
mod mxcsr;
mod operand;
mod predicate;
mod quick;
mod state;
mod strings;
mod x87;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::entry::{Direction, Entry};

pub use host::missing_on_host;
pub use state::{FXSAVE_LEN, FpState, MXCSR_DEFAULT, MXCSR_MASK};

/// Largest memory operand: FXSAVE's 512 bytes.
pub const MEMORY_OPERAND_MAX: usize = 512;

/// Buffer of a memory operand: filled by the caller before a load, taken by it after a store.
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub struct Operand(pub [u8; MEMORY_OPERAND_MAX]);

/// What an instruction touches besides [`FpState`].
#[derive(Debug)]
pub struct Outside<'a> {
    /// RAX to R15 in encoding order.
    pub general: &'a mut [u64; 16],
    /// RFLAGS, read by FCMOVcc and written by COMISD, PTEST, PCMPISTRI, FCOMI and their like.
    pub flags: &'a mut u64,
    /// The memory operand.
    pub memory: &'a mut Operand,
}

/// Part of the processor that an instruction belongs to; it decides which control bits forbid it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// x87; also FWAIT, FXSAVE and FXRSTOR.
    X87,
    /// MMX.
    Mmx,
    /// SSE and later.
    Sse,
}

/// Memory operand of an instruction; lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// None.
    None,
    /// Loaded before it runs.
    Load(u16),
    /// Stored after it ran.
    Store(u16),
    /// Loaded before and stored after (MASKMOVDQU, FXSAVE, x87 stores that an exception suppresses).
    Both(u16),
}

/// Why an instruction did not complete; nothing has changed then, except status flags as the manual
/// says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FpFault {
    /// #XM: an unmasked SSE exception.
    Simd,
    /// #MF: an unmasked x87 exception is pending.
    X87,
    /// #GP(0): reserved bits in MXCSR.
    Protection,
}

/// Operands of an instruction that are no memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arguments {
    /// First register.
    pub first: u8,
    /// Second register.
    pub second: u8,
    /// Immediate byte, or operand size, as the instruction needs.
    pub immediate: u8,
}

/// A resolved instruction.
#[derive(Clone, Copy, Debug)]
pub struct FpOperation {
    /// Runs it.
    pub run: fn(&mut FpState, &mut Outside<'_>, Arguments) -> Result<(), FpFault>,
    /// Given to `run`.
    pub arguments: Arguments,
    /// Whose control bits apply.
    pub unit: Unit,
    /// Its memory operand.
    pub memory: Memory,
    /// Whether a memory operand that is not 16-byte aligned is a #GP(0).
    pub aligned: bool,
}

/// Returns how to run `instruction`; `None` where it is none of this crate's (or newer than SSE4.2).
pub fn resolve(instruction: &Instruction) -> Option<FpOperation> {
    let x87 = x87::lookup(instruction);
    let entry = x87.or_else(|| lookup(instruction.code()))?;
    let (run, memory) = if has_memory(instruction) {
        let (direction, run) = entry.memory?;
        let len = u16::try_from(instruction.memory_size().size()).ok()?;
        let memory = match direction {
            Direction::Load => Memory::Load(len),
            Direction::Store => Memory::Store(len),
            Direction::Both => Memory::Both(len),
        };
        (run, memory)
    } else {
        (entry.register?, Memory::None)
    };
    let unit = if x87.is_some() {
        Unit::X87
    } else {
        unit(instruction)
    };
    Some(FpOperation {
        run,
        arguments: if x87.is_some() {
            x87::arguments(instruction)
        } else {
            arguments(instruction)
        },
        unit,
        memory,
        aligned: aligned(instruction, memory),
    })
}

/// Asks the tables in turn.
fn lookup(code: Code) -> Option<Entry> {
    moves::lookup(code)
        .or_else(|| integer::lookup(code))
        .or_else(|| float::lookup(code))
        .or_else(|| immediate::lookup(code))
        .or_else(|| convert::lookup(code))
        .or_else(|| mmx::lookup(code))
        .or_else(|| predicate::lookup(code))
        .or_else(|| strings::lookup(code))
        .or_else(|| image::lookup(code))
}

/// Whether an operand is in memory.
fn has_memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| {
        matches!(
            kind,
            OpKind::Memory | OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI
        )
    })
}

/// Registers and immediate.
fn arguments(instruction: &Instruction) -> Arguments {
    let number = |operand| register_number(instruction, operand);
    let (first, second) = match instruction.code() {
        // The implicit memory operand comes first.
        Code::Maskmovq_rDI_mm_mm | Code::Maskmovdqu_rDI_xmm_xmm => (number(1), number(2)),
        _ => (number(0), number(1)),
    };
    let immediate = match instruction.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 | Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
            image::long_mode(instruction)
        }
        _ => (0..instruction.op_count())
            .find(|&operand| instruction.op_kind(operand) == OpKind::Immediate8)
            .map_or(0, |_| instruction.immediate8()),
    };
    Arguments {
        first,
        second,
        immediate,
    }
}

/// Number of a register operand; zero for any other.
fn register_number(instruction: &Instruction, operand: u32) -> u8 {
    if operand < instruction.op_count() && instruction.op_kind(operand) == OpKind::Register {
        instruction.op_register(operand).number() as u8
    } else {
        0
    }
}

/// Which unit an instruction belongs to: one that names an XMM register is SSE's, also where it
/// converts to or from MMX.
fn unit(instruction: &Instruction) -> Unit {
    let registers = || {
        (0..instruction.op_count())
            .filter(|&operand| instruction.op_kind(operand) == OpKind::Register)
            .map(|operand| instruction.op_register(operand))
    };
    match instruction.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 | Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
            Unit::X87
        }
        Mnemonic::Emms => Unit::Mmx,
        _ if registers().any(Register::is_xmm) => Unit::Sse,
        _ if registers().any(Register::is_mm) => Unit::Mmx,
        _ => Unit::Sse,
    }
}

/// Whether a memory operand must be aligned to 16 bytes.
fn aligned(instruction: &Instruction, memory: Memory) -> bool {
    let (Memory::Load(len) | Memory::Store(len) | Memory::Both(len)) = memory else {
        return false;
    };
    let exempt = matches!(
        instruction.mnemonic(),
        Mnemonic::Movups
            | Mnemonic::Movupd
            | Mnemonic::Movdqu
            | Mnemonic::Lddqu
            | Mnemonic::Maskmovdqu
            | Mnemonic::Pcmpistri
            | Mnemonic::Pcmpistrm
            | Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestri64
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpestrm64
    );
    (len == 16 || usize::from(len) == FXSAVE_LEN) && !exempt
}

#[cfg(test)]
mod tests;
