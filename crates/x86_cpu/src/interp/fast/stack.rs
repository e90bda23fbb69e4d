//! PUSH, POP, LEAVE of 64 bits.

use super::flow::ret;
use super::{Address, go, load_again, slow, store_again};
use crate::interp::op::{At, Handler, Op};
use crate::interp::operand::{RBP, RSP};
use crate::{Cpu, Environment};

#[inline(always)]
pub(super) fn push_value(cpu: &mut Cpu, value: u64) -> bool {
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
pub(super) fn push_again(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let stack = cpu.stack_pointer().wrapping_sub(8);
    store_again::<u64>(cpu, env, at, budget, stack)
}

/// PUSH of a register.
pub(in crate::interp) fn push(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
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
    env: &mut &mut dyn Environment,
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
    env: &mut &mut dyn Environment,
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
pub(in crate::interp) fn pop(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
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
    env: &mut &mut dyn Environment,
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

/// Most instructions of a run: an op has room for so many registers.
pub(in crate::interp) const RUN_MAX: usize = 6;

/// The registers of a run, in the fields that its first instruction alone does not need.
#[inline(always)]
fn run_registers<const N: usize>(at: At) -> [u8; N] {
    let op = at.op();
    let all = [op.a, op.b, op.first, op.index, op.segment, op.scale];
    std::array::from_fn(|number| all[number])
}

/// Makes an op the first of a run of pushes or pops of these registers.
pub(in crate::interp) fn set_run_registers(op: &mut Op, registers: &[u8]) {
    let places = [
        &mut op.a,
        &mut op.b,
        &mut op.first,
        &mut op.index,
        &mut op.segment,
        &mut op.scale,
    ];
    for (place, register) in places.into_iter().zip(registers) {
        *place = *register;
    }
}

/// N times PUSH of a register other than RSP.
fn pushes<const N: usize>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let mut words = run_registers::<N>(at).map(|register| cpu.get::<u64>(register));
    words.reverse();
    let stack = cpu.stack_pointer().wrapping_sub(8 * N as u64);
    if !cpu.store_words_fast(stack, words) {
        return push(cpu, env, at, budget);
    }
    cpu.general[RSP] = stack;
    let next = at.after(N);
    (next.op().run)(cpu, env, next, budget)
}

/// N times POP to a register other than RSP, and RET where `RETURNS`.
fn pops<const N: usize, const RETURNS: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let stack = cpu.stack_pointer();
    let Some(words) = cpu.load_words_fast::<N>(stack) else {
        return pop(cpu, env, at, budget);
    };
    for (register, word) in run_registers::<N>(at).into_iter().zip(words) {
        cpu.set(register, word);
    }
    cpu.general[RSP] = stack.wrapping_add(8 * N as u64);
    let next = at.after(N);
    match RETURNS {
        true => ret(cpu, env, next, budget),
        false => (next.op().run)(cpu, env, next, budget),
    }
}

/// Returns the handler of a run of pushes.
pub(in crate::interp) fn pushes_of(count: usize) -> Option<Handler> {
    Some(match count {
        2 => pushes::<2>,
        3 => pushes::<3>,
        4 => pushes::<4>,
        5 => pushes::<5>,
        6 => pushes::<6>,
        _ => return None,
    })
}

/// Returns the handler of a run of pops, with a return behind it or not.
pub(in crate::interp) fn pops_of(count: usize, returns: bool) -> Option<Handler> {
    Some(match (count, returns) {
        (2, false) => pops::<2, false>,
        (3, false) => pops::<3, false>,
        (4, false) => pops::<4, false>,
        (5, false) => pops::<5, false>,
        (6, false) => pops::<6, false>,
        (1, true) => pops::<1, true>,
        (2, true) => pops::<2, true>,
        (3, true) => pops::<3, true>,
        (4, true) => pops::<4, true>,
        (5, true) => pops::<5, true>,
        (6, true) => pops::<6, true>,
        _ => return None,
    })
}
