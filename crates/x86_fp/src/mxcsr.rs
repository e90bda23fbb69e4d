//! MXCSR around an instruction: which exceptions it raised, and whether one of them is a fault.

use crate::FpFault;
use crate::state::{MXCSR_DEFAULT, MXCSR_MASK};

/// What Rust code runs with.
pub(crate) static HOST_MXCSR: u32 = MXCSR_DEFAULT;

/// The six exception flags.
const FLAGS: u32 = 0x3f;
/// Invalid, denormal and division by zero: found before anything is computed.
const BEFORE: u32 = 0x07;
/// Underflow.
const UNDERFLOW: u32 = 0x10;
/// The masks; a mask is 7 bits above its flag.
const MASKS: u32 = 0x1f80;
const MASK_SHIFT: u32 = 7;
/// Flush to zero.
const FLUSH: u32 = 0x8000;

/// Numbers in a result that may be tiny, which an unmasked underflow reports even when exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tiny {
    /// None.
    Never,
    /// The low single.
    F32,
    /// Four singles.
    F32x4,
    /// The low double.
    F64,
    /// Two doubles.
    F64x2,
}

/// Runs `apply` with the guest's MXCSR and takes the flags over; it is given a value whose exceptions
/// are all masked and returns it with the flags raised. `bits` is the result as a register.
#[inline(always)]
pub(crate) fn guarded<T: Copy>(
    mxcsr: &mut u32,
    tiny: Tiny,
    bits: impl Fn(T) -> u128,
    apply: impl Fn(u32) -> (T, u32),
) -> Result<T, FpFault> {
    if *mxcsr & MASKS == MASKS {
        let (result, after) = apply(*mxcsr & MXCSR_MASK);
        *mxcsr = after;
        return Ok(result);
    }
    let (result, after) = apply(masked(*mxcsr));
    settle(mxcsr, after, tiny, bits(result))?;
    Ok(result)
}

/// Everything masked, no flag raised; FTZ has no effect on an unmasked underflow.
#[cold]
fn masked(guest: u32) -> u32 {
    let value = guest & MXCSR_MASK & !FLAGS | MASKS;
    if guest & UNDERFLOW << MASK_SHIFT == 0 {
        value & !FLUSH
    } else {
        value
    }
}

/// Raises the flags; a fault where one of them is not masked.
#[cold]
fn settle(guest: &mut u32, after: u32, tiny: Tiny, result: u128) -> Result<(), FpFault> {
    let unmasked = !(*guest >> MASK_SHIFT) & FLAGS;
    let mut raised = after & FLAGS;
    if raised & BEFORE & unmasked != 0 {
        *guest |= raised & BEFORE;
        return Err(FpFault::Simd);
    }
    if unmasked & UNDERFLOW != 0 && has_denormal(tiny, result) {
        raised |= UNDERFLOW;
    }
    *guest |= raised;
    if raised & unmasked != 0 {
        return Err(FpFault::Simd);
    }
    Ok(())
}

/// Whether a number of the result is denormal.
fn has_denormal(tiny: Tiny, result: u128) -> bool {
    let single = |lane: u32| f32::from_bits((result >> (32 * lane)) as u32).is_subnormal();
    let double = |lane: u32| f64::from_bits((result >> (64 * lane)) as u64).is_subnormal();
    match tiny {
        Tiny::Never => false,
        Tiny::F32 => single(0),
        Tiny::F32x4 => (0..4).any(single),
        Tiny::F64 => double(0),
        Tiny::F64x2 => (0..2).any(double),
    }
}
