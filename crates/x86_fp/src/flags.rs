//! Arithmetic flags in RFLAGS.

/// CF.
pub(crate) const CARRY: u64 = 1;
/// ZF, PF and CF: what a comparison of numbers says.
pub(crate) const COMPARE: u64 = 0x45;
/// CF, PF, AF, ZF, SF and OF.
pub(crate) const ARITHMETIC: u64 = 0x8d5;

/// Makes `new` the arithmetic flags; those it lacks are cleared.
#[inline(always)]
pub(crate) fn set(flags: &mut u64, new: u64) {
    *flags = *flags & !ARITHMETIC | new;
}
