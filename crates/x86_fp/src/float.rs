//! Floating-point XMM instructions: what reads MXCSR and raises its flags.

use core::arch::asm;
use core::arch::x86_64::__m128i;

use iced_x86::Code;

use crate::entry::Entry;
use crate::mxcsr::{HOST_MXCSR, Tiny, guarded};
use crate::operand::{REGISTER, from_vector, index, source, to_vector};
use crate::{Arguments, FpFault, FpState, Outside, fast};

/// An instruction that makes its first operand of both.
trait Float {
    /// Where its results may be tiny.
    const TINY: Tiny;

    /// Runs it with MXCSR as given; returns it with the flags that were raised.
    fn apply(first: __m128i, second: __m128i, mxcsr: u32) -> (__m128i, u32);

    /// Runs it where MXCSR does not change, if it can tell.
    #[inline(always)]
    fn quick(_mxcsr: u32, _first: u128, _second: u128) -> Option<u128> {
        None
    }
}

/// A quick operation on the low doubles.
#[inline(always)]
fn double(
    operation: impl Fn(u32, u64, u64) -> Option<u64>,
    mxcsr: u32,
    first: u128,
    second: u128,
) -> Option<u128> {
    let result = operation(mxcsr, first as u64, second as u64)?;
    Some(first >> 64 << 64 | u128::from(result))
}

/// A quick operation on the low singles.
#[inline(always)]
fn single(
    operation: impl Fn(u32, u32, u32) -> Option<u32>,
    mxcsr: u32,
    first: u128,
    second: u128,
) -> Option<u128> {
    let result = operation(mxcsr, first as u32, second as u32)?;
    Some(first >> 32 << 32 | u128::from(result))
}

/// CVTSS2SD as a quick operation.
#[inline(always)]
fn widened(_mxcsr: u32, first: u128, second: u128) -> Option<u128> {
    let result = fast::double_of_single(second as u32)?;
    Some(first >> 64 << 64 | u128::from(result))
}

/// Runs one with a register operand or `LEN` bytes of memory.
fn run<O: Float, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    arguments: Arguments,
) -> Result<(), FpFault> {
    let second = source::<LEN>(state, outside, arguments);
    let first = state.xmm[index(arguments.first)];
    if let Some(result) = O::quick(state.mxcsr, first, second) {
        state.xmm[index(arguments.first)] = result;
        return Ok(());
    }
    let result = guarded(&mut state.mxcsr, O::TINY, from_vector, |mxcsr| {
        O::apply(to_vector(first), to_vector(second), mxcsr)
    })?;
    state.xmm[index(arguments.first)] = from_vector(result);
    Ok(())
}

const fn entry<O: Float, const LEN: usize>() -> Entry {
    Entry::load(run::<O, REGISTER>, run::<O, LEN>)
}

/// Finds a code's mnemonic in a table and makes its entry for memory of `$len` bytes.
macro_rules! float {
    ($code:expr, $len:literal, $($name:ident $mnemonic:literal $tiny:ident $($quick:expr)?,)*) => {
        match $code {
            $(Code::$name => {
                struct Op;
                impl Float for Op {
                    const TINY: Tiny = Tiny::$tiny;

                    #[inline(always)]
                    fn apply(mut first: __m128i, second: __m128i, mut mxcsr: u32) -> (__m128i, u32) {
                        // SAFETY: it computes a register of two under an MXCSR with all exceptions
                        // masked, and leaves the host's; the host has SSE4.2.
                        unsafe {
                            asm!(
                                "ldmxcsr [{mxcsr}]",
                                concat!($mnemonic, " {first}, {second}"),
                                "stmxcsr [{mxcsr}]",
                                "ldmxcsr [{host}]",
                                first = inout(xmm_reg) first,
                                second = in(xmm_reg) second,
                                mxcsr = in(reg) &raw mut mxcsr,
                                host = in(reg) &raw const HOST_MXCSR,
                                options(nostack),
                            );
                        }
                        (first, mxcsr)
                    }

                    $(#[inline(always)]
                    fn quick(mxcsr: u32, first: u128, second: u128) -> Option<u128> {
                        $quick(mxcsr, first, second)
                    })?
                }
                Some(entry::<Op, $len>())
            })*
            _ => None,
        }
    };
}

/// Returns how to run `code`, where it is one of these.
pub(crate) fn lookup(code: Code) -> Option<Entry> {
    packed(code)
        .or_else(|| with_8_bytes(code))
        .or_else(|| with_4_bytes(code))
}

/// With 16 bytes of memory.
#[rustfmt::skip]
fn packed(code: Code) -> Option<Entry> {
    float!(code, 16,
        Sqrtps_xmm_xmmm128 "sqrtps" Never,
        Sqrtpd_xmm_xmmm128 "sqrtpd" Never,
        Addps_xmm_xmmm128 "addps" F32x4,
        Addpd_xmm_xmmm128 "addpd" F64x2,
        Mulps_xmm_xmmm128 "mulps" F32x4,
        Mulpd_xmm_xmmm128 "mulpd" F64x2,
        Cvtpd2ps_xmm_xmmm128 "cvtpd2ps" F32x4,
        Cvtdq2ps_xmm_xmmm128 "cvtdq2ps" Never,
        Cvtps2dq_xmm_xmmm128 "cvtps2dq" Never,
        Cvttps2dq_xmm_xmmm128 "cvttps2dq" Never,
        Subps_xmm_xmmm128 "subps" F32x4,
        Subpd_xmm_xmmm128 "subpd" F64x2,
        Minps_xmm_xmmm128 "minps" Never,
        Minpd_xmm_xmmm128 "minpd" Never,
        Divps_xmm_xmmm128 "divps" F32x4,
        Divpd_xmm_xmmm128 "divpd" F64x2,
        Maxps_xmm_xmmm128 "maxps" Never,
        Maxpd_xmm_xmmm128 "maxpd" Never,
        Haddpd_xmm_xmmm128 "haddpd" F64x2,
        Haddps_xmm_xmmm128 "haddps" F32x4,
        Hsubpd_xmm_xmmm128 "hsubpd" F64x2,
        Hsubps_xmm_xmmm128 "hsubps" F32x4,
        Addsubpd_xmm_xmmm128 "addsubpd" F64x2,
        Addsubps_xmm_xmmm128 "addsubps" F32x4,
        Cvttpd2dq_xmm_xmmm128 "cvttpd2dq" Never,
        Cvtpd2dq_xmm_xmmm128 "cvtpd2dq" Never,
    )
}

/// With 8 bytes of memory.
#[rustfmt::skip]
fn with_8_bytes(code: Code) -> Option<Entry> {
    float!(code, 8,
        Sqrtsd_xmm_xmmm64 "sqrtsd" Never,
        Addsd_xmm_xmmm64 "addsd" F64 (|mxcsr, first, second| double(fast::addsd, mxcsr, first, second)),
        Mulsd_xmm_xmmm64 "mulsd" F64 (|mxcsr, first, second| double(fast::mulsd, mxcsr, first, second)),
        Cvtps2pd_xmm_xmmm64 "cvtps2pd" Never,
        Cvtsd2ss_xmm_xmmm64 "cvtsd2ss" F32,
        Subsd_xmm_xmmm64 "subsd" F64 (|mxcsr, first, second| double(fast::subsd, mxcsr, first, second)),
        Minsd_xmm_xmmm64 "minsd" Never,
        Divsd_xmm_xmmm64 "divsd" F64 (|mxcsr, first, second| double(fast::divsd, mxcsr, first, second)),
        Maxsd_xmm_xmmm64 "maxsd" Never,
    )
}

/// With 4 bytes of memory.
#[rustfmt::skip]
fn with_4_bytes(code: Code) -> Option<Entry> {
    float!(code, 4,
        Sqrtss_xmm_xmmm32 "sqrtss" Never,
        Addss_xmm_xmmm32 "addss" F32 (|mxcsr, first, second| single(fast::addss, mxcsr, first, second)),
        Mulss_xmm_xmmm32 "mulss" F32 (|mxcsr, first, second| single(fast::mulss, mxcsr, first, second)),
        Cvtss2sd_xmm_xmmm32 "cvtss2sd" Never widened,
        Subss_xmm_xmmm32 "subss" F32 (|mxcsr, first, second| single(fast::subss, mxcsr, first, second)),
        Minss_xmm_xmmm32 "minss" Never,
        Divss_xmm_xmmm32 "divss" F32 (|mxcsr, first, second| single(fast::divss, mxcsr, first, second)),
        Maxss_xmm_xmmm32 "maxss" Never,
    )
}
