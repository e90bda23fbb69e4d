//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS (SDM 3A 5.8.7, 5.8.8; AMD APM 2 6.1).

use iced_x86::{Code, Instruction};

use super::flags::{FIXED, IF, RF, TF, VM};
use super::stack::RSP;
use crate::mmu::canonical;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, Segment, SegmentName};

const EFER_SCE: u64 = 1;
const RCX: usize = 1;
const RDX: usize = 2;
const R11: usize = 11;
/// Flags that SYSRET takes of R11.
const SYSRET_FLAGS: u64 = 0x003c_7fd7;

/// Rights of flat segments at level 0: present, accessed, 4 GiB.
const CODE64: u32 = 0xa09b;
const CODE32: u32 = 0xc09b;
const DATA: u32 = 0xc093;

fn flat(selector: u16, access: u32, dpl: u8) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        access: access | u32::from(dpl) << 5,
    }
}

impl Cpu {
    fn set_flat(&mut self, code: u16, access: u32, stack: u16, dpl: u8) {
        self.segments[SegmentName::Cs as usize] = flat(code, access, dpl);
        self.segments[SegmentName::Ss as usize] = flat(stack, DATA, dpl);
    }

    /// SYSCALL; RIP is already after it.
    pub(super) fn system_call(&mut self) -> Result<Flow, Fault> {
        if self.efer & EFER_SCE == 0 || !self.protected() {
            return Err(Fault::UNDEFINED);
        }
        let selector = (self.star >> 32) as u16 & 0xfffc;
        self.general[RCX] = self.rip;
        if self.long_mode() {
            self.general[R11] = self.rflags & !RF;
            self.rip = if self.long_code() {
                self.lstar
            } else {
                self.cstar
            };
            self.rflags = self.rflags & !(self.sfmask | RF) | FIXED;
            self.set_flat(selector, CODE64, selector.wrapping_add(8), 0);
        } else {
            self.general[RCX] &= 0xffff_ffff;
            self.rip = self.star & 0xffff_ffff;
            self.rflags &= !(VM | IF | RF);
            self.set_flat(selector, CODE32, selector.wrapping_add(8), 0);
        }
        self.system.steps_by_result = true;
        self.refresh();
        Ok(Flow::Leave)
    }

    /// SYSRET to 64-bit or 32-bit code.
    pub(super) fn system_return(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        if self.efer & EFER_SCE == 0 || !self.protected() {
            return Err(Fault::UNDEFINED);
        }
        self.require_supervisor()?;
        let (long, rcx) = (instruction.code() == Code::Sysretq, self.general[RCX]);
        if long && self.features(env).intel && !canonical(rcx) {
            return Err(Fault::protection(0));
        }
        let selector = (self.star >> 48) as u16 | 3;
        if self.long_mode() {
            self.rflags = self.general[R11] & SYSRET_FLAGS | FIXED;
        } else {
            self.rflags |= IF;
        }
        let stack = selector.wrapping_add(8);
        if long {
            self.rip = rcx;
            self.set_flat(selector.wrapping_add(16), CODE64, stack, 3);
        } else {
            self.rip = rcx & 0xffff_ffff;
            self.set_flat(selector, CODE32, stack, 3);
        }
        self.system.steps_by_result = true;
        self.system.step_due = self.rflags & TF != 0;
        self.refresh();
        Ok(Flow::Leave)
    }

    fn check_sysenter(&mut self, env: &mut dyn Environment) -> Result<(), Fault> {
        if self.long_mode() && !self.features(env).intel {
            return Err(Fault::UNDEFINED);
        }
        if !self.protected() || self.sysenter[0] & 0xfffc == 0 {
            return Err(Fault::protection(0));
        }
        Ok(())
    }

    pub(super) fn system_enter(&mut self, env: &mut dyn Environment) -> Result<Flow, Fault> {
        self.check_sysenter(env)?;
        let selector = self.sysenter[0] as u16 & 0xfffc;
        let access = if self.long_mode() { CODE64 } else { CODE32 };
        self.rflags &= !(VM | IF | RF);
        self.set_flat(selector, access, selector.wrapping_add(8), 0);
        let [_, rsp, rip] = self.sysenter;
        let mask = if self.long_mode() {
            u64::MAX
        } else {
            0xffff_ffff
        };
        self.general[RSP] = rsp & mask;
        self.rip = rip & mask;
        self.refresh();
        Ok(Flow::Leave)
    }

    pub(super) fn system_exit(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        self.check_sysenter(env)?;
        self.require_supervisor()?;
        let (rcx, rdx) = (self.general[RCX], self.general[RDX]);
        let first = self.sysenter[0] as u16 | 3;
        if instruction.code() == Code::Sysexitq {
            if !canonical(rcx) || !canonical(rdx) {
                return Err(Fault::protection(0));
            }
            self.set_flat(first.wrapping_add(32), CODE64, first.wrapping_add(40), 3);
            (self.general[RSP], self.rip) = (rcx, rdx);
        } else {
            self.set_flat(first.wrapping_add(16), CODE32, first.wrapping_add(24), 3);
            (self.general[RSP], self.rip) = (rcx & 0xffff_ffff, rdx & 0xffff_ffff);
        }
        self.refresh();
        Ok(Flow::Leave)
    }

    pub(super) fn swap_gs(&mut self) -> Result<Flow, Fault> {
        if !self.long_code() {
            return Err(Fault::UNDEFINED);
        }
        self.require_supervisor()?;
        let gs = &mut self.segments[SegmentName::Gs as usize];
        std::mem::swap(&mut gs.base, &mut self.kernel_gs_base);
        Ok(Flow::Next)
    }

    /// #GP(0) outside level 0.
    pub(super) fn require_supervisor(&self) -> Result<(), Fault> {
        match self.cpl() {
            0 => Ok(()),
            _ => Err(Fault::protection(0)),
        }
    }
}
