//! Which handler runs a decoded instruction of 64-bit code, and with what operands.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86_fp::FpOperation;

use super::fast::alu::{self, Alu};
use super::fast::bits::{
    BitTest, BitTestMemory, Complement, Count, Multiply, MultiplyImm, MultiplyLoad, Reset, Scan,
    Set, Swap,
};
use super::fast::flow::{self, by_condition};
use super::fast::fuse::{self, Compare};
use super::fast::moves::{
    Lea, Load, Move, MoveImm, Select, SelectLoad, Sign, SignLoad, Store, StoreImm, Zero, ZeroLoad,
};
use super::fast::shifts::{
    ByCl, ByImmediate, MemoryByCl, MemoryByImmediate, Rotate, Sar, Shift, Shl, Shr,
};
use super::fast::{Any, Near, by_place, by_size, divide, fence, generic, interrupts, moves, stack};
use super::flags::sign_extend;
use super::op::{Handler, Op, Place, Size};
use super::operand::{operand_size, segment, slot};
use super::translate::condition_code;

mod kinds;
mod memory;
mod vector;

pub(super) use kinds::{fused_kind, kind};

/// Offset of an operand that is 0.
const ZERO: u8 = 128;
/// Offset of `code_base`.
const CODE_BASE: u8 = 184;

/// How an instruction is run.
pub(super) enum Choice {
    /// It does nothing.
    Nothing,
    /// From its decoded form.
    Decoded,
    /// By a handler.
    Op(Handler),
    /// By a handler that has the operation in the slot behind, or by that from its decoded form.
    Operation(Option<Handler>, FpOperation),
    /// By a handler that ends the block and has no links.
    Closing(Handler),
    /// By a handler that ends the block and goes to a fixed place: within the page, beyond it.
    Direct(Handler, Handler),
    /// As a branch on this condition.
    Branch(u8),
}

/// An op without operands, executed from its decoded form.
pub(super) fn nothing() -> Op {
    Op {
        run: generic,
        immediate: 0,
        displacement: 0,
        a: ZERO,
        b: ZERO,
        first: ZERO,
        index: ZERO,
        segment: ZERO,
        scale: 0,
        len: 0,
        place: Place(0),
        start: 0,
        number: 0,
    }
}

fn offset(register: Register) -> u8 {
    if register.is_xmm() {
        return register.number() as u8;
    }
    slot(register).map_or(ZERO, |slot| slot.offset)
}

/// The operands of an instruction; only right for instructions that [`select`] takes.
pub(super) fn operands(instruction: &Instruction) -> Op {
    let mut op = nothing();
    op.start = (instruction.ip() & 0xfff) as u16;
    op.len = instruction.len() as u8;
    for number in 0..instruction.op_count() {
        match instruction.op_kind(number) {
            OpKind::Register if number == 0 => op.a = offset(instruction.op0_register()),
            OpKind::Register if number == 1 => op.b = offset(instruction.op1_register()),
            OpKind::Memory => place(&mut op, instruction),
            OpKind::Immediate8 => op.immediate = sign_extend(instruction.immediate8().into(), 1),
            OpKind::Immediate16 => op.immediate = sign_extend(instruction.immediate16().into(), 2),
            OpKind::Immediate32 => op.immediate = sign_extend(instruction.immediate32().into(), 4),
            OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
            | OpKind::Immediate64 => op.immediate = instruction.immediate(number),
            _ => {}
        }
    }
    if let Some(condition) = condition_code(instruction) {
        let from_memory = instruction.op_count() == 2 && instruction.op1_kind() == OpKind::Memory;
        match from_memory {
            true => op.immediate = condition.into(),
            false => op.scale = condition,
        }
    }
    op
}

fn place(op: &mut Op, instruction: &Instruction) {
    op.displacement = instruction.memory_displacement64() as i32;
    op.first = match instruction.memory_base() {
        Register::RIP => CODE_BASE,
        register => offset(register),
    };
    op.index = offset(instruction.memory_index());
    op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    op.segment = match segment(instruction.memory_segment()) {
        // LEA tells an offset in the segment.
        _ if instruction.mnemonic() == Mnemonic::Lea => ZERO,
        Some(number) if number >= 4 => 136 + 8 * number as u8,
        _ => ZERO,
    };
}

/// Whether the memory operand, if there is one, is of the form that handlers know.
fn plain_place(instruction: &Instruction) -> bool {
    let of_64 = |register: Register| {
        matches!(register, Register::None | Register::RIP) || register.is_gpr64()
    };
    let displacement = instruction.memory_displacement64() as i64;
    of_64(instruction.memory_base())
        && of_64(instruction.memory_index())
        && i64::from(displacement as i32) == displacement
}

/// Whether base and displacement are all of the address.
fn is_near(instruction: &Instruction) -> bool {
    instruction.memory_index() == Register::None
        && segment(instruction.memory_segment()).is_none_or(|number| number < 4)
}

/// Kinds of the first two operands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Reg,
    RegReg,
    RegImm,
    RegMem,
    MemReg,
    MemImm,
    Mem,
    Other,
}

fn form(instruction: &Instruction) -> Form {
    #[derive(PartialEq)]
    enum Kind {
        Reg,
        Mem,
        Imm,
        None,
    }
    let kind = |number: u32| match instruction.op_kind(number) {
        _ if number >= instruction.op_count() => Kind::None,
        OpKind::Register if slot(instruction.op_register(number)).is_some() => Kind::Reg,
        OpKind::Memory if plain_place(instruction) => Kind::Mem,
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Kind::Imm,
        _ => Kind::None,
    };
    match (kind(0), kind(1)) {
        (Kind::Reg, Kind::None) if instruction.op_count() == 1 => Form::Reg,
        (Kind::Mem, Kind::None) if instruction.op_count() == 1 => Form::Mem,
        (Kind::Reg, Kind::Reg) => Form::RegReg,
        (Kind::Reg, Kind::Imm) => Form::RegImm,
        (Kind::Reg, Kind::Mem) => Form::RegMem,
        (Kind::Mem, Kind::Reg) => Form::MemReg,
        (Kind::Mem, Kind::Imm) => Form::MemImm,
        _ => Form::Other,
    }
}

fn of<T>(handler: Option<T>, wrap: impl FnOnce(T) -> Choice) -> Choice {
    handler.map_or(Choice::Decoded, wrap)
}

/// Chooses how to run an instruction of 64-bit code.
pub(super) fn select(instruction: &Instruction) -> Choice {
    if instruction.is_invalid() {
        return Choice::Decoded;
    }
    let one = |handler: Option<Handler>| of(handler, Choice::Op);
    if instruction.has_lock_prefix() {
        return one(memory::locked(instruction));
    }
    match instruction.mnemonic() {
        Mnemonic::Add => one(arithmetic::<alu::Add>(instruction)),
        Mnemonic::Adc => one(arithmetic::<alu::Adc>(instruction)),
        Mnemonic::Sub => one(arithmetic::<alu::Sub>(instruction)),
        Mnemonic::Sbb => one(arithmetic::<alu::Sbb>(instruction)),
        Mnemonic::And => one(arithmetic::<alu::And>(instruction)),
        Mnemonic::Or => one(arithmetic::<alu::Or>(instruction)),
        Mnemonic::Xor => one(arithmetic::<alu::Xor>(instruction)),
        Mnemonic::Cmp => one(arithmetic::<alu::Cmp>(instruction)),
        Mnemonic::Test => one(arithmetic::<alu::Test>(instruction)),
        Mnemonic::Inc => one(unary::<alu::Inc>(instruction)),
        Mnemonic::Dec => one(unary::<alu::Dec>(instruction)),
        Mnemonic::Neg => one(unary::<alu::Neg>(instruction)),
        Mnemonic::Not => one(unary::<alu::Not>(instruction)),
        Mnemonic::Mov => one(mov(instruction)),
        Mnemonic::Movzx => one(extended::<true>(instruction)),
        Mnemonic::Movsx | Mnemonic::Movsxd => one(extended::<false>(instruction)),
        Mnemonic::Lea if plain_place(instruction) => {
            let near = instruction.memory_index() == Register::None;
            one(Some(by_place::<Lea>(near, operand_size(instruction, 0))))
        }
        Mnemonic::Cdqe => Choice::Op(moves::extend_32),
        Mnemonic::Cqo => Choice::Op(moves::spread_64),
        Mnemonic::Cdq => Choice::Op(moves::spread_32),
        Mnemonic::Cli => Choice::Op(interrupts::disable),
        Mnemonic::Sti => Choice::Op(interrupts::enable),
        Mnemonic::Pushfq => Choice::Op(interrupts::push),
        Mnemonic::Popfq => Choice::Op(interrupts::pop),
        Mnemonic::Push => one(push(instruction)),
        Mnemonic::Pop if instruction.op0_register().is_gpr64() => Choice::Op(stack::pop),
        Mnemonic::Leave if instruction.code() == iced_x86::Code::Leaveq => Choice::Op(stack::leave),
        Mnemonic::Nop
        | Mnemonic::Endbr64
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2 => Choice::Nothing,
        Mnemonic::Jmp | Mnemonic::Call | Mnemonic::Ret => branch(instruction),
        _ => select_other(instruction),
    }
}

/// Chooses how to run an instruction of 16- and 32-bit code: handlers know neither segments with limits
/// nor addresses that wrap, and links lead to 64-bit code, so only what stays within the general
/// registers has one.
pub(super) fn select_between_registers(instruction: &Instruction) -> Choice {
    let stays = (0..instruction.op_count()).all(|number| match instruction.op_kind(number) {
        OpKind::Register => slot(instruction.op_register(number)).is_some(),
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32 => true,
        _ => false,
    });
    let known = matches!(
        instruction.mnemonic(),
        Mnemonic::Add
            | Mnemonic::Adc
            | Mnemonic::Sub
            | Mnemonic::Sbb
            | Mnemonic::And
            | Mnemonic::Or
            | Mnemonic::Xor
            | Mnemonic::Cmp
            | Mnemonic::Test
            | Mnemonic::Inc
            | Mnemonic::Dec
            | Mnemonic::Neg
            | Mnemonic::Not
            | Mnemonic::Mov
            | Mnemonic::Movzx
            | Mnemonic::Movsx
            | Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Rol
            | Mnemonic::Ror
    );
    match stays && known {
        true => select(instruction),
        false => Choice::Decoded,
    }
}

/// [`select`] for shifts, products and bits, for what exchanges, and for whatever has a condition or
/// is no integer instruction.
fn select_other(instruction: &Instruction) -> Choice {
    let one = |handler: Option<Handler>| of(handler, Choice::Op);
    match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => one(shift::<Shl>(instruction)),
        Mnemonic::Shr => one(shift::<Shr>(instruction)),
        Mnemonic::Sar => one(shift::<Sar>(instruction)),
        Mnemonic::Rol => one(rotate::<false>(instruction)),
        Mnemonic::Ror => one(rotate::<true>(instruction)),
        Mnemonic::Imul => one(multiply(instruction)),
        Mnemonic::Mul => one(accumulator(instruction, false, divide::product)),
        Mnemonic::Div => one(accumulator(instruction, false, divide::quotient)),
        Mnemonic::Idiv => one(accumulator(instruction, true, divide::quotient)),
        Mnemonic::Bt => one(bit_test(instruction)),
        Mnemonic::Bts => one(memory::bit_change::<Set>(instruction)),
        Mnemonic::Btr => one(memory::bit_change::<Reset>(instruction)),
        Mnemonic::Btc => one(memory::bit_change::<Complement>(instruction)),
        Mnemonic::Shld => one(memory::double_shift::<false>(instruction)),
        Mnemonic::Shrd => one(memory::double_shift::<true>(instruction)),
        Mnemonic::Xchg | Mnemonic::Xadd | Mnemonic::Cmpxchg | Mnemonic::Cmpxchg16b => {
            one(memory::exchange(instruction))
        }
        Mnemonic::Popcnt if form(instruction) == Form::RegReg => {
            Choice::Op(by_size::<Count>(operand_size(instruction, 0)))
        }
        Mnemonic::Mfence | Mnemonic::Lfence | Mnemonic::Sfence => Choice::Op(fence),
        Mnemonic::Bsf if form(instruction) == Form::RegReg => {
            Choice::Op(by_size::<Scan<false>>(operand_size(instruction, 0)))
        }
        Mnemonic::Bsr if form(instruction) == Form::RegReg => {
            Choice::Op(by_size::<Scan<true>>(operand_size(instruction, 0)))
        }
        Mnemonic::Bswap if operand_size(instruction, 0) > 2 => {
            Choice::Op(by_size::<Swap>(operand_size(instruction, 0)))
        }
        _ => match condition_code(instruction) {
            Some(condition) => conditional(instruction, condition),
            None => vector::floating(instruction),
        },
    }
}

fn arithmetic<O: Alu>(instruction: &Instruction) -> Option<Handler> {
    let (size, near) = (operand_size(instruction, 0), is_near(instruction));
    Some(match form(instruction) {
        Form::RegReg => by_size::<alu::RegReg<O>>(size),
        Form::RegImm => by_size::<alu::RegImm<O>>(size),
        Form::RegMem => by_place::<alu::RegMem<O>>(near, size),
        Form::MemReg => by_place::<alu::MemReg<O>>(near, size),
        Form::MemImm => by_place::<alu::MemImm<O>>(near, size),
        _ => return None,
    })
}

fn unary<O: alu::Unary>(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    match form(instruction) {
        Form::Reg => Some(by_size::<alu::OneReg<O>>(size)),
        Form::Mem => Some(by_place::<alu::OneMem<O>>(is_near(instruction), size)),
        _ => None,
    }
}

fn mov(instruction: &Instruction) -> Option<Handler> {
    let (size, near) = (operand_size(instruction, 0), is_near(instruction));
    Some(match form(instruction) {
        Form::RegReg => by_size::<Move>(size),
        Form::RegImm => by_size::<MoveImm>(size),
        Form::RegMem => by_place::<Load>(near, size),
        Form::MemReg => by_place::<Store>(near, size),
        Form::MemImm => by_place::<StoreImm>(near, size),
        _ => return None,
    })
}

/// MOVZX where `ZERO_EXTENDS`, else MOVSX.
fn extended<const ZERO_EXTENDS: bool>(instruction: &Instruction) -> Option<Handler> {
    let (to, from) = (operand_size(instruction, 0), operand_size(instruction, 1));
    let near = is_near(instruction);
    Some(match (form(instruction), from, ZERO_EXTENDS) {
        (Form::RegReg, 1, true) => by_size::<Zero<u8>>(to),
        (Form::RegReg, 2, true) => by_size::<Zero<u16>>(to),
        (Form::RegReg, 1, false) => by_size::<Sign<u8>>(to),
        (Form::RegReg, 2, false) => by_size::<Sign<u16>>(to),
        (Form::RegReg, 4, false) => by_size::<Sign<u32>>(to),
        (Form::RegMem, 1, true) => by_place::<ZeroLoad<u8>>(near, to),
        (Form::RegMem, 2, true) => by_place::<ZeroLoad<u16>>(near, to),
        (Form::RegMem, 1, false) => by_place::<SignLoad<u8>>(near, to),
        (Form::RegMem, 2, false) => by_place::<SignLoad<u16>>(near, to),
        (Form::RegMem, 4, false) => by_place::<SignLoad<u32>>(near, to),
        _ => return None,
    })
}

fn shift<O: Shift>(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    match form(instruction) {
        Form::RegReg => Some(by_size::<ByCl<O>>(size)),
        Form::MemReg => Some(by_size::<MemoryByCl<O>>(size)),
        form @ (Form::RegImm | Form::MemImm) => {
            let most = if size == 8 { 63 } else { 31 };
            let count = instruction.immediate8();
            (1..=most).contains(&count).then(|| match form {
                Form::RegImm => by_size::<ByImmediate<O>>(size),
                _ => by_size::<MemoryByImmediate<O>>(size),
            })
        }
        _ => None,
    }
}

fn rotate<const RIGHT: bool>(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    let whole = (size * 8) as u8;
    let simple = form(instruction) == Form::RegImm
        && (1..whole.min(32 + whole / 2)).contains(&instruction.immediate8());
    simple.then(|| by_size::<Rotate<RIGHT>>(size))
}

fn multiply(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    match (form(instruction), instruction.op_count()) {
        (Form::RegReg, 2) => Some(by_size::<Multiply>(size)),
        (Form::RegMem, 2) => Some(by_place::<MultiplyLoad>(is_near(instruction), size)),
        (Form::RegReg, 3) => Some(by_size::<MultiplyImm>(size)),
        (_, 1) => accumulator(instruction, true, divide::product),
        _ => None,
    }
}

/// Multiplications and divisions of the accumulator.
fn accumulator(
    instruction: &Instruction,
    signed: bool,
    pick: fn(bool, u32, bool) -> Option<Handler>,
) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    match form(instruction) {
        Form::Reg => pick(signed, size, false),
        Form::Mem => pick(signed, size, true),
        _ => None,
    }
}

fn bit_test(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    match form(instruction) {
        Form::RegReg => Some(by_size::<BitTest<false>>(size)),
        Form::RegImm => Some(by_size::<BitTest<true>>(size)),
        Form::MemReg => Some(by_size::<BitTestMemory<false>>(size)),
        Form::MemImm => Some(by_size::<BitTestMemory<true>>(size)),
        _ => None,
    }
}

fn push(instruction: &Instruction) -> Option<Handler> {
    if instruction.stack_pointer_increment() != -8 {
        return None;
    }
    match (form(instruction), instruction.op0_kind()) {
        (Form::Reg, _) => Some(stack::push),
        (Form::Mem, _) if is_near(instruction) => Some(stack::push_load::<Near>),
        (Form::Mem, _) => Some(stack::push_load::<Any>),
        (_, OpKind::Immediate8to64 | OpKind::Immediate32to64) => Some(stack::push_imm),
        _ => None,
    }
}

fn branch(instruction: &Instruction) -> Choice {
    let call = instruction.mnemonic() == Mnemonic::Call;
    if instruction.mnemonic() == Mnemonic::Ret {
        // The immediate is unsigned.
        return match instruction.code() {
            iced_x86::Code::Retnq => Choice::Closing(flow::ret),
            _ => Choice::Decoded,
        };
    }
    match (instruction.op0_kind(), form(instruction)) {
        (OpKind::NearBranch64, _) if call => {
            Choice::Direct(flow::call::<true>, flow::call::<false>)
        }
        (OpKind::NearBranch64, _) => Choice::Direct(flow::jump::<true>, flow::jump::<false>),
        (_, Form::Reg) if instruction.op0_register().is_gpr64() => Choice::Closing(match call {
            true => flow::call_register,
            false => flow::jump_register,
        }),
        (_, Form::Mem) if is_near_indirect(instruction) => {
            Choice::Closing(match (call, is_near(instruction)) {
                (true, true) => flow::call_memory::<Near>,
                (true, false) => flow::call_memory::<Any>,
                (false, true) => flow::jump_memory::<Near>,
                (false, false) => flow::jump_memory::<Any>,
            })
        }
        _ => Choice::Decoded,
    }
}

fn is_near_indirect(instruction: &Instruction) -> bool {
    matches!(
        instruction.code(),
        iced_x86::Code::Call_rm64 | iced_x86::Code::Jmp_rm64
    )
}

fn conditional(instruction: &Instruction, condition: u8) -> Choice {
    let size = operand_size(instruction, 0);
    match (instruction.op0_kind(), form(instruction)) {
        (OpKind::NearBranch64, _) => Choice::Branch(condition),
        (_, Form::Reg) if size == 1 => Choice::Op(moves::set_condition),
        (_, Form::RegReg) => Choice::Op(by_size::<Select>(size)),
        (_, Form::RegMem) => Choice::Op(by_place::<SelectLoad>(is_near(instruction), size)),
        _ => Choice::Decoded,
    }
}

/// Chooses the handler for a comparison and the branch behind it.
pub(super) fn fused(instruction: &Instruction, condition: u8, within: bool) -> Option<Handler> {
    if instruction.has_lock_prefix() {
        return None;
    }
    match instruction.mnemonic() {
        Mnemonic::Cmp => fused_with::<alu::Cmp>(instruction, condition, within),
        Mnemonic::Test => fused_with::<alu::Test>(instruction, condition, within),
        _ => None,
    }
}

fn fused_with<O: Compare>(
    instruction: &Instruction,
    condition: u8,
    within: bool,
) -> Option<Handler> {
    match (operand_size(instruction, 0), within) {
        (1, true) => fused_sized::<O, u8, true>(instruction, condition),
        (4, true) => fused_sized::<O, u32, true>(instruction, condition),
        (8, true) => fused_sized::<O, u64, true>(instruction, condition),
        (1, false) => fused_sized::<O, u8, false>(instruction, condition),
        (4, false) => fused_sized::<O, u32, false>(instruction, condition),
        (8, false) => fused_sized::<O, u64, false>(instruction, condition),
        _ => None,
    }
}

fn fused_sized<O: Compare, T: Size, const WITHIN: bool>(
    instruction: &Instruction,
    condition: u8,
) -> Option<Handler> {
    Some(match form(instruction) {
        Form::RegReg => by_condition::<fuse::Pick<fuse::RegReg, O, T, WITHIN>>(condition),
        Form::RegImm => by_condition::<fuse::Pick<fuse::RegImm, O, T, WITHIN>>(condition),
        Form::RegMem => by_condition::<fuse::Pick<fuse::RegMem, O, T, WITHIN>>(condition),
        Form::MemReg => by_condition::<fuse::Pick<fuse::MemReg, O, T, WITHIN>>(condition),
        Form::MemImm => by_condition::<fuse::Pick<fuse::MemImm, O, T, WITHIN>>(condition),
        _ => return None,
    })
}
