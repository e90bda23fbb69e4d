//! Delivery of exceptions and interrupts (SDM 3A 6.12 to 6.15; real mode 3B 20.1.4).
//!
//! Task gates are not supported: they are faults of the gate.

use super::TripleFault;
use super::descriptors::{
    CONFORMING_OR_DOWN, Descriptor, LONG, PRESENT, index, is_null, null_segment,
};
use super::flags::{IF, IOPL, NT, RF, TF, VM};
use super::stack::{RSP, Stack};
use crate::mmu::canonical;
use crate::{Cpu, Environment, Fault, Segment, SegmentName};

/// Bits of an error code that say where it comes from.
const EXTERNAL: u32 = 1;
const IN_IDT: u32 = 2;

/// An event to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) vector: u8,
    pub(super) error: Option<u32>,
    /// INT n, INT3 or INTO: the gate's DPL counts, and faults are not external.
    pub(super) software: bool,
}

/// What an IDT entry says.
struct Gate {
    selector: u16,
    offset: u64,
    /// Interrupts are masked on entry.
    masks: bool,
    stack_table: u8,
    /// Bytes of each value pushed.
    size: u64,
}

/// Where a gate leads.
struct Target {
    code: Segment,
    cpl: u8,
}

impl Event {
    fn external(&self) -> u32 {
        if self.software { 0 } else { EXTERNAL }
    }

    /// Error code for a fault of this event's gate.
    fn gate_error(&self) -> u32 {
        u32::from(self.vector) << 3 | IN_IDT | self.external()
    }
}

/// Classes that make a double fault (SDM 3A table 6-5).
fn is_contributory(vector: u8) -> bool {
    matches!(vector, 0 | 10..=13)
}

/// Whether a fault while `first` is delivered is a double fault.
fn doubles(first: u8, second: u8) -> bool {
    is_contributory(first) && is_contributory(second)
        || first == 14 && (second == 14 || is_contributory(second))
}

impl Cpu {
    /// Delivers `fault`; RIP is the instruction that raised it, or the one after it where it is the
    /// #DB trap of [`after_step`](Self::after_step).
    pub(crate) fn deliver_fault(
        &mut self,
        env: &mut dyn Environment,
        fault: Fault,
    ) -> Result<(), TripleFault> {
        self.note_fault(&fault);
        // SDM 3B 18.3.1.1; a #DB carries the flag as it is.
        let resumes = !matches!(fault.vector, 1 | 3 | 4);
        let flags = self.rflags;
        if resumes {
            self.rflags |= RF;
        }
        let event = Event {
            vector: fault.vector,
            error: fault.error,
            software: false,
        };
        let delivered = self.deliver_hard(env, event);
        if delivered.is_err() {
            self.rflags = flags;
        }
        delivered
    }

    /// Delivers an interrupt of the local APIC.
    pub(crate) fn deliver_interrupt(
        &mut self,
        env: &mut dyn Environment,
        vector: u8,
    ) -> Result<(), TripleFault> {
        let event = Event {
            vector,
            error: None,
            software: false,
        };
        self.deliver_hard(env, event)
    }

    /// Delivers a non-maskable interrupt; further ones are blocked until IRET.
    pub(crate) fn deliver_nmi(&mut self, env: &mut dyn Environment) -> Result<(), TripleFault> {
        self.nmi_blocked = true;
        self.deliver_interrupt(env, 2)
    }

    /// What a fault leaves in CR2 and DR6 besides being delivered.
    fn note_fault(&mut self, fault: &Fault) {
        match fault.vector {
            14 => self.cr2 = fault.payload,
            1 => self.note_debug(fault.payload),
            _ => {}
        }
    }

    /// Delivers an event, and the exceptions that its delivery raises.
    fn deliver_hard(&mut self, env: &mut dyn Environment, event: Event) -> Result<(), TripleFault> {
        let mut event = event;
        // A benign event (interrupt, #UD, ...) gives way to what its delivery raises.
        let mut first = if is_exception(&event) {
            event.vector
        } else {
            32
        };
        // At most: benign, contributory, double fault.
        for _ in 0..4 {
            let Err(second) = self.deliver(env, event) else {
                return Ok(());
            };
            if first == 8 {
                break;
            }
            self.note_fault(&second);
            event = Event {
                vector: second.vector,
                error: second.error,
                software: false,
            };
            if doubles(first, second.vector) {
                event.vector = 8;
                event.error = Some(0);
            }
            first = event.vector;
        }
        Err(TripleFault)
    }

    /// Delivers an event, or changes nothing and says what its delivery raises.
    pub(super) fn deliver(&mut self, env: &mut dyn Environment, event: Event) -> Result<(), Fault> {
        self.interrupt_shadow = false;
        self.system.step_due = false;
        if !self.protected() {
            self.deliver_real(env, event)?;
        } else if self.long_mode() {
            self.deliver_long(env, event)?;
        } else {
            self.deliver_protected(env, event)?;
        }
        self.refresh();
        Ok(())
    }

    fn deliver_real(&mut self, env: &mut dyn Environment, event: Event) -> Result<(), Fault> {
        let at = u64::from(event.vector) * 4;
        if at + 3 > u64::from(self.idt.limit) {
            return Err(Fault::protection(event.gate_error()));
        }
        let linear = self.system_linear(self.idt.base.wrapping_add(at));
        let entry = self.load_system::<u32>(env, linear)?;
        let mut stack = self.stack();
        let cs = self.segment(SegmentName::Cs).selector;
        for value in [self.rflags, cs.into(), self.rip] {
            self.push_on(env, &mut stack, value, 2)?;
        }
        self.use_stack(&stack);
        self.set_real_segment(SegmentName::Cs, (entry >> 16) as u16);
        self.rip = u64::from(entry & 0xffff);
        self.rflags &= !(IF | TF | RF | super::flags::AC);
        Ok(())
    }

    fn deliver_long(&mut self, env: &mut dyn Environment, event: Event) -> Result<(), Fault> {
        let external = event.external();
        let gate = self.long_gate(env, &event)?;
        let target = self.gate_target(env, &gate, external)?;
        if target.code.access & (LONG | super::descriptors::BIG) != LONG {
            return Err(Fault::protection(index(gate.selector) | external));
        }
        let inner = target.cpl < self.cpl();
        let pointer = match gate.stack_table {
            0 if inner => self.task_stack64(env, 4 + 8 * u64::from(target.cpl), external)?,
            0 => self.general[RSP],
            table => self.task_stack64(env, 0x1c + 8 * u64::from(table), external)?,
        };
        if !canonical(gate.offset) {
            return Err(Fault::protection(external));
        }
        let mut stack = Stack::flat(pointer & !0xf, target.cpl);
        let (ss, cs) = (self.segment(SegmentName::Ss), self.segment(SegmentName::Cs));
        let frame = [
            ss.selector.into(),
            self.general[RSP],
            self.rflags,
            cs.selector.into(),
            self.rip,
        ];
        let values = frame.into_iter().chain(event.error.map(u64::from));
        for value in values {
            let pushed = self.push_on(env, &mut stack, value, 8);
            pushed.map_err(|fault| mark_external(fault, external))?;
        }
        if inner {
            let selector = u16::from(target.cpl);
            self.segments[SegmentName::Ss as usize] = null_segment(selector, target.cpl);
        }
        self.use_stack(&stack);
        self.enter_handler(&gate, target);
        Ok(())
    }

    /// Sets CS, RIP and flags of a handler.
    fn enter_handler(&mut self, gate: &Gate, target: Target) {
        self.segments[SegmentName::Cs as usize] = target.code;
        self.rip = gate.offset;
        self.rflags &= !(TF | NT | RF | VM);
        if gate.masks {
            self.rflags &= !IF;
        }
    }

    /// Reads a gate of long mode.
    fn long_gate(&mut self, env: &mut dyn Environment, event: &Event) -> Result<Gate, Fault> {
        let error = event.gate_error();
        let at = u64::from(event.vector) * 16;
        if at + 15 > u64::from(self.idt.limit) {
            return Err(Fault::protection(error));
        }
        let linear = self.idt.base.wrapping_add(at);
        let low = self.load_system::<u64>(env, linear)?;
        let high = self.load_system::<u64>(env, linear.wrapping_add(8))?;
        let kind = low >> 40 & 0x1f;
        if !matches!(kind, 0xe | 0xf) {
            return Err(Fault::protection(error));
        }
        self.check_gate(event, (low >> 32) as u32)?;
        Ok(Gate {
            selector: (low >> 16) as u16,
            offset: low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
            masks: kind == 0xe,
            stack_table: (low >> 32 & 7) as u8,
            size: 8,
        })
    }

    /// Checks DPL and presence in the second word of a gate.
    fn check_gate(&self, event: &Event, word: u32) -> Result<(), Fault> {
        if event.software && ((word >> 13 & 3) as u8) < self.cpl() {
            return Err(Fault::protection(event.gate_error()));
        }
        if word & PRESENT << 8 == 0 {
            return Err(Fault::not_present(event.gate_error()));
        }
        Ok(())
    }

    /// Checks the code segment that a gate names.
    fn gate_target(
        &mut self,
        env: &mut dyn Environment,
        gate: &Gate,
        external: u32,
    ) -> Result<Target, Fault> {
        if is_null(gate.selector) {
            return Err(Fault::protection(external));
        }
        let error = index(gate.selector) | external;
        let found = self.descriptor_in_table(env, gate.selector)?;
        let descriptor = found.ok_or(Fault::protection(error))?;
        if !descriptor.is_code() || descriptor.dpl() > self.cpl() {
            return Err(Fault::protection(error));
        }
        if !descriptor.is(PRESENT) {
            return Err(Fault::not_present(error));
        }
        self.mark_accessed(env, &descriptor)?;
        let cpl = inner_level(&descriptor, self.cpl());
        Ok(Target {
            code: descriptor.segment(gate.selector & !3 | u16::from(cpl)),
            cpl,
        })
    }

    /// Reads a stack pointer of the 64-bit task segment.
    fn task_stack64(
        &mut self,
        env: &mut dyn Environment,
        offset: u64,
        external: u32,
    ) -> Result<u64, Fault> {
        let pointer = self.task_field::<u64>(env, offset, external)?;
        if !canonical(pointer) {
            return Err(Fault::stack(external));
        }
        Ok(pointer)
    }

    fn task_field<T: crate::mmu::Value>(
        &mut self,
        env: &mut dyn Environment,
        offset: u64,
        external: u32,
    ) -> Result<T, Fault> {
        if offset + T::SIZE - 1 > u64::from(self.tr.limit) {
            return Err(Fault::task_segment(index(self.tr.selector) | external));
        }
        let linear = self.system_linear(self.tr.base.wrapping_add(offset));
        self.load_system(env, linear)
    }

    /// Reads the stack for level `cpl` from a 16- or 32-bit task segment.
    pub(super) fn task_stack(
        &mut self,
        env: &mut dyn Environment,
        cpl: u8,
        external: u32,
    ) -> Result<Stack, Fault> {
        let level = u64::from(cpl);
        let wide = self.tr.access & 8 != 0;
        let (pointer, selector) = if wide {
            let pointer = self.task_field::<u32>(env, 4 + 8 * level, external)?;
            let selector = self.task_field::<u16>(env, 8 + 8 * level, external)?;
            (u64::from(pointer), selector)
        } else {
            let pointer = self.task_field::<u16>(env, 2 + 4 * level, external)?;
            let selector = self.task_field::<u16>(env, 4 + 4 * level, external)?;
            (u64::from(pointer), selector)
        };
        let segment = self.stack_segment(env, selector, cpl, Fault::task_segment);
        let segment = segment.map_err(|fault| mark_external(fault, external))?;
        Ok(Stack::segmented(segment, pointer, cpl))
    }

    /// Reads the 64-bit stack pointer for level `cpl` from the task segment.
    pub(super) fn task_pointer(
        &mut self,
        env: &mut dyn Environment,
        cpl: u8,
    ) -> Result<u64, Fault> {
        self.task_stack64(env, 4 + 8 * u64::from(cpl), 0)
    }

    fn deliver_protected(&mut self, env: &mut dyn Environment, event: Event) -> Result<(), Fault> {
        let external = event.external();
        let gate = self.protected_gate(env, &event)?;
        let target = self.gate_target(env, &gate, external)?;
        let inner = target.cpl < self.cpl();
        let mut stack = if inner {
            self.task_stack(env, target.cpl, external)?
        } else {
            self.stack()
        };
        if gate.offset > u64::from(target.code.limit) {
            return Err(Fault::protection(external));
        }
        let (ss, cs) = (
            *self.segment(SegmentName::Ss),
            *self.segment(SegmentName::Cs),
        );
        let outer = [u64::from(ss.selector), self.general[RSP]];
        let frame = [self.rflags, cs.selector.into(), self.rip];
        let outer = if inner { &outer[..] } else { &[] };
        let values = outer.iter().chain(&frame).copied();
        for value in values.chain(event.error.map(u64::from)) {
            let pushed = self.push_on(env, &mut stack, value, gate.size);
            pushed.map_err(|fault| mark_external(fault, external))?;
        }
        if inner {
            self.segments[SegmentName::Ss as usize] = stack.segment();
        }
        self.use_stack(&stack);
        self.enter_handler(&gate, target);
        Ok(())
    }

    /// Reads a gate of protected mode.
    fn protected_gate(&mut self, env: &mut dyn Environment, event: &Event) -> Result<Gate, Fault> {
        let error = event.gate_error();
        let at = u64::from(event.vector) * 8;
        if at + 7 > u64::from(self.idt.limit) {
            return Err(Fault::protection(error));
        }
        let linear = self.system_linear(self.idt.base.wrapping_add(at));
        let entry = self.load_system::<u64>(env, linear)?;
        let kind = entry >> 40 & 0x1f;
        if !matches!(kind, 6 | 7 | 0xe | 0xf) {
            return Err(Fault::protection(error));
        }
        self.check_gate(event, (entry >> 32) as u32)?;
        let wide = kind & 8 != 0;
        let high = if wide { entry >> 32 & 0xffff_0000 } else { 0 };
        Ok(Gate {
            selector: (entry >> 16) as u16,
            offset: entry & 0xffff | high,
            masks: kind & 1 == 0,
            stack_table: 0,
            size: if wide { 4 } else { 2 },
        })
    }

    /// Executes INT n, INT3, INTO or INT1; RIP is already after it.
    pub(super) fn software_interrupt(
        &mut self,
        env: &mut dyn Environment,
        vector: u8,
        checked: bool,
    ) -> Result<(), Fault> {
        let event = Event {
            vector,
            error: None,
            software: checked,
        };
        self.deliver(env, event)
    }
}

/// Level that code of `descriptor` runs at when called from `cpl`.
pub(super) fn inner_level(descriptor: &Descriptor, cpl: u8) -> u8 {
    if descriptor.is(CONFORMING_OR_DOWN) {
        cpl
    } else {
        descriptor.dpl()
    }
}

fn is_exception(event: &Event) -> bool {
    !event.software && event.vector < 32 && event.vector != 2
}

/// Sets the external bit in the error codes that have one.
fn mark_external(fault: Fault, external: u32) -> Fault {
    match (fault.vector, fault.error) {
        (10..=13, Some(error)) => Fault {
            error: Some(error | external),
            ..fault
        },
        _ => fault,
    }
}

/// IOPL of `flags`.
pub(super) fn iopl(flags: u64) -> u8 {
    ((flags & IOPL) >> 12) as u8
}
