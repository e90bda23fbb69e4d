//! IMUL, MUL, BT, BSF, BSR, BSWAP.

use super::alu::set_lazy;
use super::{Address, Sized1, Sized2, go, load_again};
use crate::interp::flags::{CF, OF, kind, of_result};
use crate::interp::op::{At, Handler, Size};
use crate::interp::operand::{RAX, RDX};
use crate::{Cpu, Environment};

/// The low half and the flags of a signed product.
#[inline(always)]
fn product<T: Size>(cpu: &mut Cpu, a: T, b: T) -> T {
    let (low, overflow) = if T::BITS == 64 {
        a.signed().overflowing_mul(b.signed())
    } else {
        let product = a.signed() * b.signed();
        (product, T::cut(product as u64).signed() != product)
    };
    let result = T::cut(low as u64);
    let carry = if overflow { CF | OF } else { 0 };
    set_lazy(cpu, kind::RESULT, result, carry);
    result
}

/// Register times register.
pub(in crate::interp) struct Multiply;
/// Register times memory.
pub(in crate::interp) struct MultiplyLoad;
/// Second register times the immediate, into the first.
pub(in crate::interp) struct MultiplyImm;

fn reg_reg<T: Size>(cpu: &mut Cpu, env: &mut dyn Environment, at: At, budget: i64) -> i64 {
    let (a, b) = (cpu.get::<T>(at.op().a), cpu.get::<T>(at.op().b));
    let result = product(cpu, a, b);
    cpu.set(at.op().a, result);
    go(cpu, env, at, budget)
}

fn reg_mem<A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    let Some(b) = cpu.load_fast::<T>(linear) else {
        return load_again::<T>(cpu, env, at, budget, linear);
    };
    let a = cpu.get::<T>(at.op().a);
    let result = product(cpu, a, b);
    cpu.set(at.op().a, result);
    go(cpu, env, at, budget)
}

fn reg_imm<T: Size>(cpu: &mut Cpu, env: &mut dyn Environment, at: At, budget: i64) -> i64 {
    let a = cpu.get::<T>(at.op().b);
    let result = product(cpu, a, T::cut(at.op().immediate));
    cpu.set(at.op().a, result);
    go(cpu, env, at, budget)
}

impl Sized1 for Multiply {
    fn handler<T: Size>() -> Handler {
        reg_reg::<T>
    }
}

impl Sized2 for MultiplyLoad {
    fn handler<A: Address, T: Size>() -> Handler {
        reg_mem::<A, T>
    }
}

impl Sized1 for MultiplyImm {
    fn handler<T: Size>() -> Handler {
        reg_imm::<T>
    }
}

/// MUL of a 64-bit register.
pub(in crate::interp) fn multiply_wide(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let b = cpu.get::<u64>(at.op().a);
    let product = u128::from(cpu.general[RAX]) * u128::from(b);
    let (low, high) = (product as u64, (product >> 64) as u64);
    (cpu.general[RAX], cpu.general[RDX]) = (low, high);
    let carry = if high != 0 { CF | OF } else { 0 };
    set_lazy(cpu, kind::RESULT, low, carry);
    go(cpu, env, at, budget)
}

/// BT of a register; the bit is a register's, or the immediate.
pub(in crate::interp) struct BitTest<const IMMEDIATE: bool>;

fn bit_test<const IMMEDIATE: bool, T: Size>(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let number = match IMMEDIATE {
        true => at.op().immediate,
        false => cpu.get::<u64>(at.op().b),
    };
    let bit = cpu.get::<T>(at.op().a).wide() >> (number as u32 & (T::BITS - 1)) & 1;
    // OF is undefined.
    cpu.set_carry_and_overflow(bit);
    go(cpu, env, at, budget)
}

impl<const IMMEDIATE: bool> Sized1 for BitTest<IMMEDIATE> {
    fn handler<T: Size>() -> Handler {
        bit_test::<IMMEDIATE, T>
    }
}

/// BSWAP.
pub(in crate::interp) struct Swap;

fn swap<T: Size>(cpu: &mut Cpu, env: &mut dyn Environment, at: At, budget: i64) -> i64 {
    let value = cpu.get::<T>(at.op().a).wide();
    let swapped = value.swap_bytes() >> (64 - T::BITS);
    cpu.set(at.op().a, T::cut(swapped));
    go(cpu, env, at, budget)
}

impl Sized1 for Swap {
    fn handler<T: Size>() -> Handler {
        swap::<T>
    }
}

/// BSF; BSR where `REVERSE`.
pub(in crate::interp) struct Scan<const REVERSE: bool>;

fn scan<const REVERSE: bool, T: Size>(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let value = cpu.get::<T>(at.op().b).wide();
    if value == 0 {
        return super::generic(cpu, env, at, budget);
    }
    let number = match REVERSE {
        true => 63 - value.leading_zeros(),
        false => value.trailing_zeros(),
    };
    let number = T::cut(number.into());
    cpu.set(at.op().a, number);
    // The other flags follow the result, as they do in the decoded form, but ZF is clear: a result
    // that is not zero with the same parity and sign stands for it.
    let even = of_result(number.wide(), 1) & 4 != 0;
    set_lazy(cpu, kind::RESULT, T::cut(if even { 3 } else { 1 }), 0);
    go(cpu, env, at, budget)
}

impl<const REVERSE: bool> Sized1 for Scan<REVERSE> {
    fn handler<T: Size>() -> Handler {
        scan::<REVERSE, T>
    }
}
