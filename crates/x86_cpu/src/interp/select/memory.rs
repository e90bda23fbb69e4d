//! Which handler runs an instruction that changes memory as one step, and some that are like it.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Form, form};
use crate::interp::fast::alu::{self, Alu, Unary};
use crate::interp::fast::atomic::{
    CompareExchange, ExchangeAdd, LockedImm, LockedOne, LockedReg, Swap, compare_exchange_pair,
};
use crate::interp::fast::bits::{BitChange, BitChangeMemory, Change, Complement, Reset, Set};
use crate::interp::fast::moves::Exchange;
use crate::interp::fast::{by_size, shifts};
use crate::interp::op::Handler;
use crate::interp::operand::operand_size;

/// Chooses the handler of an instruction with LOCK.
pub(super) fn locked(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::Add => arithmetic::<alu::Add>(instruction),
        Mnemonic::Sub => arithmetic::<alu::Sub>(instruction),
        Mnemonic::And => arithmetic::<alu::And>(instruction),
        Mnemonic::Or => arithmetic::<alu::Or>(instruction),
        Mnemonic::Xor => arithmetic::<alu::Xor>(instruction),
        Mnemonic::Inc => unary::<alu::Inc>(instruction),
        Mnemonic::Dec => unary::<alu::Dec>(instruction),
        Mnemonic::Bts => bit_change::<Set>(instruction),
        Mnemonic::Btr => bit_change::<Reset>(instruction),
        Mnemonic::Btc => bit_change::<Complement>(instruction),
        _ => exchange(instruction),
    }
}

fn arithmetic<O: Alu>(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    match form(instruction) {
        Form::MemReg => Some(by_size::<LockedReg<O>>(size)),
        Form::MemImm => Some(by_size::<LockedImm<O>>(size)),
        _ => None,
    }
}

fn unary<O: Unary>(instruction: &Instruction) -> Option<Handler> {
    let in_memory = form(instruction) == Form::Mem;
    in_memory.then(|| by_size::<LockedOne<O>>(operand_size(instruction, 0)))
}

/// XCHG, XADD, CMPXCHG, CMPXCHG16B.
pub(super) fn exchange(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    match (instruction.mnemonic(), form(instruction)) {
        (Mnemonic::Xchg, Form::RegReg) => Some(by_size::<Exchange>(size)),
        (Mnemonic::Xchg, Form::MemReg) => Some(by_size::<Swap>(size)),
        (Mnemonic::Xadd, Form::MemReg) => Some(by_size::<ExchangeAdd>(size)),
        (Mnemonic::Cmpxchg, Form::MemReg) => Some(by_size::<CompareExchange>(size)),
        (Mnemonic::Cmpxchg16b, Form::Mem) => Some(compare_exchange_pair),
        _ => None,
    }
}

/// BTS, BTR, BTC.
pub(super) fn bit_change<O: Change>(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    Some(match form(instruction) {
        Form::RegReg => by_size::<BitChange<O, false>>(size),
        Form::RegImm => by_size::<BitChange<O, true>>(size),
        Form::MemReg => by_size::<BitChangeMemory<O, false>>(size),
        Form::MemImm => by_size::<BitChangeMemory<O, true>>(size),
        _ => return None,
    })
}

/// SHLD; SHRD where `RIGHT`.
pub(super) fn double_shift<const RIGHT: bool>(instruction: &Instruction) -> Option<Handler> {
    if form(instruction) != Form::RegReg {
        return None;
    }
    let immediate = instruction.op2_kind() == OpKind::Immediate8;
    match (operand_size(instruction, 0), immediate) {
        (4, true) => Some(shifts::double::<RIGHT, true, u32>),
        (4, false) => Some(shifts::double::<RIGHT, false, u32>),
        (8, true) => Some(shifts::double::<RIGHT, true, u64>),
        (8, false) => Some(shifts::double::<RIGHT, false, u64>),
        _ => None,
    }
}
