//! MOV, MOVZX, MOVSX, LEA, CMOVcc, SETcc, XCHG, the accumulator's extensions.

use std::marker::PhantomData;

use super::{Address, Sized1, Sized2, go, load_again, store_again};
use crate::interp::op::{At, Handler, Size};
use crate::interp::operand::{RAX, RDX};
use crate::{Cpu, Environment};

/// Register from register.
pub(in crate::interp) struct Move;
/// Register from immediate.
pub(in crate::interp) struct MoveImm;
/// Register from memory.
pub(in crate::interp) struct Load;
/// Memory from register.
pub(in crate::interp) struct Store;
/// Memory from immediate.
pub(in crate::interp) struct StoreImm;
/// Register from an address.
pub(in crate::interp) struct Lea;
/// Two registers change places.
pub(in crate::interp) struct Exchange;
/// Register from a zero-extended one of type S.
pub(in crate::interp) struct Zero<S>(PhantomData<S>);
/// Register from a sign-extended one of type S.
pub(in crate::interp) struct Sign<S>(PhantomData<S>);
/// Register from zero-extended memory of type S.
pub(in crate::interp) struct ZeroLoad<S>(PhantomData<S>);
/// Register from sign-extended memory of type S.
pub(in crate::interp) struct SignLoad<S>(PhantomData<S>);
/// CMOVcc from a register.
pub(in crate::interp) struct Select;
/// CMOVcc from memory.
pub(in crate::interp) struct SelectLoad;

pub(super) fn reg_reg<T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let value = cpu.get::<T>(at.op().b);
    cpu.set(at.op().a, value);
    go(cpu, env, at, budget)
}

pub(super) fn reg_imm<T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    cpu.set(at.op().a, T::cut(at.op().immediate));
    go(cpu, env, at, budget)
}

pub(super) fn load<A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    match cpu.load_fast::<T>(linear) {
        Some(value) => {
            cpu.set(at.op().a, value);
            go(cpu, env, at, budget)
        }
        None => load_again::<T>(cpu, env, at, budget, linear),
    }
}

pub(super) fn store<A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let value = cpu.get::<T>(at.op().b);
    let linear = A::of(cpu, at);
    match cpu.store_fast(linear, value) {
        true => go(cpu, env, at, budget),
        false => store_again::<T>(cpu, env, at, budget, linear),
    }
}

fn store_imm<A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let value = T::cut(at.op().immediate);
    let linear = A::of(cpu, at);
    match cpu.store_fast(linear, value) {
        true => go(cpu, env, at, budget),
        false => store_again::<T>(cpu, env, at, budget, linear),
    }
}

pub(super) fn lea<A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let address = A::of(cpu, at);
    cpu.set(at.op().a, T::cut(address));
    go(cpu, env, at, budget)
}

pub(super) fn exchange<T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let (a, b) = (cpu.get::<T>(at.op().a), cpu.get::<T>(at.op().b));
    cpu.set(at.op().a, b);
    cpu.set(at.op().b, a);
    go(cpu, env, at, budget)
}

pub(super) fn zero<S: Size, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let value = cpu.get::<S>(at.op().b).wide();
    cpu.set(at.op().a, T::cut(value));
    go(cpu, env, at, budget)
}

fn sign<S: Size, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let value = cpu.get::<S>(at.op().b).signed();
    cpu.set(at.op().a, T::cut(value as u64));
    go(cpu, env, at, budget)
}

pub(super) fn zero_load<S: Size, A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    match cpu.load_fast::<S>(linear) {
        Some(value) => {
            cpu.set(at.op().a, T::cut(value.wide()));
            go(cpu, env, at, budget)
        }
        None => load_again::<S>(cpu, env, at, budget, linear),
    }
}

pub(super) fn sign_load<S: Size, A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    match cpu.load_fast::<S>(linear) {
        Some(value) => {
            cpu.set(at.op().a, T::cut(value.signed() as u64));
            go(cpu, env, at, budget)
        }
        None => load_again::<S>(cpu, env, at, budget, linear),
    }
}

fn select<T: Size>(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    let holds = cpu.condition(at.op().scale);
    let source = if holds { at.op().b } else { at.op().a };
    let value = cpu.get::<T>(source);
    cpu.set(at.op().a, value);
    go(cpu, env, at, budget)
}

/// The condition is the immediate here: the address needs the scale.
fn select_load<A: Address, T: Size>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    let Some(mut value) = cpu.load_fast::<T>(linear) else {
        return load_again::<T>(cpu, env, at, budget, linear);
    };
    if !cpu.condition(at.op().immediate as u8) {
        value = cpu.get::<T>(at.op().a);
    }
    cpu.set(at.op().a, value);
    go(cpu, env, at, budget)
}

/// SETcc of a register.
pub(in crate::interp) fn set_condition(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let holds = u8::from(cpu.condition(at.op().scale));
    cpu.set(at.op().a, holds);
    go(cpu, env, at, budget)
}

/// CDQE.
pub(in crate::interp) fn extend_32(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    cpu.general[RAX] = cpu.general[RAX] as i32 as u64;
    go(cpu, env, at, budget)
}

/// CQO.
pub(in crate::interp) fn spread_64(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    cpu.general[RDX] = (cpu.general[RAX] as i64 >> 63) as u64;
    go(cpu, env, at, budget)
}

/// CDQ.
pub(in crate::interp) fn spread_32(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    cpu.general[RDX] = (cpu.general[RAX] as i32 >> 31) as u32 as u64;
    go(cpu, env, at, budget)
}

impl Sized1 for Move {
    fn handler<T: Size>() -> Handler {
        reg_reg::<T>
    }
}

impl Sized1 for MoveImm {
    fn handler<T: Size>() -> Handler {
        reg_imm::<T>
    }
}

impl Sized2 for Load {
    fn handler<A: Address, T: Size>() -> Handler {
        load::<A, T>
    }
}

impl Sized2 for Store {
    fn handler<A: Address, T: Size>() -> Handler {
        store::<A, T>
    }
}

impl Sized2 for StoreImm {
    fn handler<A: Address, T: Size>() -> Handler {
        store_imm::<A, T>
    }
}

impl Sized2 for Lea {
    fn handler<A: Address, T: Size>() -> Handler {
        lea::<A, T>
    }
}

impl Sized1 for Exchange {
    fn handler<T: Size>() -> Handler {
        exchange::<T>
    }
}

impl<S: Size> Sized1 for Zero<S> {
    fn handler<T: Size>() -> Handler {
        zero::<S, T>
    }
}

impl<S: Size> Sized1 for Sign<S> {
    fn handler<T: Size>() -> Handler {
        sign::<S, T>
    }
}

impl<S: Size> Sized2 for ZeroLoad<S> {
    fn handler<A: Address, T: Size>() -> Handler {
        zero_load::<S, A, T>
    }
}

impl<S: Size> Sized2 for SignLoad<S> {
    fn handler<A: Address, T: Size>() -> Handler {
        sign_load::<S, A, T>
    }
}

impl Sized1 for Select {
    fn handler<T: Size>() -> Handler {
        select::<T>
    }
}

impl Sized2 for SelectLoad {
    fn handler<A: Address, T: Size>() -> Handler {
        select_load::<A, T>
    }
}
