//! Floating-point XMM instructions with an immediate: comparisons, rounding, dot products.

use core::arch::asm;
use core::arch::x86_64::__m128i;

use iced_x86::Code;

use crate::entry::{Entry, each_constant};
use crate::mxcsr::{HOST_MXCSR, Tiny, guarded};
use crate::operand::{REGISTER, from_vector, index, source, to_vector};
use crate::state::MXCSR_DEFAULT;
use crate::{Arguments, FpFault, FpState, Outside};

type Outcome = Result<(), FpFault>;
type Apply = fn(__m128i, __m128i, u32) -> (__m128i, u32);

/// The host's CMPPS, CMPPD, CMPSS or CMPSD: they differ in the prefix (0x3e stands for none).
fn compare<const PREFIX: u8, const IMMEDIATE: u8>(
    mut first: __m128i,
    second: __m128i,
    mut mxcsr: u32,
) -> (__m128i, u32) {
    // SAFETY: it computes XMM0 of XMM0 and XMM1 with all exceptions masked and leaves the host's MXCSR.
    unsafe {
        asm!(
            "ldmxcsr [{mxcsr}]",
            ".byte {prefix}, 0x0f, 0xc2, 0xc1, {immediate}",
            "stmxcsr [{mxcsr}]",
            "ldmxcsr [{host}]",
            prefix = const PREFIX,
            immediate = const IMMEDIATE,
            inout("xmm0") first,
            in("xmm1") second,
            mxcsr = in(reg) &raw mut mxcsr,
            host = in(reg) &raw const HOST_MXCSR,
            options(nostack),
        );
    }
    (first, mxcsr)
}

/// The host's ROUNDPS, ROUNDPD, ROUNDSS, ROUNDSD, DPPS or DPPD: opcodes 66 0F 3A 08 to 0B, 40 and 41.
fn round<const OPCODE: u8, const IMMEDIATE: u8>(
    mut first: __m128i,
    second: __m128i,
    mut mxcsr: u32,
) -> (__m128i, u32) {
    // SAFETY: it computes XMM0 of XMM0 and XMM1 with all exceptions masked and leaves the host's MXCSR;
    // the host has SSE4.1.
    unsafe {
        asm!(
            "ldmxcsr [{mxcsr}]",
            ".byte 0x66, 0x0f, 0x3a, {opcode}, 0xc1, {immediate}",
            "stmxcsr [{mxcsr}]",
            "ldmxcsr [{host}]",
            opcode = const OPCODE,
            immediate = const IMMEDIATE,
            inout("xmm0") first,
            in("xmm1") second,
            mxcsr = in(reg) &raw mut mxcsr,
            host = in(reg) &raw const HOST_MXCSR,
            options(nostack),
        );
    }
    (first, mxcsr)
}

static COMPARISONS: [[Apply; 8]; 4] =
    each_constant!(compare as Apply, [0x3e 0x66 0xf3 0xf2] [0 1 2 3 4 5 6 7]);
static ROUNDINGS: [[Apply; 16]; 4] = each_constant!(
    round as Apply, [0x08 0x09 0x0a 0x0b] [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]
);
const DPPS: Apply = round::<0x40, 0xff>;
const DPPD: Apply = round::<0x41, 0xff>;

/// The host's instruction 0F `OPCODE` with `PREFIX`: MULPS, HADDPS and their like.
fn step<const PREFIX: u8, const OPCODE: u8>(
    mut first: __m128i,
    second: __m128i,
    mut mxcsr: u32,
) -> (__m128i, u32) {
    // SAFETY: it computes XMM0 of XMM0 and XMM1 with all exceptions masked and leaves the host's MXCSR.
    unsafe {
        asm!(
            "ldmxcsr [{mxcsr}]",
            ".byte {prefix}, 0x0f, {opcode}, 0xc1",
            "stmxcsr [{mxcsr}]",
            "ldmxcsr [{host}]",
            prefix = const PREFIX,
            opcode = const OPCODE,
            inout("xmm0") first,
            in("xmm1") second,
            mxcsr = in(reg) &raw mut mxcsr,
            host = in(reg) &raw const HOST_MXCSR,
            options(nostack),
        );
    }
    (first, mxcsr)
}

const MULPS: Apply = step::<0x3e, 0x59>;
const MULPD: Apply = step::<0x66, 0x59>;
const HADDPS: Apply = step::<0xf2, 0x7c>;
const HADDPD: Apply = step::<0x66, 0x7c>;

/// Rows of the tables.
const PS: usize = 0;
const PD: usize = 1;
const SS: usize = 2;
const SD: usize = 3;

/// Comparisons and roundings: the first is chosen by three bits of the immediate, the second by four.
fn run<const ROUND: bool, const ROW: usize, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let apply = if ROUND {
        ROUNDINGS[ROW][usize::from(a.immediate & 15)]
    } else {
        COMPARISONS[ROW][usize::from(a.immediate & 7)]
    };
    let second = to_vector(source::<LEN>(state, outside, a));
    let first = to_vector(state.xmm[index(a.first)]);
    let result = guarded(&mut state.mxcsr, Tiny::Never, from_vector, |mxcsr| {
        apply(first, second, mxcsr)
    })?;
    state.xmm[index(a.first)] = from_vector(result);
    Ok(())
}

/// Every 32-bit lane for each set bit, every 64-bit lane for each set bit of two.
fn lane_mask<const DOUBLE: bool>(bits: u8) -> u128 {
    let (lanes, width) = if DOUBLE { (2, 64) } else { (4, 32) };
    (0..lanes)
        .filter(|lane| bits >> lane & 1 == 1)
        .map(|lane| u128::MAX >> (128 - width) << (lane * width))
        .sum()
}

/// Finds an unmasked exception of a dot product in the first of its steps that raises one.
#[cold]
fn dot_product_faults<const DOUBLE: bool>(
    mxcsr: &mut u32,
    first: __m128i,
    second: __m128i,
) -> Outcome {
    let (multiply, add, tiny, sums) = if DOUBLE {
        (MULPD, HADDPD, Tiny::F64x2, 1)
    } else {
        (MULPS, HADDPS, Tiny::F32x4, 2)
    };
    let mut lanes = guarded(mxcsr, tiny, from_vector, |mxcsr| {
        multiply(first, second, mxcsr)
    })?;
    for _ in 0..sums {
        lanes = guarded(mxcsr, tiny, from_vector, |mxcsr| add(lanes, lanes, mxcsr))?;
    }
    Ok(())
}

/// DPPS, DPPD: lanes left out of the sum are products of zeros, which raise nothing.
fn dot_product<const DOUBLE: bool, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let apply = if DOUBLE { DPPD } else { DPPS };
    let summed = lane_mask::<DOUBLE>(a.immediate >> 4);
    let second = to_vector(source::<LEN>(state, outside, a) & summed);
    let first = to_vector(state.xmm[index(a.first)] & summed);
    if state.mxcsr & MXCSR_DEFAULT != MXCSR_DEFAULT {
        dot_product_faults::<DOUBLE>(&mut state.mxcsr, first, second)?;
    }
    let result = guarded(&mut state.mxcsr, Tiny::Never, from_vector, |mxcsr| {
        apply(first, second, mxcsr)
    })?;
    state.xmm[index(a.first)] = from_vector(result) & lane_mask::<DOUBLE>(a.immediate);
    Ok(())
}

const fn entry<const ROUND: bool, const ROW: usize, const LEN: usize>() -> Entry {
    Entry::load(run::<ROUND, ROW, REGISTER>, run::<ROUND, ROW, LEN>)
}

/// Returns how to run `code`, where it is one of these.
pub(crate) fn lookup(code: Code) -> Option<Entry> {
    let entry = match code {
        Code::Cmpps_xmm_xmmm128_imm8 => entry::<false, PS, 16>(),
        Code::Cmppd_xmm_xmmm128_imm8 => entry::<false, PD, 16>(),
        Code::Cmpss_xmm_xmmm32_imm8 => entry::<false, SS, 4>(),
        Code::Cmpsd_xmm_xmmm64_imm8 => entry::<false, SD, 8>(),
        Code::Roundps_xmm_xmmm128_imm8 => entry::<true, PS, 16>(),
        Code::Roundpd_xmm_xmmm128_imm8 => entry::<true, PD, 16>(),
        Code::Roundss_xmm_xmmm32_imm8 => entry::<true, SS, 4>(),
        Code::Roundsd_xmm_xmmm64_imm8 => entry::<true, SD, 8>(),
        Code::Dpps_xmm_xmmm128_imm8 => {
            Entry::load(dot_product::<false, REGISTER>, dot_product::<false, 16>)
        }
        Code::Dppd_xmm_xmmm128_imm8 => {
            Entry::load(dot_product::<true, REGISTER>, dot_product::<true, 16>)
        }
        _ => return None,
    };
    Some(entry)
}
