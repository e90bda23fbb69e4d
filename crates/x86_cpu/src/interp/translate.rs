//! Decoded instructions to micro-ops.

use iced_x86::{ConditionCode, Instruction, Mnemonic};

/// Returns the condition (low four bits of the opcode) of Jcc, SETcc and CMOVcc.
pub(super) fn condition_code(instruction: &Instruction) -> Option<u8> {
    // LOOP and its kin have conditions of their own.
    if instruction.mnemonic() == Mnemonic::Loope || instruction.mnemonic() == Mnemonic::Loopne {
        return None;
    }
    Some(match instruction.condition_code() {
        ConditionCode::None => return None,
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    })
}
