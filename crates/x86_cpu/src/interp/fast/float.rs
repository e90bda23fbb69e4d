//! Instructions of the floating-point crate whose operation is found when they are translated: it
//! is in the slot behind the op.

use x86_fp::{FpOperation, Memory, Outside};

use super::{Address, Any};
use crate::interp::op::{At, Handler, Size};
use crate::{Cpu, Environment};

/// Goes to the op behind the operation.
#[inline(always)]
fn go_past(cpu: &mut Cpu, env: &mut dyn Environment, at: At, budget: i64) -> i64 {
    let next = at.next().next();
    (next.op().run)(cpu, env, next, budget)
}

/// Executes the operation from the decoded form, and goes on behind it.
pub(in crate::interp) fn decoded(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let (on, budget) = execute(cpu, env, at, budget);
    match on {
        true => go_past(cpu, env, at, budget),
        false => budget,
    }
}

#[cold]
#[inline(never)]
fn decoded_cold(cpu: &mut Cpu, env: &mut dyn Environment, at: At, budget: i64) -> i64 {
    decoded(cpu, env, at, budget)
}

#[inline(never)]
fn execute(cpu: &mut Cpu, env: &mut dyn Environment, at: At, budget: i64) -> (bool, i64) {
    cpu.execute_op(env, at, budget, |cpu, env| {
        super::decoded::float(cpu, env, at.instruction(), at.operation())
    })
}

/// Runs the operation; `false` where it faults, or must not run now.
#[inline(always)]
fn run<const FLAGS: bool>(cpu: &mut Cpu, operation: &FpOperation) -> bool {
    if FLAGS {
        cpu.settle_flags();
    }
    let mut outside = Outside {
        general: &mut cpu.general,
        flags: &mut cpu.rflags,
        memory: &mut cpu.interp.operand,
    };
    (operation.run)(&mut cpu.fp, &mut outside, operation.arguments).is_ok()
}

/// Without memory. An operation that faults changed nothing but sticky flags: it runs again.
fn registers<const FLAGS: bool>(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    match cpu.interp.fp_ready && run::<FLAGS>(cpu, at.operation()) {
        true => go_past(cpu, env, at, budget),
        false => decoded_cold(cpu, env, at, budget),
    }
}

/// With a memory operand that is loaded.
fn load<const FLAGS: bool, T: Bytes>(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = Any::of(cpu, at);
    let operation = at.operation();
    let placed = !operation.aligned || linear & 15 == 0;
    let done = match cpu.load_fast::<T>(linear) {
        Some(value) if placed && cpu.interp.fp_ready => {
            value.put(&mut cpu.interp.operand.0);
            run::<FLAGS>(cpu, operation)
        }
        _ => false,
    };
    match done {
        true => go_past(cpu, env, at, budget),
        false => decoded_cold(cpu, env, at, budget),
    }
}

/// A memory operand of a fixed length.
trait Bytes: crate::mmu::Value {
    fn put(self, to: &mut [u8; x86_fp::MEMORY_OPERAND_MAX]);
}

impl<T: Size> Bytes for T {
    #[inline(always)]
    fn put(self, to: &mut [u8; x86_fp::MEMORY_OPERAND_MAX]) {
        if let Some(first) = to.first_chunk_mut::<8>() {
            *first = self.wide().to_le_bytes();
        }
    }
}

/// Sixteen bytes.
fn load_16<const FLAGS: bool>(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = Any::of(cpu, at);
    let operation = at.operation();
    let placed = !operation.aligned || linear & 15 == 0;
    let done = match cpu.load_fast::<u128>(linear) {
        Some(value) if placed && cpu.interp.fp_ready => {
            if let Some(first) = cpu.interp.operand.0.first_chunk_mut::<16>() {
                *first = value.to_le_bytes();
            }
            run::<FLAGS>(cpu, operation)
        }
        _ => false,
    };
    match done {
        true => go_past(cpu, env, at, budget),
        false => decoded_cold(cpu, env, at, budget),
    }
}

/// Chooses the handler for an operation; `plain` says that its address is of the form handlers know,
/// `flags` that it reads or writes flags.
pub(in crate::interp) fn choose(operation: &FpOperation, plain: bool, flags: bool) -> Handler {
    match (operation.memory, flags) {
        (Memory::None, true) => registers::<true>,
        (Memory::None, false) => registers::<false>,
        (Memory::Load(4), false) if plain => load::<false, u32>,
        (Memory::Load(8), false) if plain => load::<false, u64>,
        (Memory::Load(16), false) if plain => load_16::<false>,
        (Memory::Load(4), true) if plain => load::<true, u32>,
        (Memory::Load(8), true) if plain => load::<true, u64>,
        (Memory::Load(16), true) if plain => load_16::<true>,
        _ => decoded,
    }
}
