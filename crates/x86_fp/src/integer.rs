//! Integer, logic and other XMM instructions that MXCSR has no part in.

use core::arch::asm;
use core::arch::x86_64::__m128i;

use iced_x86::Code;

use crate::entry::Entry;
use crate::operand::{REGISTER, from_vector, index, source, to_vector};
use crate::{Arguments, FpFault, FpState, Outside};

/// An instruction that makes its first operand of both.
trait Integer {
    fn apply(first: __m128i, second: __m128i) -> __m128i;
}

/// Runs one with a register operand or `LEN` bytes of memory.
fn run<O: Integer, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    arguments: Arguments,
) -> Result<(), FpFault> {
    let second = to_vector(source::<LEN>(state, outside, arguments));
    let first = &mut state.xmm[index(arguments.first)];
    *first = from_vector(O::apply(to_vector(*first), second));
    Ok(())
}

/// Runs a shift by an immediate as the shift by a register that it equals.
fn run_count<O: Integer>(
    state: &mut FpState,
    _outside: &mut Outside<'_>,
    arguments: Arguments,
) -> Result<(), FpFault> {
    let first = &mut state.xmm[index(arguments.first)];
    let count = to_vector(arguments.immediate.into());
    *first = from_vector(O::apply(to_vector(*first), count));
    Ok(())
}

const fn entry<O: Integer, const LEN: usize>() -> Entry {
    Entry::load(run::<O, REGISTER>, run::<O, LEN>)
}

const fn count_entry<O: Integer, const LEN: usize>() -> Entry {
    Entry::register(run_count::<O>)
}

/// Finds a code's mnemonic in a table and makes its entry by `$make`, for memory of `$len` bytes.
macro_rules! integer {
    ($code:expr, $make:ident::<$len:literal>, $($name:ident $mnemonic:literal,)*) => {
        match $code {
            $(Code::$name => {
                struct Op;
                impl Integer for Op {
                    #[inline(always)]
                    fn apply(mut first: __m128i, second: __m128i) -> __m128i {
                        // SAFETY: it computes a register of two; the host has SSE4.2.
                        unsafe {
                            asm!(
                                concat!($mnemonic, " {first}, {second}"),
                                first = inout(xmm_reg) first,
                                second = in(xmm_reg) second,
                                options(pure, nomem, nostack, preserves_flags),
                            );
                        }
                        first
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
    logic(code)
        .or_else(|| arithmetic(code))
        .or_else(|| packed_later(code))
        .or_else(|| narrow(code))
        .or_else(|| shift_by_immediate(code))
}

/// SSE and SSE2 with 16 bytes of memory: arithmetic, comparisons, shifts.
#[rustfmt::skip]
fn arithmetic(code: Code) -> Option<Entry> {
    integer!(code, entry::<16>,
        Pcmpgtb_xmm_xmmm128 "pcmpgtb",
        Pcmpgtw_xmm_xmmm128 "pcmpgtw",
        Pcmpgtd_xmm_xmmm128 "pcmpgtd",
        Pcmpeqb_xmm_xmmm128 "pcmpeqb",
        Pcmpeqw_xmm_xmmm128 "pcmpeqw",
        Pcmpeqd_xmm_xmmm128 "pcmpeqd",
        Psrlw_xmm_xmmm128 "psrlw",
        Psrld_xmm_xmmm128 "psrld",
        Psrlq_xmm_xmmm128 "psrlq",
        Paddq_xmm_xmmm128 "paddq",
        Pmullw_xmm_xmmm128 "pmullw",
        Psubusb_xmm_xmmm128 "psubusb",
        Psubusw_xmm_xmmm128 "psubusw",
        Pminub_xmm_xmmm128 "pminub",
        Paddusb_xmm_xmmm128 "paddusb",
        Paddusw_xmm_xmmm128 "paddusw",
        Pmaxub_xmm_xmmm128 "pmaxub",
        Pavgb_xmm_xmmm128 "pavgb",
        Psraw_xmm_xmmm128 "psraw",
        Psrad_xmm_xmmm128 "psrad",
        Pavgw_xmm_xmmm128 "pavgw",
        Pmulhuw_xmm_xmmm128 "pmulhuw",
        Pmulhw_xmm_xmmm128 "pmulhw",
        Psubsb_xmm_xmmm128 "psubsb",
        Psubsw_xmm_xmmm128 "psubsw",
        Pminsw_xmm_xmmm128 "pminsw",
        Paddsb_xmm_xmmm128 "paddsb",
        Paddsw_xmm_xmmm128 "paddsw",
        Pmaxsw_xmm_xmmm128 "pmaxsw",
        Psllw_xmm_xmmm128 "psllw",
        Pslld_xmm_xmmm128 "pslld",
        Psllq_xmm_xmmm128 "psllq",
        Pmuludq_xmm_xmmm128 "pmuludq",
        Pmaddwd_xmm_xmmm128 "pmaddwd",
        Psadbw_xmm_xmmm128 "psadbw",
        Psubb_xmm_xmmm128 "psubb",
        Psubw_xmm_xmmm128 "psubw",
        Psubd_xmm_xmmm128 "psubd",
        Psubq_xmm_xmmm128 "psubq",
        Paddb_xmm_xmmm128 "paddb",
        Paddw_xmm_xmmm128 "paddw",
        Paddd_xmm_xmmm128 "paddd",
    )
}

/// SSE and SSE2 with 16 bytes of memory: logic, packing, estimates.
#[rustfmt::skip]
fn logic(code: Code) -> Option<Entry> {
    integer!(code, entry::<16>,
        Unpcklps_xmm_xmmm128 "unpcklps",
        Unpcklpd_xmm_xmmm128 "unpcklpd",
        Unpckhps_xmm_xmmm128 "unpckhps",
        Unpckhpd_xmm_xmmm128 "unpckhpd",
        Rsqrtps_xmm_xmmm128 "rsqrtps",
        Rcpps_xmm_xmmm128 "rcpps",
        Andps_xmm_xmmm128 "andps",
        Andpd_xmm_xmmm128 "andpd",
        Andnps_xmm_xmmm128 "andnps",
        Andnpd_xmm_xmmm128 "andnpd",
        Orps_xmm_xmmm128 "orps",
        Orpd_xmm_xmmm128 "orpd",
        Xorps_xmm_xmmm128 "xorps",
        Xorpd_xmm_xmmm128 "xorpd",
        Punpcklbw_xmm_xmmm128 "punpcklbw",
        Punpcklwd_xmm_xmmm128 "punpcklwd",
        Punpckldq_xmm_xmmm128 "punpckldq",
        Packsswb_xmm_xmmm128 "packsswb",
        Packuswb_xmm_xmmm128 "packuswb",
        Punpckhbw_xmm_xmmm128 "punpckhbw",
        Punpckhwd_xmm_xmmm128 "punpckhwd",
        Punpckhdq_xmm_xmmm128 "punpckhdq",
        Packssdw_xmm_xmmm128 "packssdw",
        Punpcklqdq_xmm_xmmm128 "punpcklqdq",
        Punpckhqdq_xmm_xmmm128 "punpckhqdq",
        Pand_xmm_xmmm128 "pand",
        Pandn_xmm_xmmm128 "pandn",
        Por_xmm_xmmm128 "por",
        Pxor_xmm_xmmm128 "pxor",
    )
}

/// SSE3 and later, with 16 bytes of memory.
#[rustfmt::skip]
fn packed_later(code: Code) -> Option<Entry> {
    integer!(code, entry::<16>,
        Movsldup_xmm_xmmm128 "movsldup",
        Movshdup_xmm_xmmm128 "movshdup",
        Pshufb_xmm_xmmm128 "pshufb",
        Phaddw_xmm_xmmm128 "phaddw",
        Phaddd_xmm_xmmm128 "phaddd",
        Phaddsw_xmm_xmmm128 "phaddsw",
        Pmaddubsw_xmm_xmmm128 "pmaddubsw",
        Phsubw_xmm_xmmm128 "phsubw",
        Phsubd_xmm_xmmm128 "phsubd",
        Phsubsw_xmm_xmmm128 "phsubsw",
        Psignb_xmm_xmmm128 "psignb",
        Psignw_xmm_xmmm128 "psignw",
        Psignd_xmm_xmmm128 "psignd",
        Pmulhrsw_xmm_xmmm128 "pmulhrsw",
        Pabsb_xmm_xmmm128 "pabsb",
        Pabsw_xmm_xmmm128 "pabsw",
        Pabsd_xmm_xmmm128 "pabsd",
        Pmuldq_xmm_xmmm128 "pmuldq",
        Pcmpeqq_xmm_xmmm128 "pcmpeqq",
        Packusdw_xmm_xmmm128 "packusdw",
        Pcmpgtq_xmm_xmmm128 "pcmpgtq",
        Pminsb_xmm_xmmm128 "pminsb",
        Pminsd_xmm_xmmm128 "pminsd",
        Pminuw_xmm_xmmm128 "pminuw",
        Pminud_xmm_xmmm128 "pminud",
        Pmaxsb_xmm_xmmm128 "pmaxsb",
        Pmaxsd_xmm_xmmm128 "pmaxsd",
        Pmaxuw_xmm_xmmm128 "pmaxuw",
        Pmaxud_xmm_xmmm128 "pmaxud",
        Pmulld_xmm_xmmm128 "pmulld",
        Phminposuw_xmm_xmmm128 "phminposuw",
    )
}

/// With less.
fn narrow(code: Code) -> Option<Entry> {
    eight(code).or_else(|| four(code)).or_else(|| two(code))
}

/// With 8 bytes of memory.
#[rustfmt::skip]
fn eight(code: Code) -> Option<Entry> {
    integer!(code, entry::<8>,
        Movddup_xmm_xmmm64 "movddup",
        Cvtdq2pd_xmm_xmmm64 "cvtdq2pd",
        Pmovsxbw_xmm_xmmm64 "pmovsxbw",
        Pmovsxwd_xmm_xmmm64 "pmovsxwd",
        Pmovsxdq_xmm_xmmm64 "pmovsxdq",
        Pmovzxbw_xmm_xmmm64 "pmovzxbw",
        Pmovzxwd_xmm_xmmm64 "pmovzxwd",
        Pmovzxdq_xmm_xmmm64 "pmovzxdq",
    )
}

/// With 4 bytes of memory.
#[rustfmt::skip]
fn four(code: Code) -> Option<Entry> {
    integer!(code, entry::<4>,
        Rsqrtss_xmm_xmmm32 "rsqrtss",
        Rcpss_xmm_xmmm32 "rcpss",
        Pmovsxbd_xmm_xmmm32 "pmovsxbd",
        Pmovsxwq_xmm_xmmm32 "pmovsxwq",
        Pmovzxbd_xmm_xmmm32 "pmovzxbd",
        Pmovzxwq_xmm_xmmm32 "pmovzxwq",
    )
}

/// With 2 bytes of memory.
#[rustfmt::skip]
fn two(code: Code) -> Option<Entry> {
    integer!(code, entry::<2>,
        Pmovsxbq_xmm_xmmm16 "pmovsxbq",
        Pmovzxbq_xmm_xmmm16 "pmovzxbq",
    )
}

/// Shifts by an immediate.
#[rustfmt::skip]
fn shift_by_immediate(code: Code) -> Option<Entry> {
    integer!(code, count_entry::<0>,
        Psrlw_xmm_imm8 "psrlw",
        Psraw_xmm_imm8 "psraw",
        Psllw_xmm_imm8 "psllw",
        Psrld_xmm_imm8 "psrld",
        Psrad_xmm_imm8 "psrad",
        Pslld_xmm_imm8 "pslld",
        Psrlq_xmm_imm8 "psrlq",
        Psllq_xmm_imm8 "psllq",
    )
}
