//! RDMSR and WRMSR of the registers that the processor holds itself; the environment has the rest.

use super::control::EFER_LME;
use crate::mmu::{CR0_PG, EFER_LMA, EFER_NXE, canonical};
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, SegmentName};

const EFER_SCE: u64 = 1;
const EFER_FFXSR: u64 = 1 << 14;
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;

/// Indexes (SDM 4 2.1; AMD APM 2 A).
mod index {
    pub(super) const SYSENTER_CS: u32 = 0x174;
    pub(super) const SYSENTER_EIP: u32 = 0x176;
    pub(super) const PAT: u32 = 0x277;
    pub(super) const EFER: u32 = 0xc000_0080;
    pub(super) const STAR: u32 = 0xc000_0081;
    pub(super) const LSTAR: u32 = 0xc000_0082;
    pub(super) const CSTAR: u32 = 0xc000_0083;
    pub(super) const SFMASK: u32 = 0xc000_0084;
    pub(super) const FS_BASE: u32 = 0xc000_0100;
    pub(super) const GS_BASE: u32 = 0xc000_0101;
    pub(super) const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub(super) const TSC_AUX: u32 = 0xc000_0103;
}

impl Cpu {
    pub(super) fn read_msr(&mut self, env: &mut dyn Environment) -> Result<Flow, Fault> {
        self.require_supervisor()?;
        let index = self.general[RCX] as u32;
        let value = match self.own_msr(index) {
            Some(place) => *place,
            None => env.msr_read(index).ok_or(Fault::protection(0))?,
        };
        self.general[RAX] = value & 0xffff_ffff;
        self.general[RDX] = value >> 32;
        Ok(Flow::Next)
    }

    pub(super) fn write_msr(&mut self, env: &mut dyn Environment) -> Result<Flow, Fault> {
        self.require_supervisor()?;
        let index = self.general[RCX] as u32;
        let value = self.general[RDX] << 32 | self.general[RAX] & 0xffff_ffff;
        let (allowed, flow) = match index {
            index::EFER => return self.set_efer(env, value),
            index::PAT => (valid_pat(value), Flow::Next),
            index::LSTAR
            | index::CSTAR
            | index::FS_BASE
            | index::GS_BASE
            | index::KERNEL_GS_BASE
            | 0x175
            | index::SYSENTER_EIP => (canonical(value), Flow::Next),
            index::SFMASK | index::TSC_AUX => (value >> 32 == 0, Flow::Next),
            index::STAR | index::SYSENTER_CS => (true, Flow::Next),
            _ => (env.msr_write(index, value), Flow::Leave),
        };
        if !allowed {
            return Err(Fault::protection(0));
        }
        if let Some(place) = self.own_msr(index) {
            *place = value;
        }
        Ok(flow)
    }

    fn own_msr(&mut self, index: u32) -> Option<&mut u64> {
        Some(match index {
            index::SYSENTER_CS..=index::SYSENTER_EIP => {
                &mut self.sysenter[(index - index::SYSENTER_CS) as usize]
            }
            index::PAT => &mut self.pat,
            index::EFER => &mut self.efer,
            index::STAR => &mut self.star,
            index::LSTAR => &mut self.lstar,
            index::CSTAR => &mut self.cstar,
            index::SFMASK => &mut self.sfmask,
            index::FS_BASE => &mut self.segments[SegmentName::Fs as usize].base,
            index::GS_BASE => &mut self.segments[SegmentName::Gs as usize].base,
            index::KERNEL_GS_BASE => &mut self.kernel_gs_base,
            index::TSC_AUX => &mut self.tsc_aux,
            _ => return None,
        })
    }

    fn set_efer(&mut self, env: &mut dyn Environment, value: u64) -> Result<Flow, Fault> {
        let features = self.features(env);
        let mut known = EFER_LMA;
        for (offered, bit) in [
            (features.syscall, EFER_SCE),
            (features.long_mode, EFER_LME),
            (features.no_execute, EFER_NXE),
            (features.fast_fxsave, EFER_FFXSR),
        ] {
            known |= if offered { bit } else { 0 };
        }
        let changed = self.efer ^ value;
        let while_paging = changed & EFER_LME != 0 && self.cr0 & CR0_PG != 0;
        if value & !known != 0 || while_paging {
            return Err(Fault::protection(0));
        }
        // LMA follows paging, not software.
        self.efer = value & !EFER_LMA | self.efer & EFER_LMA;
        if changed & EFER_NXE != 0 {
            self.flush_tlb();
        }
        Ok(Flow::Leave)
    }
}

/// Each byte of the PAT is a memory type that exists (SDM 3A 11.12.2).
fn valid_pat(value: u64) -> bool {
    let types = value.to_le_bytes();
    types.iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}
