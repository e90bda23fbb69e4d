//! The hottest operations as plain functions, for handlers that move their operands themselves.
//!
//! Those on floating-point numbers take MXCSR and answer `None` where the quick way does not hold:
//! the instruction must run as [`crate::resolve`] says then. It holds for rounding to nearest with all
//! exceptions masked, when the only flag that can be raised is "inexact", and it is set already or the
//! result is seen to be exact.

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

/// MXCSR without its flags.
const CONTROL: u32 = 0xffc0;
/// Everything masked, round to nearest.
const QUICK: u32 = 0x1f80;
/// The flag "inexact".
const INEXACT: u32 = 0x20;

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

/// Computes, unless a flag other than "inexact" is a question, or that one and `exact` does not say
/// that it is not raised. A zero of an addition is exact; any other counts only with `zero`.
#[inline(always)]
fn quick_f64(
    mxcsr: u32,
    operands: [u64; 2],
    zero: bool,
    compute: fn(f64, f64) -> f64,
    exact: fn(f64, f64, f64) -> bool,
) -> Option<u64> {
    let [first, second] = operands.map(f64::from_bits);
    let result = compute(first, second);
    let bits = result.to_bits();
    let quick = mxcsr & CONTROL == QUICK
        && plain_f64(operands[0])
        && plain_f64(operands[1])
        && (safe_f64(bits) || zero && bits << 1 == 0)
        && (mxcsr & INEXACT != 0 || exact(first, second, result));
    quick.then_some(bits)
}

/// Whether a sum is exact: what rounding lost is itself a number, which this finds (Knuth, The Art of
/// Computer Programming 2, 4.2.2, theorem B).
#[inline]
fn exact_sum_f64(first: f64, second: f64, sum: f64) -> bool {
    let added = sum - first;
    (first - (sum - added)) + (second - added) == 0.0
}

/// Bits of a double's significand from the first to the last that is set.
#[inline]
fn significant(value: f64) -> u32 {
    53 - (value.to_bits() | 1 << 52).trailing_zeros()
}

/// Whether a product is seen to be exact: its significand has no more bits than those of both.
#[inline]
fn exact_product_f64(first: f64, second: f64, _product: f64) -> bool {
    significant(first) + significant(second) <= 53
}

/// Whether a quotient is seen to be exact: its product with the divisor is, and gives the dividend.
#[inline]
fn exact_quotient_f64(first: f64, second: f64, quotient: f64) -> bool {
    significant(quotient) + significant(second) <= 53 && quotient * second == first
}

/// ADDSD of the bits of two numbers.
#[inline]
pub fn addsd(mxcsr: u32, first: u64, second: u64) -> Option<u64> {
    quick_f64(
        mxcsr,
        [first, second],
        true,
        |first, second| first + second,
        exact_sum_f64,
    )
}

/// SUBSD.
#[inline]
pub fn subsd(mxcsr: u32, first: u64, second: u64) -> Option<u64> {
    quick_f64(
        mxcsr,
        [first, second],
        true,
        |first, second| first - second,
        |first, second, difference| exact_sum_f64(first, -second, difference),
    )
}

/// MULSD.
#[inline]
pub fn mulsd(mxcsr: u32, first: u64, second: u64) -> Option<u64> {
    let zero = first << 1 == 0 || second << 1 == 0;
    quick_f64(
        mxcsr,
        [first, second],
        zero,
        |first, second| first * second,
        exact_product_f64,
    )
}

/// DIVSD.
#[inline]
pub fn divsd(mxcsr: u32, first: u64, second: u64) -> Option<u64> {
    let zero = first << 1 == 0 && second << 1 != 0;
    quick_f64(
        mxcsr,
        [first, second],
        zero,
        |first, second| first / second,
        exact_quotient_f64,
    )
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

/// Computes, unless a flag other than "inexact" is a question, or that one and `exact` does not say
/// that it is not raised. A zero of an addition is exact; any other counts only with `zero`.
#[inline(always)]
fn quick_f32(
    mxcsr: u32,
    operands: [u32; 2],
    zero: bool,
    compute: fn(f32, f32) -> f32,
    exact: fn(f32, f32, f32) -> bool,
) -> Option<u32> {
    let [first, second] = operands.map(f32::from_bits);
    let result = compute(first, second);
    let bits = result.to_bits();
    let quick = mxcsr & CONTROL == QUICK
        && plain_f32(operands[0])
        && plain_f32(operands[1])
        && (safe_f32(bits) || zero && bits << 1 == 0)
        && (mxcsr & INEXACT != 0 || exact(first, second, result));
    quick.then_some(bits)
}

/// Whether a sum is exact: what rounding lost is itself a number, which this finds (Knuth, The Art of
/// Computer Programming 2, 4.2.2, theorem B).
#[inline]
fn exact_sum_f32(first: f32, second: f32, sum: f32) -> bool {
    let added = sum - first;
    (first - (sum - added)) + (second - added) == 0.0
}

/// Whether a product is exact: a double holds every product of singles.
#[inline]
fn exact_product_f32(first: f32, second: f32, product: f32) -> bool {
    f64::from(first) * f64::from(second) == f64::from(product)
}

/// Whether a quotient is exact.
#[inline]
fn exact_quotient_f32(first: f32, second: f32, quotient: f32) -> bool {
    f64::from(quotient) * f64::from(second) == f64::from(first)
}

/// ADDSS of the bits of two numbers.
#[inline]
pub fn addss(mxcsr: u32, first: u32, second: u32) -> Option<u32> {
    quick_f32(
        mxcsr,
        [first, second],
        true,
        |first, second| first + second,
        exact_sum_f32,
    )
}

/// SUBSS.
#[inline]
pub fn subss(mxcsr: u32, first: u32, second: u32) -> Option<u32> {
    quick_f32(
        mxcsr,
        [first, second],
        true,
        |first, second| first - second,
        |first, second, difference| exact_sum_f32(first, -second, difference),
    )
}

/// MULSS.
#[inline]
pub fn mulss(mxcsr: u32, first: u32, second: u32) -> Option<u32> {
    let zero = first << 1 == 0 || second << 1 == 0;
    quick_f32(
        mxcsr,
        [first, second],
        zero,
        |first, second| first * second,
        exact_product_f32,
    )
}

/// DIVSS.
#[inline]
pub fn divss(mxcsr: u32, first: u32, second: u32) -> Option<u32> {
    let zero = first << 1 == 0 && second << 1 != 0;
    quick_f32(
        mxcsr,
        [first, second],
        zero,
        |first, second| first / second,
        exact_quotient_f32,
    )
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

/// Whether a conversion raises nothing new: everything is as in [`QUICK`], and it is exact or inexact
/// already.
#[inline(always)]
fn quick_conversion(mxcsr: u32, exact: bool) -> bool {
    mxcsr & CONTROL == QUICK && (mxcsr & INEXACT != 0 || exact)
}

/// CVTTSD2SI and CVTTSS2SI to 64 bits, of a number as a double.
#[inline]
pub fn truncate_64(mxcsr: u32, bits: u64) -> Option<u64> {
    let value = f64::from_bits(bits);
    let fits = value > -9.2e18 && value < 9.2e18;
    let result = value as i64;
    (fits && plain_f64(bits) && quick_conversion(mxcsr, result as f64 == value))
        .then_some(result.cast_unsigned())
}

/// CVTTSD2SI and CVTTSS2SI to 32 bits, zero-extended.
#[inline]
pub fn truncate_32(mxcsr: u32, bits: u64) -> Option<u64> {
    let value = f64::from_bits(bits);
    let fits = value > -2_147_483_648.0 && value < 2_147_483_648.0;
    let result = value as i32;
    (fits && plain_f64(bits) && quick_conversion(mxcsr, f64::from(result) == value))
        .then(|| result.cast_unsigned().into())
}

/// CVTSI2SD of 32 bits, which is always exact.
#[inline]
pub fn double_of_32(value: u32) -> u64 {
    f64::from(value.cast_signed()).to_bits()
}

/// CVTSI2SD of 64 bits.
#[inline]
pub fn double_of_64(mxcsr: u32, value: u64) -> Option<u64> {
    let size = value.cast_signed().unsigned_abs();
    let exact = 64 - size.leading_zeros() <= 53 + size.trailing_zeros();
    quick_conversion(mxcsr, exact).then(|| (value.cast_signed() as f64).to_bits())
}

/// CVTSS2SD of a normal number or zero, which is exact.
#[inline]
pub fn double_of_single(bits: u32) -> Option<u64> {
    plain_f32(bits).then(|| f64::from(f32::from_bits(bits)).to_bits())
}
