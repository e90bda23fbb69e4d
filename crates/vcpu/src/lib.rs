//! The engine seam: what executes guest instructions, seen from the machine.
//!
//! An [`Engine`] makes a [`Vm`] over guest RAM; a `Vm` makes [`Vcpu`]s; a vCPU runs until something
//! needs the machine ([`Exit`]). Port and memory accesses do not leave the engine: it calls
//! [`GuestIo`] from the vCPU's own thread. State is engine-neutral plain data ([`VcpuState`]).

#![forbid(unsafe_code)]

mod packed;
mod state;

use std::fmt::Debug;
use std::sync::Arc;

pub use state::{
    CpuidLeaf, DebugRegisters, DescriptorTable, Msr, PendingEvents, Registers, RunState, Segment,
    SystemRegisters, VcpuState, VmClock,
};

/// A range of guest RAM in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamSlot {
    /// Guest-physical start.
    pub gpa: u64,
    /// Host address of the first byte; stays valid and mapped for the life of the VM.
    pub host_address: u64,
    /// Length, bytes.
    pub len: u64,
}

/// An engine could not do what the machine asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A call to the host's hypervisor failed.
    #[error("engine call {call} failed")]
    Call {
        /// Name of the call.
        call: &'static str,
        /// The host's error.
        #[source]
        source: std::io::Error,
    },
    /// The host lacks something the engine cannot do without.
    #[error("the engine lacks {0}")]
    Missing(&'static str),
    /// The host's processor lacks a feature the engine computes with.
    #[error("the host's processor lacks {0}; the engine needs one of x86-64-v2")]
    Processor(&'static str),
    /// Saved state does not fit this engine or CPU.
    #[error("saved {field} does not fit: {reason}")]
    Unfit {
        /// Part of the state.
        field: &'static str,
        /// What differs.
        reason: String,
    },
}

/// What executes guest instructions.
pub trait Engine: Send + Sync + Debug {
    /// Name as the command line takes it.
    fn name(&self) -> &'static str;
    /// Makes a VM with `ram`.
    ///
    /// `ram` must stay mapped, readable and writable, at the same host addresses until the VM is
    /// dropped; its owner and the VM live in the same machine.
    fn create_vm(&self, ram: &[RamSlot]) -> Result<Arc<dyn Vm>, EngineError>;
}

/// One VM of an engine: memory, interrupt delivery, clock.
pub trait Vm: Send + Sync + Debug {
    /// Makes vCPU number `index` of `count`, in its reset state, without a CPU model: either
    /// [`Vcpu::set_cpu_model`] or [`Vcpu::restore`] follows.
    fn create_vcpu(&self, index: u8, count: u8) -> Result<Box<dyn Vcpu>, EngineError>;
    /// Delivers a message-signalled interrupt to the local APICs (SDM 3A 11.11).
    fn signal_msi(&self, address: u64, data: u32);
    /// Stack that a thread needs to run a vCPU, bytes; most of it is never touched.
    fn stack_bytes(&self) -> usize {
        256 << 10
    }
    /// Saves the paravirtual clock. `vcpus` are the states that all vCPUs were saved with, in their
    /// order, and stand still since: their time-stamp counters may be moved to the same instant.
    fn save_clock(&self, vcpus: &mut [VcpuState]) -> Result<VmClock, EngineError>;
    /// Makes the paravirtual clock go on from `clock`, after all vCPUs were restored: as far as the
    /// time-stamp counter that was saved furthest ahead has gone on since.
    fn restore_clock(&self, clock: &VmClock) -> Result<(), EngineError>;
}

/// Where port and memory accesses of the guest go.
pub trait GuestIo {
    /// Answers a port read.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// Takes a port write.
    fn port_write(&self, port: u16, data: &[u8]);
    /// Answers a memory read outside RAM.
    fn mmio_read(&self, address: u64, data: &mut [u8]);
    /// Takes a memory write outside RAM.
    fn mmio_write(&self, address: u64, data: &[u8]);
    /// Takes the end of a level-triggered interrupt.
    fn end_of_interrupt(&self, vector: u8);
    /// Returns whether the vCPU should leave [`Vcpu::run`] as if kicked.
    fn stop_wanted(&self) -> bool;
}

/// Why a vCPU left [`Vcpu::run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was kicked; no access is half done, so its state may be saved.
    Kicked,
    /// Triple fault: the machine resets.
    TripleFault,
    /// The guest did something the engine cannot run; a description for the log.
    Fault(String),
}

/// Makes a running vCPU leave [`Vcpu::run`]; callable from any thread.
pub trait Kick: Send + Sync + Debug {
    /// Makes the present or next `run` return soon.
    fn kick(&self);
}

/// One virtual processor. It is used by one thread at a time.
pub trait Vcpu: Send + Debug {
    /// Ties the vCPU to the calling thread, which will call [`run`](Self::run), and returns the way
    /// to interrupt it.
    fn attach(&mut self) -> Result<Arc<dyn Kick>, EngineError>;
    /// Runs the guest until it is kicked or ends.
    fn run(&mut self, io: &dyn GuestIo) -> Exit;
    /// Gives the vCPU the engine's CPU model, for a cold boot.
    fn set_cpu_model(&mut self) -> Result<(), EngineError>;
    /// Gives a vCPU that waits for a saved state the CPU model that it is likely to have, so that
    /// [`restore`](Self::restore) has less to do. Any state can still be loaded, and what fails here
    /// fails there.
    fn expect_cpu_model(&mut self) {}
    /// Sets the registers of a cold boot; the rest of the state is the reset state.
    fn set_boot_state(
        &mut self,
        registers: &Registers,
        system: &SystemRegisters,
    ) -> Result<(), EngineError>;
    /// Returns the system registers, to be changed for a cold boot.
    fn system_registers(&self) -> Result<SystemRegisters, EngineError>;
    /// Saves everything; legal only after `run` returned [`Exit::Kicked`] or before the first run.
    fn save(&mut self) -> Result<VcpuState, EngineError>;
    /// Loads `state`, as saved by this or another engine.
    fn restore(&mut self, state: &VcpuState) -> Result<(), EngineError>;
    /// Tells the guest's clock that the vCPU stood still (no lock-up warnings).
    fn note_stun(&mut self);
    /// Releases what the kernel would copy to a child process.
    fn hide_from_fork(&mut self) -> Result<(), EngineError>;
}
