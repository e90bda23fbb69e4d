//! Two-operand arithmetic and INC, DEC, NEG, NOT.

use std::marker::PhantomData;

use super::{Address, Sized1, Sized2, go, load_again, store_again};
use crate::interp::flags::kind;
use crate::interp::op::{At, Handler, Size};
use crate::{Cpu, Environment};

/// An arithmetic operation.
pub(in crate::interp) trait Alu {
    /// Whether there is a result to write.
    const WRITES: bool = true;
    fn result<T: Size>(cpu: &Cpu, a: T, b: T) -> T;
    fn flags<T: Size>(cpu: &mut Cpu, a: T, b: T, result: T);
}

#[inline(always)]
pub(super) fn set_lazy<T: Size>(cpu: &mut Cpu, kind: u8, result: T, source: u64) {
    cpu.lazy.result = result.wide();
    cpu.lazy.source = source;
    cpu.lazy.kind = kind | T::LOG;
}

pub(in crate::interp) struct Add;
pub(in crate::interp) struct Adc;
pub(in crate::interp) struct Sub;
pub(in crate::interp) struct Sbb;
pub(in crate::interp) struct Cmp;
pub(in crate::interp) struct And;
pub(in crate::interp) struct Or;
pub(in crate::interp) struct Xor;
pub(in crate::interp) struct Test;

impl Alu for Add {
    #[inline(always)]
    fn result<T: Size>(_cpu: &Cpu, a: T, b: T) -> T {
        T::cut(a.wide().wrapping_add(b.wide()))
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, _a: T, b: T, result: T) {
        set_lazy(cpu, kind::ADD, result, b.wide());
    }
}

impl Alu for Sub {
    #[inline(always)]
    fn result<T: Size>(_cpu: &Cpu, a: T, b: T) -> T {
        T::cut(a.wide().wrapping_sub(b.wide()))
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, _a: T, b: T, result: T) {
        set_lazy(cpu, kind::SUB, result, b.wide());
    }
}

impl Alu for Cmp {
    const WRITES: bool = false;
    #[inline(always)]
    fn result<T: Size>(cpu: &Cpu, a: T, b: T) -> T {
        Sub::result(cpu, a, b)
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, a: T, b: T, result: T) {
        Sub::flags(cpu, a, b, result);
    }
}

impl Alu for Adc {
    #[inline(always)]
    fn result<T: Size>(cpu: &Cpu, a: T, b: T) -> T {
        let carry = u64::from(cpu.carry());
        T::cut(a.wide().wrapping_add(b.wide()).wrapping_add(carry))
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, a: T, b: T, result: T) {
        let plain = T::cut(a.wide().wrapping_add(b.wide())) == result;
        let kind = if plain { kind::ADD } else { kind::ADC };
        set_lazy(cpu, kind, result, b.wide());
    }
}

impl Alu for Sbb {
    #[inline(always)]
    fn result<T: Size>(cpu: &Cpu, a: T, b: T) -> T {
        let borrow = u64::from(cpu.carry());
        T::cut(a.wide().wrapping_sub(b.wide()).wrapping_sub(borrow))
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, a: T, b: T, result: T) {
        let plain = T::cut(a.wide().wrapping_sub(b.wide())) == result;
        let kind = if plain { kind::SUB } else { kind::SBB };
        set_lazy(cpu, kind, result, b.wide());
    }
}

impl Alu for And {
    #[inline(always)]
    fn result<T: Size>(_cpu: &Cpu, a: T, b: T) -> T {
        T::cut(a.wide() & b.wide())
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, _a: T, _b: T, result: T) {
        set_lazy(cpu, kind::RESULT, result, 0);
    }
}

impl Alu for Or {
    #[inline(always)]
    fn result<T: Size>(_cpu: &Cpu, a: T, b: T) -> T {
        T::cut(a.wide() | b.wide())
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, _a: T, _b: T, result: T) {
        set_lazy(cpu, kind::RESULT, result, 0);
    }
}

impl Alu for Xor {
    #[inline(always)]
    fn result<T: Size>(_cpu: &Cpu, a: T, b: T) -> T {
        T::cut(a.wide() ^ b.wide())
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, _a: T, _b: T, result: T) {
        set_lazy(cpu, kind::RESULT, result, 0);
    }
}

impl Alu for Test {
    const WRITES: bool = false;
    #[inline(always)]
    fn result<T: Size>(cpu: &Cpu, a: T, b: T) -> T {
        And::result(cpu, a, b)
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, a: T, b: T, result: T) {
        And::flags(cpu, a, b, result);
    }
}

/// Register, register.
pub(in crate::interp) struct RegReg<O>(PhantomData<O>);
/// Register, immediate.
pub(in crate::interp) struct RegImm<O>(PhantomData<O>);
/// Register, memory.
pub(in crate::interp) struct RegMem<O>(PhantomData<O>);
/// Memory, register.
pub(in crate::interp) struct MemReg<O>(PhantomData<O>);
/// Memory, immediate.
pub(in crate::interp) struct MemImm<O>(PhantomData<O>);

#[inline(always)]
pub(super) fn to_register<O: Alu, T: Size>(cpu: &mut Cpu, at: At, b: T) {
    let a = cpu.get::<T>(at.op().a);
    let result = O::result(cpu, a, b);
    if O::WRITES {
        cpu.set(at.op().a, result);
    }
    O::flags(cpu, a, b, result);
}

/// Returns whether memory answered.
#[inline(always)]
fn to_memory<O: Alu, A: Address, T: Size>(cpu: &mut Cpu, at: At, b: T) -> bool {
    let linear = A::of(cpu, at);
    let Some(a) = cpu.load_fast::<T>(linear) else {
        return false;
    };
    let result = O::result(cpu, a, b);
    if O::WRITES && !cpu.store_fast(linear, result) {
        return false;
    }
    O::flags(cpu, a, b, result);
    true
}

#[inline(always)]
fn memory_again<O: Alu, A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    match O::WRITES {
        true => store_again::<T>(cpu, env, at, budget, linear),
        false => load_again::<T>(cpu, env, at, budget, linear),
    }
}

pub(super) fn reg_reg<O: Alu, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let b = cpu.get::<T>(at.op().b);
    to_register::<O, T>(cpu, at, b);
    go(cpu, env, at, budget)
}

pub(super) fn reg_imm<O: Alu, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    to_register::<O, T>(cpu, at, T::cut(at.op().immediate));
    go(cpu, env, at, budget)
}

pub(super) fn reg_mem<O: Alu, A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    let Some(b) = cpu.load_fast::<T>(linear) else {
        return load_again::<T>(cpu, env, at, budget, linear);
    };
    to_register::<O, T>(cpu, at, b);
    go(cpu, env, at, budget)
}

fn mem_reg<O: Alu, A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let b = cpu.get::<T>(at.op().b);
    match to_memory::<O, A, T>(cpu, at, b) {
        true => go(cpu, env, at, budget),
        false => memory_again::<O, A, T>(cpu, env, at, budget),
    }
}

fn mem_imm<O: Alu, A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    match to_memory::<O, A, T>(cpu, at, T::cut(at.op().immediate)) {
        true => go(cpu, env, at, budget),
        false => memory_again::<O, A, T>(cpu, env, at, budget),
    }
}

impl<O: Alu> Sized1 for RegReg<O> {
    fn handler<T: Size>() -> Handler {
        reg_reg::<O, T>
    }
}

impl<O: Alu> Sized1 for RegImm<O> {
    fn handler<T: Size>() -> Handler {
        reg_imm::<O, T>
    }
}

impl<O: Alu> Sized2 for RegMem<O> {
    fn handler<A: Address, T: Size>() -> Handler {
        reg_mem::<O, A, T>
    }
}

impl<O: Alu> Sized2 for MemReg<O> {
    fn handler<A: Address, T: Size>() -> Handler {
        mem_reg::<O, A, T>
    }
}

impl<O: Alu> Sized2 for MemImm<O> {
    fn handler<A: Address, T: Size>() -> Handler {
        mem_imm::<O, A, T>
    }
}

/// A one-operand operation.
pub(in crate::interp) trait Unary {
    fn result<T: Size>(a: T) -> T;
    fn flags<T: Size>(cpu: &mut Cpu, a: T, result: T);
}

pub(in crate::interp) struct Inc;
pub(in crate::interp) struct Dec;
pub(in crate::interp) struct Neg;
pub(in crate::interp) struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn result<T: Size>(a: T) -> T {
        T::cut(a.wide().wrapping_add(1))
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, _a: T, result: T) {
        let carry = cpu.carry().into();
        set_lazy(cpu, kind::INC, result, carry);
    }
}

impl Unary for Dec {
    #[inline(always)]
    fn result<T: Size>(a: T) -> T {
        T::cut(a.wide().wrapping_sub(1))
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, _a: T, result: T) {
        let carry = cpu.carry().into();
        set_lazy(cpu, kind::DEC, result, carry);
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn result<T: Size>(a: T) -> T {
        T::cut(a.wide().wrapping_neg())
    }
    #[inline(always)]
    fn flags<T: Size>(cpu: &mut Cpu, a: T, result: T) {
        set_lazy(cpu, kind::SUB, result, a.wide());
    }
}

impl Unary for Not {
    #[inline(always)]
    fn result<T: Size>(a: T) -> T {
        T::cut(!a.wide())
    }
    #[inline(always)]
    fn flags<T: Size>(_cpu: &mut Cpu, _a: T, _result: T) {}
}

/// Register.
pub(in crate::interp) struct OneReg<O>(PhantomData<O>);
/// Memory.
pub(in crate::interp) struct OneMem<O>(PhantomData<O>);

pub(super) fn one_reg<O: Unary, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let a = cpu.get::<T>(at.op().a);
    let result = O::result(a);
    cpu.set(at.op().a, result);
    O::flags(cpu, a, result);
    go(cpu, env, at, budget)
}

fn one_mem<O: Unary, A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    let Some(a) = cpu.load_fast::<T>(linear) else {
        return store_again::<T>(cpu, env, at, budget, linear);
    };
    let result = O::result(a);
    if !cpu.store_fast(linear, result) {
        return store_again::<T>(cpu, env, at, budget, linear);
    }
    O::flags(cpu, a, result);
    go(cpu, env, at, budget)
}

impl<O: Unary> Sized1 for OneReg<O> {
    fn handler<T: Size>() -> Handler {
        one_reg::<O, T>
    }
}

impl<O: Unary> Sized2 for OneMem<O> {
    fn handler<A: Address, T: Size>() -> Handler {
        one_mem::<O, A, T>
    }
}
