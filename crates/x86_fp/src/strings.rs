//! PCMPISTRI, PCMPISTRM, PCMPESTRI and PCMPESTRM (SDM 2B, "PCMPxSTRx").

use core::arch::asm;
use core::arch::x86_64::__m128i;

use iced_x86::Code;

use crate::entry::{Entry, each_constant};
use crate::flags;
use crate::operand::{REGISTER, from_vector, index, source, to_vector};
use crate::{Arguments, FpFault, FpState, Outside};

type Outcome = Result<(), FpFault>;

/// Two strings and, where they are explicit, their lengths.
#[derive(Clone, Copy, Debug)]
struct Strings {
    first: __m128i,
    second: __m128i,
    lengths: [i32; 2],
}

/// What comes of them: an index, a mask and RFLAGS.
#[derive(Clone, Copy, Debug)]
struct Found {
    index: u32,
    mask: __m128i,
    flags: u64,
}

type Compare = fn(Strings) -> Found;

/// Bits of an immediate that mean something.
const MEANINGFUL: u8 = 0x7f;

/// The host's PCMPESTRM, PCMPESTRI, PCMPISTRM or PCMPISTRI: opcodes 66 0F 3A 60 to 63.
fn compare<const OPCODE: u8, const IMMEDIATE: u8>(strings: Strings) -> Found {
    let mut mask = strings.first;
    let (index, flags);
    // SAFETY: it computes ECX or XMM0, and flags, of XMM1, XMM2, EAX and EDX, and the stack is as
    // before; the host has SSE4.2.
    unsafe {
        asm!(
            ".byte 0x66, 0x0f, 0x3a, {opcode}, 0xca, {immediate}",
            "pushfq",
            "pop {flags}",
            opcode = const OPCODE,
            immediate = const IMMEDIATE,
            flags = lateout(reg) flags,
            in("xmm1") strings.first,
            in("xmm2") strings.second,
            in("eax") strings.lengths[0],
            in("edx") strings.lengths[1],
            inout("ecx") 0_u32 => index,
            inout("xmm0") mask,
        );
    }
    Found { index, mask, flags }
}

#[rustfmt::skip]
static COMPARISONS: [[Compare; 128]; 4] = each_constant!(
    compare as Compare,
    [0x60 0x61 0x62 0x63]
    [
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
        16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47
        48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
        64 65 66 67 68 69 70 71 72 73 74 75 76 77 78 79
        80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95
        96 97 98 99 100 101 102 103 104 105 106 107 108 109 110 111
        112 113 114 115 116 117 118 119 120 121 122 123 124 125 126 127
    ]
);
/// Rows of the table.
const PCMPESTRM: usize = 0;
const PCMPESTRI: usize = 1;
const PCMPISTRM: usize = 2;
const PCMPISTRI: usize = 3;

/// A length register as the instruction takes it: its absolute value saturates at the string's length,
/// so that any larger one will do. Registers of 64 bits where `WIDE`.
fn length<const WIDE: bool>(register: u64) -> i32 {
    let value = if WIDE {
        register.cast_signed()
    } else {
        i64::from(register as i32)
    };
    value.clamp(-255, 255) as i32
}

/// Implicit lengths: a zero ends the string. `INDEX` where the result is an index, else a mask.
fn implicit<const INDEX: bool, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let row = if INDEX { PCMPISTRI } else { PCMPISTRM };
    let strings = Strings {
        first: to_vector(state.xmm[index(a.first)]),
        second: to_vector(source::<LEN>(state, outside, a)),
        lengths: [0; 2],
    };
    let found = COMPARISONS[row][usize::from(a.immediate & MEANINGFUL)](strings);
    commit::<INDEX>(state, outside, found);
    Ok(())
}

/// Explicit lengths in RAX and RDX.
fn explicit<const INDEX: bool, const WIDE: bool, const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let row = if INDEX { PCMPESTRI } else { PCMPESTRM };
    let strings = Strings {
        first: to_vector(state.xmm[index(a.first)]),
        second: to_vector(source::<LEN>(state, outside, a)),
        lengths: [
            length::<WIDE>(outside.general[0]),
            length::<WIDE>(outside.general[2]),
        ],
    };
    let found = COMPARISONS[row][usize::from(a.immediate & MEANINGFUL)](strings);
    commit::<INDEX>(state, outside, found);
    Ok(())
}

/// Sets RCX or XMM0, and the flags.
fn commit<const INDEX: bool>(state: &mut FpState, outside: &mut Outside<'_>, found: Found) {
    if INDEX {
        outside.general[1] = found.index.into();
    } else {
        state.xmm[0] = from_vector(found.mask);
    }
    flags::set(outside.flags, found.flags & flags::ARITHMETIC);
}

const fn explicit_entry<const INDEX: bool, const WIDE: bool>() -> Entry {
    Entry::load(
        explicit::<INDEX, WIDE, REGISTER>,
        explicit::<INDEX, WIDE, 16>,
    )
}

/// Returns how to run `code`, where it is one of these.
pub(crate) fn lookup(code: Code) -> Option<Entry> {
    let entry = match code {
        Code::Pcmpistri_xmm_xmmm128_imm8 => {
            Entry::load(implicit::<true, REGISTER>, implicit::<true, 16>)
        }
        Code::Pcmpistrm_xmm_xmmm128_imm8 => {
            Entry::load(implicit::<false, REGISTER>, implicit::<false, 16>)
        }
        Code::Pcmpestri_xmm_xmmm128_imm8 => explicit_entry::<true, false>(),
        Code::Pcmpestri64_xmm_xmmm128_imm8 => explicit_entry::<true, true>(),
        Code::Pcmpestrm_xmm_xmmm128_imm8 => explicit_entry::<false, false>(),
        Code::Pcmpestrm64_xmm_xmmm128_imm8 => explicit_entry::<false, true>(),
        _ => return None,
    };
    Some(entry)
}
