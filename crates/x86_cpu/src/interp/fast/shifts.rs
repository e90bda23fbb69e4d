//! Shifts of registers and memory, rotates of registers, SHLD, SHRD.

use std::marker::PhantomData;

use super::alu::set_lazy;
use super::{Address, Any, Sized1, go, slow, store_again};
use crate::interp::flags::kind;
use crate::interp::op::{At, Handler, Size};
use crate::interp::operand::RCX;
use crate::{Cpu, Environment};

/// A shift by a count that is not 0 and below 32 (64 for 64 bits).
pub(in crate::interp) trait Shift {
    /// The result, CF and OF.
    fn shift<T: Size>(a: T, count: u32) -> (T, u64, u64);
}

pub(in crate::interp) struct Shl;
pub(in crate::interp) struct Shr;
pub(in crate::interp) struct Sar;

impl Shift for Shl {
    #[inline(always)]
    fn shift<T: Size>(a: T, count: u32) -> (T, u64, u64) {
        let result = T::cut(a.wide() << count);
        // Bits of narrow operands that leave beyond the word were in bits that exist no more.
        let carry = match count <= T::BITS {
            true => a.wide() >> (T::BITS - count) & 1,
            false => 0,
        };
        (result, carry, carry ^ result.wide() >> (T::BITS - 1))
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn shift<T: Size>(a: T, count: u32) -> (T, u64, u64) {
        let a = a.wide();
        (T::cut(a >> count), a >> (count - 1) & 1, a >> (T::BITS - 1))
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn shift<T: Size>(a: T, count: u32) -> (T, u64, u64) {
        let a = a.signed();
        let carry = (a >> (count - 1)) as u64 & 1;
        (T::cut((a >> count) as u64), carry, 0)
    }
}

#[inline(always)]
fn apply<O: Shift, T: Size>(cpu: &mut Cpu, at: At, count: u32) {
    let (result, carry, overflow) = O::shift(cpu.get::<T>(at.op().a), count);
    cpu.set(at.op().a, result);
    set_lazy(cpu, kind::RESULT, result, carry | overflow << 11);
}

fn by_immediate<O: Shift, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    apply::<O, T>(cpu, at, at.op().immediate as u32 & 63);
    go(cpu, env, at, budget)
}

fn by_cl<O: Shift, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let most = if T::BITS == 64 { 63 } else { 31 };
    let count = cpu.general[RCX] as u32 & most;
    if count != 0 {
        apply::<O, T>(cpu, at, count);
    } else {
        let value = cpu.get::<T>(at.op().a);
        cpu.set(at.op().a, value);
    }
    go(cpu, env, at, budget)
}

#[inline(always)]
fn apply_to_memory<O: Shift, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
    count: u32,
) -> i64 {
    let linear = Any::of(cpu, at);
    let Some(a) = cpu.load_fast::<T>(linear) else {
        return store_again::<T>(cpu, env, at, budget, linear);
    };
    let (result, carry, overflow) = O::shift(a, count);
    if !cpu.store_fast(linear, result) {
        return store_again::<T>(cpu, env, at, budget, linear);
    }
    set_lazy(cpu, kind::RESULT, result, carry | overflow << 11);
    go(cpu, env, at, budget)
}

fn memory_by_immediate<O: Shift, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let count = at.op().immediate as u32 & 63;
    apply_to_memory::<O, T>(cpu, env, at, budget, count)
}

fn memory_by_cl<O: Shift, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let most = if T::BITS == 64 { 63 } else { 31 };
    match cpu.general[RCX] as u32 & most {
        0 => slow(cpu, env, at, budget),
        count => apply_to_memory::<O, T>(cpu, env, at, budget, count),
    }
}

/// SHLD of a 32-bit or 64-bit register by the immediate, or by CL; SHRD where `RIGHT`.
pub(in crate::interp) fn double<const RIGHT: bool, const IMMEDIATE: bool, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let count = match IMMEDIATE {
        true => at.op().immediate,
        false => cpu.general[RCX],
    } as u32
        & (T::BITS - 1);
    if count == 0 {
        return slow(cpu, env, at, budget);
    }
    let (a, fill) = (
        cpu.get::<T>(at.op().a).wide(),
        cpu.get::<T>(at.op().b).wide(),
    );
    let rest = T::BITS - count;
    let (result, carry) = match RIGHT {
        true => (a >> count | fill << rest, a >> (count - 1) & 1),
        false => (a << count | fill >> rest, a >> rest & 1),
    };
    let result = T::cut(result);
    let overflow = (a ^ result.wide()) >> (T::BITS - 1);
    cpu.set(at.op().a, result);
    set_lazy(cpu, kind::RESULT, result, carry | overflow << 11);
    go(cpu, env, at, budget)
}

/// Memory by the immediate, which is not 0 after masking.
pub(in crate::interp) struct MemoryByImmediate<O>(PhantomData<O>);
/// Memory by CL.
pub(in crate::interp) struct MemoryByCl<O>(PhantomData<O>);

impl<O: Shift> Sized1 for MemoryByImmediate<O> {
    fn handler<T: Size>() -> Handler {
        memory_by_immediate::<O, T>
    }
}

impl<O: Shift> Sized1 for MemoryByCl<O> {
    fn handler<T: Size>() -> Handler {
        memory_by_cl::<O, T>
    }
}

/// By the immediate, which is not 0 after masking.
pub(in crate::interp) struct ByImmediate<O>(PhantomData<O>);
/// By CL.
pub(in crate::interp) struct ByCl<O>(PhantomData<O>);

impl<O: Shift> Sized1 for ByImmediate<O> {
    fn handler<T: Size>() -> Handler {
        by_immediate::<O, T>
    }
}

impl<O: Shift> Sized1 for ByCl<O> {
    fn handler<T: Size>() -> Handler {
        by_cl::<O, T>
    }
}

/// ROL by the immediate, which is not 0 and below the width; ROR where `RIGHT`.
pub(in crate::interp) struct Rotate<const RIGHT: bool>;

fn rotate<const RIGHT: bool, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let a = cpu.get::<T>(at.op().a).wide();
    let count = at.op().immediate as u32 & (T::BITS - 1);
    let left = if RIGHT { T::BITS - count } else { count };
    let result = T::cut(a << (left % T::BITS) | a >> ((T::BITS - left) % T::BITS));
    cpu.set(at.op().a, result);
    let (wide, top) = (result.wide(), T::BITS - 1);
    let (carry, other) = match RIGHT {
        true => (wide >> top, wide >> (top - 1)),
        false => (wide, wide >> top),
    };
    let overflow = (carry ^ other) & 1;
    cpu.set_carry_and_overflow(carry & 1 | overflow << 11);
    go(cpu, env, at, budget)
}

impl<const RIGHT: bool> Sized1 for Rotate<RIGHT> {
    fn handler<T: Size>() -> Handler {
        rotate::<RIGHT, T>
    }
}
