//! What is built of a machine before its state is there: the engine's VM with its memory slots, and
//! the vCPUs in their threads; also threads for devices. A clone's is built while the source is still
//! being forked.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use guest_memory::{GuestRam, ReservedRam, ram_ranges};
use vcpu::{Engine, EngineError, Exit, RamSlot, Vcpu, VcpuState, Vm};
use vcpu_soft::SoftEngine;
use virtio_devices::WaitingThread;
use vm_spec::VmSpec;

use crate::error::BuildError;
use crate::machine::{MachineEvent, OnEvent, lock_ram, open_engine, set_boot_registers};
use crate::vcpus::{MakeVcpu, OnEnd, VcpuGroup};

/// Threads that wait for devices: one for a disk, one for all others.
const DEVICE_THREADS: usize = 2;

/// The engine's VM with memory slots and vCPUs, without state.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) engine: &'static str,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) vcpus: VcpuGroup,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) states: StateGiver,
    pub(crate) threads: Vec<WaitingThread>,
    cpus: u8,
    memory_bytes: u64,
    ram: Option<ReservedRam>,
}

impl Prepared {
    /// Prepares a clone whose memory layer is not there yet.
    pub fn ahead(
        memory_bytes: u64,
        cpus: u8,
        kvm: Option<OwnedFd>,
        on_event: OnEvent,
    ) -> Result<Self, BuildError> {
        let ram = ReservedRam::new(memory_bytes)?;
        let range = (ram.host_address(), memory_bytes);
        let mut prepared = Self::new(range, cpus, kvm, None, on_event)?;
        prepared.ram = Some(ram);
        // One that cannot be had now is asked for again, and told of, when it is needed.
        let threads = (0..DEVICE_THREADS).map_while(|_| WaitingThread::start().ok());
        prepared.threads = threads.collect();
        Ok(prepared)
    }

    /// Prepares a clone over RAM that is there.
    pub fn over(
        ram: &Mutex<GuestRam>,
        cpus: u8,
        kvm: Option<OwnedFd>,
        on_event: OnEvent,
    ) -> Result<Self, BuildError> {
        Self::new(range_of(ram), cpus, kvm, None, on_event)
    }

    /// Prepares a cold boot.
    pub(crate) fn boot(
        ram: &Mutex<GuestRam>,
        cpus: u8,
        kvm: Option<OwnedFd>,
        state: boot::BootState,
        on_event: OnEvent,
    ) -> Result<Self, BuildError> {
        Self::new(range_of(ram), cpus, kvm, Some(Arc::new(state)), on_event)
    }

    fn new(
        (address, memory_bytes): (u64, u64),
        cpus: u8,
        kvm: Option<OwnedFd>,
        boot: Option<Arc<boot::BootState>>,
        on_event: OnEvent,
    ) -> Result<Self, BuildError> {
        let engine = open_engine(kvm)?;
        let vm = engine.create_vm(&ram_slots(address, memory_bytes))?;
        let stop = Arc::new(AtomicBool::new(true));
        let states = Arc::new(AwaitedStates::default());
        let makers = (0..cpus).map(|index| -> MakeVcpu {
            let vm = Arc::clone(&vm);
            match boot.clone() {
                Some(state) => Box::new(move || boot_vcpu(vm.as_ref(), index, cpus, &state)),
                None => {
                    let states = Arc::clone(&states);
                    Box::new(move || {
                        let mut vcpu = vm.create_vcpu(index, cpus)?;
                        if !states.are_there() {
                            vcpu.expect_cpu_model();
                        }
                        vcpu.restore(&states.wait(index)?)?;
                        Ok(vcpu)
                    })
                }
            }
        });
        let states = StateGiver(Arc::clone(&states));
        let (makers, stack) = (makers.collect(), vm.stack_bytes());
        let vcpus = VcpuGroup::spawn(makers, stack, Arc::clone(&stop), tell_end(on_event))?;
        Ok(Self {
            engine: engine.name(),
            vm,
            vcpus,
            stop,
            states,
            threads: Vec::new(),
            cpus,
            memory_bytes,
            ram: None,
        })
    }

    /// Returns whether it has the size of `spec` and the engine that a machine gets which is given
    /// KVM, or not. One of whose vCPUs could not be made fits nothing: that may be long ago.
    pub fn fits(&self, spec: &VmSpec, kvm: bool) -> bool {
        let of_kvm = self.engine != SoftEngine.name();
        let same = self.cpus == spec.cpus && self.memory_bytes == spec.memory_bytes;
        same && of_kvm == kvm && !self.vcpus.has_failed()
    }

    /// Returns the addresses that the memory layer is to be mapped at, once.
    pub fn take_ram(&mut self) -> Option<ReservedRam> {
        self.ram.take()
    }
}

fn range_of(ram: &Mutex<GuestRam>) -> (u64, u64) {
    let ram = lock_ram(ram);
    (ram.host_address(), ram.len())
}

fn ram_slots(address: u64, bytes: u64) -> Vec<RamSlot> {
    let slots = ram_ranges(bytes).into_iter().map(|range| RamSlot {
        gpa: range.gpa,
        host_address: address + range.offset,
        len: range.len,
    });
    slots.collect()
}

/// Tells the owner why a vCPU ended by itself.
fn tell_end(on_event: OnEvent) -> OnEnd {
    Arc::new(move |exit| match exit {
        Exit::Kicked => {}
        Exit::TripleFault => on_event(MachineEvent::TripleFault),
        Exit::Fault(text) => on_event(MachineEvent::EngineFault(text)),
    })
}

/// The boot CPU gets its registers, others wait for INIT.
fn boot_vcpu(
    vm: &dyn Vm,
    index: u8,
    count: u8,
    state: &boot::BootState,
) -> Result<Box<dyn Vcpu>, EngineError> {
    let mut vcpu = vm.create_vcpu(index, count)?;
    vcpu.set_cpu_model()?;
    if index == 0 {
        set_boot_registers(vcpu.as_mut(), state)?;
    }
    Ok(vcpu)
}

#[derive(Debug, Default)]
enum Awaited {
    #[default]
    NotYet,
    Given(Vec<Option<VcpuState>>),
    Never,
}

/// Saved states that vCPU threads wait for.
#[derive(Debug, Default)]
struct AwaitedStates {
    states: Mutex<Awaited>,
    changed: Condvar,
}

impl AwaitedStates {
    fn lock(&self) -> MutexGuard<'_, Awaited> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn are_there(&self) -> bool {
        !matches!(*self.lock(), Awaited::NotYet)
    }

    fn wait(&self, index: u8) -> Result<VcpuState, EngineError> {
        let not_yet = |awaited: &mut Awaited| matches!(awaited, Awaited::NotYet);
        let mut awaited = self
            .changed
            .wait_while(self.lock(), not_yet)
            .unwrap_or_else(PoisonError::into_inner);
        match &mut *awaited {
            Awaited::Given(states) => states.get_mut(usize::from(index)).and_then(Option::take),
            Awaited::NotYet | Awaited::Never => None,
        }
        .ok_or(EngineError::Missing("the saved state of a vCPU"))
    }

    fn set(&self, awaited: Awaited) {
        *self.lock() = awaited;
        self.changed.notify_all();
    }
}

/// Hands saved states to the vCPU threads; dropped without, it ends them.
#[derive(Debug)]
pub(crate) struct StateGiver(Arc<AwaitedStates>);

impl StateGiver {
    /// One for each vCPU.
    pub(crate) fn give(&self, states: Vec<VcpuState>) {
        let states = states.into_iter().map(Some).collect();
        self.0.set(Awaited::Given(states));
    }
}

impl Drop for StateGiver {
    fn drop(&mut self) {
        let mut awaited = self.0.lock();
        if matches!(*awaited, Awaited::NotYet) {
            *awaited = Awaited::Never;
        }
        drop(awaited);
        self.0.changed.notify_all();
    }
}
