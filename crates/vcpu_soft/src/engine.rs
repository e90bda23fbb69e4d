//! The engine and the VM.

use std::sync::{Arc, OnceLock};

use vcpu::{Engine, EngineError, RamSlot, Vcpu, VcpuState, Vm, VmClock};
use x86_cpu::{PROCESSORS_MAX, Ram};

use crate::apic::{Apics, Message};
use crate::clock::VmTime;
use crate::cpuid::Topology;
use crate::vcpu::SoftVcpu;

/// Most vCPUs.
const VCPUS_MAX: u8 = PROCESSORS_MAX as u8;

/// The software engine; it needs nothing of the host but an x86-64-v2 processor.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftEngine;

impl Engine for SoftEngine {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn create_vm(&self, ram: &[RamSlot]) -> Result<Arc<dyn Vm>, EngineError> {
        if let [missing, ..] = x86_fp::missing_on_host()[..] {
            return Err(EngineError::Processor(missing));
        }
        let slots: Vec<_> = ram
            .iter()
            .map(|slot| x86_cpu::RamSlot {
                gpa: slot.gpa,
                host_address: slot.host_address,
                len: slot.len,
            })
            .collect();
        Ok(Arc::new(SoftVm {
            ram: Ram::new(&slots),
            time: Arc::new(VmTime::new()),
            apics: OnceLock::new(),
        }))
    }
}

#[derive(Debug)]
struct SoftVm {
    ram: Ram,
    time: Arc<VmTime>,
    /// Known when the first vCPU is made.
    apics: OnceLock<Arc<Apics>>,
}

impl Vm for SoftVm {
    /// Handlers of guest instructions end in jumps; should one be compiled to a call, up to 8192 of
    /// them nest, and a guest must not be able to make use of that.
    fn stack_bytes(&self) -> usize {
        16 << 20
    }

    fn create_vcpu(&self, index: u8, count: u8) -> Result<Box<dyn Vcpu>, EngineError> {
        if index >= count || count > VCPUS_MAX {
            return Err(EngineError::Missing("room for so many vCPUs"));
        }
        let apics = self.apics.get_or_init(|| Arc::new(Apics::new(count)));
        if apics.count() != usize::from(count) {
            return Err(EngineError::Missing("one number of vCPUs in a VM"));
        }
        Ok(Box::new(SoftVcpu::new(
            Arc::clone(apics),
            Topology { index, count },
            self.ram.clone(),
            Arc::clone(&self.time),
        )))
    }

    fn signal_msi(&self, address: u64, data: u32) {
        // Nobody there to take it: as on a real bus.
        if let (Some(apics), Some(message)) = (self.apics.get(), Message::of_msi(address, data)) {
            apics.send(message);
        }
    }

    fn save_clock(&self, _: &mut [VcpuState]) -> Result<VmClock, EngineError> {
        let ns = self.time.save_clock();
        Ok(VmClock { ns })
    }

    fn restore_clock(&self, clock: &VmClock) -> Result<(), EngineError> {
        self.time.load_clock(clock.ns);
        Ok(())
    }
}
