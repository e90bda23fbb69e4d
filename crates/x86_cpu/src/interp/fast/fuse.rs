//! CMP or TEST and the conditional branch behind it, as one op.
//!
//! The branch keeps its own op right behind, which has the links, and which goes on where memory did
//! not answer and the comparison was executed from its decoded form.

use std::marker::PhantomData;

use super::alu::{Alu, Cmp, Test};
use super::flow::{ByCondition, Condition, count, follow};
use super::{Address, Any, load_again};
use crate::interp::op::{At, Handler, Size};
use crate::{Cpu, Environment};

/// CMP or TEST.
pub(in crate::interp) trait Compare: Alu {
    fn holds<C: Condition, T: Size>(a: T, b: T) -> bool;
}

impl Compare for Cmp {
    #[inline(always)]
    fn holds<C: Condition, T: Size>(a: T, b: T) -> bool {
        C::compared(a, b)
    }
}

impl Compare for Test {
    #[inline(always)]
    fn holds<C: Condition, T: Size>(a: T, b: T) -> bool {
        C::tested(T::cut(a.wide() & b.wide()))
    }
}

#[inline(always)]
fn decide<O: Compare, C: Condition, T: Size, const WITHIN: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    (a, b): (T, T),
    budget: i64,
) -> i64 {
    let result = O::result(cpu, a, b);
    O::flags(cpu, a, b, result);
    let branch = at.next();
    let budget = budget - count(branch);
    match O::holds::<C, T>(a, b) {
        true => follow::<WITHIN>(cpu, env, branch, 1, budget),
        false => follow::<WITHIN>(cpu, env, branch, 2, budget),
    }
}

#[inline(always)]
pub(super) fn reg_reg<O: Compare, C: Condition, T: Size, const WITHIN: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let values = (cpu.get::<T>(at.op().a), cpu.get::<T>(at.op().b));
    decide::<O, C, T, WITHIN>(cpu, env, at, values, budget)
}

#[inline(always)]
pub(super) fn reg_imm<O: Compare, C: Condition, T: Size, const WITHIN: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let values = (cpu.get::<T>(at.op().a), T::cut(at.op().immediate));
    decide::<O, C, T, WITHIN>(cpu, env, at, values, budget)
}

#[inline(always)]
pub(super) fn mem_imm<O: Compare, C: Condition, T: Size, const WITHIN: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = Any::of(cpu, at);
    let Some(a) = cpu.load_fast::<T>(linear) else {
        return load_again::<T>(cpu, env, at, budget, linear);
    };
    decide::<O, C, T, WITHIN>(cpu, env, at, (a, T::cut(at.op().immediate)), budget)
}

fn mem_reg<O: Compare, C: Condition, T: Size, const WITHIN: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = Any::of(cpu, at);
    let Some(a) = cpu.load_fast::<T>(linear) else {
        return load_again::<T>(cpu, env, at, budget, linear);
    };
    let b = cpu.get::<T>(at.op().b);
    decide::<O, C, T, WITHIN>(cpu, env, at, (a, b), budget)
}

pub(super) fn reg_mem<O: Compare, C: Condition, T: Size, const WITHIN: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = Any::of(cpu, at);
    let Some(b) = cpu.load_fast::<T>(linear) else {
        return load_again::<T>(cpu, env, at, budget, linear);
    };
    let a = cpu.get::<T>(at.op().a);
    decide::<O, C, T, WITHIN>(cpu, env, at, (a, b), budget)
}

/// Kinds of the comparison's operands.
pub(in crate::interp) trait Shape {
    fn handler<O: Compare, C: Condition, T: Size, const WITHIN: bool>() -> Handler;
}

/// Register, register.
pub(in crate::interp) struct RegReg;
/// Register, immediate.
pub(in crate::interp) struct RegImm;
/// Register, memory.
pub(in crate::interp) struct RegMem;
/// Memory, register.
pub(in crate::interp) struct MemReg;
/// Memory, immediate.
pub(in crate::interp) struct MemImm;

impl Shape for RegReg {
    fn handler<O: Compare, C: Condition, T: Size, const WITHIN: bool>() -> Handler {
        reg_reg::<O, C, T, WITHIN>
    }
}

impl Shape for RegImm {
    fn handler<O: Compare, C: Condition, T: Size, const WITHIN: bool>() -> Handler {
        reg_imm::<O, C, T, WITHIN>
    }
}

impl Shape for RegMem {
    fn handler<O: Compare, C: Condition, T: Size, const WITHIN: bool>() -> Handler {
        reg_mem::<O, C, T, WITHIN>
    }
}

impl Shape for MemReg {
    fn handler<O: Compare, C: Condition, T: Size, const WITHIN: bool>() -> Handler {
        mem_reg::<O, C, T, WITHIN>
    }
}

impl Shape for MemImm {
    fn handler<O: Compare, C: Condition, T: Size, const WITHIN: bool>() -> Handler {
        mem_imm::<O, C, T, WITHIN>
    }
}

/// A comparison of which only the condition is open, with links within the page or not.
pub(in crate::interp) struct Pick<S, O, T, const WITHIN: bool>(PhantomData<(S, O, T)>);

impl<S: Shape, O: Compare, T: Size, const WITHIN: bool> ByCondition for Pick<S, O, T, WITHIN> {
    fn handler<C: Condition>() -> Handler {
        S::handler::<O, C, T, WITHIN>()
    }
}
