//! Branches: ends of blocks and how one block leads to the next.
//!
//! A terminator is followed by its links: the one taken, then the one fallen through to. Links *within*
//! the page are small, both are in one slot, and need no check: both blocks live and die with the page,
//! and the page is mapped where it runs.

use std::marker::PhantomData;

use super::stack::push_again;
use super::{Address, load_again, slow};
use crate::interp::cache::{Open, OpenLink};
use crate::interp::flags::{kind, of_result};
use crate::interp::op::{At, Handler, LinkAt, Size};
use crate::interp::operand::{RSP, canonical};
use crate::{Cpu, Environment};

/// Follows link `number` of the terminator, whose target is in the same page.
#[inline(always)]
fn follow_within(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    number: usize,
    budget: i64,
) -> i64 {
    let Some((entry, run)) = at.tie(number).get().filter(|_| budget >= 0) else {
        return untied_within(cpu, at, number, budget);
    };
    run(cpu, env, entry, budget)
}

/// Follows link `number` of the terminator to another page.
#[inline(always)]
fn follow_beyond(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    number: usize,
    budget: i64,
) -> i64 {
    let link = at.link(number);
    let Some((entry, rip)) = cpu.beyond(link) else {
        return untied(cpu, link, budget);
    };
    if budget < 0 {
        return untied(cpu, link, budget);
    }
    cpu.set_code_base(rip & !0xfff);
    (entry.op().run)(cpu, env, entry, budget)
}

/// Follows a link of either kind.
#[inline(always)]
pub(super) fn follow<const WITHIN: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    number: usize,
    budget: i64,
) -> i64 {
    match WITHIN {
        true => follow_within(cpu, env, at, number, budget),
        false => follow_beyond(cpu, env, at, number, budget),
    }
}

/// Has the dispatcher find the link's target and tie it.
#[cold]
#[inline(never)]
fn untied(cpu: &mut Cpu, link: LinkAt, budget: i64) -> i64 {
    let rip = cpu.code_base().wrapping_add(link.get().offset);
    leave_open(cpu, Open::Beyond(link), rip, budget)
}

/// The same for a link within the page.
#[cold]
#[inline(never)]
fn untied_within(cpu: &mut Cpu, at: At, number: usize, budget: i64) -> i64 {
    let op = at.op();
    let offset = match number {
        1 => op.immediate,
        _ => op.displacement as u64,
    };
    let rip = cpu.code_base().wrapping_add(offset);
    let (gpa, _) = cpu.interp.cache.pages(op.place);
    leave_open(cpu, Open::Within(at.tie(number), gpa), rip, budget)
}

fn leave_open(cpu: &mut Cpu, link: Open, rip: u64, budget: i64) -> i64 {
    cpu.rip = rip;
    cpu.interp.cache.open_link = Some(OpenLink { link, rip });
    // As in `elsewhere`.
    std::hint::black_box(budget)
}

impl Cpu {
    /// The block that a link to another page leads to now, and its RIP.
    #[inline(always)]
    fn beyond(&self, link: LinkAt) -> Option<(At, u64)> {
        let link = link.get();
        let rip = self.code_base().wrapping_add(link.offset);
        let tied =
            link.tag == rip ^ self.interp.mode_tag && self.interp.cache.is_valid(link.generation);
        tied.then_some((link.entry, rip))
    }
}

/// Number of instructions of the block that ends with this one.
#[inline(always)]
pub(super) fn count(at: At) -> i64 {
    i64::from(at.op().number) + 1
}

/// The end of a block that goes on behind it; its number is the count.
pub(in crate::interp) fn end<const WITHIN: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let budget = budget - i64::from(at.op().number);
    follow::<WITHIN>(cpu, env, at, 1, budget)
}

/// [`end`] where blocks are not linked, because addresses are shorter than 64 bits.
pub(in crate::interp) fn end_unlinked(
    cpu: &mut Cpu,
    _env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let rip = cpu.code_base().wrapping_add(at.op().immediate);
    cpu.rip = rip & cpu.interp.rip_mask;
    budget - i64::from(at.op().number)
}

/// JMP to a fixed place.
#[inline(always)]
pub(in crate::interp) fn jump<const WITHIN: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    follow::<WITHIN>(cpu, env, at, 1, budget - count(at))
}

/// CALL to a fixed place.
#[inline(always)]
pub(in crate::interp) fn call<const WITHIN: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    if !push_return(cpu, at) {
        return push_again(cpu, env, at, budget);
    }
    follow::<WITHIN>(cpu, env, at, 1, budget - count(at))
}

#[inline(always)]
fn push_return(cpu: &mut Cpu, at: At) -> bool {
    let op = at.op();
    let after = u64::from(op.start) + u64::from(op.len);
    let (rip, stack) = (
        cpu.code_base().wrapping_add(after),
        cpu.stack_pointer().wrapping_sub(8),
    );
    let stored = cpu.store_fast(stack, rip);
    if stored {
        cpu.general[RSP] = stack;
    }
    stored
}

/// Has the dispatcher find the block at an address.
#[cold]
#[inline(never)]
fn elsewhere(cpu: &mut Cpu, rip: u64, budget: i64) -> i64 {
    cpu.rip = rip;
    // Callers would keep the budget in a saved register if they knew that it comes back.
    std::hint::black_box(budget)
}

/// RET.
#[inline(always)]
pub(in crate::interp) fn ret(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let stack = cpu.stack_pointer();
    let Some(rip) = cpu.load_fast::<u64>(stack) else {
        return load_again::<u64>(cpu, env, at, budget, stack);
    };
    let Some((entry, run)) = cpu.indirect(rip, budget - count(at)) else {
        if !canonical(rip) {
            return slow(cpu, env, at, budget);
        }
        cpu.general[RSP] = stack.wrapping_add(8);
        return elsewhere(cpu, rip, budget - count(at));
    };
    cpu.general[RSP] = stack.wrapping_add(8);
    cpu.set_code_base(rip & !0xfff);
    run(cpu, env, entry, budget - count(at))
}

/// JMP to a register's value.
pub(in crate::interp) fn jump_register(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let rip = cpu.get::<u64>(at.op().a);
    let Some((entry, run)) = cpu.indirect(rip, budget - count(at)) else {
        if !canonical(rip) {
            return slow(cpu, env, at, budget);
        }
        return elsewhere(cpu, rip, budget - count(at));
    };
    cpu.set_code_base(rip & !0xfff);
    run(cpu, env, entry, budget - count(at))
}

/// CALL to a register's value.
pub(in crate::interp) fn call_register(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let rip = cpu.get::<u64>(at.op().a);
    let found = cpu.indirect(rip, budget - count(at));
    if !canonical(rip) || !push_return(cpu, at) {
        return slow(cpu, env, at, budget);
    }
    let Some((entry, run)) = found else {
        return elsewhere(cpu, rip, budget - count(at));
    };
    cpu.set_code_base(rip & !0xfff);
    run(cpu, env, entry, budget - count(at))
}

/// JMP to a value in memory.
pub(in crate::interp) fn jump_memory<A: Address>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    let Some(rip) = cpu.load_fast::<u64>(linear) else {
        return load_again::<u64>(cpu, env, at, budget, linear);
    };
    let Some((entry, run)) = cpu.indirect(rip, budget - count(at)) else {
        if !canonical(rip) {
            return slow(cpu, env, at, budget);
        }
        return elsewhere(cpu, rip, budget - count(at));
    };
    cpu.set_code_base(rip & !0xfff);
    run(cpu, env, entry, budget - count(at))
}

/// CALL to a value in memory.
pub(in crate::interp) fn call_memory<A: Address>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let linear = A::of(cpu, at);
    let Some(rip) = cpu.load_fast::<u64>(linear) else {
        return load_again::<u64>(cpu, env, at, budget, linear);
    };
    let found = cpu.indirect(rip, budget - count(at));
    if !canonical(rip) || !push_return(cpu, at) {
        return slow(cpu, env, at, budget);
    }
    let Some((entry, run)) = found else {
        return elsewhere(cpu, rip, budget - count(at));
    };
    cpu.set_code_base(rip & !0xfff);
    run(cpu, env, entry, budget - count(at))
}

impl Cpu {
    /// Finds the block at an address and the handler of its first op, unless the budget wants the
    /// dispatcher anyway.
    #[inline(always)]
    fn indirect(&self, rip: u64, budget: i64) -> Option<(At, Handler)> {
        if budget < 0 {
            return None;
        }
        self.interp.cache.jump(rip ^ self.interp.mode_tag)
    }
}

/// A condition on the flags, in the six forms whose opposites are the other six.
pub(in crate::interp) trait Condition {
    /// Evaluates it on what CMP compares.
    fn compared<T: Size>(a: T, b: T) -> bool;
    /// Evaluates it on the result of a logical operation.
    fn tested<T: Size>(result: T) -> bool;
    /// Evaluates it on the flags.
    fn holds(cpu: &Cpu) -> bool;
}

pub(in crate::interp) struct Below;
pub(in crate::interp) struct Equal;
pub(in crate::interp) struct BelowOrEqual;
pub(in crate::interp) struct Negative;
pub(in crate::interp) struct Less;
pub(in crate::interp) struct LessOrEqual;
pub(in crate::interp) struct Overflow;
pub(in crate::interp) struct Parity;

impl Condition for Below {
    #[inline(always)]
    fn compared<T: Size>(a: T, b: T) -> bool {
        a.wide() < b.wide()
    }
    #[inline(always)]
    fn tested<T: Size>(_result: T) -> bool {
        false
    }
    #[inline(always)]
    fn holds(cpu: &Cpu) -> bool {
        cpu.carry()
    }
}

impl Condition for Equal {
    #[inline(always)]
    fn compared<T: Size>(a: T, b: T) -> bool {
        a == b
    }
    #[inline(always)]
    fn tested<T: Size>(result: T) -> bool {
        result.wide() == 0
    }
    #[inline(always)]
    fn holds(cpu: &Cpu) -> bool {
        match cpu.lazy.kind {
            kind::NONE => cpu.condition(4),
            _ => cpu.lazy.result == 0,
        }
    }
}

impl Condition for BelowOrEqual {
    #[inline(always)]
    fn compared<T: Size>(a: T, b: T) -> bool {
        a.wide() <= b.wide()
    }
    #[inline(always)]
    fn tested<T: Size>(result: T) -> bool {
        result.wide() == 0
    }
    #[inline(always)]
    fn holds(cpu: &Cpu) -> bool {
        cpu.condition(6)
    }
}

impl Condition for Negative {
    #[inline(always)]
    fn compared<T: Size>(a: T, b: T) -> bool {
        T::cut(a.wide().wrapping_sub(b.wide())).signed() < 0
    }
    #[inline(always)]
    fn tested<T: Size>(result: T) -> bool {
        result.signed() < 0
    }
    #[inline(always)]
    fn holds(cpu: &Cpu) -> bool {
        cpu.condition(8)
    }
}

impl Condition for Less {
    #[inline(always)]
    fn compared<T: Size>(a: T, b: T) -> bool {
        a.signed() < b.signed()
    }
    #[inline(always)]
    fn tested<T: Size>(result: T) -> bool {
        result.signed() < 0
    }
    #[inline(always)]
    fn holds(cpu: &Cpu) -> bool {
        cpu.condition(12)
    }
}

impl Condition for LessOrEqual {
    #[inline(always)]
    fn compared<T: Size>(a: T, b: T) -> bool {
        a.signed() <= b.signed()
    }
    #[inline(always)]
    fn tested<T: Size>(result: T) -> bool {
        result.signed() <= 0
    }
    #[inline(always)]
    fn holds(cpu: &Cpu) -> bool {
        cpu.condition(14)
    }
}

impl Condition for Overflow {
    #[inline(always)]
    fn compared<T: Size>(a: T, b: T) -> bool {
        let difference = T::cut(a.wide().wrapping_sub(b.wide()));
        ((a.wide() ^ b.wide()) & (a.wide() ^ difference.wide())) >> (T::BITS - 1) & 1 != 0
    }
    #[inline(always)]
    fn tested<T: Size>(_result: T) -> bool {
        false
    }
    #[inline(always)]
    fn holds(cpu: &Cpu) -> bool {
        cpu.condition(0)
    }
}

impl Condition for Parity {
    #[inline(always)]
    fn compared<T: Size>(a: T, b: T) -> bool {
        of_result(a.wide().wrapping_sub(b.wide()), 1) & 4 != 0
    }
    #[inline(always)]
    fn tested<T: Size>(result: T) -> bool {
        of_result(result.wide(), 1) & 4 != 0
    }
    #[inline(always)]
    fn holds(cpu: &Cpu) -> bool {
        cpu.condition(10)
    }
}

/// Jcc; link 1 is followed where the condition holds. The translator turns the other half of the
/// conditions into these by exchanging the links.
#[inline(always)]
pub(super) fn branch<C: Condition, const WITHIN: bool>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    let budget = budget - count(at);
    match C::holds(cpu) {
        true => follow::<WITHIN>(cpu, env, at, 1, budget),
        false => follow::<WITHIN>(cpu, env, at, 2, budget),
    }
}

/// Families of handlers that differ in the condition.
pub(in crate::interp) trait ByCondition {
    fn handler<C: Condition>() -> Handler;
}

/// Picks by the even condition code.
pub(in crate::interp) fn by_condition<F: ByCondition>(code: u8) -> Handler {
    match code >> 1 & 7 {
        0 => F::handler::<Overflow>(),
        1 => F::handler::<Below>(),
        2 => F::handler::<Equal>(),
        3 => F::handler::<BelowOrEqual>(),
        4 => F::handler::<Negative>(),
        5 => F::handler::<Parity>(),
        6 => F::handler::<Less>(),
        _ => F::handler::<LessOrEqual>(),
    }
}

/// Jcc on flags, with links within the page or not.
pub(in crate::interp) struct Branch<const WITHIN: bool>(PhantomData<()>);

impl<const WITHIN: bool> ByCondition for Branch<WITHIN> {
    fn handler<C: Condition>() -> Handler {
        branch::<C, WITHIN>
    }
}
