//! Descriptor-table registers, the task register, and instructions that look at descriptors.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::descriptors::{
    CODE, CONFORMING_OR_DOWN, Descriptor, NO_SYSTEM, PRESENT, TYPE_CALL_GATE, TYPE_CALL_GATE16,
    TYPE_LDT, TYPE_TSS, TYPE_TSS16, index, is_null, null_segment,
};
use crate::mmu::canonical;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, TableRegister};

pub(super) const CR4_UMIP: u64 = 1 << 11;
const ZF: u64 = 1 << 6;
const BUSY: u8 = 2;

impl Cpu {
    /// #GP(0) where CR4.UMIP keeps user code from seeing system registers.
    pub(super) fn check_umip(&self) -> Result<(), Fault> {
        if self.cr4 & CR4_UMIP != 0 && self.cpl() > 0 {
            return Err(Fault::protection(0));
        }
        Ok(())
    }

    /// SGDT and SIDT.
    pub(super) fn store_table(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        self.check_umip()?;
        let table = match instruction.mnemonic() {
            Mnemonic::Sgdt => self.gdt,
            _ => self.idt,
        };
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        let len = if self.long_code() { 10 } else { 6 };
        self.store_memory(env, instruction, &bytes[..len])?;
        Ok(Flow::Next)
    }

    /// LGDT and LIDT.
    pub(super) fn load_table(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        self.require_supervisor()?;
        let limit = self.load_memory(env, instruction, 0, 2)? as u16;
        let size = if self.long_code() { 8 } else { 4 };
        let mut base = self.load_memory(env, instruction, 2, size)?;
        if matches!(
            instruction.code(),
            Code::Lgdt_m1632_16 | Code::Lidt_m1632_16
        ) {
            base &= 0x00ff_ffff;
        }
        if !canonical(base) {
            return Err(Fault::protection(0));
        }
        let table = TableRegister { base, limit };
        match instruction.mnemonic() {
            Mnemonic::Lgdt => self.gdt = table,
            _ => self.idt = table,
        }
        Ok(Flow::Leave)
    }

    /// SLDT and STR.
    pub(super) fn store_selector(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        if !self.protected() {
            return Err(Fault::UNDEFINED);
        }
        self.check_umip()?;
        let selector = match instruction.mnemonic() {
            Mnemonic::Sldt => self.ldtr.selector,
            _ => self.tr.selector,
        };
        self.set_operand(env, instruction, 0, selector.into(), 2)?;
        Ok(Flow::Next)
    }

    fn selector_operand(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        number: u32,
    ) -> Result<u16, Fault> {
        if !self.protected() {
            return Err(Fault::UNDEFINED);
        }
        Ok(self.operand(env, instruction, number, 2)? as u16)
    }

    pub(super) fn load_local_table(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        if !self.protected() {
            return Err(Fault::UNDEFINED);
        }
        self.require_supervisor()?;
        let selector = self.selector_operand(env, instruction, 0)?;
        if is_null(selector) {
            self.ldtr = null_segment(selector, 0);
            return Ok(Flow::Next);
        }
        let descriptor = self.system_descriptor(env, selector)?;
        if descriptor.system_type() != Some(TYPE_LDT) {
            return Err(Fault::protection(index(selector)));
        }
        self.ldtr = self.system_segment(env, selector, &descriptor)?;
        self.ldtr.access = descriptor.access();
        Ok(Flow::Next)
    }

    pub(super) fn load_task(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        if !self.protected() {
            return Err(Fault::UNDEFINED);
        }
        self.require_supervisor()?;
        let selector = self.selector_operand(env, instruction, 0)?;
        if is_null(selector) {
            return Err(Fault::protection(0));
        }
        let descriptor = self.system_descriptor(env, selector)?;
        let fits = match descriptor.system_type() {
            Some(TYPE_TSS) => true,
            Some(TYPE_TSS16) => !self.long_mode(),
            _ => false,
        };
        if !fits {
            return Err(Fault::protection(index(selector)));
        }
        let segment = self.system_segment(env, selector, &descriptor)?;
        let linear = self.system_linear(descriptor.linear.wrapping_add(5));
        self.set_bits_system(env, linear, BUSY)?;
        self.tr = segment;
        self.tr.access = descriptor.access() | u32::from(BUSY);
        Ok(Flow::Next)
    }

    /// Descriptor of an LDT or a task segment, which only the GDT may hold.
    fn system_descriptor(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
    ) -> Result<Descriptor, Fault> {
        if selector & 4 != 0 {
            return Err(Fault::protection(index(selector)));
        }
        self.descriptor(env, selector, Fault::protection)
    }

    fn system_segment(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
        descriptor: &Descriptor,
    ) -> Result<crate::Segment, Fault> {
        if !descriptor.is(PRESENT) {
            return Err(Fault::not_present(index(selector)));
        }
        let mut segment = descriptor.segment(selector);
        if self.long_mode() {
            segment.base |= self.upper_base(env, selector, descriptor)?;
            if !canonical(segment.base) {
                return Err(Fault::protection(index(selector)));
            }
        }
        Ok(segment)
    }

    fn set_zero_flag(&mut self, set: bool) {
        self.rflags = if set {
            self.rflags | ZF
        } else {
            self.rflags & !ZF
        };
    }

    /// Descriptor that LAR, LSL, VERR or VERW may look at, `None` where they clear ZF.
    fn visible_descriptor(
        &mut self,
        env: &mut dyn Environment,
        selector: u16,
    ) -> Result<Option<Descriptor>, Fault> {
        if is_null(selector) {
            return Ok(None);
        }
        let Some(descriptor) = self.descriptor_in_table(env, selector)? else {
            return Ok(None);
        };
        let conforming = descriptor.is(NO_SYSTEM | CODE | CONFORMING_OR_DOWN);
        let level = self.cpl().max((selector & 3) as u8);
        let visible = conforming || descriptor.dpl() >= level;
        Ok(visible.then_some(descriptor))
    }

    /// LAR and LSL.
    pub(super) fn inspect(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let selector = self.selector_operand(env, instruction, 1)?;
        let rights = instruction.mnemonic() == Mnemonic::Lar;
        let found = self.visible_descriptor(env, selector)?.filter(|found| {
            let gate = matches!(found.system_type(), Some(TYPE_CALL_GATE16 | TYPE_CALL_GATE));
            match found.system_type() {
                None => true,
                Some(TYPE_LDT | TYPE_TSS | 11) => true,
                Some(TYPE_TSS16 | 3) => !self.long_mode(),
                // A task gate has rights too.
                Some(5) => rights && !self.long_mode(),
                Some(_) => rights && gate && (found.is(8) || !self.long_mode()),
            }
        });
        self.set_zero_flag(found.is_some());
        if let Some(descriptor) = found {
            let value = if rights {
                descriptor.high & 0x00ff_ff00
            } else {
                descriptor.limit()
            };
            self.set_named_register(instruction.op0_register(), value.into());
        }
        Ok(Flow::Next)
    }

    /// VERR and VERW.
    pub(super) fn verify(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let selector = self.selector_operand(env, instruction, 0)?;
        let write = instruction.mnemonic() == Mnemonic::Verw;
        let found = self.visible_descriptor(env, selector)?;
        let good = found.is_some_and(|found| {
            if write {
                found.is_writable_data()
            } else {
                found.is_readable()
            }
        });
        self.set_zero_flag(good);
        Ok(Flow::Next)
    }

    /// ARPL (not in 64-bit code, where its opcode is MOVSXD).
    pub(super) fn adjust_rpl(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let selector = self.selector_operand(env, instruction, 0)?;
        let wanted = self.named_register(instruction.op1_register()) as u16 & 3;
        let raise = selector & 3 < wanted;
        if raise {
            let value = selector & !3 | wanted;
            match instruction.op_kind(0) {
                OpKind::Register => {
                    let place = &mut self.general[instruction.op0_register().number() & 15];
                    *place = *place & !0xffff | u64::from(value);
                }
                _ => self.store_memory(env, instruction, &value.to_le_bytes())?,
            }
        }
        self.set_zero_flag(raise);
        Ok(Flow::Next)
    }
}
