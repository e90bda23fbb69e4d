//! What a case starts from and what it ends in.

use iced_x86::{Instruction, RflagsBits};

/// x87 and SSE registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extended {
    /// x87 control word.
    pub control: u16,
    /// x87 status word.
    pub status: u16,
    /// Bit i: physical x87 register i is not empty.
    pub tags: u8,
    /// ST(0) to ST(7), 80 bits each.
    pub stack: [u128; 8],
    /// MXCSR.
    pub mxcsr: u32,
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
}

/// Length of an FXSAVE image.
pub const IMAGE_BYTES: usize = 512;
const TEN_BYTES: u128 = (1 << 80) - 1;

fn take<const N: usize>(image: &[u8; IMAGE_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|index| image[at + index])
}

impl Extended {
    /// Returns the FXSAVE64 image, the pointers of the last x87 instruction being 0.
    pub fn to_image(&self) -> [u8; IMAGE_BYTES] {
        let mut image = [0; IMAGE_BYTES];
        image[0..2].copy_from_slice(&self.control.to_le_bytes());
        image[2..4].copy_from_slice(&self.status.to_le_bytes());
        image[4] = self.tags;
        image[24..28].copy_from_slice(&self.mxcsr.to_le_bytes());
        for (index, value) in self.stack.iter().enumerate() {
            let at = 32 + 16 * index;
            image[at..at + 16].copy_from_slice(&(value & TEN_BYTES).to_le_bytes());
        }
        for (index, value) in self.xmm.iter().enumerate() {
            let at = 160 + 16 * index;
            image[at..at + 16].copy_from_slice(&value.to_le_bytes());
        }
        image
    }

    /// Reads an FXSAVE64 image.
    pub fn from_image(image: &[u8; IMAGE_BYTES]) -> Self {
        Self {
            control: u16::from_le_bytes(take(image, 0)),
            status: u16::from_le_bytes(take(image, 2)),
            tags: image[4],
            stack: std::array::from_fn(|index| {
                u128::from_le_bytes(take(image, 32 + 16 * index)) & TEN_BYTES
            }),
            mxcsr: u32::from_le_bytes(take(image, 24)),
            xmm: std::array::from_fn(|index| u128::from_le_bytes(take(image, 160 + 16 * index))),
        }
    }
}

/// Registers of a user program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub general: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// x87 and SSE.
    pub extended: Extended,
}

/// An exception that ended a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Vector.
    pub vector: u8,
    /// Error code; 0 where the vector has none.
    pub error: u32,
    /// CR2 of a page fault, otherwise 0.
    pub address: u64,
}

/// What a case ended in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Registers.
    pub state: State,
    /// Content of the data pages and of the high page.
    pub memory: Vec<u8>,
    /// The exception that ended it; `None` where it ran to its end.
    pub trap: Option<Trap>,
}

/// One instruction of a case and what the manual leaves undefined around it.
#[derive(Clone, Debug)]
pub struct Step {
    /// The instruction, its address and length set.
    pub instruction: Instruction,
    /// Status flags ([`RflagsBits`]) that are undefined before it.
    pub undefined: u32,
}

/// A few instructions, registers and memory.
#[derive(Clone, Debug)]
pub struct Case {
    /// Seed that makes it again.
    pub seed: u64,
    /// Machine code, to lie at `state.rip`.
    pub code: Vec<u8>,
    /// The instructions in it, the last being the jump to the end.
    pub steps: Vec<Step>,
    /// Registers at the start.
    pub state: State,
    /// Content of the data pages and of the high page at the start.
    pub memory: Vec<u8>,
}

/// Returns the RFLAGS bits that are status flags or DF, of iced's flag set `bits`.
pub fn flag_mask(bits: u32) -> u64 {
    const FLAGS: [(u32, u64); 7] = [
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 1 << 2),
        (RflagsBits::AF, 1 << 4),
        (RflagsBits::ZF, 1 << 6),
        (RflagsBits::SF, 1 << 7),
        (RflagsBits::DF, 1 << 10),
        (RflagsBits::OF, 1 << 11),
    ];
    let set = FLAGS.iter().filter(|(bit, _)| bits & bit != 0);
    set.fold(0, |mask, (_, flag)| mask | flag)
}
