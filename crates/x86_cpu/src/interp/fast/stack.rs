//! PUSH, POP, LEAVE of 64 bits.

use super::{Address, go, load_again, slow, store_again};
use crate::interp::op::At;
use crate::interp::operand::{RBP, RSP};
use crate::{Cpu, Environment};

#[inline(always)]
fn push_value(cpu: &mut Cpu, value: u64) -> bool {
    let stack = cpu.stack_pointer().wrapping_sub(8);
    let stored = cpu.store_fast(stack, value);
    if stored {
        cpu.general[RSP] = stack;
    }
    stored
}

/// For handlers that only push.
#[cold]
#[inline(never)]
pub(super) fn push_again(cpu: &mut Cpu, env: &mut dyn Environment, at: At, budget: i64) -> i64 {
    let stack = cpu.stack_pointer().wrapping_sub(8);
    store_again::<u64>(cpu, env, at, budget, stack)
}

/// PUSH of a register.
pub(in crate::interp) fn push(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let value = cpu.get::<u64>(at.op().a);
    match push_value(cpu, value) {
        true => go(cpu, env, at, budget),
        false => push_again(cpu, env, at, budget),
    }
}

/// PUSH of an immediate.
pub(in crate::interp) fn push_imm(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    match push_value(cpu, at.op().immediate) {
        true => go(cpu, env, at, budget),
        false => push_again(cpu, env, at, budget),
    }
}

/// PUSH of memory.
pub(in crate::interp) fn push_load<A: Address>(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    let Some(value) = cpu.load_fast::<u64>(linear) else {
        return load_again::<u64>(cpu, env, at, budget, linear);
    };
    match push_value(cpu, value) {
        true => go(cpu, env, at, budget),
        false => slow(cpu, env, at, budget),
    }
}

/// POP to a register.
pub(in crate::interp) fn pop(cpu: &mut Cpu, env: &mut dyn Environment, at: At, budget: i64) -> i64 {
    let stack = cpu.stack_pointer();
    let Some(value) = cpu.load_fast::<u64>(stack) else {
        return load_again::<u64>(cpu, env, at, budget, stack);
    };
    cpu.general[RSP] = stack.wrapping_add(8);
    cpu.set(at.op().a, value);
    go(cpu, env, at, budget)
}

/// LEAVE.
pub(in crate::interp) fn leave(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let frame = cpu.general[RBP];
    let Some(value) = cpu.load_fast::<u64>(frame) else {
        return load_again::<u64>(cpu, env, at, budget, frame);
    };
    cpu.general[RSP] = frame.wrapping_add(8);
    cpu.general[RBP] = value;
    go(cpu, env, at, budget)
}
