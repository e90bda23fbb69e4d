//! MMX instructions that make their first register of both operands.
//!
//! The registers are the low 64 bits of the x87 registers, by physical number; every instruction sets
//! the x87 top to 0 and all tags to valid, and waits for no pending x87 exception.

use core::arch::asm;

use iced_x86::Code;

use crate::entry::Entry;
use crate::operand::{REGISTER, mmx_source};
use crate::{Arguments, FpFault, FpState, Outside};

/// An instruction that makes its first operand of both.
trait Mmx {
    fn apply(first: u64, second: u64) -> u64;
}

/// Runs one with a register operand or `LEN` bytes of memory.
fn run<O: Mmx, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    arguments: Arguments,
) -> Result<(), FpFault> {
    if state.x87_pending() {
        return Err(FpFault::X87);
    }
    let second = mmx_source::<LEN>(state, outside, arguments);
    state.set_mmx(
        arguments.first,
        O::apply(state.mmx(arguments.first), second),
    );
    Ok(())
}

/// Runs a shift by an immediate as the shift by a register that it equals.
fn run_count<O: Mmx>(
    state: &mut FpState,
    _outside: &mut Outside<'_>,
    arguments: Arguments,
) -> Result<(), FpFault> {
    if state.x87_pending() {
        return Err(FpFault::X87);
    }
    let result = O::apply(state.mmx(arguments.first), arguments.immediate.into());
    state.set_mmx(arguments.first, result);
    Ok(())
}

const fn entry<O: Mmx, const LEN: usize>() -> Entry {
    Entry::load(run::<O, REGISTER>, run::<O, LEN>)
}

const fn count_entry<O: Mmx, const LEN: usize>() -> Entry {
    Entry::register(run_count::<O>)
}

/// Finds a code's mnemonic in a table and makes its entry by `$make`, for memory of `$len` bytes.
macro_rules! mmx {
    ($code:expr, $make:ident::<$len:literal>, $($name:ident $mnemonic:literal,)*) => {
        match $code {
            $(Code::$name => {
                struct Op;
                impl Mmx for Op {
                    #[inline(always)]
                    fn apply(first: u64, second: u64) -> u64 {
                        let result;
                        // SAFETY: it computes a register of two; EMMS leaves the x87 stack empty.
                        unsafe {
                            asm!(
                                "movq mm0, {first}",
                                "movq mm1, {second}",
                                concat!($mnemonic, " mm0, mm1"),
                                "movq {result}, mm0",
                                "emms",
                                first = in(reg) first,
                                second = in(reg) second,
                                result = lateout(reg) result,
                                out("mm0") _, out("mm1") _,
                                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                                options(pure, nomem, nostack, preserves_flags),
                            );
                        }
                        result
                    }
                }
                Some($make::<Op, $len>())
            })*
            _ => None,
        }
    };
}

/// Returns how to run `code`, where it is one of these.
pub(crate) fn lookup(code: Code) -> Option<Entry> {
    packed(code)
        .or_else(|| packed_later(code))
        .or_else(|| unpack_low(code))
        .or_else(|| shift_by_immediate(code))
}

/// MMX proper, with 8 bytes of memory.
#[rustfmt::skip]
fn packed(code: Code) -> Option<Entry> {
    mmx!(code, entry::<8>,
        Packsswb_mm_mmm64 "packsswb",
        Pcmpgtb_mm_mmm64 "pcmpgtb",
        Pcmpgtw_mm_mmm64 "pcmpgtw",
        Pcmpgtd_mm_mmm64 "pcmpgtd",
        Packuswb_mm_mmm64 "packuswb",
        Punpckhbw_mm_mmm64 "punpckhbw",
        Punpckhwd_mm_mmm64 "punpckhwd",
        Punpckhdq_mm_mmm64 "punpckhdq",
        Packssdw_mm_mmm64 "packssdw",
        Pcmpeqb_mm_mmm64 "pcmpeqb",
        Pcmpeqw_mm_mmm64 "pcmpeqw",
        Pcmpeqd_mm_mmm64 "pcmpeqd",
        Psrlw_mm_mmm64 "psrlw",
        Psrld_mm_mmm64 "psrld",
        Psrlq_mm_mmm64 "psrlq",
        Paddq_mm_mmm64 "paddq",
        Pmullw_mm_mmm64 "pmullw",
        Psubusb_mm_mmm64 "psubusb",
        Psubusw_mm_mmm64 "psubusw",
        Pand_mm_mmm64 "pand",
        Paddusb_mm_mmm64 "paddusb",
        Paddusw_mm_mmm64 "paddusw",
        Pandn_mm_mmm64 "pandn",
        Psraw_mm_mmm64 "psraw",
        Psrad_mm_mmm64 "psrad",
        Pmulhw_mm_mmm64 "pmulhw",
        Psubsb_mm_mmm64 "psubsb",
        Psubsw_mm_mmm64 "psubsw",
        Por_mm_mmm64 "por",
        Paddsb_mm_mmm64 "paddsb",
        Paddsw_mm_mmm64 "paddsw",
        Pxor_mm_mmm64 "pxor",
        Psllw_mm_mmm64 "psllw",
        Pslld_mm_mmm64 "pslld",
        Psllq_mm_mmm64 "psllq",
        Pmaddwd_mm_mmm64 "pmaddwd",
        Psubb_mm_mmm64 "psubb",
        Psubw_mm_mmm64 "psubw",
        Psubd_mm_mmm64 "psubd",
        Paddb_mm_mmm64 "paddb",
        Paddw_mm_mmm64 "paddw",
        Paddd_mm_mmm64 "paddd",
    )
}

/// SSE to SSSE3, with 8 bytes of memory.
#[rustfmt::skip]
fn packed_later(code: Code) -> Option<Entry> {
    mmx!(code, entry::<8>,
        Pminub_mm_mmm64 "pminub",
        Pmaxub_mm_mmm64 "pmaxub",
        Pavgb_mm_mmm64 "pavgb",
        Pavgw_mm_mmm64 "pavgw",
        Pmulhuw_mm_mmm64 "pmulhuw",
        Pminsw_mm_mmm64 "pminsw",
        Pmaxsw_mm_mmm64 "pmaxsw",
        Pmuludq_mm_mmm64 "pmuludq",
        Psadbw_mm_mmm64 "psadbw",
        Psubq_mm_mmm64 "psubq",
        Pshufb_mm_mmm64 "pshufb",
        Phaddw_mm_mmm64 "phaddw",
        Phaddd_mm_mmm64 "phaddd",
        Phaddsw_mm_mmm64 "phaddsw",
        Pmaddubsw_mm_mmm64 "pmaddubsw",
        Phsubw_mm_mmm64 "phsubw",
        Phsubd_mm_mmm64 "phsubd",
        Phsubsw_mm_mmm64 "phsubsw",
        Psignb_mm_mmm64 "psignb",
        Psignw_mm_mmm64 "psignw",
        Psignd_mm_mmm64 "psignd",
        Pmulhrsw_mm_mmm64 "pmulhrsw",
        Pabsb_mm_mmm64 "pabsb",
        Pabsw_mm_mmm64 "pabsw",
        Pabsd_mm_mmm64 "pabsd",
    )
}

/// With 4 bytes of memory.
#[rustfmt::skip]
fn unpack_low(code: Code) -> Option<Entry> {
    mmx!(code, entry::<4>,
        Punpcklbw_mm_mmm32 "punpcklbw",
        Punpcklwd_mm_mmm32 "punpcklwd",
        Punpckldq_mm_mmm32 "punpckldq",
    )
}

/// Shifts by an immediate.
#[rustfmt::skip]
fn shift_by_immediate(code: Code) -> Option<Entry> {
    mmx!(code, count_entry::<0>,
        Psrlw_mm_imm8 "psrlw",
        Psraw_mm_imm8 "psraw",
        Psllw_mm_imm8 "psllw",
        Psrld_mm_imm8 "psrld",
        Psrad_mm_imm8 "psrad",
        Pslld_mm_imm8 "pslld",
        Psrlq_mm_imm8 "psrlq",
        Psllq_mm_imm8 "psllq",
    )
}
