//! CLI, STI, PUSHFQ and POPFQ of the most privileged level: kernels bracket every critical section
//! with them.

use super::{go, slow};
use crate::interp::flags::{DF, IF, STATUS};
use crate::interp::op::At;
use crate::interp::operand::RSP;
use crate::{Cpu, Environment};

/// What PUSHF shows as zero: RF and VM.
const HIDDEN: u64 = 3 << 16;

/// Goes on with interrupts enabled just now: the block's end looks for one. So at least the next
/// instruction of the block runs before, as STI demands; where it is the last one the translator has
/// it executed from its decoded form.
#[inline(always)]
fn go_and_look(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
    cpu.interp.withheld += budget;
    cpu.interp.look = true;
    go(cpu, env, at, 0)
}

/// CLI.
pub(in crate::interp) fn disable(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    if cpu.cpl() != 0 {
        return slow(cpu, env, at, budget);
    }
    cpu.rflags &= !IF;
    go(cpu, env, at, budget)
}

/// STI.
pub(in crate::interp) fn enable(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    if cpu.cpl() != 0 {
        return slow(cpu, env, at, budget);
    }
    if cpu.rflags & IF != 0 {
        return go(cpu, env, at, budget);
    }
    cpu.rflags |= IF;
    go_and_look(cpu, env, at, budget)
}

/// PUSHFQ.
pub(in crate::interp) fn push(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    cpu.settle_flags();
    let stack = cpu.stack_pointer().wrapping_sub(8);
    if !cpu.store_fast(stack, cpu.rflags & !HIDDEN) {
        return slow(cpu, env, at, budget);
    }
    cpu.general[RSP] = stack;
    go(cpu, env, at, budget)
}

/// POPFQ.
pub(in crate::interp) fn pop(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    const CHANGED: u64 = STATUS | DF | IF;
    let stack = cpu.stack_pointer();
    let Some(popped) = cpu.load_fast::<u64>(stack) else {
        return slow(cpu, env, at, budget);
    };
    cpu.settle_flags();
    let old = cpu.rflags;
    if cpu.cpl() != 0 || (old ^ popped) & !CHANGED != 0 {
        return slow(cpu, env, at, budget);
    }
    cpu.general[RSP] = stack.wrapping_add(8);
    cpu.rflags = popped;
    match !old & popped & IF {
        0 => go(cpu, env, at, budget),
        _ => go_and_look(cpu, env, at, budget),
    }
}
