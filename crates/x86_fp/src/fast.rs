//! The hottest operations as plain functions, for handlers that move their operands themselves.
//!
//! Those on floating-point numbers take MXCSR and answer `None` where the quick way does not hold:
//! the instruction must run as [`crate::resolve`] says then. It holds for rounding to nearest with all
//! exceptions masked, when the only flag that can be raised is "inexact" and it is set already.

use core::arch::x86_64::{
    __m128i, _mm_add_epi8, _mm_add_epi16, _mm_add_epi32, _mm_add_epi64, _mm_cmpeq_epi8,
    _mm_cmpeq_epi16, _mm_cmpeq_epi32, _mm_max_epu8, _mm_min_epu8, _mm_mul_epu32, _mm_sub_epi8,
    _mm_sub_epi16, _mm_sub_epi32, _mm_sub_epi64, _mm_unpackhi_epi8, _mm_unpackhi_epi16,
    _mm_unpackhi_epi32, _mm_unpacklo_epi8, _mm_unpacklo_epi16, _mm_unpacklo_epi32,
};

use crate::operand::{from_vector, to_vector};

pub use crate::immediate::shuffle_32 as pshufd;
pub use crate::moves::top_bits as pmovmskb;

/// Applies a host instruction of SSE2 to two registers.
#[inline(always)]
fn apply(instruction: unsafe fn(__m128i, __m128i) -> __m128i, first: u128, second: u128) -> u128 {
    // SAFETY: every x86-64 host has SSE2, all that the functions given here need.
    from_vector(unsafe { instruction(to_vector(first), to_vector(second)) })
}

/// PAND.
#[inline]
pub fn pand(first: u128, second: u128) -> u128 {
    first & second
}

/// PANDN.
#[inline]
pub fn pandn(first: u128, second: u128) -> u128 {
    !first & second
}

/// POR.
#[inline]
pub fn por(first: u128, second: u128) -> u128 {
    first | second
}

/// PXOR.
#[inline]
pub fn pxor(first: u128, second: u128) -> u128 {
    first ^ second
}

/// PCMPEQB.
#[inline]
pub fn pcmpeqb(first: u128, second: u128) -> u128 {
    apply(_mm_cmpeq_epi8, first, second)
}

/// PCMPEQW.
#[inline]
pub fn pcmpeqw(first: u128, second: u128) -> u128 {
    apply(_mm_cmpeq_epi16, first, second)
}

/// PCMPEQD.
#[inline]
pub fn pcmpeqd(first: u128, second: u128) -> u128 {
    apply(_mm_cmpeq_epi32, first, second)
}

/// PADDB.
#[inline]
pub fn paddb(first: u128, second: u128) -> u128 {
    apply(_mm_add_epi8, first, second)
}

/// PADDW.
#[inline]
pub fn paddw(first: u128, second: u128) -> u128 {
    apply(_mm_add_epi16, first, second)
}

/// PADDD.
#[inline]
pub fn paddd(first: u128, second: u128) -> u128 {
    apply(_mm_add_epi32, first, second)
}

/// PADDQ.
#[inline]
pub fn paddq(first: u128, second: u128) -> u128 {
    apply(_mm_add_epi64, first, second)
}

/// PSUBB.
#[inline]
pub fn psubb(first: u128, second: u128) -> u128 {
    apply(_mm_sub_epi8, first, second)
}

/// PSUBW.
#[inline]
pub fn psubw(first: u128, second: u128) -> u128 {
    apply(_mm_sub_epi16, first, second)
}

/// PSUBD.
#[inline]
pub fn psubd(first: u128, second: u128) -> u128 {
    apply(_mm_sub_epi32, first, second)
}

/// PSUBQ.
#[inline]
pub fn psubq(first: u128, second: u128) -> u128 {
    apply(_mm_sub_epi64, first, second)
}

/// PMINUB.
#[inline]
pub fn pminub(first: u128, second: u128) -> u128 {
    apply(_mm_min_epu8, first, second)
}

/// PMAXUB.
#[inline]
pub fn pmaxub(first: u128, second: u128) -> u128 {
    apply(_mm_max_epu8, first, second)
}

/// PMULUDQ.
#[inline]
pub fn pmuludq(first: u128, second: u128) -> u128 {
    apply(_mm_mul_epu32, first, second)
}

/// PUNPCKLBW.
#[inline]
pub fn punpcklbw(first: u128, second: u128) -> u128 {
    apply(_mm_unpacklo_epi8, first, second)
}

/// PUNPCKLWD.
#[inline]
pub fn punpcklwd(first: u128, second: u128) -> u128 {
    apply(_mm_unpacklo_epi16, first, second)
}

/// PUNPCKLDQ.
#[inline]
pub fn punpckldq(first: u128, second: u128) -> u128 {
    apply(_mm_unpacklo_epi32, first, second)
}

/// PUNPCKHBW.
#[inline]
pub fn punpckhbw(first: u128, second: u128) -> u128 {
    apply(_mm_unpackhi_epi8, first, second)
}

/// PUNPCKHWD.
#[inline]
pub fn punpckhwd(first: u128, second: u128) -> u128 {
    apply(_mm_unpackhi_epi16, first, second)
}

/// PUNPCKHDQ.
#[inline]
pub fn punpckhdq(first: u128, second: u128) -> u128 {
    apply(_mm_unpackhi_epi32, first, second)
}

/// PUNPCKLQDQ.
#[inline]
pub fn punpcklqdq(first: u128, second: u128) -> u128 {
    first & u128::from(u64::MAX) | second << 64
}

/// PUNPCKHQDQ.
#[inline]
pub fn punpckhqdq(first: u128, second: u128) -> u128 {
    first >> 64 | second >> 64 << 64
}

/// PSLLDQ by less than 16 bytes.
#[inline]
pub fn pslldq(value: u128, bytes: u8) -> u128 {
    value << (8 * u32::from(bytes & 15))
}

/// PSRLDQ by less than 16 bytes.
#[inline]
pub fn psrldq(value: u128, bytes: u8) -> u128 {
    value >> (8 * u32::from(bytes & 15))
}

/// MXCSR without flags other than "inexact".
const CONTROL: u32 = 0xffe0;
/// Everything masked, round to nearest, "inexact" raised.
const QUICK: u32 = 0x1fa0;

/// Whether a double is a normal number or zero: no operand that raises a flag by itself.
#[inline(always)]
fn plain_f64(bits: u64) -> bool {
    let exponent = bits >> 52 & 0x7ff;
    exponent.wrapping_sub(1) < 0x7fe || bits << 1 == 0
}

/// Whether a result is neither infinite, nor NaN, nor so small that underflow is a question.
#[inline(always)]
fn safe_f64(bits: u64) -> bool {
    (bits >> 52 & 0x7ff).wrapping_sub(2) < 0x7fd
}

/// Computes, unless a flag other than "inexact" is a question. A zero of an addition is exact; any
/// other counts only with `zero`.
#[inline(always)]
fn quick_f64(
    mxcsr: u32,
    operands: [u64; 2],
    zero: bool,
    compute: fn(f64, f64) -> f64,
) -> Option<u64> {
    let [first, second] = operands;
    let result = compute(f64::from_bits(first), f64::from_bits(second)).to_bits();
    let quick = mxcsr & CONTROL == QUICK
        && plain_f64(first)
        && plain_f64(second)
        && (safe_f64(result) || zero && result << 1 == 0);
    quick.then_some(result)
}

/// ADDSD of the bits of two numbers.
#[inline]
pub fn addsd(mxcsr: u32, first: u64, second: u64) -> Option<u64> {
    quick_f64(mxcsr, [first, second], true, |first, second| first + second)
}

/// SUBSD.
#[inline]
pub fn subsd(mxcsr: u32, first: u64, second: u64) -> Option<u64> {
    quick_f64(mxcsr, [first, second], true, |first, second| first - second)
}

/// MULSD.
#[inline]
pub fn mulsd(mxcsr: u32, first: u64, second: u64) -> Option<u64> {
    let zero = first << 1 == 0 || second << 1 == 0;
    quick_f64(mxcsr, [first, second], zero, |first, second| first * second)
}

/// DIVSD.
#[inline]
pub fn divsd(mxcsr: u32, first: u64, second: u64) -> Option<u64> {
    let zero = first << 1 == 0 && second << 1 != 0;
    quick_f64(mxcsr, [first, second], zero, |first, second| first / second)
}

/// UCOMISD and COMISD: CF, PF and ZF in their places in RFLAGS; OF, SF and AF are zero.
#[inline]
pub fn comisd(first: u64, second: u64) -> Option<u64> {
    if !plain_f64(first) || !plain_f64(second) {
        return None;
    }
    let (first, second) = (f64::from_bits(first), f64::from_bits(second));
    Some(u64::from(first < second) | u64::from(first == second) << 6)
}

/// Whether a single is a normal number or zero: no operand that raises a flag by itself.
#[inline(always)]
fn plain_f32(bits: u32) -> bool {
    let exponent = bits >> 23 & 0xff;
    exponent.wrapping_sub(1) < 0xfe || bits << 1 == 0
}

/// Whether a result is neither infinite, nor NaN, nor so small that underflow is a question.
#[inline(always)]
fn safe_f32(bits: u32) -> bool {
    (bits >> 23 & 0xff).wrapping_sub(2) < 0xfd
}

/// Computes, unless a flag other than "inexact" is a question. A zero of an addition is exact; any
/// other counts only with `zero`.
#[inline(always)]
fn quick_f32(
    mxcsr: u32,
    operands: [u32; 2],
    zero: bool,
    compute: fn(f32, f32) -> f32,
) -> Option<u32> {
    let [first, second] = operands;
    let result = compute(f32::from_bits(first), f32::from_bits(second)).to_bits();
    let quick = mxcsr & CONTROL == QUICK
        && plain_f32(first)
        && plain_f32(second)
        && (safe_f32(result) || zero && result << 1 == 0);
    quick.then_some(result)
}

/// ADDSS of the bits of two numbers.
#[inline]
pub fn addss(mxcsr: u32, first: u32, second: u32) -> Option<u32> {
    quick_f32(mxcsr, [first, second], true, |first, second| first + second)
}

/// SUBSS.
#[inline]
pub fn subss(mxcsr: u32, first: u32, second: u32) -> Option<u32> {
    quick_f32(mxcsr, [first, second], true, |first, second| first - second)
}

/// MULSS.
#[inline]
pub fn mulss(mxcsr: u32, first: u32, second: u32) -> Option<u32> {
    let zero = first << 1 == 0 || second << 1 == 0;
    quick_f32(mxcsr, [first, second], zero, |first, second| first * second)
}

/// DIVSS.
#[inline]
pub fn divss(mxcsr: u32, first: u32, second: u32) -> Option<u32> {
    let zero = first << 1 == 0 && second << 1 != 0;
    quick_f32(mxcsr, [first, second], zero, |first, second| first / second)
}

/// UCOMISS and COMISS: CF, PF and ZF in their places in RFLAGS; OF, SF and AF are zero.
#[inline]
pub fn comiss(first: u32, second: u32) -> Option<u64> {
    if !plain_f32(first) || !plain_f32(second) {
        return None;
    }
    let (first, second) = (f32::from_bits(first), f32::from_bits(second));
    Some(u64::from(first < second) | u64::from(first == second) << 6)
}

/// CVTTSD2SI and CVTTSS2SI to 64 bits, of a number as a double.
#[inline]
pub fn truncate_64(mxcsr: u32, bits: u64) -> Option<u64> {
    let value = f64::from_bits(bits);
    let fits = value > -9.2e18 && value < 9.2e18;
    (fits && mxcsr & CONTROL == QUICK && plain_f64(bits)).then(|| (value as i64).cast_unsigned())
}

/// CVTTSD2SI and CVTTSS2SI to 32 bits, zero-extended.
#[inline]
pub fn truncate_32(mxcsr: u32, bits: u64) -> Option<u64> {
    let value = f64::from_bits(bits);
    let fits = value > -2_147_483_648.0 && value < 2_147_483_648.0;
    (fits && mxcsr & CONTROL == QUICK && plain_f64(bits))
        .then(|| u64::from((value as i32).cast_unsigned()))
}

/// CVTSI2SD of 32 bits, which is always exact.
#[inline]
pub fn double_of_32(value: u32) -> u64 {
    f64::from(value.cast_signed()).to_bits()
}

/// CVTSI2SD of 64 bits.
#[inline]
pub fn double_of_64(mxcsr: u32, value: u64) -> Option<u64> {
    (mxcsr & CONTROL == QUICK).then(|| (value.cast_signed() as f64).to_bits())
}

/// CVTSS2SD of a normal number or zero, which is exact.
#[inline]
pub fn double_of_single(bits: u32) -> Option<u64> {
    plain_f32(bits).then(|| f64::from(f32::from_bits(bits)).to_bits())
}
