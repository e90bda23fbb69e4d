//! Operands: what an instruction reads and writes, by length.

use core::arch::x86_64::__m128i;
use core::mem::transmute;

use crate::{Arguments, FpState, Operand, Outside};

/// The length that stands for a register operand.
pub(crate) const REGISTER: usize = 0;

impl Operand {
    /// An operand of zeros.
    pub const fn new() -> Self {
        Self([0; crate::MEMORY_OPERAND_MAX])
    }

    /// Its first `N` bytes.
    #[inline(always)]
    pub(crate) fn load<const N: usize>(&self) -> [u8; N] {
        *self.0.first_chunk().expect("no operand is longer than it")
    }

    /// Sets its first `N` bytes.
    #[inline(always)]
    pub(crate) fn store<const N: usize>(&mut self, bytes: [u8; N]) {
        *self
            .0
            .first_chunk_mut()
            .expect("no operand is longer than it") = bytes;
    }

    /// Its first `LEN` bytes (1, 2, 4, 8 or 16), zero-extended.
    ///
    /// It reads no more than these: a wider read would wait for the narrower write that filled it.
    #[inline(always)]
    pub(crate) fn value<const LEN: usize>(&self) -> u128 {
        match LEN {
            1 => self.0[0].into(),
            2 => u16::from_le_bytes(self.load()).into(),
            4 => u32::from_le_bytes(self.load()).into(),
            8 => u64::from_le_bytes(self.load()).into(),
            _ => u128::from_le_bytes(self.load()),
        }
    }

    /// Sets its first `LEN` bytes (1, 2, 4, 8 or 16) to the low ones of `value`.
    #[inline(always)]
    pub(crate) fn set_value<const LEN: usize>(&mut self, value: u128) {
        match LEN {
            1 => self.0[0] = value as u8,
            2 => self.store((value as u16).to_le_bytes()),
            4 => self.store((value as u32).to_le_bytes()),
            8 => self.store((value as u64).to_le_bytes()),
            _ => self.store(value.to_le_bytes()),
        }
    }
}

impl Default for Operand {
    fn default() -> Self {
        Self::new()
    }
}

/// Index of an XMM or general register.
#[inline(always)]
pub(crate) fn index(number: u8) -> usize {
    usize::from(number & 15)
}

/// The second operand: an XMM register, or `LEN` bytes of memory, zero-extended.
#[inline(always)]
pub(crate) fn source<const LEN: usize>(
    state: &FpState,
    outside: &Outside<'_>,
    arguments: Arguments,
) -> u128 {
    if LEN == REGISTER {
        state.xmm[index(arguments.second)]
    } else {
        outside.memory.value::<LEN>()
    }
}

/// The second operand: an MMX register, or `LEN` bytes of memory, zero-extended.
#[inline(always)]
pub(crate) fn mmx_source<const LEN: usize>(
    state: &FpState,
    outside: &Outside<'_>,
    arguments: Arguments,
) -> u64 {
    if LEN == REGISTER {
        state.mmx(arguments.second)
    } else {
        outside.memory.value::<LEN>() as u64
    }
}

/// The same 128 bits as the host's vector type.
#[inline(always)]
pub(crate) fn to_vector(value: u128) -> __m128i {
    // SAFETY: both types are 16 bytes for which every value is valid.
    unsafe { transmute(value) }
}

/// The same 128 bits as a number.
#[inline(always)]
pub(crate) fn from_vector(vector: __m128i) -> u128 {
    // SAFETY: both types are 16 bytes for which every value is valid.
    unsafe { transmute(vector) }
}
