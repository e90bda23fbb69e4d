//! Frequent x87 instructions without the detour over FXRSTOR64 and FXSAVE64.
//!
//! They hold while every x87 exception is masked, no operand's register is empty and the register of a
//! push is; otherwise the instruction goes the way of [`crate::x87`]. The host computes from the
//! state's registers and leaves its own stack empty. Its exception flags stay as they fall: only where
//! they say more than the guest's are they cleared and the instruction repeated, to learn which of them
//! are its own.

use core::arch::asm;

use iced_x86::Code;

use crate::entry::Run;
use crate::flags::{self, COMPARE};
use crate::state::{CONTROL_DEFAULT, REGISTER_MASK, status};
use crate::x87::{fall_back, sets_flags};
use crate::{Arguments, FpFault, FpState, Outside};

type Outcome = Result<(), FpFault>;

/// What Rust code runs with.
static HOST_CONTROL: u16 = CONTROL_DEFAULT;

/// C1: a result was rounded up.
const ROUNDED_UP: u16 = 1 << 9;
/// C0, C2 and C3: what a comparison says.
const CONDITION: u16 = 0x4500;
/// The number one, and the sign.
const ONE: u128 = 0x3fff << 64 | 1 << 63;
const SIGN: u128 = 1 << 79;

/// What a host instruction left: its status word and RFLAGS.
#[derive(Clone, Copy, Debug)]
struct Left {
    status: u16,
    flags: u64,
}

/// Runs the host's instruction `FIRST` `SECOND` on `DEPTH` numbers: ST(0) is the state's ST(`top`),
/// ST(1) its ST(`below`). Of the `LEFT` numbers on the host's stack after it, ST(0) goes to ST(`top`).
#[inline(always)]
fn host<const FIRST: u8, const SECOND: u8, const DEPTH: u8, const LEFT: u8>(
    state: &mut FpState,
    top: usize,
    below: usize,
    outside: &mut Outside<'_>,
) -> Left {
    let control = state.control;
    let below = &raw const state.stack[below & 7];
    let top = &raw mut state.stack[top & 7];
    let word: u16;
    let rflags: u64;
    // SAFETY: `top` and `below` are slots of 16 bytes, of which 10 are read and written as a number; the
    // instruction reads or writes at most 10 bytes of the memory operand. The callers have seen that all
    // exceptions are masked in `control`, so nothing faults; the host's control word and an empty stack
    // are left, and the process' stack is as before.
    unsafe {
        asm!(
            "fldcw [{control}]",
            ".if {two}",
            "fld tbyte ptr [{below}]",
            ".endif",
            ".if {one}",
            "fld tbyte ptr [{top}]",
            ".endif",
            ".byte {first}, {second}",
            ".if {compares}",
            "pushfq",
            "pop {rflags}",
            ".endif",
            "fnstsw ax",
            ".if {left_one}",
            "fstp tbyte ptr [{top}]",
            ".endif",
            ".if {left_two}",
            "fstp st(0)",
            ".endif",
            "fldcw [{host}]",
            first = const FIRST,
            second = const SECOND,
            one = const (DEPTH > 0) as u8,
            two = const (DEPTH > 1) as u8,
            left_one = const (LEFT > 0) as u8,
            left_two = const (LEFT > 1) as u8,
            compares = const sets_flags(FIRST, SECOND) as u8,
            control = in(reg) &raw const control,
            top = in(reg) top,
            below = in(reg) below,
            host = in(reg) &raw const HOST_CONTROL,
            rflags = out(reg) rflags,
            in("rcx") &raw mut *outside.memory,
            out("ax") word,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    Left {
        status: word,
        flags: rflags,
    }
}

/// [`host`], after which the guest's flags are right, C1 too.
#[inline(always)]
fn run<const FIRST: u8, const SECOND: u8, const DEPTH: u8, const LEFT: u8>(
    state: &mut FpState,
    top: usize,
    below: usize,
    outside: &mut Outside<'_>,
) -> Left {
    let before = state.stack[top & 7];
    let mut left = host::<FIRST, SECOND, DEPTH, LEFT>(state, top, below, outside);
    if left.status & !state.status & status::EXCEPTIONS != 0 {
        clear_flags();
        state.stack[top & 7] = before;
        left = host::<FIRST, SECOND, DEPTH, LEFT>(state, top, below, outside);
    }
    state.status |= left.status & status::EXCEPTIONS;
    state.status = state.status & !ROUNDED_UP | left.status & ROUNDED_UP;
    state.forget_pointers();
    left
}

/// Clears the host's exception flags.
#[cold]
fn clear_flags() {
    // SAFETY: FNCLEX changes the x87 status word alone, which Rust code has no use for.
    unsafe { asm!("fnclex", options(nomem, nostack)) };
}

impl FpState {
    /// Whether all x87 exceptions are masked and the registers in `full` (by distance from the top) are
    /// not empty.
    #[inline(always)]
    fn quick(&self, full: u8) -> bool {
        self.control & status::EXCEPTIONS == status::EXCEPTIONS
            && self.tags.rotate_right(self.top() as u32) & full == full
    }

    /// Whether all x87 exceptions are masked and a push finds an empty register.
    #[inline(always)]
    fn quick_push(&self) -> bool {
        self.control & status::EXCEPTIONS == status::EXCEPTIONS
            && self.tags.rotate_right(self.top() as u32) & 0x80 == 0
    }

    /// Makes room at the top: what was ST(7) is ST(0).
    #[inline(always)]
    fn push(&mut self) {
        let last = self.stack[7];
        self.stack.copy_within(0..7, 1);
        self.stack[0] = last;
        let top = (self.top() + 7) & 7;
        self.set_top(top);
        self.tags |= 1 << top;
    }

    /// Drops the top.
    #[inline(always)]
    fn pop(&mut self) {
        let first = self.stack[0];
        self.stack.copy_within(1..8, 0);
        self.stack[7] = first;
        let top = self.top();
        self.tags &= !(1 << top);
        self.set_top((top + 1) & 7);
    }

    /// Sets the number of the top register.
    #[inline(always)]
    fn set_top(&mut self, top: usize) {
        self.status = self.status & !status::TOP | (top as u16) << status::TOP_SHIFT;
    }

    /// A move was exact.
    #[inline(always)]
    fn moved(&mut self) {
        self.status &= !ROUNDED_UP;
        self.forget_pointers();
    }
}

/// Arithmetic on ST(`first`) with ST(`second`) (`DEPTH` 2), with memory or alone (`DEPTH` 1).
fn compute<const FIRST: u8, const SECOND: u8, const DEPTH: u8, const POP: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let (first, second) = (a.first & 7, a.second & 7);
    if !state.quick(1 << first | 1 << second) {
        return fall_back(state, outside, a);
    }
    run::<FIRST, SECOND, DEPTH, DEPTH>(state, first.into(), second.into(), outside);
    if POP {
        state.pop();
    }
    Ok(())
}

/// Pushes what the host's instruction pushes.
fn load<const FIRST: u8, const SECOND: u8>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    if !state.quick_push() {
        return fall_back(state, outside, a);
    }
    state.push();
    run::<FIRST, SECOND, 0, 1>(state, 0, 0, outside);
    Ok(())
}

/// Stores ST(0) by a host instruction that pops.
fn store<const FIRST: u8, const SECOND: u8, const POP: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    if !state.quick(1) {
        return fall_back(state, outside, a);
    }
    run::<FIRST, SECOND, 1, 0>(state, 0, 0, outside);
    if POP {
        state.pop();
    }
    Ok(())
}

/// Compares ST(0) with ST(`second`) (`DEPTH` 2) or memory; sets RFLAGS where the host's instruction
/// does, else C0, C2 and C3.
fn compare<const FIRST: u8, const SECOND: u8, const DEPTH: u8, const POPS: u8>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    let second = a.second & 7;
    if !state.quick(1 | 1 << second) {
        return fall_back(state, outside, a);
    }
    let before = state.status;
    let left = run::<FIRST, SECOND, DEPTH, DEPTH>(state, 0, second.into(), outside);
    if const { sets_flags(FIRST, SECOND) } {
        flags::set(outside.flags, left.flags & COMPARE);
        // AMD's processors keep C1, Intel's clear it.
        state.status |= before & ROUNDED_UP;
    } else {
        state.status = state.status & !CONDITION | left.status & CONDITION;
    }
    for _ in 0..POPS {
        state.pop();
    }
    Ok(())
}

/// FLD of ten bytes.
fn load_extended(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    if !state.quick_push() {
        return fall_back(state, outside, a);
    }
    state.push();
    state.stack[0] = u128::from_le_bytes(outside.memory.load()) & REGISTER_MASK;
    state.moved();
    Ok(())
}

/// FSTP of ten bytes.
fn store_extended(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    if !state.quick(1) {
        return fall_back(state, outside, a);
    }
    outside.memory.store(state.stack[0].to_le_bytes());
    state.pop();
    state.moved();
    Ok(())
}

/// FLD1 and FLDZ.
fn load_constant<const VALUE: u128>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    if !state.quick_push() {
        return fall_back(state, outside, a);
    }
    state.push();
    state.stack[0] = VALUE;
    state.moved();
    Ok(())
}

/// FLD ST(i).
fn duplicate(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    let from = a.first & 7;
    if !state.quick_push() || !state.quick(1 << from) {
        return fall_back(state, outside, a);
    }
    let value = state.stack[usize::from(from)];
    state.push();
    state.stack[0] = value;
    state.moved();
    Ok(())
}

/// FST ST(i), FSTP ST(i).
fn copy<const POP: bool>(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    if !state.quick(1) {
        return fall_back(state, outside, a);
    }
    let to = usize::from(a.first & 7);
    state.stack[to] = state.stack[0];
    state.tags |= 1 << ((state.top() + to) & 7);
    if POP {
        state.pop();
    }
    state.moved();
    Ok(())
}

/// FXCH.
fn exchange(state: &mut FpState, outside: &mut Outside<'_>, a: Arguments) -> Outcome {
    let with = a.second & 7;
    if !state.quick(1 | 1 << with) {
        return fall_back(state, outside, a);
    }
    state.stack.swap(0, with.into());
    state.moved();
    Ok(())
}

/// FCHS (`CHANGE`) and FABS.
fn sign<const CHANGE: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    a: Arguments,
) -> Outcome {
    if !state.quick(1) {
        return fall_back(state, outside, a);
    }
    let top = &mut state.stack[0];
    *top = if CHANGE { *top ^ SIGN } else { *top & !SIGN };
    state.moved();
    Ok(())
}

/// Returns the quick way of `code`, where there is one. Host instructions on two registers have them in
/// ST(0) and ST(1), those with memory at RCX.
pub(crate) fn lookup(code: Code) -> Option<Run> {
    on_registers(code)
        .or_else(|| with_memory(code))
        .or_else(|| moves(code))
        .or_else(|| comparisons(code))
}

/// Arithmetic of ST(0) and ST(i).
fn on_registers(code: Code) -> Option<Run> {
    let run: Run = match code {
        Code::Fadd_st0_sti | Code::Fadd_sti_st0 => compute::<0xd8, 0xc1, 2, false>,
        Code::Fmul_st0_sti | Code::Fmul_sti_st0 => compute::<0xd8, 0xc9, 2, false>,
        Code::Fsub_st0_sti | Code::Fsub_sti_st0 => compute::<0xd8, 0xe1, 2, false>,
        Code::Fsubr_st0_sti | Code::Fsubr_sti_st0 => compute::<0xd8, 0xe9, 2, false>,
        Code::Fdiv_st0_sti | Code::Fdiv_sti_st0 => compute::<0xd8, 0xf1, 2, false>,
        Code::Fdivr_st0_sti | Code::Fdivr_sti_st0 => compute::<0xd8, 0xf9, 2, false>,
        Code::Faddp_sti_st0 => compute::<0xd8, 0xc1, 2, true>,
        Code::Fmulp_sti_st0 => compute::<0xd8, 0xc9, 2, true>,
        Code::Fsubp_sti_st0 => compute::<0xd8, 0xe1, 2, true>,
        Code::Fsubrp_sti_st0 => compute::<0xd8, 0xe9, 2, true>,
        Code::Fdivp_sti_st0 => compute::<0xd8, 0xf1, 2, true>,
        Code::Fdivrp_sti_st0 => compute::<0xd8, 0xf9, 2, true>,
        Code::Fsqrt => compute::<0xd9, 0xfa, 1, false>,
        Code::Frndint => compute::<0xd9, 0xfc, 1, false>,
        _ => return None,
    };
    Some(run)
}

/// Arithmetic of ST(0) and memory.
fn with_memory(code: Code) -> Option<Run> {
    let run: Run = match code {
        Code::Fadd_m32fp => compute::<0xd8, 0x01, 1, false>,
        Code::Fmul_m32fp => compute::<0xd8, 0x09, 1, false>,
        Code::Fsub_m32fp => compute::<0xd8, 0x21, 1, false>,
        Code::Fsubr_m32fp => compute::<0xd8, 0x29, 1, false>,
        Code::Fdiv_m32fp => compute::<0xd8, 0x31, 1, false>,
        Code::Fdivr_m32fp => compute::<0xd8, 0x39, 1, false>,
        Code::Fadd_m64fp => compute::<0xdc, 0x01, 1, false>,
        Code::Fmul_m64fp => compute::<0xdc, 0x09, 1, false>,
        Code::Fsub_m64fp => compute::<0xdc, 0x21, 1, false>,
        Code::Fsubr_m64fp => compute::<0xdc, 0x29, 1, false>,
        Code::Fdiv_m64fp => compute::<0xdc, 0x31, 1, false>,
        Code::Fdivr_m64fp => compute::<0xdc, 0x39, 1, false>,
        Code::Fiadd_m32int => compute::<0xda, 0x01, 1, false>,
        Code::Fimul_m32int => compute::<0xda, 0x09, 1, false>,
        Code::Fisub_m32int => compute::<0xda, 0x21, 1, false>,
        Code::Fisubr_m32int => compute::<0xda, 0x29, 1, false>,
        Code::Fidiv_m32int => compute::<0xda, 0x31, 1, false>,
        Code::Fidivr_m32int => compute::<0xda, 0x39, 1, false>,
        _ => return None,
    };
    Some(run)
}

/// Loads, stores and moves.
fn moves(code: Code) -> Option<Run> {
    let run: Run = match code {
        Code::Fld_m32fp => load::<0xd9, 0x01>,
        Code::Fld_m64fp => load::<0xdd, 0x01>,
        Code::Fild_m16int => load::<0xdf, 0x01>,
        Code::Fild_m32int => load::<0xdb, 0x01>,
        Code::Fild_m64int => load::<0xdf, 0x29>,
        Code::Fldpi => load::<0xd9, 0xeb>,
        Code::Fldln2 => load::<0xd9, 0xed>,
        Code::Fldlg2 => load::<0xd9, 0xec>,
        Code::Fldl2e => load::<0xd9, 0xea>,
        Code::Fld_m80fp => load_extended,
        Code::Fld1 => load_constant::<ONE>,
        Code::Fldz => load_constant::<0>,
        Code::Fld_sti => duplicate,
        Code::Fst_m32fp => store::<0xd9, 0x19, false>,
        Code::Fstp_m32fp => store::<0xd9, 0x19, true>,
        Code::Fst_m64fp => store::<0xdd, 0x19, false>,
        Code::Fstp_m64fp => store::<0xdd, 0x19, true>,
        Code::Fist_m32int => store::<0xdb, 0x19, false>,
        Code::Fistp_m32int => store::<0xdb, 0x19, true>,
        Code::Fistp_m64int => store::<0xdf, 0x39, true>,
        Code::Fisttp_m32int => store::<0xdb, 0x09, true>,
        Code::Fisttp_m64int => store::<0xdd, 0x09, true>,
        Code::Fstp_m80fp => store_extended,
        Code::Fst_sti => copy::<false>,
        Code::Fstp_sti => copy::<true>,
        Code::Fxch_st0_sti => exchange,
        Code::Fchs => sign::<true>,
        Code::Fabs => sign::<false>,
        _ => return None,
    };
    Some(run)
}

/// Comparisons.
fn comparisons(code: Code) -> Option<Run> {
    let run: Run = match code {
        Code::Fcomi_st0_sti => compare::<0xdb, 0xf1, 2, 0>,
        Code::Fcomip_st0_sti => compare::<0xdb, 0xf1, 2, 1>,
        Code::Fucomi_st0_sti => compare::<0xdb, 0xe9, 2, 0>,
        Code::Fucomip_st0_sti => compare::<0xdb, 0xe9, 2, 1>,
        Code::Fcom_st0_sti => compare::<0xd8, 0xd1, 2, 0>,
        Code::Fcomp_st0_sti => compare::<0xd8, 0xd1, 2, 1>,
        Code::Fucom_st0_sti => compare::<0xdd, 0xe1, 2, 0>,
        Code::Fucomp_st0_sti => compare::<0xdd, 0xe1, 2, 1>,
        Code::Fcom_m64fp => compare::<0xdc, 0x11, 1, 0>,
        Code::Fcomp_m64fp => compare::<0xdc, 0x11, 1, 1>,
        Code::Ftst => compare::<0xd9, 0xe4, 1, 0>,
        _ => return None,
    };
    Some(run)
}
