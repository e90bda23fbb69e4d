//! XMM and MMX instructions with an immediate that are no arithmetic on floating-point numbers:
//! shuffles, blends, insertions and extractions, byte shifts, MPSADBW; PTEST and variable blends.
//!
//! Shuffles are the host's PSHUFB with a control of a table, so that no instruction is needed for each
//! immediate.

use core::arch::asm;
use core::arch::x86_64::__m128i;

use iced_x86::Code;

use crate::entry::Entry;
use crate::flags::{self, CARRY};
use crate::moves::enter_mmx;
use crate::operand::{REGISTER, from_vector, index, mmx_source, source, to_vector};
use crate::{Arguments, FpFault, FpState, Outside};

type Outcome = Result<(), FpFault>;

/// ZF.
const ZERO: u64 = 1 << 6;

/// PSHUFB controls of PSHUFD, PSHUFLW and PSHUFHW, and of the two operands of SHUFPS.
static SHUFFLE_32: [u128; 256] = shuffles(4, 0, 4);
static SHUFFLE_LOW: [u128; 256] = shuffles(2, 0, 4);
static SHUFFLE_HIGH: [u128; 256] = shuffles(2, 4, 4);
/// Masks of the lanes that a blend takes of its second operand.
static BLEND_16: [u128; 256] = masks(16);
static BLEND_32: [u128; 16] = masks(32);
static BLEND_64: [u128; 4] = masks(64);

/// Controls that put, for each immediate, lane `first + field` of `lane_bytes` where its fields say, in
/// `count` lanes from `first` on; the others stay.
const fn shuffles(lane_bytes: usize, first: usize, count: usize) -> [u128; 256] {
    let mut table = [0; 256];
    let mut immediate = 0;
    while immediate < 256 {
        let mut control = 0_u128;
        let mut byte = 0;
        while byte < 16 {
            let lane = byte / lane_bytes;
            let from = if lane >= first && lane < first + count {
                first + (immediate >> (2 * (lane - first)) & 3)
            } else {
                lane
            };
            control |= ((from * lane_bytes + byte % lane_bytes) as u128) << (8 * byte);
            byte += 1;
        }
        table[immediate] = control;
        immediate += 1;
    }
    table
}

/// Masks with all bits of a lane of `lane_bits` set where the index has the lane's bit.
const fn masks<const N: usize>(lane_bits: usize) -> [u128; N] {
    let lane_mask = u128::MAX >> (128 - lane_bits);
    let mut table = [0; N];
    let mut immediate = 0;
    while immediate < N {
        let mut lane = 0;
        while lane < 128 / lane_bits {
            if immediate >> lane & 1 == 1 {
                table[immediate] |= lane_mask << (lane * lane_bits);
            }
            lane += 1;
        }
        immediate += 1;
    }
    table
}

/// The host's PSHUFB.
#[inline(always)]
fn shuffle_bytes(value: u128, control: u128) -> u128 {
    let mut result: __m128i = to_vector(value);
    // SAFETY: it computes a register of two; the host has SSE4.2.
    unsafe {
        asm!(
            "pshufb {result}, {control}",
            result = inout(xmm_reg) result,
            control = in(xmm_reg) to_vector(control),
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    from_vector(result)
}

/// PSHUFD.
#[inline]
pub fn shuffle_32(value: u128, immediate: u8) -> u128 {
    shuffle_bytes(value, SHUFFLE_32[usize::from(immediate)])
}

/// PSHUFD, PSHUFLW, PSHUFHW: `WHICH` is 4, 0 and 1.
fn shuffle<const WHICH: u8, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let table = match WHICH {
        0 => &SHUFFLE_LOW,
        1 => &SHUFFLE_HIGH,
        _ => &SHUFFLE_32,
    };
    let second = source::<LEN>(state, outside, a);
    state.xmm[index(a.first)] = shuffle_bytes(second, table[usize::from(a.immediate)]);
    Ok(())
}

/// SHUFPS.
fn shuffle_singles<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let control = SHUFFLE_32[usize::from(a.immediate)];
    let second = source::<LEN>(state, outside, a);
    let first = &mut state.xmm[index(a.first)];
    let low = shuffle_bytes(*first, control) & u128::from(u64::MAX);
    *first = low | shuffle_bytes(second, control) >> 64 << 64;
    Ok(())
}

/// SHUFPD.
fn shuffle_doubles<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let second = source::<LEN>(state, outside, a);
    let first = &mut state.xmm[index(a.first)];
    let low = (*first >> (64 * (a.immediate & 1))) as u64;
    let high = (second >> (64 * (a.immediate >> 1 & 1))) as u64;
    *first = u128::from(low) | u128::from(high) << 64;
    Ok(())
}

/// BLENDPS, BLENDPD, PBLENDW.
fn blend<const LANE_BITS: u8, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let mask = match LANE_BITS {
        16 => BLEND_16[usize::from(a.immediate)],
        32 => BLEND_32[usize::from(a.immediate & 15)],
        _ => BLEND_64[usize::from(a.immediate & 3)],
    };
    let second = source::<LEN>(state, outside, a);
    let first = &mut state.xmm[index(a.first)];
    *first = *first & !mask | second & mask;
    Ok(())
}

/// PBLENDVB, BLENDVPS, BLENDVPD: XMM0 chooses.
fn blend_by_register<const LANE_BITS: u8, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let tops = (u128::MAX / (u128::MAX >> (128 - LANE_BITS))) << (LANE_BITS - 1);
    let chosen = state.xmm[0] & tops;
    // A lane's top bit spreads over the lane: it minus the same at its bottom, and the bit itself.
    let mask = (chosen - (chosen >> (LANE_BITS - 1))) | chosen;
    let second = source::<LEN>(state, outside, a);
    let first = &mut state.xmm[index(a.first)];
    *first = *first & !mask | second & mask;
    Ok(())
}

/// PALIGNR.
fn align<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let low = source::<LEN>(state, outside, a);
    let first = &mut state.xmm[index(a.first)];
    let bits = u32::from(a.immediate) * 8;
    *first = match bits {
        0 => low,
        1..128 => low >> bits | *first << (128 - bits),
        128..256 => *first >> (bits - 128),
        _ => 0,
    };
    Ok(())
}

/// PALIGNR of MMX registers.
fn mmx_align<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    enter_mmx(state)?;
    let low = u128::from(mmx_source::<LEN>(state, outside, a));
    let both = u128::from(state.mmx(a.first)) << 64 | low;
    let result = both.checked_shr(u32::from(a.immediate) * 8).unwrap_or(0);
    state.set_mmx(a.first, result as u64);
    Ok(())
}

/// PSHUFW.
fn mmx_shuffle<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    enter_mmx(state)?;
    let second = mmx_source::<LEN>(state, outside, a).into();
    let result = shuffle_bytes(second, SHUFFLE_LOW[usize::from(a.immediate)]);
    state.set_mmx(a.first, result as u64);
    Ok(())
}

/// PSLLDQ.
fn shift_left(state: &mut FpState, _outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    let first = &mut state.xmm[index(a.first)];
    *first = first.checked_shl(u32::from(a.immediate) * 8).unwrap_or(0);
    Ok(())
}

/// PSRLDQ.
fn shift_right(state: &mut FpState, _outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    let first = &mut state.xmm[index(a.first)];
    *first = first.checked_shr(u32::from(a.immediate) * 8).unwrap_or(0);
    Ok(())
}

/// Where the lane of `lane_bits` that `immediate` names begins in a register of `register_bits`.
const fn lane_shift(immediate: u8, lane_bits: u32, register_bits: u32) -> u32 {
    (immediate as u32 % (register_bits / lane_bits)) * lane_bits
}

/// PINSRB, PINSRW, PINSRD, PINSRQ of a general register (`MEMORY` false) or memory.
fn insert<const LANE: usize, const MEMORY: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let value = if MEMORY {
        outside.memory.value::<LANE>()
    } else {
        outside.general[index(a.second)].into()
    };
    let lane_mask = u128::MAX >> (128 - 8 * LANE);
    let shift = lane_shift(a.immediate, 8 * LANE as u32, 128);
    let first = &mut state.xmm[index(a.first)];
    *first = *first & !(lane_mask << shift) | (value & lane_mask) << shift;
    Ok(())
}

/// PINSRW of an MMX register.
fn mmx_insert<const MEMORY: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    enter_mmx(state)?;
    let value = if MEMORY {
        outside.memory.value::<2>() as u64
    } else {
        outside.general[index(a.second)] & 0xffff
    };
    let shift = lane_shift(a.immediate, 16, 64);
    let first = state.mmx(a.first);
    state.set_mmx(a.first, first & !(0xffff << shift) | value << shift);
    Ok(())
}

/// PEXTRB, PEXTRW, PEXTRD, PEXTRQ and EXTRACTPS to a general register, zero-extended, or memory.
fn extract<const LANE: usize, const MEMORY: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let shift = lane_shift(a.immediate, 8 * LANE as u32, 128);
    let value = state.xmm[index(a.second)] >> shift;
    if MEMORY {
        outside.memory.set_value::<LANE>(value);
    } else {
        outside.general[index(a.first)] = (value & u128::MAX >> (128 - 8 * LANE)) as u64;
    }
    Ok(())
}

/// PEXTRW of an MMX register.
fn mmx_extract(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    enter_mmx(state)?;
    let shift = lane_shift(a.immediate, 16, 64);
    outside.general[index(a.first)] = state.mmx(a.second) >> shift & 0xffff;
    Ok(())
}

/// INSERTPS: a lane of the second operand goes into one of the first, then some become zero.
fn insert_single<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let second = source::<LEN>(state, outside, a);
    let lane = if LEN == REGISTER {
        second >> (32 * u32::from(a.immediate >> 6))
    } else {
        second
    };
    let chosen = BLEND_32[1 << (a.immediate >> 4 & 3)];
    let value = (lane & u128::from(u32::MAX)) << (32 * u32::from(a.immediate >> 4 & 3));
    let first = &mut state.xmm[index(a.first)];
    *first = (*first & !chosen | value) & !BLEND_32[usize::from(a.immediate & 15)];
    Ok(())
}

/// MPSADBW: sums of absolute differences of 4 bytes of the second operand and 8 windows of the first.
fn windows<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let second = source::<LEN>(state, outside, a).to_le_bytes();
    let block = &second[usize::from(a.immediate & 3) * 4..][..4];
    let first = &mut state.xmm[index(a.first)];
    let bytes = first.to_le_bytes();
    let from = usize::from(a.immediate >> 2 & 1) * 4;
    let mut result = 0;
    for lane in 0..8 {
        let window = &bytes[from + lane..][..4];
        let sum: u128 = window
            .iter()
            .zip(block)
            .map(|(&one, &other)| u128::from(one.abs_diff(other)))
            .sum();
        result |= sum << (16 * lane);
    }
    *first = result;
    Ok(())
}

/// PTEST.
fn test<const LEN: usize>(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    let second = source::<LEN>(state, outside, a);
    let first = state.xmm[index(a.first)];
    let zero = if first & second == 0 { ZERO } else { 0 };
    let carry = if !first & second == 0 { CARRY } else { 0 };
    flags::set(outside.flags, zero | carry);
    Ok(())
}

/// Returns how to run `code`, where it is one of these.
pub(crate) fn lookup(code: Code) -> Option<Entry> {
    rearranging(code).or_else(|| lanes(code))
}

/// Shuffles, blends and shifts of whole registers.
fn rearranging(code: Code) -> Option<Entry> {
    let entry = match code {
        Code::Pshufd_xmm_xmmm128_imm8 => Entry::load(shuffle::<4, REGISTER>, shuffle::<4, 16>),
        Code::Pshuflw_xmm_xmmm128_imm8 => Entry::load(shuffle::<0, REGISTER>, shuffle::<0, 16>),
        Code::Pshufhw_xmm_xmmm128_imm8 => Entry::load(shuffle::<1, REGISTER>, shuffle::<1, 16>),
        Code::Pshufw_mm_mmm64_imm8 => Entry::load(mmx_shuffle::<REGISTER>, mmx_shuffle::<8>),
        Code::Shufps_xmm_xmmm128_imm8 => {
            Entry::load(shuffle_singles::<REGISTER>, shuffle_singles::<16>)
        }
        Code::Shufpd_xmm_xmmm128_imm8 => {
            Entry::load(shuffle_doubles::<REGISTER>, shuffle_doubles::<16>)
        }
        Code::Blendps_xmm_xmmm128_imm8 => Entry::load(blend::<32, REGISTER>, blend::<32, 16>),
        Code::Blendpd_xmm_xmmm128_imm8 => Entry::load(blend::<64, REGISTER>, blend::<64, 16>),
        Code::Pblendw_xmm_xmmm128_imm8 => Entry::load(blend::<16, REGISTER>, blend::<16, 16>),
        Code::Pblendvb_xmm_xmmm128 => {
            Entry::load(blend_by_register::<8, REGISTER>, blend_by_register::<8, 16>)
        }
        Code::Blendvps_xmm_xmmm128 => Entry::load(
            blend_by_register::<32, REGISTER>,
            blend_by_register::<32, 16>,
        ),
        Code::Blendvpd_xmm_xmmm128 => Entry::load(
            blend_by_register::<64, REGISTER>,
            blend_by_register::<64, 16>,
        ),
        Code::Palignr_xmm_xmmm128_imm8 => Entry::load(align::<REGISTER>, align::<16>),
        Code::Palignr_mm_mmm64_imm8 => Entry::load(mmx_align::<REGISTER>, mmx_align::<8>),
        Code::Pslldq_xmm_imm8 => Entry::register(shift_left),
        Code::Psrldq_xmm_imm8 => Entry::register(shift_right),
        Code::Mpsadbw_xmm_xmmm128_imm8 => Entry::load(windows::<REGISTER>, windows::<16>),
        Code::Ptest_xmm_xmmm128 => Entry::load(test::<REGISTER>, test::<16>),
        _ => return None,
    };
    Some(entry)
}

/// Insertions and extractions.
fn lanes(code: Code) -> Option<Entry> {
    let entry = match code {
        Code::Pinsrb_xmm_r32m8_imm8 | Code::Pinsrb_xmm_r64m8_imm8 => {
            Entry::load(insert::<1, false>, insert::<1, true>)
        }
        Code::Pinsrw_xmm_r32m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 => {
            Entry::load(insert::<2, false>, insert::<2, true>)
        }
        Code::Pinsrd_xmm_rm32_imm8 => Entry::load(insert::<4, false>, insert::<4, true>),
        Code::Pinsrq_xmm_rm64_imm8 => Entry::load(insert::<8, false>, insert::<8, true>),
        Code::Pinsrw_mm_r32m16_imm8 | Code::Pinsrw_mm_r64m16_imm8 => {
            Entry::load(mmx_insert::<false>, mmx_insert::<true>)
        }
        Code::Pextrb_r32m8_xmm_imm8 | Code::Pextrb_r64m8_xmm_imm8 => {
            Entry::store(extract::<1, false>, extract::<1, true>)
        }
        Code::Pextrw_r32m16_xmm_imm8
        | Code::Pextrw_r64m16_xmm_imm8
        | Code::Pextrw_r32_xmm_imm8
        | Code::Pextrw_r64_xmm_imm8 => Entry::store(extract::<2, false>, extract::<2, true>),
        Code::Pextrd_rm32_xmm_imm8
        | Code::Extractps_rm32_xmm_imm8
        | Code::Extractps_r64m32_xmm_imm8 => Entry::store(extract::<4, false>, extract::<4, true>),
        Code::Pextrq_rm64_xmm_imm8 => Entry::store(extract::<8, false>, extract::<8, true>),
        Code::Pextrw_r32_mm_imm8 | Code::Pextrw_r64_mm_imm8 => Entry::register(mmx_extract),
        Code::Insertps_xmm_xmmm32_imm8 => {
            Entry::load(insert_single::<REGISTER>, insert_single::<4>)
        }
        _ => return None,
    };
    Some(entry)
}
