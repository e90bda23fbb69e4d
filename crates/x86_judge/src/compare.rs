//! Finds where two outcomes of a case differ.

use std::fmt;
use std::ops::Range;

use iced_x86::{Code, RflagsBits};

use crate::layout::address_of;
use crate::state::flag_mask;
use crate::{Case, Outcome};

/// Names of the general registers in encoding order.
pub const GENERAL: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub field: String,
    /// What the first outcome has.
    pub first: String,
    /// What the second outcome has.
    pub second: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}: {} but {}", self.field, self.first, self.second)
    }
}

/// All flags that are compared.
const FLAGS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF
    | RflagsBits::DF;
/// AC and ID, which a program can change as well.
const OTHER_FLAGS: u64 = 1 << 18 | 1 << 21;
/// First address that no program has on Linux.
const PROGRAM_END: u64 = 0x7fff_ffff_f000;
/// At most so many bytes of memory are reported.
const BYTES_REPORTED: usize = 24;

/// Returns where `second` differs from `first`; what is undefined for `case` is left out.
pub fn compare(case: &Case, first: &Outcome, second: &Outcome) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut check = |field: &str, first: String, second: String| {
        if first != second {
            differences.push(Difference {
                field: field.to_owned(),
                first,
                second,
            });
        }
    };
    let end = case
        .steps
        .iter()
        .map(|step| &step.instruction)
        .find(|step| step.ip() == first.state.rip);
    // Which byte of a long operand is tried first is the processor's choice.
    let long = end.is_some_and(|end| !matches!(end.memory_size().size(), 0..=10 | 16));
    let compares = end.is_some_and(|end| COMPARES.contains(&end.code()));
    let text = |outcome| trap_text(outcome, long, compares);
    check("trap", text(first), text(second));
    let hex = |value: u64| format!("{value:#x}");
    check("rip", hex(first.state.rip), hex(second.state.rip));
    let pairs = first.state.general.iter().zip(&second.state.general);
    for (name, (first, second)) in GENERAL.iter().zip(pairs) {
        check(name, hex(*first), hex(*second));
    }
    let flags = flag_mask(FLAGS & !undefined_at(case, first)) | OTHER_FLAGS;
    check(
        "rflags",
        hex(first.state.rflags & flags),
        hex(second.state.rflags & flags),
    );
    let (one, other) = (&first.state.extended, &second.state.extended);
    let precision = inexact_unknown(first);
    let mxcsr = |value: u32| hex(u64::from(value & !precision));
    check("mxcsr", mxcsr(one.mxcsr), mxcsr(other.mxcsr));
    // Whether a conversion to an MMX register that raises #XM has left x87 mode is the processor's
    // choice too.
    let converts = end.is_some_and(|end| end.op0_register().is_mm());
    if !(converts && first.trap.is_some_and(|trap| trap.vector == 19)) {
        check("fcw", hex(one.control.into()), hex(other.control.into()));
        check("fsw", hex(one.status.into()), hex(other.status.into()));
        check("tags", hex(one.tags.into()), hex(other.tags.into()));
        for (index, (one, other)) in one.stack.iter().zip(&other.stack).enumerate() {
            let ten = |value: u128| format!("{value:020x}");
            check(&format!("st{index}"), ten(*one), ten(*other));
        }
    }
    for (index, (one, other)) in one.xmm.iter().zip(&other.xmm).enumerate() {
        let sixteen = |value: u128| format!("{value:032x}");
        check(&format!("xmm{index}"), sixteen(*one), sixteen(*other));
    }
    compare_memory(case, first, second, &mut check);
    differences
}

/// String instructions that read two operands. Where both fault, a processor of AMD's reports the one
/// at RDI, but for one that straddles two pages the other.
const COMPARES: [Code; 4] = [
    Code::Cmpsb_m8_m8,
    Code::Cmpsw_m16_m16,
    Code::Cmpsd_m32_m32,
    Code::Cmpsq_m64_m64,
];

/// Describes what ended an outcome; of the address of a `long` operand only the page, and of one that
/// `compares` two operands not which.
fn trap_text(outcome: &Outcome, long: bool, compares: bool) -> String {
    let Some(trap) = outcome.trap else {
        return "none".to_owned();
    };
    // Linux tells programs that everything beyond their own addresses is mapped.
    let hidden = u32::from(trap.vector == 14 && trap.address >= PROGRAM_END);
    let address = if long {
        trap.address & !0xfff
    } else {
        trap.address
    };
    let (vector, error) = (trap.vector, trap.error | hidden);
    let [rsi, rdi] = [6, 7].map(|number| outcome.state.general[number]);
    let of_operand = |start: u64| trap.address.wrapping_sub(start) < 8;
    if compares && vector == 14 && (of_operand(rsi) || of_operand(rdi)) {
        return format!("vector {vector} error {error:#x} address of an operand");
    }
    format!("vector {vector} error {error:#x} address {address:#x}")
}

fn compare_memory(
    case: &Case,
    first: &Outcome,
    second: &Outcome,
    check: &mut impl FnMut(&str, String, String),
) {
    if first.memory == second.memory {
        return;
    }
    let pairs = first.memory.iter().zip(&second.memory).enumerate();
    let ignored = x87_pointers(case, first);
    let different = pairs.filter(|(offset, (one, other))| {
        let place = address_of(*offset);
        one != other && !ignored.iter().any(|range| range.contains(&place))
    });
    for (offset, (one, other)) in different.take(BYTES_REPORTED) {
        let name = format!("byte {:#x}", address_of(offset));
        check(&name, format!("{one:02x}"), format!("{other:02x}"));
    }
}

/// Returns MXCSR.PE where an unmasked overflow or underflow ended a case: the flag then tells whether
/// the result would be inexact with an exponent of any size, which the software CPU does not know.
fn inexact_unknown(outcome: &Outcome) -> u32 {
    const OVERFLOW_UNDERFLOW: u32 = 0x18;
    const PRECISION: u32 = 0x20;
    let mxcsr = outcome.state.extended.mxcsr;
    let unmasked = mxcsr & !(mxcsr >> 7) & OVERFLOW_UNDERFLOW != 0;
    match outcome.trap {
        Some(trap) if trap.vector == 19 && unmasked => PRECISION,
        _ => 0,
    }
}

/// Returns where the last instruction of a case stored the pointers of the last x87 instruction and
/// the mask of MXCSR: processors differ in what they keep. Nothing reads them in the same case.
fn x87_pointers(case: &Case, outcome: &Outcome) -> Vec<Range<u64>> {
    let Some(step) = case.steps.iter().rev().nth(1) else {
        return Vec::new();
    };
    let instruction = &step.instruction;
    let parts = match instruction.code() {
        Code::Fxsave_m512byte | Code::Fxsave64_m512byte => [6..24, 28..32],
        Code::Fnstenv_m28byte | Code::Fnsave_m108byte => [12..28, 0..0],
        Code::Fnstenv_m14byte | Code::Fnsave_m94byte => [6..14, 0..0],
        _ => return Vec::new(),
    };
    let start = instruction.virtual_address(0, 0, |register, _, _| {
        if register.is_segment_register() {
            return Some(0);
        }
        let value = outcome.state.general[register.number()];
        Some(if register.size() == 4 {
            value & 0xffff_ffff
        } else {
            value
        })
    });
    let start = start.unwrap_or(0);
    parts
        .iter()
        .map(|part| start + part.start..start + part.end)
        .collect()
}

/// Returns the flags that are undefined where `outcome` ended.
fn undefined_at(case: &Case, outcome: &Outcome) -> u32 {
    let rip = outcome.state.rip;
    let mut steps = case.steps.iter();
    match (
        outcome.trap,
        steps.find(|step| step.instruction.ip() == rip),
    ) {
        (Some(_), Some(step)) => step.undefined,
        (None, _) => case.steps.last().map_or(0, |step| step.undefined),
        // Somewhere else, after a jump to nowhere.
        (Some(_), None) => case.steps.iter().fold(0, |all, step| all | step.undefined),
    }
}
