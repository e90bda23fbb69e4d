//! What the processor says about itself and time: CPUID, RDTSC, RDTSCP, RDPID, RDRAND, RDSEED; and
//! the bases of FS and GS.

use iced_x86::{Instruction, Mnemonic};

use super::control::{CR4_FSGSBASE, CR4_TSD};
use crate::mmu::canonical;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, SegmentName};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const CF: u64 = 1;
/// CF, PF, AF, ZF, SF, OF.
const STATUS: u64 = 0x8d5;

impl Cpu {
    pub(super) fn identify(&mut self, env: &mut dyn Environment) -> Flow {
        let (leaf, index) = (self.general[RAX] as u32, self.general[RCX] as u32);
        let [eax, ebx, ecx, edx] = env.cpuid(leaf, index);
        for (register, value) in [(RAX, eax), (RBX, ebx), (RCX, ecx), (RDX, edx)] {
            self.general[register] = value.into();
        }
        // It serialises: code that other processors changed is looked for.
        if self.stale_waits() {
            return Flow::Leave;
        }
        Flow::Next
    }

    /// RDTSC and RDTSCP.
    pub(super) fn time_stamp(
        &mut self,
        env: &mut dyn Environment,
        with_processor: bool,
    ) -> Result<Flow, Fault> {
        if with_processor && !self.features(env).rdtscp {
            return Err(Fault::UNDEFINED);
        }
        if self.cr4 & CR4_TSD != 0 && self.cpl() > 0 {
            return Err(Fault::protection(0));
        }
        let now = env.tsc();
        self.general[RAX] = now & 0xffff_ffff;
        self.general[RDX] = now >> 32;
        if with_processor {
            self.general[RCX] = self.tsc_aux & 0xffff_ffff;
        }
        Ok(Flow::Next)
    }

    pub(super) fn processor_id(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        if !self.features(env).rdpid {
            return Err(Fault::UNDEFINED);
        }
        self.set_named_register(instruction.op0_register(), self.tsc_aux);
        Ok(Flow::Next)
    }

    /// RDRAND and RDSEED.
    pub(super) fn random(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let features = self.features(env);
        let offered = match instruction.mnemonic() {
            Mnemonic::Rdrand => features.rdrand,
            _ => features.rdseed,
        };
        if !offered {
            return Err(Fault::UNDEFINED);
        }
        let value = env.random();
        self.set_named_register(instruction.op0_register(), value);
        self.rflags = self.rflags & !STATUS | CF;
        Ok(Flow::Next)
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
    pub(super) fn segment_base(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let offered = self.features(env).fsgsbase && self.cr4 & CR4_FSGSBASE != 0;
        if !offered || !self.long_code() {
            return Err(Fault::UNDEFINED);
        }
        let mnemonic = instruction.mnemonic();
        let name = match mnemonic {
            Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => SegmentName::Fs,
            _ => SegmentName::Gs,
        };
        let register = instruction.op0_register();
        if matches!(mnemonic, Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) {
            self.set_named_register(register, self.segment(name).base);
            return Ok(Flow::Next);
        }
        let base = self.named_register(register);
        if !canonical(base) {
            return Err(Fault::protection(0));
        }
        self.segments[name as usize].base = base;
        Ok(Flow::Next)
    }
}
