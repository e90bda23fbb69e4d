//! Instructions of the floating-point crate whose operation is found when they are translated: it
//! is in the slot behind the op.

use x86_fp::{FpOperation, Memory, Outside};

use super::{Address, Any};
use crate::interp::op::{At, Handler, INSTRUCTION_SLOTS, Size};
use crate::{Cpu, Environment};

/// Goes to the op behind the operation.
#[inline(always)]
fn go_past(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    let next = at.next().next();
    (next.op().run)(cpu, env, next, budget)
}

/// Executes the operation from the decoded form, and goes on behind it.
pub(in crate::interp) fn decoded(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
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
fn decoded_cold(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    decoded(cpu, env, at, budget)
}

/// [`decoded`] where that form is in the slots behind the operation.
pub(in crate::interp) fn inlined(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let (on, budget) = execute_inlined(cpu, env, at, budget);
    match on {
        true => {
            let next = at.after(2 + INSTRUCTION_SLOTS);
            (next.op().run)(cpu, env, next, budget)
        }
        false => budget,
    }
}

#[inline(never)]
fn execute(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> (bool, i64) {
    let instruction = cpu.decode_again(at);
    cpu.execute_op(*env, at, budget, |cpu, env| {
        super::decoded::float(cpu, env, &instruction, at.operation())
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
        super::decoded::float(cpu, env, at.instruction(2), at.operation())
    })
}

/// Runs the operation; `false` where it faults, or must not run now. A function of its own: a handler
/// that lends something of its stack does not end in a jump, and each op would keep a frame.
#[inline(never)]
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
    env: &mut &mut dyn Environment,
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
    env: &mut &mut dyn Environment,
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

/// With a memory operand that is stored, and `LOAD`ed before: an instruction that keeps it stores what
/// was there. It runs once the store is known to succeed.
fn store<const LOAD: bool, T: Bytes>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = Any::of(cpu, at);
    let operation = at.operation();
    let placed = !operation.aligned || linear & 15 == 0;
    let mut ready = placed && cpu.interp.fp_ready && cpu.stores_fast::<T>(linear);
    if LOAD && ready {
        match cpu.load_fast::<T>(linear) {
            Some(value) => value.put(&mut cpu.interp.operand.0),
            None => ready = false,
        }
    }
    let done = ready && run::<false>(cpu, operation) && {
        let value = T::taken(&cpu.interp.operand.0);
        cpu.store_fast(linear, value)
    };
    match done {
        true => go_past(cpu, env, at, budget),
        false => decoded_cold(cpu, env, at, budget),
    }
}

/// Ten bytes of an x87 register, as eight and two.
fn load_10(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    let linear = Any::of(cpu, at);
    let halves = (
        cpu.load_fast::<u64>(linear),
        cpu.load_fast::<u16>(linear.wrapping_add(8)),
    );
    let done = match halves {
        (Some(low), Some(high)) if cpu.interp.fp_ready => {
            put_10(cpu, low, high);
            run::<false>(cpu, at.operation())
        }
        _ => false,
    };
    match done {
        true => go_past(cpu, env, at, budget),
        false => decoded_cold(cpu, env, at, budget),
    }
}

/// Ten bytes that are kept or replaced.
fn store_10(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    let linear = Any::of(cpu, at);
    let rest = linear.wrapping_add(8);
    let ready =
        cpu.interp.fp_ready && cpu.stores_fast::<u64>(linear) && cpu.stores_fast::<u16>(rest);
    let halves = (cpu.load_fast::<u64>(linear), cpu.load_fast::<u16>(rest));
    let done = match halves {
        (Some(low), Some(high)) if ready => {
            put_10(cpu, low, high);
            run::<false>(cpu, at.operation()) && {
                let bytes = &cpu.interp.operand.0;
                let low = bytes
                    .first_chunk()
                    .map_or(0, |low| u64::from_le_bytes(*low));
                let high = u16::from_le_bytes([bytes[8], bytes[9]]);
                cpu.store_fast(linear, low) && cpu.store_fast(rest, high)
            }
        }
        _ => false,
    };
    match done {
        true => go_past(cpu, env, at, budget),
        false => decoded_cold(cpu, env, at, budget),
    }
}

#[inline(always)]
fn put_10(cpu: &mut Cpu, low: u64, high: u16) {
    if let Some(bytes) = cpu.interp.operand.0.first_chunk_mut::<16>() {
        *bytes = (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
    }
}

/// A memory operand of a fixed length.
trait Bytes: crate::mmu::Value {
    fn put(self, to: &mut [u8; x86_fp::MEMORY_OPERAND_MAX]);
    fn taken(from: &[u8; x86_fp::MEMORY_OPERAND_MAX]) -> Self;
}

impl<T: Size> Bytes for T {
    #[inline(always)]
    fn put(self, to: &mut [u8; x86_fp::MEMORY_OPERAND_MAX]) {
        if let Some(first) = to.first_chunk_mut::<8>() {
            *first = self.wide().to_le_bytes();
        }
    }

    #[inline(always)]
    fn taken(from: &[u8; x86_fp::MEMORY_OPERAND_MAX]) -> Self {
        // No more than was written: a wider read would wait for it.
        let bits = match T::SIZE {
            1 => from[0].into(),
            2 => from
                .first_chunk()
                .map_or(0, |bytes| u16::from_le_bytes(*bytes).into()),
            4 => from
                .first_chunk()
                .map_or(0, |bytes| u32::from_le_bytes(*bytes).into()),
            _ => from
                .first_chunk()
                .map_or(0, |bytes| u64::from_le_bytes(*bytes)),
        };
        T::cut(bits)
    }
}

/// Sixteen bytes.
fn load_16<const FLAGS: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
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
/// `None` where it is always executed from its decoded form.
pub(in crate::interp) fn choose(
    operation: &FpOperation,
    plain: bool,
    flags: bool,
) -> Option<Handler> {
    let run: Handler = match (operation.memory, flags) {
        (Memory::None, true) => registers::<true>,
        (Memory::None, false) => registers::<false>,
        (Memory::Load(2), false) if plain => load::<false, u16>,
        (Memory::Load(4), false) if plain => load::<false, u32>,
        (Memory::Load(8), false) if plain => load::<false, u64>,
        (Memory::Load(16), false) if plain => load_16::<false>,
        (Memory::Load(4), true) if plain => load::<true, u32>,
        (Memory::Load(8), true) if plain => load::<true, u64>,
        (Memory::Load(16), true) if plain => load_16::<true>,
        (Memory::Load(10), false) if plain => load_10,
        (Memory::Both(10), false) if plain => store_10,
        (Memory::Store(1), false) if plain => store::<false, u8>,
        (Memory::Store(2), false) if plain => store::<false, u16>,
        (Memory::Store(4), false) if plain => store::<false, u32>,
        (Memory::Store(8), false) if plain => store::<false, u64>,
        (Memory::Both(2), false) if plain => store::<true, u16>,
        (Memory::Both(4), false) if plain => store::<true, u32>,
        (Memory::Both(8), false) if plain => store::<true, u64>,
        _ => return None,
    };
    Some(run)
}
