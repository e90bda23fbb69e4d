//! IMUL, BT and its kin, BSF, BSR, POPCNT, BSWAP.

use std::marker::PhantomData;

use super::alu::set_lazy;
use super::{Address, Any, Sized1, Sized2, go, load_again, store_again};
use crate::interp::flags::{CF, OF, kind, of_result};
use crate::interp::op::{At, Handler, Size};
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

fn reg_reg<T: Size>(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    let (a, b) = (cpu.get::<T>(at.op().a), cpu.get::<T>(at.op().b));
    let result = product(cpu, a, b);
    cpu.set(at.op().a, result);
    go(cpu, env, at, budget)
}

fn reg_mem<A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
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

fn reg_imm<T: Size>(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
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

/// BT of a register; the bit is a register's, or the immediate.
pub(in crate::interp) struct BitTest<const IMMEDIATE: bool>;

fn bit_test<const IMMEDIATE: bool, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
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

/// BTS, BTR, BTC.
pub(in crate::interp) trait Change {
    fn change(a: u64, bit: u64) -> u64;
}

pub(in crate::interp) struct Set;
pub(in crate::interp) struct Reset;
pub(in crate::interp) struct Complement;

impl Change for Set {
    #[inline(always)]
    fn change(a: u64, bit: u64) -> u64 {
        a | bit
    }
}

impl Change for Reset {
    #[inline(always)]
    fn change(a: u64, bit: u64) -> u64 {
        a & !bit
    }
}

impl Change for Complement {
    #[inline(always)]
    fn change(a: u64, bit: u64) -> u64 {
        a ^ bit
    }
}

/// BTS and its kin on a register; the bit is a register's, or the immediate.
pub(in crate::interp) struct BitChange<O, const IMMEDIATE: bool>(PhantomData<O>);
/// The same on memory, as one step for all processors.
pub(in crate::interp) struct BitChangeMemory<O, const IMMEDIATE: bool>(PhantomData<O>);
/// BT of memory.
pub(in crate::interp) struct BitTestMemory<const IMMEDIATE: bool>;

#[inline(always)]
fn bit_number<const IMMEDIATE: bool, T: Size>(cpu: &Cpu, at: At) -> i64 {
    match IMMEDIATE {
        true => at.op().immediate as i64 & i64::from(T::BITS - 1),
        false => cpu.get::<T>(at.op().b).signed(),
    }
}

/// Address of the operand that has a bit: a number in a register reaches beyond the first.
#[inline(always)]
fn bit_place<T: Size>(cpu: &Cpu, at: At, number: i64) -> u64 {
    let bytes = number >> (3 + T::LOG) << T::LOG;
    Any::of(cpu, at).wrapping_add(bytes as u64)
}

fn bit_change<O: Change, const IMMEDIATE: bool, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let shift = bit_number::<IMMEDIATE, T>(cpu, at) as u32 & (T::BITS - 1);
    let a = cpu.get::<T>(at.op().a).wide();
    cpu.set(at.op().a, T::cut(O::change(a, 1 << shift)));
    cpu.set_carry_and_overflow(a >> shift & 1);
    go(cpu, env, at, budget)
}

fn bit_change_memory<O: Change, const IMMEDIATE: bool, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let number = bit_number::<IMMEDIATE, T>(cpu, at);
    let linear = bit_place::<T>(cpu, at, number);
    let shift = number as u32 & (T::BITS - 1);
    let change = |a: T| T::cut(O::change(a.wide(), 1 << shift));
    let Some(a) = cpu.change_fast(linear, change) else {
        return store_again::<T>(cpu, env, at, budget, linear);
    };
    cpu.set_carry_and_overflow(a.wide() >> shift & 1);
    go(cpu, env, at, budget)
}

fn bit_test_memory<const IMMEDIATE: bool, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let number = bit_number::<IMMEDIATE, T>(cpu, at);
    let linear = bit_place::<T>(cpu, at, number);
    let Some(a) = cpu.load_fast::<T>(linear) else {
        return load_again::<T>(cpu, env, at, budget, linear);
    };
    cpu.set_carry_and_overflow(a.wide() >> (number as u32 & (T::BITS - 1)) & 1);
    go(cpu, env, at, budget)
}

impl<O: Change, const IMMEDIATE: bool> Sized1 for BitChange<O, IMMEDIATE> {
    fn handler<T: Size>() -> Handler {
        bit_change::<O, IMMEDIATE, T>
    }
}

impl<O: Change, const IMMEDIATE: bool> Sized1 for BitChangeMemory<O, IMMEDIATE> {
    fn handler<T: Size>() -> Handler {
        bit_change_memory::<O, IMMEDIATE, T>
    }
}

impl<const IMMEDIATE: bool> Sized1 for BitTestMemory<IMMEDIATE> {
    fn handler<T: Size>() -> Handler {
        bit_test_memory::<IMMEDIATE, T>
    }
}

/// POPCNT of a register.
pub(in crate::interp) struct Count;

fn ones<T: Size>(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    let value = cpu.get::<T>(at.op().b).wide();
    cpu.set(at.op().a, T::cut(value.count_ones().into()));
    cpu.settle_flags();
    cpu.set_status(u64::from(value == 0) << 6);
    go(cpu, env, at, budget)
}

impl Sized1 for Count {
    fn handler<T: Size>() -> Handler {
        ones::<T>
    }
}

/// BSWAP.
pub(in crate::interp) struct Swap;

fn swap<T: Size>(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
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
    env: &mut &mut dyn Environment,
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
