//! x87 instructions, run by the host's unit on the guest's state.
//!
//! An instruction runs between FXRSTOR64 and FXSAVE64 of [`FpState`], so that the stack, its faults,
//! the tags, C0 to C3 and the responses to exceptions, masked or not, are the host's own. An unmasked
//! exception only becomes pending there: FXSAVE64 and FNINIT do not wait, and the next instruction is
//! refused before it runs.

use core::arch::asm;

use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic, OpCodeOperandKind};

use crate::entry::{Direction, Entry, Run, each_constant};
use crate::flags::{self, ARITHMETIC, COMPARE};
use crate::mxcsr::HOST_MXCSR;
use crate::state::MXCSR_MASK;
use crate::{Arguments, FpFault, FpState, Outside, environment, quick, register_number};

type Outcome = Result<(), FpFault>;

/// Runs the host's instruction whose first byte is `FIRST` and whose ModRM byte is `SECOND`: a register
/// form, or one with memory at RCX.
fn native<const FIRST: u8, const SECOND: u8>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    _a: Arguments,
) -> Outcome {
    if state.x87_pending() {
        return Err(FpFault::X87);
    }
    state.mxcsr &= MXCSR_MASK;
    let mut arithmetic = *outside.flags & ARITHMETIC;
    // SAFETY: both areas are 512 bytes (the state is that long and aligned by its type), and MXCSR in
    // it has no reserved bit, so neither FXRSTOR64 nor FXSAVE64 faults. No unmasked exception is
    // pending, so the instruction does not fault; it reads or writes no more than 108 bytes of the
    // memory operand. FNINIT and LDMXCSR leave the host's state. POPFQ changes arithmetic flags only.
    unsafe {
        asm!(
            "push {flags}",
            "popfq",
            "fxrstor64 [{image}]",
            ".byte {first}, {second}",
            "fxsave64 [{image}]",
            "pushfq",
            "pop {flags}",
            "fninit",
            "ldmxcsr [{host}]",
            first = const FIRST,
            second = const SECOND,
            flags = inout(reg) arithmetic,
            image = in(reg) &raw mut *state,
            host = in(reg) &raw const HOST_MXCSR,
            in("rcx") &raw mut *outside.memory,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    state.forget_pointers();
    if const { sets_flags(FIRST, SECOND) } {
        flags::set(outside.flags, arithmetic & COMPARE);
    }
    Ok(())
}

/// FCOMI, FUCOMI and their popping forms.
pub(crate) const fn sets_flags(first: u8, second: u8) -> bool {
    matches!(first, 0xdb | 0xdf) && matches!(second, 0xe8..=0xf7)
}

/// Number of forms with memory, which come first in a row of the table.
const MEMORY_FORMS: usize = 8;

/// Rows are first bytes; the ModRM bytes of a row are [RCX] with each `reg`, then the register forms.
#[rustfmt::skip]
static NATIVE: [[Run; MEMORY_FORMS + 64]; 8] = each_constant!(
    native as Run,
    [0xd8 0xd9 0xda 0xdb 0xdc 0xdd 0xde 0xdf]
    [
        0x01 0x09 0x11 0x19 0x21 0x29 0x31 0x39
        0xc0 0xc1 0xc2 0xc3 0xc4 0xc5 0xc6 0xc7 0xc8 0xc9 0xca 0xcb 0xcc 0xcd 0xce 0xcf
        0xd0 0xd1 0xd2 0xd3 0xd4 0xd5 0xd6 0xd7 0xd8 0xd9 0xda 0xdb 0xdc 0xdd 0xde 0xdf
        0xe0 0xe1 0xe2 0xe3 0xe4 0xe5 0xe6 0xe7 0xe8 0xe9 0xea 0xeb 0xec 0xed 0xee 0xef
        0xf0 0xf1 0xf2 0xf3 0xf4 0xf5 0xf6 0xf7 0xf8 0xf9 0xfa 0xfb 0xfc 0xfd 0xfe 0xff
    ]
);

/// Where an instruction is in the table.
#[derive(Clone, Copy, Debug)]
struct Place {
    row: u8,
    form: u8,
}

/// Runs an instruction, of which [`arguments`] made `a`, on the host's unit.
pub(crate) fn fall_back(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    let row = &NATIVE[usize::from(a.first >> 4) & 7];
    match row.get(usize::from(a.immediate)) {
        Some(run) => run(state, outside, a),
        None => Ok(()),
    }
}

/// Registers in the low bits of the first two, place in the table in the rest.
pub(crate) fn arguments(instruction: &Instruction) -> Arguments {
    let place = place(instruction).unwrap_or(Place { row: 0, form: 0 });
    Arguments {
        first: register_number(instruction, 0) | place.row << 4,
        second: register_number(instruction, 1),
        immediate: place.form,
    }
}

/// Returns how to run `instruction`, where it is one of x87's.
pub(crate) fn lookup(instruction: &Instruction) -> Option<Entry> {
    let code = instruction.code();
    environment::lookup(code).or_else(|| computing(instruction))
}

/// Whether a code computes on x87 registers.
fn is_x87(code: Code) -> bool {
    let mut x87 = false;
    for feature in code.cpuid_features() {
        match feature {
            CpuidFeature::FPU | CpuidFeature::FPU387 => x87 = true,
            CpuidFeature::CMOV | CpuidFeature::SSE3 => {}
            _ => return false,
        }
    }
    x87
}

/// Finds the quick way or the host's instruction.
fn computing(instruction: &Instruction) -> Option<Entry> {
    let code = instruction.code();
    if !is_x87(code) {
        return None;
    }
    let place = place(instruction)?;
    let run = quick::lookup(code).unwrap_or(fall_back);
    if usize::from(place.form) >= MEMORY_FORMS {
        return Some(Entry::register(run));
    }
    let stores = matches!(
        instruction.mnemonic(),
        Mnemonic::Fst
            | Mnemonic::Fstp
            | Mnemonic::Fist
            | Mnemonic::Fistp
            | Mnemonic::Fisttp
            | Mnemonic::Fbstp
    );
    // An unmasked exception suppresses a store: what was loaded is stored then.
    let direction = if stores {
        Direction::Both
    } else {
        Direction::Load
    };
    Some(Entry::memory(direction, run))
}

/// Finds an instruction's place in the table by its opcode.
fn place(instruction: &Instruction) -> Option<Place> {
    let info = instruction.code().op_code();
    let opcode = info.op_code();
    if let Ok(form) = u8::try_from(info.group_index()) {
        let row = u8::try_from(opcode).ok()?.checked_sub(0xd8)?;
        return (row < 8).then_some(Place { row, form });
    }
    let register = info
        .op_kinds()
        .iter()
        .position(|&kind| kind == OpCodeOperandKind::sti_opcode)
        .map_or(0, |operand| register_number(instruction, operand as u32));
    let row = u8::try_from(opcode >> 8).ok()?.checked_sub(0xd8)?;
    let form = (opcode as u8).checked_sub(0xc0)? + register;
    (row < 8).then_some(Place {
        row,
        form: MEMORY_FORMS as u8 + form,
    })
}
