//! Changes of memory that are one step for all processors: LOCK forms, XCHG, XADD, CMPXCHG.
//!
//! Forms without LOCK that have a handler here are one step too; nobody can tell.

use std::marker::PhantomData;

use super::alu::{Add, Alu, Sub, Unary};
use super::{Address, Any, Sized1, go, slow, store_again};
use crate::interp::flags::ZF;
use crate::interp::op::{At, Handler, Size};
use crate::interp::operand::{RAX, RBX, RCX, RDX};
use crate::{Cpu, Environment};

/// Memory, register.
pub(in crate::interp) struct LockedReg<O>(PhantomData<O>);
/// Memory, immediate.
pub(in crate::interp) struct LockedImm<O>(PhantomData<O>);
/// Memory alone.
pub(in crate::interp) struct LockedOne<O>(PhantomData<O>);
/// XCHG of memory with a register.
pub(in crate::interp) struct Swap;
/// XADD.
pub(in crate::interp) struct ExchangeAdd;
/// CMPXCHG.
pub(in crate::interp) struct CompareExchange;

#[inline(always)]
fn change_by<O: Alu, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
    b: T,
) -> i64 {
    let linear = Any::of(cpu, at);
    let Some(a) = cpu.change_fast(linear, |a: T| O::result(cpu, a, b)) else {
        return store_again::<T>(cpu, env, at, budget, linear);
    };
    let result = O::result(cpu, a, b);
    O::flags(cpu, a, b, result);
    go(cpu, env, at, budget)
}

fn locked_reg<O: Alu, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let b = cpu.get::<T>(at.op().b);
    change_by::<O, T>(cpu, env, at, budget, b)
}

fn locked_imm<O: Alu, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let b = T::cut(at.op().immediate);
    change_by::<O, T>(cpu, env, at, budget, b)
}

fn locked_one<O: Unary, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = Any::of(cpu, at);
    let Some(a) = cpu.change_fast(linear, |a: T| O::result(a)) else {
        return store_again::<T>(cpu, env, at, budget, linear);
    };
    O::flags(cpu, a, O::result(a));
    go(cpu, env, at, budget)
}

fn swap<T: Size>(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    let (linear, b) = (Any::of(cpu, at), cpu.get::<T>(at.op().b));
    let Some(a) = cpu.change_fast(linear, |_: T| b) else {
        return store_again::<T>(cpu, env, at, budget, linear);
    };
    cpu.set(at.op().b, a);
    go(cpu, env, at, budget)
}

fn exchange_add<T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let (linear, b) = (Any::of(cpu, at), cpu.get::<T>(at.op().b));
    let Some(a) = cpu.change_fast(linear, |a: T| Add::result(cpu, a, b)) else {
        return store_again::<T>(cpu, env, at, budget, linear);
    };
    let sum = Add::result(cpu, a, b);
    Add::flags(cpu, a, b, sum);
    cpu.set(at.op().b, a);
    go(cpu, env, at, budget)
}

fn compare_exchange<T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let (linear, new) = (Any::of(cpu, at), cpu.get::<T>(at.op().b));
    let expected = T::cut(cpu.general[RAX]);
    let change = |old: T| if old == expected { new } else { old };
    let Some(old) = cpu.change_fast(linear, change) else {
        return store_again::<T>(cpu, env, at, budget, linear);
    };
    let difference = Sub::result(cpu, expected, old);
    Sub::flags(cpu, expected, old, difference);
    if old != expected {
        cpu.set((RAX * 8) as u8, old);
    }
    go(cpu, env, at, budget)
}

/// CMPXCHG16B.
pub(in crate::interp) fn compare_exchange_pair(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let joined = |low: u64, high: u64| u128::from(high) << 64 | u128::from(low);
    let linear = Any::of(cpu, at);
    if linear & 15 != 0 || cpu.get::<u64>(at.op().segment) & 15 != 0 {
        return slow(cpu, env, at, budget);
    }
    let expected = joined(cpu.general[RAX], cpu.general[RDX]);
    let new = joined(cpu.general[RBX], cpu.general[RCX]);
    let change = |old: u128| if old == expected { new } else { old };
    let Some(old) = cpu.change_fast(linear, change) else {
        return store_again::<u128>(cpu, env, at, budget, linear);
    };
    cpu.settle_flags();
    if old == expected {
        cpu.rflags |= ZF;
    } else {
        cpu.rflags &= !ZF;
        (cpu.general[RAX], cpu.general[RDX]) = (old as u64, (old >> 64) as u64);
    }
    go(cpu, env, at, budget)
}

impl<O: Alu> Sized1 for LockedReg<O> {
    fn handler<T: Size>() -> Handler {
        locked_reg::<O, T>
    }
}

impl<O: Alu> Sized1 for LockedImm<O> {
    fn handler<T: Size>() -> Handler {
        locked_imm::<O, T>
    }
}

impl<O: Unary> Sized1 for LockedOne<O> {
    fn handler<T: Size>() -> Handler {
        locked_one::<O, T>
    }
}

impl Sized1 for Swap {
    fn handler<T: Size>() -> Handler {
        swap::<T>
    }
}

impl Sized1 for ExchangeAdd {
    fn handler<T: Size>() -> Handler {
        exchange_add::<T>
    }
}

impl Sized1 for CompareExchange {
    fn handler<T: Size>() -> Handler {
        compare_exchange::<T>
    }
}
