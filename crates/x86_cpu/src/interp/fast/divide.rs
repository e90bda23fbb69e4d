//! MUL and IMUL of the accumulator, DIV, IDIV: 32 and 64 bits.

use super::alu::set_lazy;
use super::{Address, Any, go, load_again, slow};
use crate::interp::flags::{CF, OF, kind};
use crate::interp::op::{At, Handler, Size};
use crate::interp::operand::{RAX, RDX};
use crate::{Cpu, Environment};

/// What is done with the accumulator and the operand; `false` where it faults.
trait Double {
    fn apply<T: Size>(cpu: &mut Cpu, b: T) -> bool;
}

/// IMUL where `SIGNED`, else MUL.
struct Product<const SIGNED: bool>;

/// IDIV where `SIGNED`, else DIV. Only what needs no more than 64 bits: the rest is rare.
struct Quotient<const SIGNED: bool>;

const ACCUMULATOR: u8 = (RAX * 8) as u8;
const UPPER: u8 = (RDX * 8) as u8;

impl<const SIGNED: bool> Double for Product<SIGNED> {
    #[inline(always)]
    fn apply<T: Size>(cpu: &mut Cpu, b: T) -> bool {
        let a = cpu.get::<T>(ACCUMULATOR);
        let product = match SIGNED {
            true => (i128::from(a.signed()) * i128::from(b.signed())) as u128,
            false => u128::from(a.wide()) * u128::from(b.wide()),
        };
        let (low, high) = (T::cut(product as u64), T::cut((product >> T::BITS) as u64));
        let empty = match SIGNED {
            true => T::cut((low.signed() >> 63) as u64),
            false => T::cut(0),
        };
        cpu.set(ACCUMULATOR, low);
        cpu.set(UPPER, high);
        let carry = if high == empty { 0 } else { CF | OF };
        set_lazy(cpu, kind::RESULT, low, carry);
        true
    }
}

impl<const SIGNED: bool> Double for Quotient<SIGNED> {
    #[inline(always)]
    fn apply<T: Size>(cpu: &mut Cpu, b: T) -> bool {
        let (low, high) = (cpu.get::<T>(ACCUMULATOR), cpu.get::<T>(UPPER));
        let dividend = match T::BITS {
            32 => high.wide() << 32 | low.wide(),
            _ => {
                let empty = if SIGNED { low.signed() >> 63 } else { 0 };
                if high.signed() != empty {
                    return false;
                }
                low.wide()
            }
        };
        let results = match SIGNED {
            true => signed_quotient(dividend as i64, b.signed()),
            false => unsigned_quotient(dividend, b.wide()),
        };
        let Some((quotient, remainder)) = results else {
            return false;
        };
        let fits = match SIGNED {
            true => T::cut(quotient).signed() as u64 == quotient,
            false => T::cut(quotient).wide() == quotient,
        };
        if fits {
            cpu.set(ACCUMULATOR, T::cut(quotient));
            cpu.set(UPPER, T::cut(remainder));
        }
        fits
    }
}

#[inline(always)]
fn signed_quotient(a: i64, b: i64) -> Option<(u64, u64)> {
    Some((a.checked_div(b)? as u64, a.checked_rem(b)? as u64))
}

#[inline(always)]
fn unsigned_quotient(a: u64, b: u64) -> Option<(u64, u64)> {
    Some((a.checked_div(b)?, a.checked_rem(b)?))
}

fn register<O: Double, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let b = cpu.get::<T>(at.op().a);
    match O::apply(cpu, b) {
        true => go(cpu, env, at, budget),
        false => slow(cpu, env, at, budget),
    }
}

fn memory<O: Double, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = Any::of(cpu, at);
    let Some(b) = cpu.load_fast::<T>(linear) else {
        return load_again::<T>(cpu, env, at, budget, linear);
    };
    match O::apply(cpu, b) {
        true => go(cpu, env, at, budget),
        false => slow(cpu, env, at, budget),
    }
}

fn of<O: Double>(size: u32, in_memory: bool) -> Option<Handler> {
    Some(match (size, in_memory) {
        (4, false) => register::<O, u32>,
        (4, true) => memory::<O, u32>,
        (8, false) => register::<O, u64>,
        (8, true) => memory::<O, u64>,
        _ => return None,
    })
}

/// Picks the handler of MUL or IMUL of the accumulator.
pub(in crate::interp) fn product(signed: bool, size: u32, in_memory: bool) -> Option<Handler> {
    match signed {
        true => of::<Product<true>>(size, in_memory),
        false => of::<Product<false>>(size, in_memory),
    }
}

/// Picks the handler of DIV or IDIV.
pub(in crate::interp) fn quotient(signed: bool, size: u32, in_memory: bool) -> Option<Handler> {
    match signed {
        true => of::<Quotient<true>>(size, in_memory),
        false => of::<Quotient<false>>(size, in_memory),
    }
}
