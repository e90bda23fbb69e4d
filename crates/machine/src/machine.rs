//! [`Machine`]: one VM in this process, from cold boot or checkpoint to its end.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use boot::layout;
use guest_memory::GuestRam;
use vcpu::{
    DescriptorTable, Engine, EngineError, Registers, Segment, SystemRegisters, Vcpu, Vm, VmClock,
};
use vcpu_kvm::KvmEngine;
use vcpu_soft::SoftEngine;
use vm_memory::{Bytes, GuestAddress};
use vm_spec::VmSpec;

use crate::backends::{Backends, SerialSink};
use crate::checkpoint::Checkpoint;
use crate::durability::Durability;
use crate::error::BuildError;
use crate::fork::Finishing;
use crate::platform::{EventSink, Parts, Platform, PlatformEvent, SavedPlatform};
use crate::prepared::Prepared;
use crate::vcpus::VcpuGroup;

/// What a VM tells its owner, on any of its threads.
#[derive(Debug)]
pub enum MachineEvent {
    /// From the platform.
    Platform(PlatformEvent),
    /// A vCPU hit a triple fault: the machine resets.
    TripleFault,
    /// The engine cannot go on.
    EngineFault(String),
}

/// Hears of events.
pub type OnEvent = Arc<dyn Fn(MachineEvent) + Send + Sync>;

/// What a cold boot puts into guest RAM.
#[derive(Debug)]
pub struct BootFiles {
    /// bzImage, vmlinux or another 64-bit ELF file.
    pub kernel: File,
    /// Initial RAM disk.
    pub initrd: Option<File>,
    /// UUID of the machine; zeroes for none.
    pub uuid: [u8; 16],
}

/// One VM in this process.
#[derive(Debug)]
pub struct Machine {
    pub(crate) spec: VmSpec,
    pub(crate) engine: &'static str,
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) ram: Arc<Mutex<GuestRam>>,
    pub(crate) platform: Platform,
    pub(crate) vcpus: VcpuGroup,
    /// Devices take descriptors: they do from the first run on.
    pub(crate) begun: bool,
    /// Forks that succeeded.
    pub(crate) forks: u64,
    pub(crate) durability: Durability,
    /// What the last fork left to do.
    pub(crate) finishing: Finishing,
}

pub(crate) fn lock_ram(ram: &Mutex<GuestRam>) -> MutexGuard<'_, GuestRam> {
    ram.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Opens KVM where the back ends have it, else the software engine.
pub(crate) fn open_engine(kvm: Option<OwnedFd>) -> Result<Box<dyn Engine>, BuildError> {
    Ok(match kvm {
        Some(device) => Box::new(KvmEngine::new(device)?),
        None => Box::new(SoftEngine),
    })
}

pub(crate) fn set_boot_registers(
    vcpu: &mut dyn Vcpu,
    state: &boot::BootState,
) -> Result<(), EngineError> {
    let from = &state.registers;
    let segment = |s: &boot::Segment| Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        access: s.access,
    };
    let table = |t: &boot::DescriptorTable| DescriptorTable {
        base: t.base,
        limit: t.limit,
    };
    let data = segment(&from.data);
    let (cs, tr, ldt) = (segment(&from.cs), segment(&from.tr), segment(&from.ldtr));
    let system = SystemRegisters {
        segments: [cs, data, data, data, data, data, tr, ldt],
        gdt: table(&from.gdt),
        idt: table(&from.idt),
        cr0: from.cr0,
        cr3: from.cr3,
        cr4: from.cr4,
        efer: from.efer,
        ..vcpu.system_registers()?
    };
    let mut registers = Registers {
        rip: from.rip,
        rflags: from.rflags,
        ..Registers::default()
    };
    // Encoding order: RBX is 3, RSP 4, RSI 6.
    registers.general[3] = from.rbx;
    registers.general[4] = from.rsp;
    registers.general[6] = from.rsi;
    vcpu.set_boot_state(&registers, &system)
}

fn load_guest(
    spec: &VmSpec,
    ram: &GuestRam,
    files: BootFiles,
) -> Result<boot::BootState, BuildError> {
    fn failed<E: std::error::Error + Send + Sync + 'static>(error: E) -> BuildError {
        BuildError::Boot(Box::new(error))
    }
    let BootFiles {
        mut kernel,
        initrd,
        uuid,
    } = files;
    let kernel = boot::Kernel::read(&mut kernel).map_err(failed)?;
    let initrd = initrd
        .map(|file| rustix::fs::fstat(&file).map(|stat| (file, stat.st_size.cast_unsigned())))
        .transpose()
        .map_err(failed)?;
    let mut initrd = initrd;
    let devices = spec.disks.len() + spec.nics.len() + vm_spec::FIXED_VIRTIO_DEVICES;
    let platform = boot::Platform {
        ram_bytes: spec.memory_bytes,
        vcpus: spec.cpus,
        serial_ports: std::array::from_fn(|port| port < usize::from(spec.serial_ports)),
        virtio_slots: (0..devices)
            .filter_map(|slot| u8::try_from(slot).ok())
            .collect(),
        generation_id: random_generation_id()?,
        uuid,
    };
    let request = boot::BootRequest {
        platform: &platform,
        kernel: &kernel,
        command_line: &spec.cmdline,
        initrd: initrd.as_mut().map(|(file, bytes)| boot::Initrd {
            source: file,
            bytes: *bytes,
        }),
        entry: spec.entry,
    };
    boot::load(ram.memory(), request).map_err(failed)
}

fn random_generation_id() -> Result<[u8; 16], BuildError> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| BuildError::Worker(errno.into()))?;
    Ok(id)
}

/// State that a machine starts from.
struct Origin<'a> {
    spec: VmSpec,
    ram: Arc<Mutex<GuestRam>>,
    prepared: Prepared,
    clock: Option<VmClock>,
    platform: Option<&'a SavedPlatform>,
}

/// A fork point, as one clone takes it.
#[derive(Debug)]
pub struct CloneOrigin {
    /// Guest RAM, mapped privately.
    pub ram: Arc<Mutex<GuestRam>>,
    /// State.
    pub checkpoint: Checkpoint,
    /// What was built ahead over this RAM.
    pub prepared: Option<Prepared>,
    /// New VM generation id: tells the guest that it is another machine than before. None where it is
    /// the same one.
    pub generation_id: Option<[u8; 16]>,
    /// UUID of the clone's machine; none leaves its source's.
    pub uuid: Option<[u8; 16]>,
    /// Whether what names the clone's disk tops is durable; if not, flushes wait for
    /// [`Machine::fork_is_durable`].
    pub durable: bool,
}

impl Machine {
    /// Loads a kernel into fresh RAM (reading as zero) and builds the machine, standing still.
    pub fn boot(
        spec: VmSpec,
        ram: File,
        files: BootFiles,
        mut backends: Backends,
        on_event: OnEvent,
    ) -> Result<Self, BuildError> {
        spec.validate()?;
        let ram = GuestRam::shared(ram, spec.memory_bytes)?;
        let state = load_guest(&spec, &ram, files)?;
        let ram = Arc::new(Mutex::new(ram));
        let kvm = backends.kvm.take();
        let prepared = Prepared::boot(&ram, spec.cpus, kvm, state, Arc::clone(&on_event))?;
        let origin = Origin {
            spec,
            ram,
            prepared,
            clock: None,
            platform: None,
        };
        Self::build(origin, backends, on_event)
    }

    /// Builds a clone from a fork point, standing still.
    pub fn restore(
        spec: VmSpec,
        origin: CloneOrigin,
        mut backends: Backends,
        on_event: OnEvent,
    ) -> Result<Self, BuildError> {
        let CloneOrigin {
            ram,
            mut checkpoint,
            prepared,
            generation_id,
            uuid,
            durable,
        } = origin;
        spec.validate()?;
        let kvm = backends.kvm.take();
        let prepared = match prepared.filter(|prepared| prepared.fits(&spec, kvm.is_some())) {
            Some(prepared) => prepared,
            None => Prepared::over(&ram, spec.cpus, kvm, Arc::clone(&on_event))?,
        };
        checkpoint.fits(&spec)?;
        prepared.states.give(std::mem::take(&mut checkpoint.vcpus));
        let origin = Origin {
            spec,
            ram,
            prepared,
            clock: Some(checkpoint.clock),
            platform: Some(&checkpoint.platform),
        };
        let machine = Self::build(origin, backends, on_event)?;
        if !durable {
            machine.durability.awaited();
            machine.platform.hold_flushes(&machine.durability);
        }
        machine.platform.adopt(&machine.spec);
        if let Some(id) = generation_id {
            machine.tell_generation(id)?;
        }
        if let Some(uuid) = uuid {
            machine.tell_uuid(uuid)?;
        }
        Ok(machine)
    }

    fn build(
        origin: Origin<'_>,
        backends: Backends,
        on_event: OnEvent,
    ) -> Result<Self, BuildError> {
        let Origin {
            spec,
            ram,
            prepared,
            clock,
            platform,
        } = origin;
        if backends.disks.len() != spec.disks.len() || backends.taps.len() != spec.nics.len() {
            return Err(BuildError::Slots(spec.disks.len()));
        }
        let sink: EventSink = Arc::new(move |event| on_event(MachineEvent::Platform(event)));
        let Prepared {
            engine,
            vm,
            mut vcpus,
            stop,
            states,
            threads,
            ..
        } = prepared;
        let parts = Parts {
            spec: &spec,
            vm: &vm,
            ram: &ram,
            backends,
            events: &sink,
            saved: platform,
            stop,
            threads,
        };
        let platform = Platform::build(parts);
        let made = vcpus.wait_made();
        drop(states);
        let built = platform.and_then(|platform| {
            made?;
            if let Some(clock) = clock {
                // After the vCPUs have their clock MSRs: setting it rewrites their time pages.
                vm.restore_clock(&clock)?;
            }
            Ok(platform)
        });
        let platform = match built {
            Ok(platform) => platform,
            Err(error) => {
                vcpus.end();
                return Err(error);
            }
        };
        vcpus.connect(Arc::clone(&platform.io) as _);
        Ok(Self {
            spec,
            engine,
            vm,
            ram,
            platform,
            vcpus,
            begun: false,
            forks: 0,
            durability: Durability::default(),
            finishing: Finishing::default(),
        })
    }

    fn tell_uuid(&self, uuid: [u8; 16]) -> Result<(), BuildError> {
        let facts = boot::MachineFacts {
            uuid,
            vcpus: self.spec.cpus,
            ram_bytes: self.spec.memory_bytes,
        };
        let told = boot::adopt_uuid(lock_ram(&self.ram).memory(), &facts);
        told.map(drop)
            .map_err(|error| BuildError::Boot(Box::new(error)))
    }

    fn tell_generation(&self, generation_id: [u8; 16]) -> Result<(), BuildError> {
        let at = GuestAddress(layout::GENERATION_ID);
        let ram = lock_ram(&self.ram);
        ram.memory()
            .write_slice(&generation_id, at)
            .map_err(|error| BuildError::Boot(Box::new(error)))?;
        drop(ram);
        self.platform.ged.generation_changed();
        Ok(())
    }

    /// Lets the guest run and returns when its last vCPU entered, `CLOCK_MONOTONIC` ns.
    pub fn run(&mut self) -> u64 {
        self.begun = true;
        // The guest first; what it asks of a device meanwhile waits for the gate.
        self.vcpus.run();
        self.platform.ungate();
        self.vcpus.wait_entered().1
    }

    /// Stops the vCPUs; devices finish what they hold.
    pub fn pause(&mut self) {
        if self.vcpus.is_running() {
            self.vcpus.park();
        }
    }

    /// Lets the vCPUs go on and disks retry what found no space. Returns when the last vCPU
    /// entered, `CLOCK_MONOTONIC` ns, where they stood still.
    pub fn resume(&mut self) -> Option<u64> {
        self.platform.retry_disks();
        (!self.vcpus.is_running()).then(|| self.run())
    }

    /// Returns whether the vCPUs run.
    pub fn is_running(&self) -> bool {
        self.vcpus.is_running()
    }

    /// Lets flushes go on that wait until the last fork's new tops are durable.
    pub fn fork_is_durable(&self) {
        self.durability.reached();
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&self) {
        self.platform.ged.press_power_button();
    }

    /// Sends a serial port's output to `sink` from here on; returns whether there is such a port.
    pub fn set_serial_output(&self, port: usize, sink: SerialSink) -> bool {
        let port = self.platform.serial.get(port);
        port.map(|port| port.set_output(sink.0)).is_some()
    }

    /// Types `bytes` on a serial port (0 is COM1); returns how many the guest's port took.
    pub fn serial_input(&self, port: usize, bytes: &[u8]) -> usize {
        let port = self.platform.serial.get(port);
        port.map_or(0, |port| port.push_input(bytes))
    }

    /// Sets what is called when the guest has room for input again that a serial port refused.
    pub fn on_serial_room(&self, port: usize, call: impl Fn() + Send + Sync + 'static) {
        if let Some(port) = self.platform.serial.get(port) {
            port.set_input_waker(Some(Box::new(call)));
        }
    }

    /// Sets the link of NIC `index`; returns whether there is such a NIC.
    pub fn set_link(&self, index: usize, up: bool) -> bool {
        self.platform.set_link(index, up)
    }

    /// Returns the machine's description.
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// Returns the engine's name.
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// Returns guest RAM.
    pub fn ram(&self) -> &Arc<Mutex<GuestRam>> {
        &self.ram
    }

    /// Ends vCPUs and devices: what guests flushed is in the files.
    pub fn end(mut self) {
        self.vcpus.end();
        self.platform.sync_disks();
    }
}
