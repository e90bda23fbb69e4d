//! x87 instructions that handle the environment: control and status word, tags, whole state.

use iced_x86::Code;

use crate::entry::{Direction, Entry};
use crate::state::{REGISTER_MASK, status};
use crate::{Arguments, FpFault, FpState, Outside};

type Outcome = Result<(), FpFault>;

/// Length of an x87 register in memory, bytes.
const REGISTER_LEN: usize = 10;
/// Length of an environment of 16-bit and of 32-bit fields.
const ENVIRONMENT_16: usize = 14;
const ENVIRONMENT_32: usize = 28;
/// A full tag of an empty register.
const EMPTY: u16 = 3;

/// Refuses to run while an unmasked exception waits.
fn wait(state: &FpState) -> Outcome {
    if state.x87_pending() {
        return Err(FpFault::X87);
    }
    Ok(())
}

/// FWAIT; also what the 287 knew and later ones ignore.
fn fwait(state: &mut FpState, _outside: &mut Outside<'_>, _a: Arguments) -> Outcome {
    wait(state)
}

/// FNENI, FNDISI, FNSETPM: nothing.
fn nothing(_state: &mut FpState, _outside: &mut Outside<'_>, _a: Arguments) -> Outcome {
    Ok(())
}

/// FNCLEX.
fn clear_exceptions<const WAIT: bool>(
    state: &mut FpState,
    _outside: &mut Outside<'_>,
    _a: Arguments,
) -> Outcome {
    if WAIT {
        wait(state)?;
    }
    state.status &= 0x7f00;
    Ok(())
}

/// FNINIT.
fn initialize<const WAIT: bool>(
    state: &mut FpState,
    _outside: &mut Outside<'_>,
    _a: Arguments,
) -> Outcome {
    if WAIT {
        wait(state)?;
    }
    state.initialize_x87();
    Ok(())
}

/// FLDCW.
fn load_control(state: &mut FpState, outside: &mut Outside<'_>, _a: Arguments) -> Outcome {
    wait(state)?;
    state.set_control(u16::from_le_bytes(outside.memory.load()));
    Ok(())
}

/// FNSTCW.
fn store_control<const WAIT: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    _a: Arguments,
) -> Outcome {
    if WAIT {
        wait(state)?;
    }
    outside.memory.store(state.control.to_le_bytes());
    Ok(())
}

/// FNSTSW to memory.
fn store_status<const WAIT: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    _a: Arguments,
) -> Outcome {
    if WAIT {
        wait(state)?;
    }
    outside.memory.store(state.status.to_le_bytes());
    Ok(())
}

/// FNSTSW AX.
fn status_to_ax<const WAIT: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    _a: Arguments,
) -> Outcome {
    if WAIT {
        wait(state)?;
    }
    outside.general[0] = outside.general[0] & !0xffff | u64::from(state.status);
    Ok(())
}

/// FNSTENV with fields of 16 or 32 bits (`LEN` says which); masks all exceptions.
fn store_environment<const LEN: usize, const WAIT: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    _a: Arguments,
) -> Outcome {
    if WAIT {
        wait(state)?;
    }
    write_environment::<LEN>(state, &mut outside.memory.0);
    state.set_control(state.control | status::EXCEPTIONS);
    Ok(())
}

/// FLDENV.
fn load_environment<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    _a: Arguments,
) -> Outcome {
    wait(state)?;
    read_environment::<LEN>(state, &outside.memory.0);
    Ok(())
}

/// FNSAVE: the environment and ST(0) to ST(7), then FNINIT.
fn save<const LEN: usize, const WAIT: bool>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    _a: Arguments,
) -> Outcome {
    if WAIT {
        wait(state)?;
    }
    let bytes = &mut outside.memory.0;
    write_environment::<LEN>(state, bytes);
    let slots = bytes[LEN..].as_chunks_mut::<REGISTER_LEN>().0;
    for (slot, register) in slots.iter_mut().zip(&state.stack) {
        slot.copy_from_slice(&register.to_le_bytes()[..REGISTER_LEN]);
    }
    state.initialize_x87();
    Ok(())
}

/// FRSTOR.
fn restore<const LEN: usize>(
    state: &mut FpState,
    outside: &mut Outside<'_>,
    _a: Arguments,
) -> Outcome {
    wait(state)?;
    let bytes = &outside.memory.0;
    read_environment::<LEN>(state, bytes);
    let slots = bytes[LEN..].as_chunks::<REGISTER_LEN>().0;
    for (register, slot) in state.stack.iter_mut().zip(slots) {
        let mut value = [0; 16];
        value[..REGISTER_LEN].copy_from_slice(slot);
        *register = u128::from_le_bytes(value) & REGISTER_MASK;
    }
    Ok(())
}

/// Writes the seven fields in the format of protected mode; selectors are not kept and read as zero.
fn write_environment<const LEN: usize>(state: &FpState, bytes: &mut [u8]) {
    let pointer = state.instruction_pointer as u32;
    let operand = state.operand_pointer as u32;
    let words = [state.control, state.status, full_tags(state)];
    if LEN == ENVIRONMENT_16 {
        let fields = [
            words[0],
            words[1],
            words[2],
            pointer as u16,
            0,
            operand as u16,
            0,
        ];
        for (slot, field) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(fields) {
            *slot = field.to_le_bytes();
        }
        return;
    }
    // The unused upper halves of 16-bit fields read as ones.
    let ones = 0xffff << 16;
    let [control, status, tags] = words.map(|word| ones | u32::from(word));
    let opcode = u32::from(state.opcode) << 16;
    let fields = [control, status, tags, pointer, opcode, operand, ones];
    for (slot, field) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
        *slot = field.to_le_bytes();
    }
}

/// Takes the seven fields.
fn read_environment<const LEN: usize>(state: &mut FpState, bytes: &[u8]) {
    let mut fields = [0_u32; 7];
    if LEN == ENVIRONMENT_16 {
        for (field, slot) in fields.iter_mut().zip(bytes.as_chunks().0) {
            *field = u16::from_le_bytes(*slot).into();
        }
    } else {
        for (field, slot) in fields.iter_mut().zip(bytes.as_chunks().0) {
            *field = u32::from_le_bytes(*slot);
        }
    }
    // The registers keep their physical places when the top changes.
    let top = state.top();
    state.status = fields[1] as u16;
    let turned = (state.top() + 8 - top) & 7;
    state.stack.rotate_left(turned);
    state.tags = (0..8)
        .filter(|register| fields[2] as u16 >> (2 * register) & EMPTY != EMPTY)
        .fold(0, |tags, register| tags | 1 << register);
    state.instruction_pointer = fields[3].into();
    state.opcode = (fields[4] >> 16) as u16 & 0x7ff;
    state.operand_pointer = fields[5].into();
    state.set_control(fields[0] as u16);
}

/// Two bits for each physical register: valid, zero, special or empty.
fn full_tags(state: &FpState) -> u16 {
    (0..8)
        .map(|register: usize| {
            let tag = if state.tags >> register & 1 == 0 {
                EMPTY
            } else {
                class(state.stack[(register + 8 - state.top()) & 7])
            };
            tag << (2 * register)
        })
        .fold(0, |word, tag| word | tag)
}

/// Tag of a register that is not empty.
fn class(value: u128) -> u16 {
    const VALID: u16 = 0;
    const ZERO: u16 = 1;
    const SPECIAL: u16 = 2;
    let mantissa = value as u64;
    match (value >> 64) as u16 & 0x7fff {
        0 if mantissa == 0 => ZERO,
        0 | 0x7fff => SPECIAL,
        _ if mantissa >> 63 == 0 => SPECIAL,
        _ => VALID,
    }
}

/// Returns how to run `code`, where it is one of these. Codes named F.. without N are the forms that
/// wait.
pub(crate) fn lookup(code: Code) -> Option<Entry> {
    words(code).or_else(|| whole(code))
}

/// Control and status word.
fn words(code: Code) -> Option<Entry> {
    let entry = match code {
        Code::Wait | Code::Feni | Code::Fdisi | Code::Fsetpm => Entry::register(fwait),
        Code::Fneni | Code::Fndisi | Code::Fnsetpm => Entry::register(nothing),
        Code::Fnclex => Entry::register(clear_exceptions::<false>),
        Code::Fclex => Entry::register(clear_exceptions::<true>),
        Code::Fninit => Entry::register(initialize::<false>),
        Code::Finit => Entry::register(initialize::<true>),
        Code::Fldcw_m2byte => Entry::memory(Direction::Load, load_control),
        Code::Fnstcw_m2byte => Entry::memory(Direction::Store, store_control::<false>),
        Code::Fstcw_m2byte => Entry::memory(Direction::Store, store_control::<true>),
        Code::Fnstsw_m2byte => Entry::memory(Direction::Store, store_status::<false>),
        Code::Fstsw_m2byte => Entry::memory(Direction::Store, store_status::<true>),
        Code::Fnstsw_AX => Entry::register(status_to_ax::<false>),
        Code::Fstsw_AX => Entry::register(status_to_ax::<true>),
        _ => return None,
    };
    Some(entry)
}

/// Environment and state.
fn whole(code: Code) -> Option<Entry> {
    let (direction, run): (_, crate::entry::Run) = match code {
        Code::Fnstenv_m14byte => (Direction::Store, store_environment::<ENVIRONMENT_16, false>),
        Code::Fstenv_m14byte => (Direction::Store, store_environment::<ENVIRONMENT_16, true>),
        Code::Fnstenv_m28byte => (Direction::Store, store_environment::<ENVIRONMENT_32, false>),
        Code::Fstenv_m28byte => (Direction::Store, store_environment::<ENVIRONMENT_32, true>),
        Code::Fldenv_m14byte => (Direction::Load, load_environment::<ENVIRONMENT_16>),
        Code::Fldenv_m28byte => (Direction::Load, load_environment::<ENVIRONMENT_32>),
        Code::Fnsave_m94byte => (Direction::Store, save::<ENVIRONMENT_16, false>),
        Code::Fsave_m94byte => (Direction::Store, save::<ENVIRONMENT_16, true>),
        Code::Fnsave_m108byte => (Direction::Store, save::<ENVIRONMENT_32, false>),
        Code::Fsave_m108byte => (Direction::Store, save::<ENVIRONMENT_32, true>),
        Code::Frstor_m94byte => (Direction::Load, restore::<ENVIRONMENT_16>),
        Code::Frstor_m108byte => (Direction::Load, restore::<ENVIRONMENT_32>),
        _ => return None,
    };
    Some(Entry::memory(direction, run))
}
