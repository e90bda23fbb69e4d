//! Moves between XMM, MMX and general registers and memory, without computing.

use core::arch::x86_64::{__m128, __m128d, _mm_movemask_epi8, _mm_movemask_pd, _mm_movemask_ps};
use core::mem::transmute;

use iced_x86::Code;

use crate::entry::{Direction, Entry};
use crate::operand::{REGISTER, index, mmx_source, source, to_vector};
use crate::{Arguments, FpFault, FpState, Outside};

type Outcome = Result<(), FpFault>;

const LOW_64: u128 = u64::MAX as u128;
const LOW_32: u128 = u32::MAX as u128;

/// XMM := XMM or memory of `LEN` bytes, all of it, zero-extended.
fn load<const LEN: usize>(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    state.xmm[index(a.first)] = source::<LEN>(state, outside, a);
    Ok(())
}

/// Memory of `LEN` bytes := XMM.
fn store<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    outside.memory.set_value::<LEN>(state.xmm[index(a.second)]);
    Ok(())
}

/// XMM := XMM, keeping what `MASK` excludes.
fn merge<const MASK: u128>(
    state: &mut FpState,
    _outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let second = state.xmm[index(a.second)];
    let first = &mut state.xmm[index(a.first)];
    *first = *first & !MASK | second & MASK;
    Ok(())
}

/// XMM := low 64 bits of XMM, zero-extended.
fn low_quad(state: &mut FpState, _outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    state.xmm[index(a.first)] = state.xmm[index(a.second)] & LOW_64;
    Ok(())
}

/// Low half of XMM := memory, or high half of XMM.
fn load_low<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let low = if LEN == REGISTER {
        state.xmm[index(a.second)] >> 64
    } else {
        outside.memory.value::<8>()
    };
    let first = &mut state.xmm[index(a.first)];
    *first = *first & !LOW_64 | low;
    Ok(())
}

/// High half of XMM := memory, or low half of XMM.
fn load_high<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let high = if LEN == REGISTER {
        state.xmm[index(a.second)]
    } else {
        outside.memory.value::<8>()
    };
    let first = &mut state.xmm[index(a.first)];
    *first = *first & LOW_64 | high << 64;
    Ok(())
}

/// Memory := high half of XMM.
fn store_high(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    outside
        .memory
        .set_value::<8>(state.xmm[index(a.second)] >> 64);
    Ok(())
}

/// XMM := general register of 32 or 64 bits, zero-extended.
fn from_general<const MASK: u128>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    state.xmm[index(a.first)] = u128::from(outside.general[index(a.second)]) & MASK;
    Ok(())
}

/// General register := low 32 or 64 bits of XMM.
fn to_general<const MASK: u128>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    outside.general[index(a.first)] = (state.xmm[index(a.second)] & MASK) as u64;
    Ok(())
}

/// MMX := MMX or memory of `LEN` bytes, zero-extended.
fn mmx_load<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    enter_mmx(state)?;
    state.set_mmx(a.first, mmx_source::<LEN>(state, outside, a));
    Ok(())
}

/// Memory of `LEN` bytes := MMX.
fn mmx_store<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    enter_mmx(state)?;
    outside.memory.set_value::<LEN>(state.mmx(a.second).into());
    Ok(())
}

/// MMX := general register of 32 or 64 bits, zero-extended.
fn mmx_from_general<const MASK: u128>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    enter_mmx(state)?;
    state.set_mmx(a.first, outside.general[index(a.second)] & MASK as u64);
    Ok(())
}

/// General register := low 32 or 64 bits of MMX.
fn mmx_to_general<const MASK: u128>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    enter_mmx(state)?;
    outside.general[index(a.first)] = state.mmx(a.second) & MASK as u64;
    Ok(())
}

/// MOVQ MMX, MMX where the first operand is the destination of a store.
fn mmx_copy(state: &mut FpState, _outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    enter_mmx(state)?;
    state.set_mmx(a.first, state.mmx(a.second));
    Ok(())
}

/// MOVQ2DQ.
fn mmx_to_xmm(state: &mut FpState, _outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    enter_mmx(state)?;
    state.xmm[index(a.first)] = state.mmx(a.second).into();
    Ok(())
}

/// MOVDQ2Q.
fn xmm_to_mmx(state: &mut FpState, _outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    enter_mmx(state)?;
    state.set_mmx(a.first, state.xmm[index(a.second)] as u64);
    Ok(())
}

/// EMMS.
fn emms(state: &mut FpState, _outside: &mut Outside<'_>, _a: Arguments) -> Outcome {
    enter_mmx(state)?;
    state.tags = 0;
    Ok(())
}

/// The top bits of the 16 bytes: PMOVMSKB.
#[inline]
pub fn top_bits(value: u128) -> u32 {
    // SAFETY: the host has SSE2.
    unsafe { _mm_movemask_epi8(to_vector(value)) }.cast_unsigned()
}

/// PMOVMSKB of an MMX register.
fn mmx_mask(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    enter_mmx(state)?;
    outside.general[index(a.first)] = top_bits(state.mmx(a.second).into()).into();
    Ok(())
}

/// PMOVMSKB.
fn byte_mask(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    outside.general[index(a.first)] = top_bits(state.xmm[index(a.second)]).into();
    Ok(())
}

/// MOVMSKPS.
fn single_mask(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    // SAFETY: the host has SSE; both types are 16 bytes for which every value is valid.
    let mask = unsafe { _mm_movemask_ps(transmute::<u128, __m128>(state.xmm[index(a.second)])) };
    outside.general[index(a.first)] = mask.cast_unsigned().into();
    Ok(())
}

/// MOVMSKPD.
fn double_mask(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    // SAFETY: the host has SSE2; both types are 16 bytes for which every value is valid.
    let mask = unsafe { _mm_movemask_pd(transmute::<u128, __m128d>(state.xmm[index(a.second)])) };
    outside.general[index(a.first)] = mask.cast_unsigned().into();
    Ok(())
}

/// MASKMOVQ and MASKMOVDQU: bytes of the first operand go where the second one's have their top bit.
fn masked_store<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let (value, mask) = if LEN == 8 {
        enter_mmx(state)?;
        (state.mmx(a.first).into(), state.mmx(a.second).into())
    } else {
        (state.xmm[index(a.first)], state.xmm[index(a.second)])
    };
    let chosen = (0..LEN).filter(|byte| mask >> (8 * byte + 7) & 1 == 1);
    for byte in chosen {
        outside.memory.0[byte] = (value >> (8 * byte)) as u8;
    }
    Ok(())
}

/// The MMX state, unless an x87 exception waits.
pub(crate) fn enter_mmx(state: &mut FpState) -> Outcome {
    if state.x87_pending() {
        return Err(FpFault::X87);
    }
    state.enter_mmx();
    Ok(())
}

/// Returns how to run `code`, where it is one of these.
pub(crate) fn lookup(code: Code) -> Option<Entry> {
    full_or_half(code)
        .or_else(|| with_general(code))
        .or_else(|| with_mmx(code))
}

/// Moves of XMM and memory.
fn full_or_half(code: Code) -> Option<Entry> {
    let entry = match code {
        Code::Movups_xmm_xmmm128
        | Code::Movupd_xmm_xmmm128
        | Code::Movaps_xmm_xmmm128
        | Code::Movapd_xmm_xmmm128
        | Code::Movdqa_xmm_xmmm128
        | Code::Movdqu_xmm_xmmm128
        | Code::Lddqu_xmm_m128
        | Code::Movntdqa_xmm_m128 => Entry::load(load::<REGISTER>, load::<16>),
        Code::Movups_xmmm128_xmm
        | Code::Movupd_xmmm128_xmm
        | Code::Movaps_xmmm128_xmm
        | Code::Movapd_xmmm128_xmm
        | Code::Movdqa_xmmm128_xmm
        | Code::Movdqu_xmmm128_xmm
        | Code::Movntps_m128_xmm
        | Code::Movntpd_m128_xmm
        | Code::Movntdq_m128_xmm => Entry::store(load::<REGISTER>, store::<16>),
        Code::Movss_xmm_xmmm32 => Entry::load(merge::<LOW_32>, load::<4>),
        Code::Movss_xmmm32_xmm => Entry::store(merge::<LOW_32>, store::<4>),
        Code::Movsd_xmm_xmmm64 => Entry::load(merge::<LOW_64>, load::<8>),
        Code::Movsd_xmmm64_xmm => Entry::store(merge::<LOW_64>, store::<8>),
        Code::Movq_xmm_xmmm64 => Entry::load(low_quad, load::<8>),
        Code::Movq_xmmm64_xmm => Entry::store(low_quad, store::<8>),
        Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64 => {
            Entry::memory(Direction::Load, load_low::<8>)
        }
        Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64 => {
            Entry::memory(Direction::Load, load_high::<8>)
        }
        Code::Movlps_m64_xmm | Code::Movlpd_m64_xmm => Entry::memory(Direction::Store, store::<8>),
        Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm => Entry::memory(Direction::Store, store_high),
        Code::Movhlps_xmm_xmm => Entry::register(load_low::<REGISTER>),
        Code::Movlhps_xmm_xmm => Entry::register(load_high::<REGISTER>),
        Code::Maskmovdqu_rDI_xmm_xmm => Entry::memory(Direction::Both, masked_store::<16>),
        _ => return None,
    };
    Some(entry)
}

/// Moves between XMM and general registers.
fn with_general(code: Code) -> Option<Entry> {
    let entry = match code {
        Code::Movd_xmm_rm32 => Entry::load(from_general::<LOW_32>, load::<4>),
        Code::Movq_xmm_rm64 => Entry::load(from_general::<LOW_64>, load::<8>),
        Code::Movd_rm32_xmm => Entry::store(to_general::<LOW_32>, store::<4>),
        Code::Movq_rm64_xmm => Entry::store(to_general::<LOW_64>, store::<8>),
        Code::Pmovmskb_r32_xmm | Code::Pmovmskb_r64_xmm => Entry::register(byte_mask),
        Code::Movmskps_r32_xmm | Code::Movmskps_r64_xmm => Entry::register(single_mask),
        Code::Movmskpd_r32_xmm | Code::Movmskpd_r64_xmm => Entry::register(double_mask),
        _ => return None,
    };
    Some(entry)
}

/// Moves of MMX registers.
fn with_mmx(code: Code) -> Option<Entry> {
    let entry = match code {
        Code::Movd_mm_rm32 => Entry::load(mmx_from_general::<LOW_32>, mmx_load::<4>),
        Code::Movq_mm_rm64 => Entry::load(mmx_from_general::<LOW_64>, mmx_load::<8>),
        Code::Movd_rm32_mm => Entry::store(mmx_to_general::<LOW_32>, mmx_store::<4>),
        Code::Movq_rm64_mm => Entry::store(mmx_to_general::<LOW_64>, mmx_store::<8>),
        Code::Movq_mm_mmm64 => Entry::load(mmx_load::<REGISTER>, mmx_load::<8>),
        Code::Movq_mmm64_mm => Entry::store(mmx_copy, mmx_store::<8>),
        Code::Movntq_m64_mm => Entry::memory(Direction::Store, mmx_store::<8>),
        Code::Movq2dq_xmm_mm => Entry::register(mmx_to_xmm),
        Code::Movdq2q_mm_xmm => Entry::register(xmm_to_mmx),
        Code::Pmovmskb_r32_mm | Code::Pmovmskb_r64_mm => Entry::register(mmx_mask),
        Code::Maskmovq_rDI_mm_mm => Entry::memory(Direction::Both, masked_store::<8>),
        Code::Emms => Entry::register(emms),
        _ => return None,
    };
    Some(entry)
}
