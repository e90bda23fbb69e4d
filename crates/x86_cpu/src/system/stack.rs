//! Stacks of event delivery, far calls and returns. Nothing of the processor changes until
//! [`Cpu::use_stack`].

use super::descriptors::BIG;
use crate::mmu::Bank;
use crate::{Cpu, Environment, Fault, Segment, SegmentName};

/// RSP, RCX... in encoding order.
pub(super) const RSP: usize = 4;

/// A stack to push on or pop from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stack {
    segment: Segment,
    pub(super) pointer: u64,
    /// Bits of the pointer that count.
    mask: u64,
    /// Flat 64-bit stack.
    long: bool,
    bank: Bank,
}

/// Bits of the stack pointer that a segment uses.
fn pointer_mask(segment: &Segment) -> u64 {
    if segment.access & BIG != 0 {
        0xffff_ffff
    } else {
        0xffff
    }
}

impl Stack {
    /// A flat stack at `pointer`, used with the rights of `cpl`.
    pub(super) fn flat(pointer: u64, cpl: u8) -> Self {
        Self {
            segment: Segment::default(),
            pointer,
            mask: u64::MAX,
            long: true,
            bank: bank(cpl),
        }
    }

    /// A stack in `segment`, used with the rights of `cpl`.
    pub(super) fn segmented(segment: Segment, pointer: u64, cpl: u8) -> Self {
        Self {
            segment,
            pointer,
            mask: pointer_mask(&segment),
            long: false,
            bank: bank(cpl),
        }
    }

    /// The segment it is in.
    pub(super) fn segment(&self) -> Segment {
        self.segment
    }

    /// Moves past `bytes` bytes on it.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.set(self.pointer.wrapping_add(bytes));
    }

    fn set(&mut self, pointer: u64) {
        self.pointer = self.pointer & !self.mask | pointer & self.mask;
    }
}

fn bank(cpl: u8) -> Bank {
    if cpl == 3 {
        Bank::User
    } else {
        Bank::Supervisor
    }
}

impl Cpu {
    /// The stack as it is.
    pub(super) fn stack(&self) -> Stack {
        let (pointer, cpl) = (self.general[RSP], self.cpl());
        if self.long_code() {
            Stack::flat(pointer, cpl)
        } else {
            Stack::segmented(*self.segment(SegmentName::Ss), pointer, cpl)
        }
    }

    fn stack_address(&self, stack: &Stack, size: u64, write: bool) -> Result<u64, Fault> {
        if stack.long {
            return Ok(stack.pointer);
        }
        let offset = stack.pointer & stack.mask;
        let address = self.address_in(&stack.segment, offset, size, write);
        address.map_err(Fault::on_stack)
    }

    /// Pushes `size` (2, 4 or 8) bytes of `value`.
    pub(super) fn push_on(
        &mut self,
        env: &mut dyn Environment,
        stack: &mut Stack,
        value: u64,
        size: u64,
    ) -> Result<(), Fault> {
        let mut next = *stack;
        next.set(stack.pointer.wrapping_sub(size));
        let linear = self.stack_address(&next, size, true)?;
        let stored = match size {
            2 => self.store_in(env, linear, value as u16, stack.bank),
            4 => self.store_in(env, linear, value as u32, stack.bank),
            _ => self.store_in(env, linear, value, stack.bank),
        };
        stored.map_err(Fault::on_stack)?;
        *stack = next;
        Ok(())
    }

    /// Pops `size` (2, 4 or 8) bytes.
    pub(super) fn pop_from(
        &mut self,
        env: &mut dyn Environment,
        stack: &mut Stack,
        size: u64,
    ) -> Result<u64, Fault> {
        let linear = self.stack_address(stack, size, false)?;
        let loaded = match size {
            2 => self.load_in::<u16>(env, linear, stack.bank).map(u64::from),
            4 => self.load_in::<u32>(env, linear, stack.bank).map(u64::from),
            _ => self.load_in::<u64>(env, linear, stack.bank),
        };
        let value = loaded.map_err(Fault::on_stack)?;
        stack.skip(size);
        Ok(value)
    }

    /// Makes `stack` the stack; SS is set by the caller.
    pub(super) fn use_stack(&mut self, stack: &Stack) {
        self.general[RSP] = match stack.mask {
            0xffff => self.general[RSP] & !0xffff | stack.pointer & 0xffff,
            mask => stack.pointer & mask,
        };
    }
}
