//! x87, MMX and SSE instructions as functions on the floating-point state.
//!
//! [`resolve`] is asked once, when an instruction is decoded; what it returns is run each time. The
//! caller moves memory operands and checks what is the processor's business (CR0.EM, CR0.TS,
//! CR4.OSFXSR, alignment, translation).

use iced_x86::Instruction;

/// XMM registers, MXCSR and the x87 registers.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub struct FpState {
    /// XMM0 to XMM15, little endian.
    pub xmm: [u128; 16],
    /// Control and status of SSE.
    pub mxcsr: u32,
}

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
    /// x87; also FWAIT.
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
    /// Loaded before and stored after (MASKMOVDQU).
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
pub fn resolve(_instruction: &Instruction) -> Option<FpOperation> {
    None
}
