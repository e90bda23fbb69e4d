//! The floating-point state: one FXSAVE image, kept in the form the host's processor takes.
//!
//! The layout is that of FXSAVE64 (SDM 1 10.5.1), so x87 instructions run on it between the host's
//! FXRSTOR64 and FXSAVE64, and a checkpoint is a copy. Invariants: reserved bits of MXCSR are clear
//! wherever the host reads it; ES and B of the status word say whether an unmasked exception is
//! pending; the upper 48 bits of the x87 registers' slots are zero.

/// All bits of MXCSR that exist: flags, DAZ, masks, rounding, FTZ.
pub const MXCSR_MASK: u32 = 0xffff;
/// MXCSR after reset: everything masked, round to nearest.
pub const MXCSR_DEFAULT: u32 = 0x1f80;

/// Length of an FXSAVE image, bytes.
pub const FXSAVE_LEN: usize = 512;

/// Bits of the x87 status word.
pub(crate) mod status {
    /// The six exception flags.
    pub const EXCEPTIONS: u16 = 0x3f;
    /// Error summary: an unmasked exception is pending.
    pub const SUMMARY: u16 = 1 << 7;
    /// Busy; follows the summary.
    pub const BUSY: u16 = 1 << 15;
    /// Where the number of the top register begins.
    pub const TOP_SHIFT: u32 = 11;
    /// The number of the top register.
    pub const TOP: u16 = 7 << TOP_SHIFT;
}

/// Control word after FNINIT.
pub(crate) const CONTROL_DEFAULT: u16 = 0x37f;
/// Bits of the control word that keep what is written.
const CONTROL_KEPT: u16 = 0x1f3f;
/// Bit of the control word that reads as one.
const CONTROL_ONE: u16 = 0x40;
/// The 80 bits of an x87 register in its slot.
pub(crate) const REGISTER_MASK: u128 = (1 << 80) - 1;

/// XMM registers, MXCSR and the x87 registers.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub struct FpState {
    pub(crate) control: u16,
    pub(crate) status: u16,
    /// One bit for each physical register: it is not empty.
    pub(crate) tags: u8,
    reserved_tag: u8,
    pub(crate) opcode: u16,
    pub(crate) instruction_pointer: u64,
    pub(crate) operand_pointer: u64,
    /// Control and status of SSE.
    pub mxcsr: u32,
    mxcsr_mask: u32,
    /// ST(0) to ST(7), counted from the top.
    pub(crate) stack: [u128; 8],
    /// XMM0 to XMM15, little endian.
    pub xmm: [u128; 16],
    tail: [u64; 12],
}

const _: () = assert!(size_of::<FpState>() == FXSAVE_LEN);

impl Default for FpState {
    fn default() -> Self {
        Self::new()
    }
}

impl FpState {
    /// The state after FNINIT and with MXCSR's default; all registers are zero.
    pub const fn new() -> Self {
        Self {
            control: CONTROL_DEFAULT,
            status: 0,
            tags: 0,
            reserved_tag: 0,
            opcode: 0,
            instruction_pointer: 0,
            operand_pointer: 0,
            mxcsr: MXCSR_DEFAULT,
            mxcsr_mask: MXCSR_MASK,
            stack: [0; 8],
            xmm: [0; 16],
            tail: [0; 12],
        }
    }

    /// Returns the state as an FXSAVE64 image; bytes 416 to 511 are zero.
    pub fn to_fxsave(&self) -> [u8; FXSAVE_LEN] {
        let mut image = [0; FXSAVE_LEN];
        image[0..2].copy_from_slice(&self.control.to_le_bytes());
        image[2..4].copy_from_slice(&self.status.to_le_bytes());
        image[4] = self.tags;
        image[6..8].copy_from_slice(&self.opcode.to_le_bytes());
        image[8..16].copy_from_slice(&self.instruction_pointer.to_le_bytes());
        image[16..24].copy_from_slice(&self.operand_pointer.to_le_bytes());
        image[24..28].copy_from_slice(&(self.mxcsr & MXCSR_MASK).to_le_bytes());
        image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for (slot, value) in image[32..416]
            .as_chunks_mut::<16>()
            .0
            .iter_mut()
            .zip(self.stack.iter().chain(&self.xmm))
        {
            *slot = value.to_le_bytes();
        }
        image
    }

    /// Makes a state of an FXSAVE64 image whose bytes may be anything: what cannot be in a register is
    /// dropped.
    pub fn from_fxsave(image: &[u8; FXSAVE_LEN]) -> Self {
        let mut state = Self::new();
        state.load_x87(image);
        state.mxcsr = u32_at(image, 24) & MXCSR_MASK;
        state.load_xmm(image, 16);
        state
    }

    /// Takes the x87 part of an FXSAVE64 image.
    pub(crate) fn load_x87(&mut self, image: &[u8; FXSAVE_LEN]) {
        self.status = u16_at(image, 2);
        self.tags = image[4];
        self.opcode = u16_at(image, 6) & 0x7ff;
        self.instruction_pointer = u64_at(image, 8);
        self.operand_pointer = u64_at(image, 16);
        for (register, slot) in self.stack.iter_mut().zip(image[32..160].as_chunks().0) {
            *register = u128::from_le_bytes(*slot) & REGISTER_MASK;
        }
        self.set_control(u16_at(image, 0));
    }

    /// Takes the first `count` XMM registers of an FXSAVE image.
    pub(crate) fn load_xmm(&mut self, image: &[u8; FXSAVE_LEN], count: usize) {
        let slots = image[160..416].as_chunks().0;
        for (register, slot) in self.xmm.iter_mut().zip(slots).take(count) {
            *register = u128::from_le_bytes(*slot);
        }
    }

    /// Sets the x87 control word as FLDCW does.
    pub(crate) fn set_control(&mut self, value: u16) {
        self.control = (value & CONTROL_KEPT) | CONTROL_ONE;
        self.summarize();
    }

    /// Makes the summary bits follow flags and masks.
    pub(crate) fn summarize(&mut self) {
        self.status &= !(status::SUMMARY | status::BUSY);
        if self.status & !self.control & status::EXCEPTIONS != 0 {
            self.status |= status::SUMMARY | status::BUSY;
        }
    }

    /// What FNINIT does.
    pub(crate) fn initialize_x87(&mut self) {
        self.control = CONTROL_DEFAULT;
        // The registers stay where they are physically while the top becomes 0.
        self.turn_to_zero();
        self.status = 0;
        self.tags = 0;
        self.forget_pointers();
    }

    /// Whether an unmasked x87 exception waits.
    pub fn x87_pending(&self) -> bool {
        self.status & status::SUMMARY != 0
    }

    /// Physical number of ST(0).
    pub(crate) fn top(&self) -> usize {
        usize::from((self.status & status::TOP) >> status::TOP_SHIFT)
    }

    /// The last instruction's address, operand and opcode are unknown from here on.
    pub(crate) fn forget_pointers(&mut self) {
        self.opcode = 0;
        self.instruction_pointer = 0;
        self.operand_pointer = 0;
    }

    /// Reads an MMX register.
    pub(crate) fn mmx(&self, number: u8) -> u64 {
        self.stack[(usize::from(number) + 8 - self.top()) & 7] as u64
    }

    /// What every MMX instruction but EMMS does to the x87 state.
    pub(crate) fn enter_mmx(&mut self) {
        self.turn_to_zero();
        self.tags = 0xff;
    }

    /// Writes an MMX register.
    pub(crate) fn set_mmx(&mut self, number: u8, value: u64) {
        self.enter_mmx();
        self.stack[usize::from(number & 7)] = u128::from(value) | 0xffff << 64;
    }

    /// Makes the top 0 without moving a physical register.
    fn turn_to_zero(&mut self) {
        let top = self.top();
        if top != 0 {
            self.stack.rotate_right(top);
            self.status &= !status::TOP;
        }
    }
}

/// Little-endian 16 bits at `offset`.
pub(crate) fn u16_at(bytes: &[u8; FXSAVE_LEN], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

/// Little-endian 32 bits at `offset`.
pub(crate) fn u32_at(bytes: &[u8; FXSAVE_LEN], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

/// Little-endian 64 bits at `offset`.
pub(crate) fn u64_at(bytes: &[u8; FXSAVE_LEN], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}
