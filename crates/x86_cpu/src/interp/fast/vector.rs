//! The hottest SSE instructions: moves, logic, integer lanes, scalar numbers.
//!
//! Their registers are numbers, not offsets.

use std::marker::PhantomData;

use x86_fp::fast as lanes;

use super::{Address, go, load_again, slow, store_again};
use crate::interp::flags::{CF, PF, STATUS, ZF};
use crate::interp::op::{At, Handler, Size};
use crate::{Cpu, Environment};

impl Cpu {
    #[inline(always)]
    fn xmm(&self, number: u8) -> u128 {
        self.fp.xmm[usize::from(number & 15)]
    }

    #[inline(always)]
    fn set_xmm(&mut self, number: u8, value: u128) {
        self.fp.xmm[usize::from(number & 15)] = value;
    }
}

/// Handlers with a second operand in a register, or in memory.
pub(in crate::interp) trait Pair {
    fn in_register() -> Handler;
    fn in_memory<A: Address>() -> Handler;
}

/// An operation on two vectors.
pub(in crate::interp) trait Lanes {
    fn apply(first: u128, second: u128) -> u128;
}

macro_rules! lanes {
    ($($name:ident = $function:path;)*) => {
        $(
            pub(in crate::interp) struct $name;

            impl Lanes for $name {
                #[inline(always)]
                fn apply(first: u128, second: u128) -> u128 {
                    $function(first, second)
                }
            }
        )*
    };
}

lanes! {
    And = lanes::pand;
    AndNot = lanes::pandn;
    Or = lanes::por;
    Xor = lanes::pxor;
    EqualBytes = lanes::pcmpeqb;
    EqualWords = lanes::pcmpeqw;
    EqualDoubles = lanes::pcmpeqd;
    AddBytes = lanes::paddb;
    AddWords = lanes::paddw;
    AddDoubles = lanes::paddd;
    AddQuads = lanes::paddq;
    SubBytes = lanes::psubb;
    SubDoubles = lanes::psubd;
    SubQuads = lanes::psubq;
    MinBytes = lanes::pminub;
    MaxBytes = lanes::pmaxub;
    MultiplyDoubles = lanes::pmuludq;
    InterleaveBytes = lanes::punpcklbw;
    InterleaveWords = lanes::punpcklwd;
    InterleaveDoubles = lanes::punpckldq;
    InterleaveQuads = lanes::punpcklqdq;
    InterleaveHighQuads = lanes::punpckhqdq;
}

/// Handlers of [`Lanes`].
pub(in crate::interp) struct OnLanes<O>(PhantomData<O>);

impl<O: Lanes> Pair for OnLanes<O> {
    fn in_register() -> Handler {
        lanes_reg::<O>
    }
    fn in_memory<A: Address>() -> Handler {
        lanes_load::<O, A>
    }
}

fn lanes_reg<O: Lanes>(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    if !cpu.interp.fp_ready {
        return slow(cpu, env, at, budget);
    }
    let result = O::apply(cpu.xmm(at.op().a), cpu.xmm(at.op().b));
    cpu.set_xmm(at.op().a, result);
    go(cpu, env, at, budget)
}

fn lanes_load<O: Lanes, A: Address>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    match cpu.load_fast::<u128>(linear) {
        Some(second) if linear & 15 == 0 && cpu.interp.fp_ready => {
            let result = O::apply(cpu.xmm(at.op().a), second);
            cpu.set_xmm(at.op().a, result);
            go(cpu, env, at, budget)
        }
        _ => load_again::<u128>(cpu, env, at, budget, linear),
    }
}

/// Whole-register moves; `ALIGNED` checks the address.
pub(in crate::interp) struct Move<const ALIGNED: bool>;

impl<const ALIGNED: bool> Pair for Move<ALIGNED> {
    fn in_register() -> Handler {
        move_reg
    }
    fn in_memory<A: Address>() -> Handler {
        move_load::<A, ALIGNED>
    }
}

fn move_reg(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    if !cpu.interp.fp_ready {
        return slow(cpu, env, at, budget);
    }
    let value = cpu.xmm(at.op().b);
    cpu.set_xmm(at.op().a, value);
    go(cpu, env, at, budget)
}

fn move_load<A: Address, const ALIGNED: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    match cpu.load_fast::<u128>(linear) {
        Some(value) if (!ALIGNED || linear & 15 == 0) && cpu.interp.fp_ready => {
            cpu.set_xmm(at.op().a, value);
            go(cpu, env, at, budget)
        }
        _ => load_again::<u128>(cpu, env, at, budget, linear),
    }
}

/// Whole register to memory.
pub(in crate::interp) fn move_store<A: Address, const ALIGNED: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    let placed = (!ALIGNED || linear & 15 == 0) && cpu.interp.fp_ready;
    let value = cpu.xmm(at.op().b);
    if placed && cpu.store_fast(linear, value) {
        return go(cpu, env, at, budget);
    }
    match placed {
        true => store_again::<u128>(cpu, env, at, budget, linear),
        false => slow(cpu, env, at, budget),
    }
}

/// MOVQ, MOVD, MOVSD, MOVSS from memory: the rest becomes zero.
pub(in crate::interp) fn low_load<A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    match cpu.load_fast::<T>(linear) {
        Some(value) if cpu.interp.fp_ready => {
            cpu.set_xmm(at.op().a, value.wide().into());
            go(cpu, env, at, budget)
        }
        _ => load_again::<T>(cpu, env, at, budget, linear),
    }
}

/// MOVQ, MOVD, MOVSD, MOVSS to memory.
pub(in crate::interp) fn low_store<A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let value = T::cut(cpu.xmm(at.op().b) as u64);
    let (linear, ready) = (A::of(cpu, at), cpu.interp.fp_ready);
    if ready && cpu.store_fast(linear, value) {
        return go(cpu, env, at, budget);
    }
    match ready {
        true => store_again::<T>(cpu, env, at, budget, linear),
        false => slow(cpu, env, at, budget),
    }
}

/// MOVQ and MOVD from a general register.
pub(in crate::interp) fn from_general<T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    if !cpu.interp.fp_ready {
        return slow(cpu, env, at, budget);
    }
    let value = cpu.get::<T>(at.op().b).wide();
    cpu.set_xmm(at.op().a, value.into());
    go(cpu, env, at, budget)
}

/// MOVQ and MOVD to a general register.
pub(in crate::interp) fn to_general<T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    if !cpu.interp.fp_ready {
        return slow(cpu, env, at, budget);
    }
    let value = T::cut(cpu.xmm(at.op().b) as u64);
    cpu.set(at.op().a, value);
    go(cpu, env, at, budget)
}

/// PMOVMSKB.
pub(in crate::interp) fn byte_signs(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    if !cpu.interp.fp_ready {
        return slow(cpu, env, at, budget);
    }
    let mask = lanes::pmovmskb(cpu.xmm(at.op().b));
    cpu.set(at.op().a, mask as u32);
    go(cpu, env, at, budget)
}

/// An operation on the low numbers of two registers; `None` where only the full way is right.
pub(in crate::interp) trait Scalar {
    type Bits: Size;
    fn apply(mxcsr: u32, first: Self::Bits, second: Self::Bits) -> Option<Self::Bits>;
}

macro_rules! scalars {
    ($($name:ident: $bits:ty = $function:path;)*) => {
        $(
            pub(in crate::interp) struct $name;

            impl Scalar for $name {
                type Bits = $bits;
                #[inline(always)]
                fn apply(mxcsr: u32, first: $bits, second: $bits) -> Option<$bits> {
                    $function(mxcsr, first, second)
                }
            }
        )*
    };
}

scalars! {
    AddF64: u64 = lanes::addsd;
    SubF64: u64 = lanes::subsd;
    MulF64: u64 = lanes::mulsd;
    DivF64: u64 = lanes::divsd;
    AddF32: u32 = lanes::addss;
    SubF32: u32 = lanes::subss;
    MulF32: u32 = lanes::mulss;
    DivF32: u32 = lanes::divss;
}

/// Handlers of [`Scalar`].
pub(in crate::interp) struct OnScalars<O>(PhantomData<O>);

impl<O: Scalar> Pair for OnScalars<O> {
    fn in_register() -> Handler {
        scalar_reg::<O>
    }
    fn in_memory<A: Address>() -> Handler {
        scalar_load::<O, A>
    }
}

#[inline(always)]
fn scalar<O: Scalar>(cpu: &mut Cpu, at: At, second: O::Bits) -> bool {
    let whole = cpu.xmm(at.op().a);
    let first = O::Bits::cut(whole as u64);
    match O::apply(cpu.fp.mxcsr, first, second) {
        Some(result) if cpu.interp.fp_ready => {
            let upper = whole >> O::Bits::BITS << O::Bits::BITS;
            cpu.set_xmm(at.op().a, upper | u128::from(result.wide()));
            true
        }
        _ => false,
    }
}

fn scalar_reg<O: Scalar>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let second = O::Bits::cut(cpu.xmm(at.op().b) as u64);
    match scalar::<O>(cpu, at, second) {
        true => go(cpu, env, at, budget),
        false => slow(cpu, env, at, budget),
    }
}

fn scalar_load<O: Scalar, A: Address>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let done = match cpu.load_fast::<O::Bits>(A::of(cpu, at)) {
        Some(second) => scalar::<O>(cpu, at, second),
        None => false,
    };
    match done {
        true => go(cpu, env, at, budget),
        false => slow(cpu, env, at, budget),
    }
}

/// UCOMISD and COMISD of two registers.
pub(in crate::interp) fn compare_f64(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let (first, second) = (cpu.xmm(at.op().a) as u64, cpu.xmm(at.op().b) as u64);
    match lanes::comisd(first, second) {
        Some(flags) if cpu.interp.fp_ready => {
            cpu.settle_flags();
            cpu.rflags = (cpu.rflags & !STATUS) | (flags & (CF | PF | ZF));
            go(cpu, env, at, budget)
        }
        _ => slow(cpu, env, at, budget),
    }
}
