//! What control registers say about x87, MMX and SSE instructions (SDM 3A 2.5, 13.1).

use x86_fp::{FpFault, Unit};

use super::control::{CR0_EM, CR0_MP, CR0_TS, CR4_OSFXSR, CR4_OSXMMEXCPT};
use crate::{Cpu, Fault};

impl Cpu {
    /// Checks that an instruction of `unit` may run now: asked before each one, before its memory
    /// operand is touched. FXSAVE and FXRSTOR count as x87.
    #[inline]
    pub(crate) fn fp_allowed(&self, unit: Unit) -> Result<(), Fault> {
        let (off, saved) = (self.cr0 & CR0_EM != 0, self.cr0 & CR0_TS != 0);
        match unit {
            Unit::X87 if off || saved => Err(Fault::NO_FPU),
            Unit::X87 => Ok(()),
            Unit::Mmx if off => Err(Fault::UNDEFINED),
            Unit::Sse if off || self.cr4 & CR4_OSFXSR == 0 => Err(Fault::UNDEFINED),
            _ if saved => Err(Fault::NO_FPU),
            _ => Ok(()),
        }
    }

    /// The check of FWAIT, which ignores CR0.EM.
    #[inline]
    pub(crate) fn wait_allowed(&self) -> Result<(), Fault> {
        if self.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
            return Err(Fault::NO_FPU);
        }
        Ok(())
    }

    /// The exception that a fault of `x86_fp` becomes. Without CR0.NE, where a PC would raise
    /// interrupt 13, it is #MF too.
    pub(crate) fn fp_fault(&self, fault: FpFault) -> Fault {
        match fault {
            FpFault::X87 => Fault::X87,
            FpFault::Simd if self.cr4 & CR4_OSXMMEXCPT != 0 => Fault::SIMD,
            FpFault::Simd => Fault::UNDEFINED,
            FpFault::Protection => Fault::protection(0),
        }
    }
}
