//! Instructions that often follow one another, as one op.
//!
//! Each op costs a jump to a place that the host's processor has to guess, and guesses wrongly where
//! the guest runs more code than its tables hold. So the first op of a pair does the work of both. All
//! ops keep their places and operands, and all but the first their handlers: where memory does not
//! answer, the instruction runs on its own, and those behind it do.

use std::marker::PhantomData;

use super::alu::{self, Alu, Unary};
use super::flow::{self, ByCondition, Condition, by_condition};
use super::fuse::{self, Compare};
use super::{Address, Any, Near, moves, stack};
use crate::interp::op::{At, Handler, Size};
use crate::{Cpu, Environment};

/// An instruction that can be the first of a pair.
pub(in crate::interp) trait Step {
    /// Executes it; `false` where its own handler must, and nothing is changed.
    fn step(cpu: &mut Cpu, at: At) -> bool;
    /// Its own handler.
    const ALONE: Handler;
}

/// What can be the second of a pair: it goes on to where control goes.
pub(in crate::interp) trait Tail {
    fn run(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64;
}

fn pair<A: Step, B: Tail>(
    cpu: &mut Cpu,
    env: &mut &mut dyn Environment,
    at: At,
    budget: i64,
) -> i64 {
    match A::step(cpu, at) {
        true => B::run(cpu, env, at.next(), budget),
        false => (A::ALONE)(cpu, env, at, budget),
    }
}

/// MOV between registers.
pub(in crate::interp) struct Move<T>(PhantomData<T>);
/// MOV of an immediate to a register.
pub(in crate::interp) struct MoveImm<T>(PhantomData<T>);
/// MOV from memory.
pub(in crate::interp) struct Load<A, T>(PhantomData<(A, T)>);
/// MOV to memory.
pub(in crate::interp) struct Store<T>(PhantomData<T>);
/// MOVZX of a byte in memory to 32 bits.
pub(in crate::interp) struct LoadByte;
/// MOVZX of a register's byte to 32 bits.
pub(in crate::interp) struct MoveByte;
/// LEA.
pub(in crate::interp) struct Lea<A, T>(PhantomData<(A, T)>);
/// MOVSXD from memory.
pub(in crate::interp) struct LoadSigned<A>(PhantomData<A>);
/// XCHG of registers.
pub(in crate::interp) struct Exchange;
/// PUSH of a register.
pub(in crate::interp) struct Push;
/// Arithmetic between registers.
pub(in crate::interp) struct RegReg<O, T>(PhantomData<(O, T)>);
/// Arithmetic on a register with memory.
pub(in crate::interp) struct RegMem<O, T>(PhantomData<(O, T)>);
/// Arithmetic with an immediate.
pub(in crate::interp) struct RegImm<O, T>(PhantomData<(O, T)>);
/// Arithmetic on one register.
pub(in crate::interp) struct One<O, T>(PhantomData<(O, T)>);

impl<T: Size> Step for Move<T> {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let value = cpu.get::<T>(at.op().b);
        cpu.set(at.op().a, value);
        true
    }
    const ALONE: Handler = moves::reg_reg::<T>;
}

impl<T: Size> Step for MoveImm<T> {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        cpu.set(at.op().a, T::cut(at.op().immediate));
        true
    }
    const ALONE: Handler = moves::reg_imm::<T>;
}

impl<A: Address, T: Size> Step for Load<A, T> {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let Some(value) = cpu.load_fast::<T>(A::of(cpu, at)) else {
            return false;
        };
        cpu.set(at.op().a, value);
        true
    }
    const ALONE: Handler = moves::load::<A, T>;
}

impl<T: Size> Step for Store<T> {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let value = cpu.get::<T>(at.op().b);
        cpu.store_fast(Near::of(cpu, at), value)
    }
    const ALONE: Handler = moves::store::<Near, T>;
}

impl Step for LoadByte {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let Some(value) = cpu.load_fast::<u8>(Near::of(cpu, at)) else {
            return false;
        };
        cpu.set(at.op().a, u32::from(value));
        true
    }
    const ALONE: Handler = moves::zero_load::<u8, Near, u32>;
}

impl Step for MoveByte {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let value = cpu.get::<u8>(at.op().b);
        cpu.set(at.op().a, u32::from(value));
        true
    }
    const ALONE: Handler = moves::zero::<u8, u32>;
}

impl<A: Address, T: Size> Step for Lea<A, T> {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let address = A::of(cpu, at);
        cpu.set(at.op().a, T::cut(address));
        true
    }
    const ALONE: Handler = moves::lea::<A, T>;
}

impl<A: Address> Step for LoadSigned<A> {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let Some(value) = cpu.load_fast::<u32>(A::of(cpu, at)) else {
            return false;
        };
        cpu.set(at.op().a, value.signed() as u64);
        true
    }
    const ALONE: Handler = moves::sign_load::<u32, A, u64>;
}

impl Step for Exchange {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let (a, b) = (cpu.get::<u64>(at.op().a), cpu.get::<u64>(at.op().b));
        cpu.set(at.op().a, b);
        cpu.set(at.op().b, a);
        true
    }
    const ALONE: Handler = moves::exchange::<u64>;
}

impl Step for Push {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let value = cpu.get::<u64>(at.op().a);
        stack::push_value(cpu, value)
    }
    const ALONE: Handler = stack::push;
}

impl<O: Alu, T: Size> Step for RegReg<O, T> {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let b = cpu.get::<T>(at.op().b);
        alu::to_register::<O, T>(cpu, at, b);
        true
    }
    const ALONE: Handler = alu::reg_reg::<O, T>;
}

impl<O: Alu, T: Size> Step for RegMem<O, T> {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let Some(b) = cpu.load_fast::<T>(Any::of(cpu, at)) else {
            return false;
        };
        alu::to_register::<O, T>(cpu, at, b);
        true
    }
    const ALONE: Handler = alu::reg_mem::<O, Any, T>;
}

impl<O: Alu, T: Size> Step for RegImm<O, T> {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        alu::to_register::<O, T>(cpu, at, T::cut(at.op().immediate));
        true
    }
    const ALONE: Handler = alu::reg_imm::<O, T>;
}

impl<O: Unary, T: Size> Step for One<O, T> {
    #[inline(always)]
    fn step(cpu: &mut Cpu, at: At) -> bool {
        let a = cpu.get::<T>(at.op().a);
        let result = O::result(a);
        cpu.set(at.op().a, result);
        O::flags(cpu, a, result);
        true
    }
    const ALONE: Handler = alu::one_reg::<O, T>;
}

/// A second instruction with others behind it.
struct Then<A>(PhantomData<A>);

impl<A: Step> Tail for Then<A> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
        match A::step(cpu, at) {
            true => super::go(cpu, env, at, budget),
            false => (A::ALONE)(cpu, env, at, budget),
        }
    }
}

/// CALL to a fixed place.
struct Call<const WITHIN: bool>;
/// JMP to a fixed place.
struct Jump<const WITHIN: bool>;
/// Jcc.
struct Branch<C, const WITHIN: bool>(PhantomData<C>);
/// A comparison of registers and the branch behind it.
struct CompareRegs<O, C, T>(PhantomData<(O, C, T)>);
/// A comparison with an immediate and the branch behind it.
struct CompareImm<O, C, T>(PhantomData<(O, C, T)>);
/// A comparison of memory with an immediate and the branch behind it.
struct CompareMemImm<O, C, T>(PhantomData<(O, C, T)>);
/// A comparison of a register with memory and the branch behind it.
struct CompareRegMem<O, C, T>(PhantomData<(O, C, T)>);

impl<const WITHIN: bool> Tail for Call<WITHIN> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
        flow::call::<WITHIN>(cpu, env, at, budget)
    }
}

impl<const WITHIN: bool> Tail for Jump<WITHIN> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
        flow::jump::<WITHIN>(cpu, env, at, budget)
    }
}

impl<C: Condition, const WITHIN: bool> Tail for Branch<C, WITHIN> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
        flow::branch::<C, WITHIN>(cpu, env, at, budget)
    }
}

impl<O: Compare, C: Condition, T: Size> Tail for CompareRegs<O, C, T> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
        fuse::reg_reg::<O, C, T, true>(cpu, env, at, budget)
    }
}

impl<O: Compare, C: Condition, T: Size> Tail for CompareImm<O, C, T> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
        fuse::reg_imm::<O, C, T, true>(cpu, env, at, budget)
    }
}

impl<O: Compare, C: Condition, T: Size> Tail for CompareMemImm<O, C, T> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
        fuse::mem_imm::<O, C, T, true>(cpu, env, at, budget)
    }
}

impl<O: Compare, C: Condition, T: Size> Tail for CompareRegMem<O, C, T> {
    #[inline(always)]
    fn run(cpu: &mut Cpu, env: &mut &mut dyn Environment, at: At, budget: i64) -> i64 {
        fuse::reg_mem::<O, C, T, true>(cpu, env, at, budget)
    }
}

/// What an op is, for those that are part of something larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::interp) enum Kind {
    Move64,
    Move32,
    MoveImm32,
    Load64,
    Load64Any,
    Load32,
    Load8,
    Load8Any,
    LoadByte,
    MoveByte,
    LoadSigned,
    LoadSignedAny,
    Exchange,
    Store64,
    Store32,
    Lea64,
    Lea64Any,
    Lea32,
    Push,
    Pop,
    Inc64,
    Inc32,
    Dec64,
    Dec32,
    SubRegs64,
    SubRegs32,
    SubMem64,
    AddRegs64,
    XorRegs32,
    AndImm32,
    AndImm64,
    AddImm64,
    SubImm64,
    SubImm32,
    Ret,
    Call {
        within: bool,
    },
    Jump {
        within: bool,
    },
    Branch {
        condition: u8,
        within: bool,
    },
    /// TEST of registers and the branch behind it.
    TestRegs {
        size: u32,
        condition: u8,
    },
    /// CMP of registers and the branch behind it.
    CompareRegs {
        size: u32,
        condition: u8,
    },
    /// CMP with an immediate and the branch behind it.
    CompareImm {
        size: u32,
        condition: u8,
    },
    /// CMP of a byte in memory with an immediate and the branch behind it.
    CompareByte {
        condition: u8,
    },
    /// CMP of a byte register with memory and the branch behind it.
    CompareWithByte {
        condition: u8,
    },
    /// Something else.
    Other,
}

/// Picks the handler of a pair by its second half.
fn before<A: Step>(second: Kind) -> Option<Handler> {
    Some(match second {
        Kind::Move64 => pair::<A, Then<Move<u64>>>,
        Kind::Move32 => pair::<A, Then<Move<u32>>>,
        Kind::MoveImm32 => pair::<A, Then<MoveImm<u32>>>,
        Kind::MoveByte => pair::<A, Then<MoveByte>>,
        Kind::Load64 => pair::<A, Then<Load<Near, u64>>>,
        Kind::Load64Any => pair::<A, Then<Load<Any, u64>>>,
        Kind::Load32 => pair::<A, Then<Load<Near, u32>>>,
        Kind::Store64 => pair::<A, Then<Store<u64>>>,
        Kind::Store32 => pair::<A, Then<Store<u32>>>,
        Kind::Lea64 => pair::<A, Then<Lea<Near, u64>>>,
        Kind::Lea64Any => pair::<A, Then<Lea<Any, u64>>>,
        Kind::Push => pair::<A, Then<Push>>,
        Kind::XorRegs32 => pair::<A, Then<RegReg<alu::Xor, u32>>>,
        Kind::AddRegs64 => pair::<A, Then<RegReg<alu::Add, u64>>>,
        Kind::SubRegs64 => pair::<A, Then<RegReg<alu::Sub, u64>>>,
        Kind::AddImm64 => pair::<A, Then<RegImm<alu::Add, u64>>>,
        Kind::SubImm64 => pair::<A, Then<RegImm<alu::Sub, u64>>>,
        Kind::AndImm32 => pair::<A, Then<RegImm<alu::And, u32>>>,
        Kind::Inc64 => pair::<A, Then<One<alu::Inc, u64>>>,
        Kind::Load8 => pair::<A, Then<Load<Near, u8>>>,
        Kind::Load8Any => pair::<A, Then<Load<Any, u8>>>,
        Kind::LoadByte => pair::<A, Then<LoadByte>>,
        Kind::Exchange => pair::<A, Then<Exchange>>,
        Kind::LoadSigned => pair::<A, Then<LoadSigned<Near>>>,
        Kind::LoadSignedAny => pair::<A, Then<LoadSigned<Any>>>,
        Kind::Call { within: true } => pair::<A, Call<true>>,
        Kind::Call { within: false } => pair::<A, Call<false>>,
        Kind::Jump { within: true } => pair::<A, Jump<true>>,
        Kind::Jump { within: false } => pair::<A, Jump<false>>,
        _ => return None,
    })
}

struct Tested<A, T>(PhantomData<(A, T)>);
struct Compared<A, T>(PhantomData<(A, T)>);
struct ComparedImm<A, T>(PhantomData<(A, T)>);
struct ComparedByte<A>(PhantomData<A>);
struct ComparedWithByte<A>(PhantomData<A>);
struct Branched<A, const WITHIN: bool>(PhantomData<A>);

impl<A: Step, T: Size> ByCondition for Tested<A, T> {
    fn handler<C: Condition>() -> Handler {
        pair::<A, CompareRegs<alu::Test, C, T>>
    }
}

impl<A: Step, T: Size> ByCondition for Compared<A, T> {
    fn handler<C: Condition>() -> Handler {
        pair::<A, CompareRegs<alu::Cmp, C, T>>
    }
}

impl<A: Step, T: Size> ByCondition for ComparedImm<A, T> {
    fn handler<C: Condition>() -> Handler {
        pair::<A, CompareImm<alu::Cmp, C, T>>
    }
}

impl<A: Step> ByCondition for ComparedByte<A> {
    fn handler<C: Condition>() -> Handler {
        pair::<A, CompareMemImm<alu::Cmp, C, u8>>
    }
}

impl<A: Step> ByCondition for ComparedWithByte<A> {
    fn handler<C: Condition>() -> Handler {
        pair::<A, CompareRegMem<alu::Cmp, C, u8>>
    }
}

impl<A: Step, const WITHIN: bool> ByCondition for Branched<A, WITHIN> {
    fn handler<C: Condition>() -> Handler {
        pair::<A, Branch<C, WITHIN>>
    }
}

/// [`before`], or a comparison with its branch.
fn before_compare<A: Step>(second: Kind) -> Option<Handler> {
    Some(match second {
        Kind::TestRegs { size: 1, condition } => by_condition::<Tested<A, u8>>(condition),
        Kind::TestRegs { size: 4, condition } => by_condition::<Tested<A, u32>>(condition),
        Kind::TestRegs { size: 8, condition } => by_condition::<Tested<A, u64>>(condition),
        Kind::CompareRegs { size: 4, condition } => by_condition::<Compared<A, u32>>(condition),
        Kind::CompareRegs { size: 8, condition } => by_condition::<Compared<A, u64>>(condition),
        Kind::CompareImm { size: 1, condition } => by_condition::<ComparedImm<A, u8>>(condition),
        Kind::CompareImm { size: 4, condition } => by_condition::<ComparedImm<A, u32>>(condition),
        Kind::CompareByte { condition } => by_condition::<ComparedByte<A>>(condition),
        Kind::CompareWithByte { condition } => by_condition::<ComparedWithByte<A>>(condition),
        second => return before::<A>(second),
    })
}

/// [`before`], or a branch on the flags.
fn before_branch<A: Step>(second: Kind) -> Option<Handler> {
    match second {
        Kind::Branch {
            condition,
            within: true,
        } => Some(by_condition::<Branched<A, true>>(condition)),
        Kind::Branch {
            condition,
            within: false,
        } => Some(by_condition::<Branched<A, false>>(condition)),
        second => before::<A>(second),
    }
}

/// Returns the handler for two ops, the first of which gets it.
pub(in crate::interp) fn pair_of(first: Kind, second: Kind) -> Option<Handler> {
    match first {
        Kind::Move64 => before_compare::<Move<u64>>(second),
        Kind::Move32 => before_compare::<Move<u32>>(second),
        Kind::MoveImm32 => before::<MoveImm<u32>>(second),
        Kind::MoveByte => before::<MoveByte>(second),
        Kind::Load64 => before_compare::<Load<Near, u64>>(second),
        Kind::Load64Any => before_compare::<Load<Any, u64>>(second),
        Kind::Load32 => before_compare::<Load<Near, u32>>(second),
        Kind::Load8 => before_compare::<Load<Near, u8>>(second),
        Kind::Load8Any => before_compare::<Load<Any, u8>>(second),
        Kind::LoadByte => before_compare::<LoadByte>(second),
        Kind::Lea32 => before_compare::<Lea<Near, u32>>(second),
        Kind::Inc64 => before_compare::<One<alu::Inc, u64>>(second),
        Kind::LoadSigned => before::<LoadSigned<Near>>(second),
        Kind::LoadSignedAny => before::<LoadSigned<Any>>(second),
        Kind::Exchange => before::<Exchange>(second),
        Kind::Store64 => before::<Store<u64>>(second),
        Kind::Store32 => before::<Store<u32>>(second),
        Kind::Lea64 => before::<Lea<Near, u64>>(second),
        Kind::Lea64Any => before::<Lea<Any, u64>>(second),
        Kind::SubMem64 => before_branch::<RegMem<alu::Sub, u64>>(second),
        Kind::Push => before::<Push>(second),
        Kind::XorRegs32 => before::<RegReg<alu::Xor, u32>>(second),
        Kind::Inc32 => before::<One<alu::Inc, u32>>(second),
        Kind::AddRegs64 => before::<RegReg<alu::Add, u64>>(second),
        Kind::AddImm64 => before_branch::<RegImm<alu::Add, u64>>(second),
        Kind::SubImm64 => before_branch::<RegImm<alu::Sub, u64>>(second),
        Kind::SubImm32 => before_branch::<RegImm<alu::Sub, u32>>(second),
        Kind::Dec64 => before_branch::<One<alu::Dec, u64>>(second),
        Kind::Dec32 => before_branch::<One<alu::Dec, u32>>(second),
        Kind::SubRegs64 => before_branch::<RegReg<alu::Sub, u64>>(second),
        Kind::SubRegs32 => before_branch::<RegReg<alu::Sub, u32>>(second),
        Kind::AndImm32 => before_branch::<RegImm<alu::And, u32>>(second),
        Kind::AndImm64 => before_branch::<RegImm<alu::And, u64>>(second),
        _ => None,
    }
}
