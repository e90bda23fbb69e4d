//! PUSH, POP and their kin, ENTER, LEAVE.

use iced_x86::{Instruction, OpKind};

use crate::interp::flags::mask;
use crate::interp::operand::{RBP, RSP, Width, operand_size};
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, SegmentName};

/// PUSHA's order; the stack pointer's place holds its value before.
const ALL: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

impl Cpu {
    /// Length of the stack pointer, bytes.
    pub(crate) fn stack_size(&self) -> u32 {
        let big = self.segments[SegmentName::Ss as usize].access >> 14 & 1 != 0;
        match (self.width(), big) {
            (Width::Bits64, _) => 8,
            (_, true) => 4,
            (_, false) => 2,
        }
    }

    /// Returns the stack pointer `distance` away, wrapped as the stack's size says.
    fn stack_at(&self, distance: i64) -> u64 {
        self.general[RSP].wrapping_add(distance as u64) & mask(self.stack_size())
    }

    fn move_stack(&mut self, distance: i64) {
        let pointer = self.stack_at(distance);
        self.set_register(RSP, self.stack_size(), pointer);
    }

    /// Pushes the low `size` bytes of `value`.
    pub(crate) fn push_sized(
        &mut self,
        env: &mut dyn Environment,
        value: u64,
        size: u32,
    ) -> Result<(), Fault> {
        let at = self.stack_at(-i64::from(size));
        let linear = self.linear(SegmentName::Ss as usize, at, size, true)?;
        self.store_sized(env, linear, size, value)?;
        self.move_stack(-i64::from(size));
        Ok(())
    }

    /// Reads the value `distance` bytes above the top of the stack.
    pub(crate) fn peek_stack(
        &mut self,
        env: &mut dyn Environment,
        distance: i64,
        size: u32,
    ) -> Result<u64, Fault> {
        let at = self.stack_at(distance);
        let linear = self.linear(SegmentName::Ss as usize, at, size, false)?;
        self.load_sized(env, linear, size)
    }

    pub(super) fn push_operand(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = instruction.stack_pointer_increment().unsigned_abs();
        let value = self.read_operand(env, instruction, 0)?;
        self.push_sized(env, value, size)?;
        Ok(Flow::Next)
    }

    pub(super) fn pop_operand(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        if crate::interp::operand::segment(instruction.op0_register()).is_some() {
            return self.execute_system(env, instruction);
        }
        let size = instruction.stack_pointer_increment().unsigned_abs();
        let value = self.peek_stack(env, 0, size)?;
        let before = self.general[RSP];
        self.move_stack(i64::from(size));
        // An address with the stack pointer uses its value after the pop.
        let written = self.write_operand(env, instruction, 0, value);
        if written.is_err() {
            self.general[RSP] = before;
        }
        written.map(|()| Flow::Next)
    }

    pub(super) fn push_all(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = instruction.stack_pointer_increment().unsigned_abs() / 8;
        let before = self.general[RSP];
        for number in ALL {
            let value = if number == RSP {
                before
            } else {
                self.general[number]
            };
            if let Err(fault) = self.push_sized(env, value, size) {
                self.general[RSP] = before;
                return Err(fault);
            }
        }
        Ok(Flow::Next)
    }

    pub(super) fn pop_all(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = instruction.stack_pointer_increment().unsigned_abs() / 8;
        let mut values = [0; 8];
        for (place, value) in values.iter_mut().enumerate() {
            *value = self.peek_stack(env, place as i64 * i64::from(size), size)?;
        }
        for number in ALL {
            if number != RSP {
                self.set_register(number, size, values[7 - number]);
            }
        }
        self.move_stack(8 * i64::from(size));
        Ok(Flow::Next)
    }

    pub(super) fn enter(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = match (instruction.code(), self.width()) {
            (iced_x86::Code::Enterq_imm16_imm8, _) => 8,
            (iced_x86::Code::Enterd_imm16_imm8, _) => 4,
            _ => 2,
        };
        let stack = self.stack_size();
        let level = u64::from(instruction.immediate8_2nd()) & 31;
        let before = self.general[RSP];
        let entered = self.enter_frames(env, size, level);
        let frame = match entered {
            Ok(frame) => frame,
            Err(fault) => {
                self.general[RSP] = before;
                return Err(fault);
            }
        };
        let locals = -i64::from(instruction.immediate16());
        let end = self.stack_at(locals);
        let checked = self
            .linear(SegmentName::Ss as usize, end, size, true)
            .and_then(|linear| self.check_write(env, linear, 1));
        if let Err(fault) = checked {
            self.general[RSP] = before;
            return Err(fault);
        }
        self.set_register(RBP, size, frame);
        self.set_register(RSP, stack, end);
        Ok(Flow::Next)
    }

    fn enter_frames(
        &mut self,
        env: &mut dyn Environment,
        size: u32,
        level: u64,
    ) -> Result<u64, Fault> {
        let mut outer = self.general[RBP];
        self.push_sized(env, outer, size)?;
        let frame = self.stack_at(0);
        for _ in 1..level {
            outer = outer.wrapping_sub(size.into()) & mask(self.stack_size());
            let linear = self.linear(SegmentName::Ss as usize, outer, size, false)?;
            let value = self.load_sized(env, linear, size)?;
            self.push_sized(env, value, size)?;
        }
        if level > 0 {
            self.push_sized(env, frame, size)?;
        }
        Ok(frame)
    }

    pub(super) fn leave(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = match instruction.code() {
            iced_x86::Code::Leaveq => 8,
            iced_x86::Code::Leaved => 4,
            _ => 2,
        };
        let stack = self.stack_size();
        let frame = self.register(RBP, stack);
        let linear = self.linear(SegmentName::Ss as usize, frame, size, false)?;
        let value = self.load_sized(env, linear, size)?;
        self.set_register(RSP, stack, frame.wrapping_add(size.into()));
        self.set_register(RBP, size, value);
        Ok(Flow::Next)
    }

    /// Length of a near branch's operand, bytes.
    pub(super) fn branch_size(instruction: &Instruction) -> u32 {
        match instruction.op0_kind() {
            OpKind::NearBranch16 => 2,
            OpKind::NearBranch32 => 4,
            OpKind::NearBranch64 => 8,
            _ => operand_size(instruction, 0),
        }
    }
}
