//! Which handler runs an instruction of the floating-point crate.

use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, RflagsBits};

use super::{Choice, is_near, plain_place};
use crate::interp::fast::vector::{self, OnLanes, OnScalars, Pair};
use crate::interp::fast::{Any, Near, float};
use crate::interp::op::{Handler, Size};

const FLAGS_IN_RFLAGS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

pub(super) fn floating(instruction: &Instruction) -> Choice {
    if let Some(handler) = vector(instruction) {
        return Choice::Op(handler);
    }
    let simple =
        instruction.flow_control() == FlowControl::Next && !instruction.is_string_instruction();
    match x86_fp::resolve(instruction).filter(|_| simple) {
        Some(operation) if instruction.mnemonic() != Mnemonic::Wait => {
            // Of x87's condition bits, which are told of too, RFLAGS has none.
            let touched = instruction.rflags_read() | instruction.rflags_modified();
            let flags = touched & FLAGS_IN_RFLAGS != 0;
            let run = float::choose(&operation, plain_place(instruction), flags);
            Choice::Operation(run, operation)
        }
        _ => Choice::Decoded,
    }
}

/// Handlers of SSE instructions.
fn vector(instruction: &Instruction) -> Option<Handler> {
    use iced_x86::Code;
    match instruction.code() {
        Code::Movups_xmm_xmmm128 | Code::Movupd_xmm_xmmm128 | Code::Movdqu_xmm_xmmm128 => {
            pair::<vector::Move<false>>(instruction)
        }
        Code::Movaps_xmm_xmmm128 | Code::Movapd_xmm_xmmm128 | Code::Movdqa_xmm_xmmm128 => {
            pair::<vector::Move<true>>(instruction)
        }
        Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm | Code::Movdqu_xmmm128_xmm => {
            stored::<false>(instruction)
        }
        Code::Movaps_xmmm128_xmm | Code::Movapd_xmmm128_xmm | Code::Movdqa_xmmm128_xmm => {
            stored::<true>(instruction)
        }
        Code::Movq_xmm_xmmm64 | Code::Movsd_xmm_xmmm64 => low_loaded::<u64>(instruction),
        Code::Movq_xmmm64_xmm | Code::Movsd_xmmm64_xmm => low_stored::<u64>(instruction),
        Code::Movss_xmm_xmmm32 => low_loaded::<u32>(instruction),
        Code::Movss_xmmm32_xmm => low_stored::<u32>(instruction),
        Code::Movd_xmm_rm32 => from_general::<u32>(instruction),
        Code::Movq_xmm_rm64 => from_general::<u64>(instruction),
        Code::Movd_rm32_xmm => to_general::<u32>(instruction),
        Code::Movq_rm64_xmm => to_general::<u64>(instruction),
        Code::Pmovmskb_r32_xmm => Some(vector::byte_signs),
        Code::Pand_xmm_xmmm128 | Code::Andps_xmm_xmmm128 | Code::Andpd_xmm_xmmm128 => {
            pair::<OnLanes<vector::And>>(instruction)
        }
        Code::Pandn_xmm_xmmm128 | Code::Andnps_xmm_xmmm128 | Code::Andnpd_xmm_xmmm128 => {
            pair::<OnLanes<vector::AndNot>>(instruction)
        }
        Code::Por_xmm_xmmm128 | Code::Orps_xmm_xmmm128 | Code::Orpd_xmm_xmmm128 => {
            pair::<OnLanes<vector::Or>>(instruction)
        }
        Code::Pxor_xmm_xmmm128 | Code::Xorps_xmm_xmmm128 | Code::Xorpd_xmm_xmmm128 => {
            pair::<OnLanes<vector::Xor>>(instruction)
        }
        Code::Pcmpeqb_xmm_xmmm128 => pair::<OnLanes<vector::EqualBytes>>(instruction),
        Code::Pcmpeqw_xmm_xmmm128 => pair::<OnLanes<vector::EqualWords>>(instruction),
        Code::Pcmpeqd_xmm_xmmm128 => pair::<OnLanes<vector::EqualDoubles>>(instruction),
        Code::Paddb_xmm_xmmm128 => pair::<OnLanes<vector::AddBytes>>(instruction),
        Code::Paddw_xmm_xmmm128 => pair::<OnLanes<vector::AddWords>>(instruction),
        Code::Paddd_xmm_xmmm128 => pair::<OnLanes<vector::AddDoubles>>(instruction),
        Code::Paddq_xmm_xmmm128 => pair::<OnLanes<vector::AddQuads>>(instruction),
        Code::Psubb_xmm_xmmm128 => pair::<OnLanes<vector::SubBytes>>(instruction),
        Code::Psubd_xmm_xmmm128 => pair::<OnLanes<vector::SubDoubles>>(instruction),
        Code::Psubq_xmm_xmmm128 => pair::<OnLanes<vector::SubQuads>>(instruction),
        Code::Pminub_xmm_xmmm128 => pair::<OnLanes<vector::MinBytes>>(instruction),
        Code::Pmaxub_xmm_xmmm128 => pair::<OnLanes<vector::MaxBytes>>(instruction),
        Code::Pmuludq_xmm_xmmm128 => pair::<OnLanes<vector::MultiplyDoubles>>(instruction),
        Code::Punpcklbw_xmm_xmmm128 => pair::<OnLanes<vector::InterleaveBytes>>(instruction),
        Code::Punpcklwd_xmm_xmmm128 => pair::<OnLanes<vector::InterleaveWords>>(instruction),
        Code::Punpckldq_xmm_xmmm128 => pair::<OnLanes<vector::InterleaveDoubles>>(instruction),
        Code::Punpcklqdq_xmm_xmmm128 => pair::<OnLanes<vector::InterleaveQuads>>(instruction),
        Code::Punpckhqdq_xmm_xmmm128 => pair::<OnLanes<vector::InterleaveHighQuads>>(instruction),
        Code::Addsd_xmm_xmmm64 => pair::<OnScalars<vector::AddF64>>(instruction),
        Code::Subsd_xmm_xmmm64 => pair::<OnScalars<vector::SubF64>>(instruction),
        Code::Mulsd_xmm_xmmm64 => pair::<OnScalars<vector::MulF64>>(instruction),
        Code::Divsd_xmm_xmmm64 => pair::<OnScalars<vector::DivF64>>(instruction),
        Code::Addss_xmm_xmmm32 => pair::<OnScalars<vector::AddF32>>(instruction),
        Code::Subss_xmm_xmmm32 => pair::<OnScalars<vector::SubF32>>(instruction),
        Code::Mulss_xmm_xmmm32 => pair::<OnScalars<vector::MulF32>>(instruction),
        Code::Divss_xmm_xmmm32 => pair::<OnScalars<vector::DivF32>>(instruction),
        Code::Ucomisd_xmm_xmmm64 | Code::Comisd_xmm_xmmm64
            if instruction.op1_kind() == OpKind::Register =>
        {
            Some(vector::compare_f64)
        }
        _ => None,
    }
}

/// What an operand other than a register is, if handlers know it.
enum Elsewhere {
    Register,
    Near,
    Any,
}

fn elsewhere(instruction: &Instruction, operand: u32) -> Option<Elsewhere> {
    match instruction.op_kind(operand) {
        OpKind::Register => Some(Elsewhere::Register),
        OpKind::Memory if !plain_place(instruction) => None,
        OpKind::Memory if is_near(instruction) => Some(Elsewhere::Near),
        OpKind::Memory => Some(Elsewhere::Any),
        _ => None,
    }
}

fn pair<P: Pair>(instruction: &Instruction) -> Option<Handler> {
    Some(match elsewhere(instruction, 1)? {
        Elsewhere::Register => P::in_register(),
        Elsewhere::Near => P::in_memory::<Near>(),
        Elsewhere::Any => P::in_memory::<Any>(),
    })
}

fn stored<const ALIGNED: bool>(instruction: &Instruction) -> Option<Handler> {
    match elsewhere(instruction, 0)? {
        Elsewhere::Register => None,
        Elsewhere::Near => Some(vector::move_store::<Near, ALIGNED>),
        Elsewhere::Any => Some(vector::move_store::<Any, ALIGNED>),
    }
}

fn low_loaded<T: Size>(instruction: &Instruction) -> Option<Handler> {
    match elsewhere(instruction, 1)? {
        Elsewhere::Register => None,
        Elsewhere::Near => Some(vector::low_load::<Near, T>),
        Elsewhere::Any => Some(vector::low_load::<Any, T>),
    }
}

fn low_stored<T: Size>(instruction: &Instruction) -> Option<Handler> {
    match elsewhere(instruction, 0)? {
        Elsewhere::Register => None,
        Elsewhere::Near => Some(vector::low_store::<Near, T>),
        Elsewhere::Any => Some(vector::low_store::<Any, T>),
    }
}

fn from_general<T: Size>(instruction: &Instruction) -> Option<Handler> {
    match elsewhere(instruction, 1)? {
        Elsewhere::Register => Some(vector::from_general::<T>),
        Elsewhere::Near => Some(vector::low_load::<Near, T>),
        Elsewhere::Any => Some(vector::low_load::<Any, T>),
    }
}

fn to_general<T: Size>(instruction: &Instruction) -> Option<Handler> {
    match elsewhere(instruction, 0)? {
        Elsewhere::Register => Some(vector::to_general::<T>),
        Elsewhere::Near => Some(vector::low_store::<Near, T>),
        Elsewhere::Any => Some(vector::low_store::<Any, T>),
    }
}
