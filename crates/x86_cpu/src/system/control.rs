//! Control and debug registers, and the mode switches that they make (SDM 3A 2.5, 9.8, 9.9).

use iced_x86::{Instruction, Register};

use super::debug::{BREAK_ON_ACCESS, DR7_DETECT};
use super::descriptors::LONG;
use super::tables::CR4_UMIP;
use crate::mmu::{CR0_AM, CR0_PE, CR0_PG, CR0_WP, CR4_PAE, CR4_PGE, CR4_PSE, CR4_SMEP, EFER_LMA};
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, SegmentName};

pub(super) const CR0_MP: u64 = 1 << 1;
pub(super) const CR0_EM: u64 = 1 << 2;
pub(super) const CR0_TS: u64 = 1 << 3;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_KNOWN: u64 = CR0_PE
    | CR0_MP
    | CR0_EM
    | CR0_TS
    | CR0_ET
    | CR0_NE
    | CR0_WP
    | CR0_AM
    | CR0_NW
    | CR0_CD
    | CR0_PG;
pub(super) const CR4_TSD: u64 = 1 << 2;
pub(super) const CR4_DE: u64 = 1 << 3;
const CR4_MCE: u64 = 1 << 6;
const CR4_PCE: u64 = 1 << 8;
pub(super) const CR4_OSFXSR: u64 = 1 << 9;
pub(super) const CR4_OSXMMEXCPT: u64 = 1 << 10;
pub(super) const CR4_FSGSBASE: u64 = 1 << 16;
pub(super) const EFER_LME: u64 = 1 << 8;

/// Number of a control or debug register.
fn number(register: Register, first: Register) -> usize {
    (register as usize).wrapping_sub(first as usize)
}

fn is_control(register: Register) -> bool {
    (Register::CR0..=Register::CR15).contains(&register)
}

fn is_debug(register: Register) -> bool {
    (Register::DR0..=Register::DR15).contains(&register)
}

impl Cpu {
    /// MOV to and from control and debug registers.
    pub(super) fn move_special(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let (to, from) = (instruction.op0_register(), instruction.op1_register());
        if is_control(to) {
            self.require_supervisor()?;
            let value = self.named_register(from);
            self.write_control(env, number(to, Register::CR0), value)
        } else if is_control(from) {
            self.require_supervisor()?;
            let value = self.read_control(env, number(from, Register::CR0))?;
            self.set_named_register(to, value);
            Ok(Flow::Next)
        } else if is_debug(to) {
            let value = self.named_register(from);
            self.write_debug(number(to, Register::DR0), value)
        } else if is_debug(from) {
            let value = self.read_debug(number(from, Register::DR0))?;
            self.set_named_register(to, value);
            Ok(Flow::Next)
        } else {
            Err(Fault::UNDEFINED)
        }
    }

    fn read_control(&mut self, env: &mut dyn Environment, number: usize) -> Result<u64, Fault> {
        Ok(match number {
            0 => self.cr0,
            2 => self.cr2,
            3 => self.cr3,
            4 => self.cr4,
            8 => u64::from(env.task_priority() & 0xf),
            _ => return Err(Fault::UNDEFINED),
        })
    }

    fn write_control(
        &mut self,
        env: &mut dyn Environment,
        number: usize,
        value: u64,
    ) -> Result<Flow, Fault> {
        match number {
            0 => self.set_cr0(value)?,
            2 => self.cr2 = value,
            3 => self.set_cr3(env, value)?,
            4 => self.set_cr4(env, value)?,
            8 if value > 0xf => return Err(Fault::protection(0)),
            8 => env.set_task_priority(value as u8),
            _ => return Err(Fault::UNDEFINED),
        }
        Ok(Flow::Leave)
    }

    fn set_cr0(&mut self, value: u64) -> Result<(), Fault> {
        let value = value | CR0_ET;
        let is = |bits| value & bits == bits;
        let paged_unprotected = is(CR0_PG) && !is(CR0_PE);
        let uncached_through = is(CR0_NW) && !is(CR0_CD);
        if value >> 32 != 0 || paged_unprotected || uncached_through {
            return Err(Fault::protection(0));
        }
        let value = value & CR0_KNOWN;
        let changed = self.cr0 ^ value;
        if changed & CR0_PG != 0 {
            self.switch_paging(value & CR0_PG != 0)?;
        }
        self.cr0 = value;
        if changed & (CR0_PE | CR0_PG | CR0_WP) != 0 {
            self.flush_tlb();
        }
        self.refresh();
        Ok(())
    }

    /// Enters or leaves long mode with paging.
    fn switch_paging(&mut self, on: bool) -> Result<(), Fault> {
        let long_segment = self.segment(SegmentName::Cs).access & LONG != 0;
        if on && self.efer & EFER_LME != 0 {
            if self.cr4 & CR4_PAE == 0 || long_segment {
                return Err(Fault::protection(0));
            }
            self.efer |= EFER_LMA;
        } else if !on {
            if self.long_code() {
                return Err(Fault::protection(0));
            }
            self.efer &= !EFER_LMA;
        }
        Ok(())
    }

    fn set_cr3(&mut self, env: &mut dyn Environment, value: u64) -> Result<(), Fault> {
        if value >> self.features(env).physical_bits != 0 {
            return Err(Fault::protection(0));
        }
        self.cr3 = value;
        self.flush_tlb_local();
        Ok(())
    }

    fn set_cr4(&mut self, env: &mut dyn Environment, value: u64) -> Result<(), Fault> {
        let features = self.features(env);
        let mut known = CR4_TSD
            | CR4_DE
            | CR4_PSE
            | CR4_PAE
            | CR4_MCE
            | CR4_PGE
            | CR4_PCE
            | CR4_OSFXSR
            | CR4_OSXMMEXCPT;
        for (offered, bit) in [
            (features.umip, CR4_UMIP),
            (features.fsgsbase, CR4_FSGSBASE),
            (features.smep, CR4_SMEP),
        ] {
            known |= if offered { bit } else { 0 };
        }
        let leaves_long = self.long_mode() && value & CR4_PAE == 0;
        if value & !known != 0 || leaves_long {
            return Err(Fault::protection(0));
        }
        let changed = self.cr4 ^ value;
        self.cr4 = value;
        if changed & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP) != 0 {
            self.flush_tlb();
        }
        Ok(())
    }

    pub(super) fn clear_task_switched(&mut self) -> Result<Flow, Fault> {
        self.require_supervisor()?;
        self.cr0 &= !CR0_TS;
        Ok(Flow::Leave)
    }

    pub(super) fn load_status_word(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        self.require_supervisor()?;
        let word = self.operand(env, instruction, 0, 2)? & 0xf;
        // It cannot leave protected mode.
        self.set_cr0(self.cr0 & !0xe | word)?;
        Ok(Flow::Leave)
    }

    pub(super) fn store_status_word(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        self.check_umip()?;
        self.set_operand(env, instruction, 0, self.cr0, 2)?;
        Ok(Flow::Next)
    }

    /// Number that a debug register answers to: 4 and 5 are 6 and 7 without CR4.DE.
    fn check_debug(&self, number: usize) -> Result<usize, Fault> {
        let number = match number {
            4 | 5 if self.cr4 & CR4_DE == 0 => number + 2,
            4 | 5 | 8.. => return Err(Fault::UNDEFINED),
            _ => number,
        };
        self.require_supervisor()?;
        if self.dr7 & DR7_DETECT != 0 {
            return Err(Fault::debug(BREAK_ON_ACCESS));
        }
        Ok(number)
    }

    fn read_debug(&self, number: usize) -> Result<u64, Fault> {
        Ok(match self.check_debug(number)? {
            6 => self.dr6,
            7 => self.dr7,
            number => self.debug_address[number],
        })
    }

    fn write_debug(&mut self, number: usize, value: u64) -> Result<Flow, Fault> {
        let number = self.check_debug(number)?;
        if number >= 6 && value >> 32 != 0 {
            return Err(Fault::protection(0));
        }
        match number {
            6 => self.dr6 = value & 0xe00f | 0xffff_0ff0,
            7 => self.dr7 = value & 0xffff_23ff | 0x400,
            _ => self.debug_address[number] = value,
        }
        self.watch_registers_changed();
        Ok(Flow::Leave)
    }
}
