//! The engine and the VM: memory slots, interrupt messages, clock.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vcpu::{Engine, EngineError, RamSlot, Vcpu, VcpuState, Vm, VmClock};

use crate::time::Times;
use crate::vcpu::KvmVcpu;
use crate::{cpuid, failed, kick};

/// Inputs of the user-space IOAPIC.
const IOAPIC_PINS: u64 = 24;
/// Three pages below 4 GiB that old VMX hosts need for real mode; outside RAM and devices.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// KVM, opened by somebody else.
#[derive(Debug)]
pub struct KvmEngine {
    kvm: Arc<Kvm>,
}

impl KvmEngine {
    /// Takes an open `/dev/kvm` and checks its API and what the engine needs of it.
    pub fn new(device: OwnedFd) -> Result<Self, EngineError> {
        // SAFETY: the descriptor is owned and handed over; a wrong one makes calls fail.
        let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
        if kvm.get_api_version() != 12 {
            return Err(EngineError::Missing(
                "KVM API version 12 (is this /dev/kvm?)",
            ));
        }
        for (cap, name) in [
            (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(EngineError::Missing(name));
            }
        }
        kick::install_handler()?;
        Ok(Self { kvm: Arc::new(kvm) })
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn create_vm(&self, ram: &[RamSlot]) -> Result<Arc<dyn Vm>, EngineError> {
        let fd = self.kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
        let split = kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [IOAPIC_PINS, 0, 0, 0],
            ..Default::default()
        };
        fd.enable_cap(&split)
            .map_err(failed("KVM_CAP_SPLIT_IRQCHIP"))?;
        if let Err(error) = fd.set_tss_address(TSS_ADDRESS) {
            tracing::debug!(%error, "KVM_SET_TSS_ADDR refused; only old VMX hosts need it");
        }
        for (slot, range) in ram.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: range.gpa,
                memory_size: range.len,
                userspace_addr: range.host_address,
            };
            // SAFETY: the caller keeps the range mapped for the VM's life, see `Engine::create_vm`.
            unsafe { fd.set_user_memory_region(region) }
                .map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
        }
        let shared = Shared {
            kvm: Arc::clone(&self.kvm),
            fd,
            cpu_model: OnceLock::new(),
            msr_indices: OnceLock::new(),
            tsc_khz: OnceLock::new(),
            times: Times::default(),
        };
        Ok(Arc::new(KvmVm(Arc::new(shared))))
    }
}

/// What a VM and its vCPUs share.
#[derive(Debug)]
pub(crate) struct Shared {
    kvm: Arc<Kvm>,
    pub(crate) fd: VmFd,
    cpu_model: OnceLock<CpuId>,
    msr_indices: OnceLock<Vec<u32>>,
    tsc_khz: OnceLock<Option<u32>>,
    pub(crate) times: Times,
}

impl Shared {
    /// Returns the length of the mapping that a vCPU shares with KVM, bytes.
    pub(crate) fn run_area_bytes(&self) -> Result<usize, EngineError> {
        self.kvm
            .get_vcpu_mmap_size()
            .map_err(failed("KVM_GET_VCPU_MMAP_SIZE"))
    }

    /// Returns the CPUID that the host's KVM supports.
    pub(crate) fn cpu_model(&self) -> Result<&CpuId, EngineError> {
        if self.cpu_model.get().is_none() {
            let model = self
                .kvm
                .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
                .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
            let _ = self.cpu_model.set(model);
        }
        Ok(self.cpu_model.get().expect("set above"))
    }

    /// Returns the frequency of the guest's time-stamp counter, which `ask` tells once.
    pub(crate) fn tsc_khz(&self, ask: impl FnOnce() -> Option<u32>) -> Option<u32> {
        *self.tsc_khz.get_or_init(ask)
    }

    /// Takes the numbers of the MSRs that hold guest state from a saved state.
    pub(crate) fn know_msr_indices(&self, indices: Vec<u32>) {
        // All vCPUs of a VM have the same: the first one tells.
        let _ = self.msr_indices.set(indices);
    }

    /// Returns the numbers of the MSRs that hold guest state; those that turn out unreadable are
    /// dropped by `readable`, which is asked once.
    pub(crate) fn msr_indices(
        &self,
        readable: impl FnOnce(Vec<u32>) -> Result<Vec<u32>, EngineError>,
    ) -> Result<&[u32], EngineError> {
        if self.msr_indices.get().is_none() {
            let list = self
                .kvm
                .get_msr_index_list()
                .map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
            let _ = self.msr_indices.set(readable(list.as_slice().to_vec())?);
        }
        Ok(self.msr_indices.get().expect("set above"))
    }
}

#[derive(Debug)]
struct KvmVm(Arc<Shared>);

impl Vm for KvmVm {
    fn create_vcpu(&self, index: u8, count: u8) -> Result<Box<dyn Vcpu>, EngineError> {
        let fd = self
            .0
            .fd
            .create_vcpu(index.into())
            .map_err(failed("KVM_CREATE_VCPU"))?;
        Ok(Box::new(KvmVcpu::new(
            Arc::clone(&self.0),
            fd,
            cpuid::Topology { index, count },
        )))
    }

    fn signal_msi(&self, address: u64, data: u32) {
        let message = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        // An error or 0 means that no local APIC took it, as on a real bus.
        let _ = self.0.fd.signal_msi(message);
    }

    fn save_clock(&self, vcpus: &mut [VcpuState]) -> Result<VmClock, EngineError> {
        self.0.times.save_clock(&self.0.fd, vcpus)
    }

    fn restore_clock(&self, clock: &VmClock) -> Result<(), EngineError> {
        self.0.times.restore_clock(&self.0.fd, clock)
    }
}
