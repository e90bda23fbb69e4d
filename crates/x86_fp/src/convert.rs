//! Conversions between XMM and general or MMX registers, and comparisons that set RFLAGS.
//!
//! Mnemonics of one family differ in a prefix and a bit of the opcode, so each family is one host
//! instruction spelled in bytes. 0x3e (DS) stands for "no prefix": it means nothing to the host.

use core::arch::asm;
use core::arch::x86_64::__m128i;

use iced_x86::Code;

use crate::entry::Entry;
use crate::flags::{self, COMPARE};
use crate::mxcsr::{HOST_MXCSR, Tiny, guarded};
use crate::operand::{REGISTER, from_vector, index, mmx_source, source, to_vector};
use crate::{Arguments, FpFault, FpState, Outside, fast};

type Outcome = Result<(), FpFault>;

/// Prefixes of packed single, packed double, scalar single and scalar double.
const PS: u8 = 0x3e;
const PD: u8 = 0x66;
const SS: u8 = 0xf3;
const SD: u8 = 0xf2;
/// Opcodes 0F 2A, 2C, 2D, 2E and 2F.
const FROM_INTEGER: u8 = 0x2a;
const TRUNCATE: u8 = 0x2c;
const ROUND: u8 = 0x2d;
const UNORDERED: u8 = 0x2e;
const ORDERED: u8 = 0x2f;
/// REX prefixes of 32 and 64 bits.
const REX_32: u8 = 0x40;
const REX_64: u8 = 0x48;

/// CVTSI2SS, CVTSI2SD.
fn from_general<const PREFIX: u8, const REX: u8, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let second = if LEN == REGISTER {
        outside.general[index(a.second)]
    } else {
        outside.memory.value::<LEN>() as u64
    };
    if PREFIX == SD {
        let quick = match REX {
            REX_32 => Some(fast::double_of_32(second as u32)),
            _ => fast::double_of_64(state.mxcsr, second),
        };
        if let Some(result) = quick {
            let first = &mut state.xmm[index(a.first)];
            *first = *first >> 64 << 64 | u128::from(result);
            return Ok(());
        }
    }
    let first = to_vector(state.xmm[index(a.first)]);
    let result = guarded(&mut state.mxcsr, Tiny::Never, from_vector, |mut mxcsr| {
        let mut result = first;
        // SAFETY: it computes XMM0 of XMM0 and RAX with all exceptions masked, and leaves the host's
        // MXCSR.
        unsafe {
            asm!(
                "ldmxcsr [{mxcsr}]",
                ".byte {prefix}, {rex}, 0x0f, {opcode}, 0xc0",
                "stmxcsr [{mxcsr}]",
                "ldmxcsr [{host}]",
                prefix = const PREFIX,
                rex = const REX,
                opcode = const FROM_INTEGER,
                mxcsr = in(reg) &raw mut mxcsr,
                host = in(reg) &raw const HOST_MXCSR,
                in("rax") second,
                inout("xmm0") result,
                options(nostack),
            );
        }
        (result, mxcsr)
    })?;
    state.xmm[index(a.first)] = from_vector(result);
    Ok(())
}

/// CVT(T)SS2SI, CVT(T)SD2SI.
fn to_general<const PREFIX: u8, const REX: u8, const OPCODE: u8, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let second = source::<LEN>(state, outside, a);
    if PREFIX == SD && OPCODE == TRUNCATE {
        let quick = match REX {
            REX_32 => fast::truncate_32(state.mxcsr, second as u64),
            _ => fast::truncate_64(state.mxcsr, second as u64),
        };
        if let Some(result) = quick {
            outside.general[index(a.first)] = result;
            return Ok(());
        }
    }
    let second = to_vector(second);
    let result = guarded(&mut state.mxcsr, Tiny::Never, u128::from, |mut mxcsr| {
        let result: u64;
        // SAFETY: it computes RAX of XMM0 with all exceptions masked, and leaves the host's MXCSR.
        unsafe {
            asm!(
                "ldmxcsr [{mxcsr}]",
                ".byte {prefix}, {rex}, 0x0f, {opcode}, 0xc0",
                "stmxcsr [{mxcsr}]",
                "ldmxcsr [{host}]",
                prefix = const PREFIX,
                rex = const REX,
                opcode = const OPCODE,
                mxcsr = in(reg) &raw mut mxcsr,
                host = in(reg) &raw const HOST_MXCSR,
                out("rax") result,
                in("xmm0") second,
                options(nostack),
            );
        }
        (result, mxcsr)
    })?;
    outside.general[index(a.first)] = result;
    Ok(())
}

/// (U)COMISS, (U)COMISD.
fn compare<const PREFIX: u8, const OPCODE: u8, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let first = state.xmm[index(a.first)];
    let second = source::<LEN>(state, outside, a);
    let quick = match PREFIX {
        PD => fast::comisd(first as u64, second as u64),
        _ => fast::comiss(first as u32, second as u32),
    };
    if let Some(result) = quick {
        flags::set(outside.flags, result);
        return Ok(());
    }
    let (first, second) = (to_vector(first), to_vector(second));
    let result = guarded(&mut state.mxcsr, Tiny::Never, u128::from, |mut mxcsr| {
        let result: u64;
        // SAFETY: it compares XMM0 and XMM1 with all exceptions masked and leaves the host's MXCSR;
        // the stack is as before.
        unsafe {
            asm!(
                "ldmxcsr [{mxcsr}]",
                ".byte {prefix}, 0x0f, {opcode}, 0xc1",
                "pushfq",
                "pop {result}",
                "stmxcsr [{mxcsr}]",
                "ldmxcsr [{host}]",
                prefix = const PREFIX,
                opcode = const OPCODE,
                result = out(reg) result,
                mxcsr = in(reg) &raw mut mxcsr,
                host = in(reg) &raw const HOST_MXCSR,
                in("xmm0") first,
                in("xmm1") second,
            );
        }
        (result, mxcsr)
    })?;
    flags::set(outside.flags, result & COMPARE);
    Ok(())
}

/// CVTPI2PS, CVTPI2PD.
fn from_mmx<const PREFIX: u8, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    // With memory no MMX register is used, and the x87 state stays.
    let mmx = LEN == REGISTER;
    if mmx && state.x87_pending() {
        return Err(FpFault::X87);
    }
    let second = mmx_source::<LEN>(state, outside, a);
    if mmx {
        // Also when the conversion faults.
        state.enter_mmx();
    }
    let first = to_vector(state.xmm[index(a.first)]);
    let result = guarded(&mut state.mxcsr, Tiny::Never, from_vector, |mut mxcsr| {
        let mut result = first;
        // SAFETY: it computes XMM0 of XMM0 and MM0 with all exceptions masked, leaves the host's
        // MXCSR and an empty x87 stack.
        unsafe {
            asm!(
                "movq mm0, {second}",
                "ldmxcsr [{mxcsr}]",
                ".byte {prefix}, 0x0f, {opcode}, 0xc0",
                "stmxcsr [{mxcsr}]",
                "ldmxcsr [{host}]",
                "emms",
                prefix = const PREFIX,
                opcode = const FROM_INTEGER,
                second = in(reg) second,
                mxcsr = in(reg) &raw mut mxcsr,
                host = in(reg) &raw const HOST_MXCSR,
                inout("xmm0") result,
                out("mm0") _,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack),
            );
        }
        (result, mxcsr)
    })?;
    state.xmm[index(a.first)] = from_vector(result);
    Ok(())
}

/// CVT(T)PS2PI, CVT(T)PD2PI.
fn to_mmx<const PREFIX: u8, const OPCODE: u8, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    if state.x87_pending() {
        return Err(FpFault::X87);
    }
    state.enter_mmx();
    let second: __m128i = to_vector(source::<LEN>(state, outside, a));
    let result = guarded(&mut state.mxcsr, Tiny::Never, u128::from, |mut mxcsr| {
        let result: u64;
        // SAFETY: it computes MM0 of XMM0 with all exceptions masked, leaves the host's MXCSR and an
        // empty x87 stack.
        unsafe {
            asm!(
                "ldmxcsr [{mxcsr}]",
                ".byte {prefix}, 0x0f, {opcode}, 0xc0",
                "stmxcsr [{mxcsr}]",
                "ldmxcsr [{host}]",
                "movq {result}, mm0",
                "emms",
                prefix = const PREFIX,
                opcode = const OPCODE,
                result = lateout(reg) result,
                mxcsr = in(reg) &raw mut mxcsr,
                host = in(reg) &raw const HOST_MXCSR,
                in("xmm0") second,
                out("mm0") _,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
                options(nostack),
            );
        }
        (result, mxcsr)
    })?;
    state.set_mmx(a.first, result);
    Ok(())
}

const fn general_entry<const PREFIX: u8, const REX: u8, const OPCODE: u8, const LEN: usize>()
-> Entry {
    Entry::load(
        to_general::<PREFIX, REX, OPCODE, REGISTER>,
        to_general::<PREFIX, REX, OPCODE, LEN>,
    )
}

const fn compare_entry<const PREFIX: u8, const OPCODE: u8, const LEN: usize>() -> Entry {
    Entry::load(
        compare::<PREFIX, OPCODE, REGISTER>,
        compare::<PREFIX, OPCODE, LEN>,
    )
}

const fn mmx_entry<const PREFIX: u8, const OPCODE: u8, const LEN: usize>() -> Entry {
    Entry::load(
        to_mmx::<PREFIX, OPCODE, REGISTER>,
        to_mmx::<PREFIX, OPCODE, LEN>,
    )
}

const fn integer_entry<const PREFIX: u8, const REX: u8, const LEN: usize>() -> Entry {
    Entry::load(
        from_general::<PREFIX, REX, REGISTER>,
        from_general::<PREFIX, REX, LEN>,
    )
}

/// Returns how to run `code`, where it is one of these.
pub(crate) fn lookup(code: Code) -> Option<Entry> {
    let entry = match code {
        Code::Cvtsi2ss_xmm_rm32 => integer_entry::<SS, REX_32, 4>(),
        Code::Cvtsi2ss_xmm_rm64 => integer_entry::<SS, REX_64, 8>(),
        Code::Cvtsi2sd_xmm_rm32 => integer_entry::<SD, REX_32, 4>(),
        Code::Cvtsi2sd_xmm_rm64 => integer_entry::<SD, REX_64, 8>(),
        Code::Cvttss2si_r32_xmmm32 => general_entry::<SS, REX_32, TRUNCATE, 4>(),
        Code::Cvttss2si_r64_xmmm32 => general_entry::<SS, REX_64, TRUNCATE, 4>(),
        Code::Cvttsd2si_r32_xmmm64 => general_entry::<SD, REX_32, TRUNCATE, 8>(),
        Code::Cvttsd2si_r64_xmmm64 => general_entry::<SD, REX_64, TRUNCATE, 8>(),
        Code::Cvtss2si_r32_xmmm32 => general_entry::<SS, REX_32, ROUND, 4>(),
        Code::Cvtss2si_r64_xmmm32 => general_entry::<SS, REX_64, ROUND, 4>(),
        Code::Cvtsd2si_r32_xmmm64 => general_entry::<SD, REX_32, ROUND, 8>(),
        Code::Cvtsd2si_r64_xmmm64 => general_entry::<SD, REX_64, ROUND, 8>(),
        Code::Ucomiss_xmm_xmmm32 => compare_entry::<PS, UNORDERED, 4>(),
        Code::Ucomisd_xmm_xmmm64 => compare_entry::<PD, UNORDERED, 8>(),
        Code::Comiss_xmm_xmmm32 => compare_entry::<PS, ORDERED, 4>(),
        Code::Comisd_xmm_xmmm64 => compare_entry::<PD, ORDERED, 8>(),
        Code::Cvtpi2ps_xmm_mmm64 => Entry::load(from_mmx::<PS, REGISTER>, from_mmx::<PS, 8>),
        Code::Cvtpi2pd_xmm_mmm64 => Entry::load(from_mmx::<PD, REGISTER>, from_mmx::<PD, 8>),
        Code::Cvttps2pi_mm_xmmm64 => mmx_entry::<PS, TRUNCATE, 8>(),
        Code::Cvttpd2pi_mm_xmmm128 => mmx_entry::<PD, TRUNCATE, 16>(),
        Code::Cvtps2pi_mm_xmmm64 => mmx_entry::<PS, ROUND, 8>(),
        Code::Cvtpd2pi_mm_xmmm128 => mmx_entry::<PD, ROUND, 16>(),
        _ => return None,
    };
    Some(entry)
}
