//! One vCPU: the run loop and its exits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vcpu::{
    CpuidLeaf, EngineError, Exit, GuestIo, Kick, Registers, SystemRegisters, Vcpu, VcpuState,
};

use crate::cpuid::{self, Topology};
use crate::engine::Shared;
use crate::kick::KvmKick;
use crate::{convert, failed, state};

#[derive(Debug)]
pub(crate) struct KvmVcpu {
    // Dropped before the VM's descriptor, and after the kick is detached.
    fd: VcpuFd,
    vm: Arc<Shared>,
    topology: Topology,
    /// What the guest was given when the vCPU was made.
    cpuid: Vec<CpuidLeaf>,
    kick: Option<Arc<KvmKick>>,
}

impl KvmVcpu {
    pub(crate) fn new(vm: Arc<Shared>, fd: VcpuFd, topology: Topology) -> Self {
        Self {
            fd,
            vm,
            topology,
            cpuid: vec![],
            kick: None,
        }
    }

    /// Gives the guest the CPUID that the host's KVM supports.
    fn set_host_model(&mut self) -> Result<(), EngineError> {
        let model = cpuid::for_vcpu(self.vm.cpu_model()?, self.topology)?;
        self.fd
            .set_cpuid2(&model)
            .map_err(failed("KVM_SET_CPUID2"))?;
        self.cpuid = convert::cpuid(&model);
        Ok(())
    }

    fn immediate_exit(&mut self) -> *const AtomicU8 {
        let byte: *mut u8 = &raw mut self.fd.get_kvm_run().immediate_exit;
        byte.cast_const().cast()
    }

    /// Where KVM says how wide the accesses of a port exit are, bytes.
    fn port_width(&mut self) -> *const u8 {
        let exit = &raw mut self.fd.get_kvm_run().__bindgen_anon_1;
        // SAFETY: only an address within the union is worked out.
        unsafe { &raw const (*exit).io.size }
    }

    fn describe_fault(&mut self, what: &str) -> Exit {
        let run = self.fd.get_kvm_run();
        let reason = run.exit_reason;
        // SAFETY: `internal` is the member that KVM fills for this exit; any bytes are valid.
        let detail = unsafe { run.__bindgen_anon_1.internal };
        let shown = detail.ndata.min(8) as usize;
        let data: Vec<_> = detail.data[..shown]
            .iter()
            .map(|w| format!("{w:#x}"))
            .collect();
        let at = self.fd.get_regs().map(|r| r.rip).unwrap_or_default();
        Exit::Fault(format!(
            "{what} (exit {reason}, suberror {}, rip {at:#x}, data [{}])",
            detail.suberror,
            data.join(" ")
        ))
    }
}

impl Vcpu for KvmVcpu {
    fn attach(&mut self) -> Result<Arc<dyn Kick>, EngineError> {
        let byte = self.immediate_exit();
        let kick = Arc::new(KvmKick::for_this_thread(byte)?);
        if let Some(before) = self.kick.replace(Arc::clone(&kick)) {
            before.detach();
        }
        Ok(kick)
    }

    fn run(&mut self, io: &dyn GuestIo) -> Exit {
        let immediate_exit = self.immediate_exit();
        let port_width = self.port_width();
        loop {
            match self.fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    // SAFETY: the byte lies in the kvm_run mapping that `self.fd` owns, away from
                    // `data`, which KVM puts behind the structure.
                    let width = unsafe { port_width.read_volatile() };
                    // KVM reads ahead for a repeated instruction: one access after the other.
                    for element in data.chunks_mut(usize::from(width.max(1))) {
                        io.port_read(port, element);
                    }
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    // SAFETY: as above.
                    let width = unsafe { port_width.read_volatile() };
                    for element in data.chunks(usize::from(width.max(1))) {
                        io.port_write(port, element);
                    }
                }
                Ok(VcpuExit::MmioRead(address, data)) => io.mmio_read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => io.mmio_write(address, data),
                Ok(VcpuExit::IoapicEoi(vector)) => io.end_of_interrupt(vector),
                Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
                Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(..)) => return Exit::TripleFault,
                Ok(VcpuExit::Intr) => {}
                Ok(VcpuExit::InternalError) => {
                    return self.describe_fault("KVM cannot execute the guest's instruction");
                }
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    return Exit::Fault(format!("the processor refused guest state ({reason:#x})"));
                }
                Ok(other) => {
                    let text = format!("unexpected exit {other:?}");
                    return self.describe_fault(&text);
                }
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                    // SAFETY: the byte lies in the kvm_run mapping that `self.fd` owns.
                    unsafe { &*immediate_exit }.store(0, Ordering::SeqCst);
                    if io.stop_wanted() {
                        return Exit::Kicked;
                    }
                }
                Err(error) => return Exit::Fault(format!("KVM_RUN failed: {error}")),
            }
        }
    }

    fn set_boot_state(
        &mut self,
        registers: &Registers,
        system: &SystemRegisters,
    ) -> Result<(), EngineError> {
        self.fd
            .set_sregs(&convert::kvm_system(system))
            .map_err(failed("KVM_SET_SREGS"))?;
        self.fd
            .set_regs(&convert::kvm_registers(registers))
            .map_err(failed("KVM_SET_REGS"))
    }

    fn system_registers(&self) -> Result<SystemRegisters, EngineError> {
        Ok(convert::system(
            &self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
        ))
    }

    fn set_cpu_model(&mut self) -> Result<(), EngineError> {
        self.set_host_model()?;
        state::set_memory_types(&self.fd)?;
        state::learn(&self.vm, &self.fd)
    }

    fn expect_cpu_model(&mut self) {
        // Most states were saved on this host, of a guest that booted with this model.
        let _ = self.set_host_model();
    }

    fn save(&mut self) -> Result<VcpuState, EngineError> {
        state::save(&self.vm, &self.fd, self.topology.index, &self.cpuid)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        // Checking and taking a CPUID is the dearest call of all; one that was given the model
        // ahead has it already.
        if self.cpuid != state.cpuid {
            state::restore_cpuid(&self.fd, &state.cpuid)?;
            self.cpuid.clone_from(&state.cpuid);
        }
        state::restore(&self.vm, &self.fd, self.topology.index == 0, state)
    }

    fn note_stun(&mut self) {
        // Refused where the guest has no paravirtual clock: then there is nothing to tell.
        let _ = self.fd.kvmclock_ctrl();
    }

    fn hide_from_fork(&mut self) -> Result<(), EngineError> {
        let len = self.vm.run_area_bytes()?;
        let address: *mut kvm_bindings::kvm_run = self.fd.get_kvm_run();
        // SAFETY: the range is the kvm_run mapping that `self.fd` owns; the advice only keeps a
        // child process from getting it.
        let result = unsafe { libc::madvise(address.cast(), len, libc::MADV_DONTFORK) };
        if result == 0 {
            return Ok(());
        }
        Err(EngineError::Call {
            call: "madvise",
            source: std::io::Error::last_os_error(),
        })
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        if let Some(kick) = &self.kick {
            kick.detach();
        }
    }
}
