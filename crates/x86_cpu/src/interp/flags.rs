//! Status flags: computed at once, or kept as what they follow from until somebody reads them.

use crate::Cpu;

pub(crate) const CF: u64 = 1;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const IF: u64 = 1 << 9;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const OF: u64 = 1 << 11;
/// The six status flags.
pub(crate) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// All ones of a size in bytes.
pub(crate) const fn mask(size: u32) -> u64 {
    u64::MAX >> (64 - size * 8)
}

/// The top bit of a size in bytes.
pub(crate) const fn top(size: u32) -> u64 {
    1 << (size * 8 - 1)
}

/// Sign-extends a value of a size in bytes.
pub(crate) const fn sign_extend(value: u64, size: u32) -> u64 {
    let shift = 64 - size * 8;
    ((value << shift) as i64 >> shift) as u64
}

/// PF, ZF and SF of a result.
#[inline]
pub(crate) fn of_result(result: u64, size: u32) -> u64 {
    let result = result & mask(size);
    let mut flags = u64::from((result as u8).count_ones() & 1 == 0) << 2;
    flags |= u64::from(result == 0) << 6;
    flags | (result >> (size * 8 - 1)) << 7
}

/// Flags of `a + b + carry`, whose result is `result`.
#[inline]
pub(crate) fn of_sum(a: u64, b: u64, result: u64, size: u32) -> u64 {
    let carries = (a & b) | ((a | b) & !result);
    from_carries(carries, a ^ b ^ result, size) | of_result(result, size)
}

/// Flags of `a - b - borrow`, whose result is `result`.
#[inline]
pub(crate) fn of_difference(a: u64, b: u64, result: u64, size: u32) -> u64 {
    let borrows = (!a & b) | ((!a | b) & result);
    from_carries(borrows, a ^ b ^ result, size) | of_result(result, size)
}

fn from_carries(carries: u64, changed: u64, size: u32) -> u64 {
    let bits = size * 8;
    let carry = carries >> (bits - 1) & 1;
    let overflow = carry ^ (carries >> (bits - 2) & 1);
    carry | (changed & AF) | overflow << 11
}

/// What the lazy flags follow from; two low bits of [`LazyFlags::kind`] are the operand's size.
pub(crate) mod kind {
    /// All are in RFLAGS.
    pub(crate) const NONE: u8 = 0;
    /// PF, ZF, SF of the result, the others are bits of the source.
    pub(crate) const RESULT: u8 = 1 << 2;
    /// result = a + source.
    pub(crate) const ADD: u8 = 2 << 2;
    /// result = a - source.
    pub(crate) const SUB: u8 = 3 << 2;
    /// result = a + source + 1.
    pub(crate) const ADC: u8 = 4 << 2;
    /// result = a - source - 1.
    pub(crate) const SBB: u8 = 5 << 2;
    /// result = a + 1; the source is CF.
    pub(crate) const INC: u8 = 6 << 2;
    /// result = a - 1; the source is CF.
    pub(crate) const DEC: u8 = 7 << 2;
}

/// Status flags that are not computed yet.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct LazyFlags {
    /// Result, upper bits zero.
    pub(crate) result: u64,
    /// Second operand, upper bits zero.
    pub(crate) source: u64,
    /// One of [`kind`], with the logarithm of the size.
    pub(crate) kind: u8,
}

impl LazyFlags {
    fn size(self) -> u32 {
        1 << (self.kind & 3)
    }

    /// The status flags; the kind is not NONE.
    fn status(self) -> u64 {
        let (size, result, source) = (self.size(), self.result, self.source);
        match self.kind & !3 {
            kind::ADD => of_sum(result.wrapping_sub(source), source, result, size),
            kind::SUB => of_difference(result.wrapping_add(source), source, result, size),
            kind::ADC => {
                let a = result.wrapping_sub(source).wrapping_sub(1);
                of_sum(a, source, result, size)
            }
            kind::SBB => {
                let a = result.wrapping_add(source).wrapping_add(1);
                of_difference(a, source, result, size)
            }
            kind::INC => (of_sum(result.wrapping_sub(1), 1, result, size) & !CF) | source,
            kind::DEC => (of_difference(result.wrapping_add(1), 1, result, size) & !CF) | source,
            _ => of_result(result, size) | source,
        }
    }

    /// AF; the kind is not NONE.
    #[inline]
    fn adjust(self) -> u64 {
        let (result, source) = (self.result, self.source);
        let a = match self.kind & !3 {
            kind::ADD => result.wrapping_sub(source),
            kind::SUB => result.wrapping_add(source),
            kind::ADC => result.wrapping_sub(source).wrapping_sub(1),
            kind::SBB => result.wrapping_add(source).wrapping_add(1),
            kind::INC => return u64::from(result & 0xf == 0) << 4,
            kind::DEC => return u64::from(result & 0xf == 0xf) << 4,
            _ => return source & AF,
        };
        (a ^ source ^ result) & AF
    }

    /// CF; the kind is not NONE.
    #[inline]
    fn carry(self) -> bool {
        let (size, result, source) = (self.size(), self.result, self.source);
        match self.kind & !3 {
            kind::ADD => result < source,
            kind::SUB => (result.wrapping_add(source) & mask(size)) < source,
            kind::ADC => result <= source,
            kind::SBB => (result.wrapping_add(source).wrapping_add(1) & mask(size)) <= source,
            _ => source & CF != 0,
        }
    }
}

/// Evaluates a condition code (the low four bits of Jcc's opcode) on flags.
#[inline]
pub(crate) fn condition_of(flags: u64, code: u8) -> bool {
    let (sign, overflow) = (flags & SF != 0, flags & OF != 0);
    let holds = match code >> 1 & 7 {
        0 => overflow,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => sign,
        5 => flags & PF != 0,
        6 => sign != overflow,
        _ => flags & ZF != 0 || sign != overflow,
    };
    holds != (code & 1 != 0)
}

impl Cpu {
    /// Brings RFLAGS up to date.
    #[inline]
    pub(crate) fn settle_flags(&mut self) {
        if self.lazy.kind != kind::NONE {
            self.rflags = (self.rflags & !STATUS) | self.lazy.status();
            self.lazy.kind = kind::NONE;
        }
    }

    /// Replaces the status flags; RFLAGS is up to date.
    pub(crate) fn set_status(&mut self, flags: u64) {
        self.rflags = (self.rflags & !STATUS) | (flags & STATUS);
    }

    /// Replaces CF and OF and leaves the other flags.
    #[inline]
    pub(crate) fn set_carry_and_overflow(&mut self, flags: u64) {
        if self.lazy.kind == kind::NONE {
            self.rflags = (self.rflags & !(CF | OF)) | flags;
        } else {
            self.lazy.source = self.lazy.adjust() | flags;
            self.lazy.kind = kind::RESULT | (self.lazy.kind & 3);
        }
    }

    /// CF.
    #[inline]
    pub(crate) fn carry(&self) -> bool {
        match self.lazy.kind {
            kind::NONE => self.rflags & CF != 0,
            _ => self.lazy.carry(),
        }
    }

    /// Evaluates a condition code.
    #[inline]
    pub(crate) fn condition(&self, code: u8) -> bool {
        let lazy = self.lazy;
        if lazy.kind == kind::NONE {
            return condition_of(self.rflags, code);
        }
        let holds = match code >> 1 & 7 {
            1 => lazy.carry(),
            2 => lazy.result == 0,
            3 => lazy.result == 0 || lazy.carry(),
            4 => lazy.result & top(lazy.size()) != 0,
            _ => return condition_of(lazy.status(), code),
        };
        holds != (code & 1 != 0)
    }
}
