//! Handlers of micro-ops for 64-bit code.
//!
//! A handler that meets anything but plain memory leaves everything as it was and goes to
//! [`generic`], which executes the instruction from its decoded form.

pub(super) mod alu;
pub(super) mod atomic;
pub(super) mod bits;
pub(super) mod divide;
pub(super) mod float;
pub(super) mod flow;
pub(super) mod fuse;
pub(super) mod interrupts;
pub(super) mod moves;
pub(super) mod pairs;
pub(super) mod shifts;
pub(super) mod stack;
pub(super) mod vector;

use std::marker::PhantomData;

use super::generic as decoded;
use super::op::{At, Handler, INSTRUCTION_SLOTS, Size};
use crate::mmu::{Access, Value};
use crate::{Cpu, Environment};

/// Goes to the next op.
#[inline(always)]
pub(super) fn go(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    let next = at.next();
    (next.op().run)(cpu, env, next, budget)
}

/// Executes the instruction from its decoded form, which is made anew.
pub(super) fn generic(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    let (on, budget) = execute(cpu, env, at, budget);
    match on {
        true => go(cpu, env, at, budget),
        false => budget,
    }
}

/// Executes the instruction from its decoded form, which is in the slots behind the op.
pub(super) fn inlined(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    let (on, budget) = execute_inlined(cpu, env, at, budget);
    match on {
        true => {
            let next = at.after(1 + INSTRUCTION_SLOTS);
            (next.op().run)(cpu, env, next, budget)
        }
        false => budget,
    }
}

/// [`generic`] for handlers that memory did not answer.
#[cold]
#[inline(never)]
pub(super) fn slow(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    generic(cpu, env, at, budget)
}

/// [`slow`] for handlers whose only access is a load at `linear`: mostly just the TLB did not know the
/// page, and the op can run again.
#[cold]
#[inline(never)]
pub(super) fn load_again<T: Value>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
    linear: u64,
) -> i64 {
    match cpu.refill::<T>(*env, linear, Access::Read) {
        true => (at.op().run)(cpu, env, at, budget),
        false => generic(cpu, env, at, budget),
    }
}

/// [`load_again`] for handlers that store, or load and store, at `linear`.
#[cold]
#[inline(never)]
pub(super) fn store_again<T: Value>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
    linear: u64,
) -> i64 {
    match cpu.refill::<T>(*env, linear, Access::Write) {
        true => (at.op().run)(cpu, env, at, budget),
        false => generic(cpu, env, at, budget),
    }
}

#[inline(never)]
fn execute(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> (bool, i64) {
    let instruction = cpu.decode_again(at);
    cpu.execute_op(*env, at, budget, |cpu, env| {
        decoded::execute(cpu, env, &instruction)
    })
}

#[inline(never)]
fn execute_inlined(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> (bool, i64) {
    cpu.execute_op(*env, at, budget, |cpu, env| {
        decoded::execute(cpu, env, at.instruction(1))
    })
}

/// LFENCE, SFENCE, MFENCE.
pub(super) fn fence(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    go(cpu, env, at, budget)
}

/// How an address is made of an op's registers.
pub(super) trait Address {
    fn of(cpu: &Cpu, at: At) -> u64;
}

/// One register and a displacement.
pub(super) struct Near;

/// Base, scaled index, displacement, segment.
pub(super) struct Any;

impl Address for Near {
    #[inline(always)]
    fn of(cpu: &Cpu, at: At) -> u64 {
        let op = at.op();
        let first = cpu.get::<u64>(op.first);
        first.wrapping_add(op.displacement as i64 as u64)
    }
}

impl Address for Any {
    #[inline(always)]
    fn of(cpu: &Cpu, at: At) -> u64 {
        let op = at.op();
        let index = cpu.get::<u64>(op.index) << (op.scale & 3);
        Near::of(cpu, at)
            .wrapping_add(index)
            .wrapping_add(cpu.get::<u64>(op.segment))
    }
}

/// Handlers that differ in the operand's size.
pub(super) trait Sized1 {
    fn handler<T: Size>() -> Handler;
}

/// Handlers that differ in the operand's size and how the address is made.
pub(super) trait Sized2 {
    fn handler<A: Address, T: Size>() -> Handler;
}

/// Binds the address of a [`Sized2`].
struct Bound<F, A>(PhantomData<(F, A)>);

impl<F: Sized2, A: Address> Sized1 for Bound<F, A> {
    fn handler<T: Size>() -> Handler {
        F::handler::<A, T>()
    }
}

/// Picks the handler for a size, bytes.
pub(super) fn by_size<F: Sized1>(size: u32) -> Handler {
    match size {
        1 => F::handler::<u8>(),
        2 => F::handler::<u16>(),
        4 => F::handler::<u32>(),
        _ => F::handler::<u64>(),
    }
}

/// Picks the handler for a size and an address; `near` says that one register suffices.
pub(super) fn by_place<F: Sized2>(near: bool, size: u32) -> Handler {
    match near {
        true => by_size::<Bound<F, Near>>(size),
        false => by_size::<Bound<F, Any>>(size),
    }
}
