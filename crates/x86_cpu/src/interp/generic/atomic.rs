//! Read-modify-write operands, with and without LOCK; XCHG, XADD, CMPXCHG and its kin.

use iced_x86::{Instruction, OpKind};

use crate::interp::flags::{ZF, mask, of_difference};
use crate::interp::operand::{RAX, RBX, RCX, RDX, operand_size, slot};
use crate::mmu::Value;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault};

impl Cpu {
    /// Changes `size` bytes of memory and returns what was there; atomically where `locked`.
    pub(crate) fn modify_memory(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        size: u32,
        locked: bool,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Fault> {
        Ok(match size {
            1 => {
                let change = |old: u8| change(old.into()) as u8;
                self.modify_value(env, linear, locked, change)?.into()
            }
            2 => {
                let change = |old: u16| change(old.into()) as u16;
                self.modify_value(env, linear, locked, change)?.into()
            }
            4 => {
                let change = |old: u32| change(old.into()) as u32;
                self.modify_value(env, linear, locked, change)?.into()
            }
            _ => self.modify_value(env, linear, locked, change)?,
        })
    }

    fn modify_value<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        locked: bool,
        change: impl Fn(T) -> T,
    ) -> Result<T, Fault> {
        if locked {
            return self.change(env, linear, |old| Some(change(old)));
        }
        let old = self.load_to_change::<T>(env, linear)?;
        self.store(env, linear, change(old))?;
        Ok(old)
    }

    /// Changes operand 0 and returns what was there, upper bits zero.
    pub(crate) fn modify_operand(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        change: impl Fn(u64) -> u64,
    ) -> Result<u64, Fault> {
        if let Some(slot) = slot(instruction.op0_register()) {
            let old = self.slot(slot);
            self.set_slot(slot, change(old));
            return Ok(old);
        }
        let size = instruction.memory_size().size() as u32;
        let linear = self.place(instruction, size, true)?;
        self.modify_memory(env, linear, size, instruction.has_lock_prefix(), change)
    }

    pub(super) fn exchange(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let (memory, register) = match instruction.op0_kind() {
            OpKind::Memory => (0, 1),
            _ => (1, 0),
        };
        let value = self.read_operand(env, instruction, register)?;
        if instruction.op_kind(memory) == OpKind::Memory {
            // XCHG with memory locks, prefix or not.
            let size = operand_size(instruction, memory);
            let linear = self.place(instruction, size, true)?;
            let old = self.modify_memory(env, linear, size, true, |_| value)?;
            self.write_operand(env, instruction, register, old)?;
        } else {
            let other = self.read_operand(env, instruction, memory)?;
            self.write_operand(env, instruction, memory, value)?;
            self.write_operand(env, instruction, register, other)?;
        }
        Ok(Flow::Next)
    }

    pub(super) fn exchange_add(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = operand_size(instruction, 0);
        let b = self.read_operand(env, instruction, 1)?;
        // With one register for both, the sum is what stays.
        if instruction.op0_kind() == OpKind::Register {
            let a = self.read_operand(env, instruction, 0)?;
            self.write_operand(env, instruction, 1, a)?;
            self.write_operand(env, instruction, 0, a.wrapping_add(b))?;
            return Ok(self.set_sum_flags(a, b, size));
        }
        let a = self.modify_operand(env, instruction, |a| a.wrapping_add(b))?;
        self.write_operand(env, instruction, 1, a)?;
        Ok(self.set_sum_flags(a, b, size))
    }

    fn set_sum_flags(&mut self, a: u64, b: u64, size: u32) -> Flow {
        let sum = a.wrapping_add(b) & mask(size);
        self.set_status(crate::interp::flags::of_sum(a, b, sum, size));
        Flow::Next
    }

    pub(super) fn compare_exchange(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = operand_size(instruction, 0);
        let expected = self.register(RAX, size);
        let new = self.read_operand(env, instruction, 1)?;
        let equal = |old: u64| old & mask(size) == expected;
        let old = if instruction.op0_kind() == OpKind::Register {
            let old = self.read_operand(env, instruction, 0)?;
            // A destination that keeps its value keeps its upper half too.
            if equal(old) {
                self.write_operand(env, instruction, 0, new)?;
            }
            old
        } else {
            self.modify_operand(env, instruction, |old| if equal(old) { new } else { old })?
        };
        if !equal(old) {
            self.set_register(RAX, size, old);
        }
        let difference = expected.wrapping_sub(old) & mask(size);
        self.set_status(of_difference(expected, old, difference, size));
        Ok(Flow::Next)
    }

    pub(super) fn compare_exchange_pair(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = instruction.memory_size().size() as u32 / 2;
        let joined = |low: u64, high: u64| u128::from(high) << (size * 8) | u128::from(low);
        let expected = joined(self.register(RAX, size), self.register(RDX, size));
        let new = joined(self.register(RBX, size), self.register(RCX, size));
        if size == 8 && self.effective_address(instruction) & 15 != 0 {
            return Err(Fault::protection(0));
        }
        let linear = self.place(instruction, size * 2, true)?;
        let old = if size == 4 {
            let locked = instruction.has_lock_prefix();
            let change = |old: u64| {
                if u128::from(old) == expected {
                    new as u64
                } else {
                    old
                }
            };
            u128::from(self.modify_memory(env, linear, 8, locked, change)?)
        } else {
            self.change(env, linear, |old: u128| (old == expected).then_some(new))?
        };
        if old == expected {
            self.rflags |= ZF;
        } else {
            self.rflags &= !ZF;
            self.set_register(RAX, size, old as u64);
            self.set_register(RDX, size, (old >> (size * 8)) as u64);
        }
        Ok(Flow::Next)
    }
}
