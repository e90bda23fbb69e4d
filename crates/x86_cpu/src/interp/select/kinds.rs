//! What instructions are, for joining them with others.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{Form, form, is_near, plain_place};
use crate::interp::fast::pairs::Kind;
use crate::interp::operand::operand_size;

/// What an instruction of 64-bit code that [`select`](super::select) takes is; `within` says that the
/// place it goes to is within its page.
pub(in crate::interp) fn kind(instruction: &Instruction, within: bool) -> Kind {
    let (size, form) = (operand_size(instruction, 0), form(instruction));
    let near = is_near(instruction);
    if instruction.has_lock_prefix() {
        return Kind::Other;
    }
    match (instruction.mnemonic(), form, size) {
        (Mnemonic::Mov, Form::RegReg, 8) => Kind::Move64,
        (Mnemonic::Mov, Form::RegReg, 4) => Kind::Move32,
        (Mnemonic::Mov, Form::RegImm, 4) => Kind::MoveImm32,
        (Mnemonic::Mov, Form::RegMem, 8) => match near {
            true => Kind::Load64,
            false => Kind::Load64Any,
        },
        (Mnemonic::Mov, Form::RegMem, 4) if near => Kind::Load32,
        (Mnemonic::Mov, Form::RegMem, 1) => match near {
            true => Kind::Load8,
            false => Kind::Load8Any,
        },
        (Mnemonic::Mov, Form::MemReg, 8) if near => Kind::Store64,
        (Mnemonic::Mov, Form::MemReg, 4) if near => Kind::Store32,
        (Mnemonic::Movzx, Form::RegMem, 4) if near && operand_size(instruction, 1) == 1 => {
            Kind::LoadByte
        }
        (Mnemonic::Movzx, Form::RegReg, 4) if operand_size(instruction, 1) == 1 => Kind::MoveByte,
        (Mnemonic::Movsxd, Form::RegMem, 8) if operand_size(instruction, 1) == 4 => match near {
            true => Kind::LoadSigned,
            false => Kind::LoadSignedAny,
        },
        (Mnemonic::Xchg, Form::RegReg, 8) => Kind::Exchange,
        (Mnemonic::Lea, ..) if plain_place(instruction) => {
            match (size, near_registers(instruction)) {
                (8, true) => Kind::Lea64,
                (8, false) => Kind::Lea64Any,
                (4, true) => Kind::Lea32,
                _ => Kind::Other,
            }
        }
        (Mnemonic::Push, Form::Reg, 8) if not_stack_pointer(instruction) => Kind::Push,
        (Mnemonic::Pop, Form::Reg, 8) if not_stack_pointer(instruction) => Kind::Pop,
        (Mnemonic::Inc, Form::Reg, 8) => Kind::Inc64,
        (Mnemonic::Inc, Form::Reg, 4) => Kind::Inc32,
        (Mnemonic::Dec, Form::Reg, 8) => Kind::Dec64,
        (Mnemonic::Dec, Form::Reg, 4) => Kind::Dec32,
        (Mnemonic::Sub, Form::RegMem, 8) if !near => Kind::SubMem64,
        (Mnemonic::Sub, Form::RegReg, 8) => Kind::SubRegs64,
        (Mnemonic::Sub, Form::RegReg, 4) => Kind::SubRegs32,
        (Mnemonic::Sub, Form::RegImm, 8) => Kind::SubImm64,
        (Mnemonic::Sub, Form::RegImm, 4) => Kind::SubImm32,
        (Mnemonic::Add, Form::RegReg, 8) => Kind::AddRegs64,
        (Mnemonic::Add, Form::RegImm, 8) => Kind::AddImm64,
        (Mnemonic::Xor, Form::RegReg, 4) => Kind::XorRegs32,
        (Mnemonic::And, Form::RegImm, 4) => Kind::AndImm32,
        (Mnemonic::And, Form::RegImm, 8) => Kind::AndImm64,
        (Mnemonic::Ret, ..) if instruction.code() == iced_x86::Code::Retnq => Kind::Ret,
        (Mnemonic::Call, ..) if instruction.op0_kind() == OpKind::NearBranch64 => {
            Kind::Call { within }
        }
        (Mnemonic::Jmp, ..) if instruction.op0_kind() == OpKind::NearBranch64 => {
            Kind::Jump { within }
        }
        _ => Kind::Other,
    }
}

fn near_registers(instruction: &Instruction) -> bool {
    instruction.memory_index() == Register::None
}

fn not_stack_pointer(instruction: &Instruction) -> bool {
    instruction.op0_register() != Register::RSP
}

/// [`kind`] of a comparison that [`fused`](super::fused) takes, with the branch behind it.
pub(in crate::interp) fn fused_kind(instruction: &Instruction, condition: u8) -> Kind {
    let size = operand_size(instruction, 0);
    match (instruction.mnemonic(), form(instruction), size) {
        (Mnemonic::Test, Form::RegReg, _) => Kind::TestRegs { size, condition },
        (Mnemonic::Cmp, Form::RegReg, _) => Kind::CompareRegs { size, condition },
        (Mnemonic::Cmp, Form::RegImm, _) => Kind::CompareImm { size, condition },
        (Mnemonic::Cmp, Form::MemImm, 1) => Kind::CompareByte { condition },
        (Mnemonic::Cmp, Form::RegMem, 1) => Kind::CompareWithByte { condition },
        _ => Kind::Other,
    }
}
