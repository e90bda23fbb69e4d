//! LDMXCSR, STMXCSR, FXSAVE and FXRSTOR.

use iced_x86::{Code, CodeSize, Instruction};

use crate::entry::{Direction, Entry};
use crate::state::{FXSAVE_LEN, MXCSR_MASK, u32_at};
use crate::{Arguments, FpFault, FpState, Outside};

type Outcome = Result<(), FpFault>;

/// What FXSAVE writes; the rest of its 512 bytes stays.
const WRITTEN: usize = 416;
/// Bytes of the two pointers, 16 in a 64-bit image.
const POINTERS: core::ops::Range<usize> = 8..24;

/// LDMXCSR.
fn load_mxcsr(state: &mut FpState, outside: &mut Outside<'_>, _a: Arguments) -> Outcome {
    let value = u32::from_le_bytes(outside.memory.load());
    if value & !MXCSR_MASK != 0 {
        return Err(FpFault::Protection);
    }
    state.mxcsr = value;
    Ok(())
}

/// STMXCSR.
fn store_mxcsr(state: &mut FpState, outside: &mut Outside<'_>, _a: Arguments) -> Outcome {
    outside.memory.store(state.mxcsr.to_le_bytes());
    Ok(())
}

/// FXSAVE (`WIDE` false: pointers of 32 bits and selectors) and FXSAVE64; XMM8 and later are there in
/// 64-bit mode only, which the immediate says.
fn save<const WIDE: bool>(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    let mut image = state.to_fxsave();
    if !WIDE {
        // A pointer's upper half is its selector's place; selectors are not kept.
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    let len = if a.immediate == 0 {
        WRITTEN - 128
    } else {
        WRITTEN
    };
    outside.memory.0[..len].copy_from_slice(&image[..len]);
    Ok(())
}

/// FXRSTOR and FXRSTOR64.
fn restore<const WIDE: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let mut image: [u8; FXSAVE_LEN] = outside.memory.0;
    let mxcsr = u32_at(&image, 24);
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(FpFault::Protection);
    }
    if !WIDE {
        image[POINTERS][4..8].fill(0);
        image[POINTERS][12..16].fill(0);
    }
    state.load_x87(&image);
    state.mxcsr = mxcsr;
    state.load_xmm(&image, if a.immediate == 0 { 8 } else { 16 });
    Ok(())
}

/// Whether a code is run in 64-bit mode: FXSAVE's immediate.
pub(crate) fn long_mode(instruction: &Instruction) -> u8 {
    u8::from(instruction.code_size() == CodeSize::Code64)
}

/// Returns how to run `code`, where it is one of these.
pub(crate) fn lookup(code: Code) -> Option<Entry> {
    let entry = match code {
        Code::Ldmxcsr_m32 => Entry::memory(Direction::Load, load_mxcsr),
        Code::Stmxcsr_m32 => Entry::memory(Direction::Store, store_mxcsr),
        Code::Fxsave_m512byte => Entry::memory(Direction::Both, save::<false>),
        Code::Fxsave64_m512byte => Entry::memory(Direction::Both, save::<true>),
        Code::Fxrstor_m512byte => Entry::memory(Direction::Load, restore::<false>),
        Code::Fxrstor64_m512byte => Entry::memory(Direction::Load, restore::<true>),
        _ => return None,
    };
    Some(entry)
}
