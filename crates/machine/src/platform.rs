//! The platform of one VM: buses, chipset, virtio slots and the workers behind them.
//!
//! Slots are numbered disks first, then NICs, then vsock, entropy, balloon. Each disk has a worker
//! of its own, since its requests block; all other devices share the worker `io`, which never does.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use boot::layout;
use chipset::{
    Bus, BusDevice, Ged, IoApic, KeyboardController, MsiMessage, MsiSink, PciAddress, PortB,
    PowerControl, Rtc, SavedGed, SavedIoApic, SavedRtc, SavedSerial, Serial,
};
use guest_memory::GuestRam;
use serde::{Deserialize, Serialize};
use vcpu::{GuestIo, Vm};
use virtio_devices::{
    Balloon, GuestConnectSink, MmioTransport, Net, NetConfig, ReclaimRam, Rng, SavedDevice,
    SavedTransport, VirtioDevice, Vsock, VsockConfig, WaitingThread, Worker, WorkerBuilder,
};
use vm_spec::VmSpec;

use crate::backends::Backends;
use crate::disks::{Disk, DiskDevice, stack_of};
use crate::durability::Durability;
use crate::error::BuildError;

/// vsock port on which the VM process itself answers the guest's agent.
pub const AGENT_PORT: u32 = 1024;

/// What happens in a VM without anybody asking.
#[derive(Debug)]
pub enum PlatformEvent {
    /// The guest powers itself off.
    PowerOff,
    /// The guest resets itself.
    Reset,
    /// A write found no space on the host: the disk waits.
    NoSpace {
        /// Index of the disk.
        disk: usize,
    },
    /// A request failed on the host and the guest was told so.
    DiskError {
        /// Index of the disk.
        disk: usize,
        /// What failed.
        message: String,
    },
    /// The guest's agent connected.
    Agent(UnixStream),
}

/// Hears of events, on any thread of the VM.
pub type EventSink = Arc<dyn Fn(PlatformEvent) + Send + Sync>;

/// Saved state of the platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPlatform {
    /// IOAPIC.
    pub ioapic: SavedIoApic,
    /// Serial ports, COM1 first.
    pub serial: Vec<SavedSerial>,
    /// Real-time clock.
    pub rtc: SavedRtc,
    /// ACPI event device.
    pub ged: SavedGed,
    /// Virtio slots in order.
    pub slots: Vec<SavedTransport>,
}

/// The platform of one VM.
#[derive(Debug)]
pub(crate) struct Platform {
    pub(crate) io: Arc<PlatformIo>,
    /// COM1 first.
    pub(crate) serial: Vec<Arc<Serial>>,
    pub(crate) ged: Arc<Ged>,
    rtc: Arc<Rtc>,
    /// One for each disk.
    pub(crate) disks: Vec<Disk>,
    /// NICs from index 0, then vsock, entropy, balloon.
    pub(crate) shared: Worker,
    nics: usize,
}

/// Where accesses of vCPUs go.
#[derive(Debug)]
pub(crate) struct PlatformIo {
    ports: Bus,
    memory: Bus,
    ioapic: Arc<IoApic>,
    stop: Arc<AtomicBool>,
}

impl GuestIo for PlatformIo {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.memory.read(address, data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.memory.write(address, data);
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.eoi(vector);
    }

    fn stop_wanted(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct VmSink(Arc<dyn Vm>);

impl MsiSink for VmSink {
    fn signal_msi(&self, message: MsiMessage) {
        self.0.signal_msi(message.address, message.data);
    }
}

struct PowerEvents(EventSink);

impl std::fmt::Debug for PowerEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PowerEvents")
    }
}

impl PowerControl for PowerEvents {
    fn power_off(&self) {
        (self.0)(PlatformEvent::PowerOff);
    }

    fn reset(&self) {
        (self.0)(PlatformEvent::Reset);
    }
}

#[derive(Debug)]
struct Reclaim(Arc<Mutex<GuestRam>>);

impl ReclaimRam for Reclaim {
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()> {
        let ram = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        ram.discard(gpa, len).map_err(io::Error::other)
    }
}

/// What a platform is built from.
pub(crate) struct Parts<'a> {
    pub(crate) spec: &'a VmSpec,
    pub(crate) vm: &'a Arc<dyn Vm>,
    pub(crate) ram: &'a Arc<Mutex<GuestRam>>,
    pub(crate) backends: Backends,
    pub(crate) events: &'a EventSink,
    /// State to go on from; none for a cold boot.
    pub(crate) saved: Option<&'a SavedPlatform>,
    pub(crate) stop: Arc<AtomicBool>,
    /// For the workers of devices.
    pub(crate) threads: Vec<WaitingThread>,
}

/// Puts devices into slots, one after the other.
pub(crate) struct Slots<'a> {
    bus: Bus,
    next: usize,
    ioapic: Arc<IoApic>,
    saved: Option<&'a [SavedTransport]>,
    threads: Vec<WaitingThread>,
}

impl Slots<'_> {
    /// Starts a worker, on a thread that waits for one if there is any.
    pub(crate) fn start(&mut self, worker: WorkerBuilder) -> Result<Worker, BuildError> {
        let started = match self.threads.pop() {
            Some(thread) => worker.spawn_on(thread),
            None => worker.spawn(),
        };
        started.map_err(BuildError::Worker)
    }

    /// The saved device of the next slot.
    pub(crate) fn next_saved(&self) -> Option<&SavedDevice> {
        let saved = self.saved?.get(self.next)?;
        Some(&saved.device)
    }

    pub(crate) fn add(
        &mut self,
        worker: &mut WorkerBuilder,
        device: Box<dyn VirtioDevice>,
    ) -> Result<(), BuildError> {
        let index = self.next;
        self.next += 1;
        let slot = u8::try_from(index)
            .ok()
            .and_then(layout::virtio_slot)
            .ok_or(BuildError::Slots(index))?;
        let line = self.ioapic.line(slot.gsi);
        let transport: Arc<MmioTransport> = match self.saved {
            None => worker
                .add(device, line)
                .map_err(|source| BuildError::Device { index, source }),
            Some(saved) => {
                let state = saved.get(index).ok_or(BuildError::Slots(index))?;
                worker
                    .add_restored(device, line, state)
                    .map_err(BuildError::RestoreDevice)
            }
        }?;
        self.bus
            .insert(slot.base, layout::VIRTIO_BYTES, transport)?;
        Ok(())
    }
}

/// The chipset, new or restored.
struct Chipset {
    ioapic: Arc<IoApic>,
    serial: Vec<Arc<Serial>>,
    rtc: Arc<Rtc>,
    ged: Arc<Ged>,
    power: Arc<dyn PowerControl>,
}

impl Chipset {
    fn build(parts: &Parts<'_>) -> Result<Self, BuildError> {
        let sink: Arc<dyn MsiSink> = Arc::new(VmSink(Arc::clone(parts.vm)));
        let power: Arc<dyn PowerControl> = Arc::new(PowerEvents(Arc::clone(parts.events)));
        let wanted = usize::from(parts.spec.serial_ports);
        let places = || layout::SERIAL_PORTS.iter().take(wanted);
        let (ioapic, serial, rtc, ged) = match parts.saved {
            None => {
                let ioapic = IoApic::new(sink);
                let serial = places().map(|at| Serial::new(ioapic.line(at.gsi)));
                let serial: Vec<_> = serial.collect();
                let ged = Ged::new(ioapic.line(layout::GED_GSI), Arc::clone(&power));
                (ioapic, serial, Rtc::new(), ged)
            }
            Some(saved) => {
                let found = saved.serial.len();
                if found != wanted {
                    return Err(BuildError::SerialPorts { found, wanted });
                }
                let ioapic = IoApic::restore(sink, &saved.ioapic)?;
                let serial = places().zip(&saved.serial);
                let serial = serial.map(|(at, saved)| Serial::restore(ioapic.line(at.gsi), saved));
                let serial = serial.collect::<Result<Vec<_>, _>>()?;
                let line = ioapic.line(layout::GED_GSI);
                let ged = Ged::restore(line, Arc::clone(&power), &saved.ged)?;
                (ioapic, serial, Rtc::restore(&saved.rtc)?, ged)
            }
        };
        let serial = serial.into_iter().map(Arc::new).collect();
        let (rtc, ged) = (Arc::new(rtc), Arc::new(ged));
        Ok(Self {
            ioapic,
            serial,
            rtc,
            ged,
            power,
        })
    }

    fn buses(&self) -> Result<(Bus, Bus), BuildError> {
        let mut ports = Bus::new();
        for (port, at) in self.serial.iter().zip(&layout::SERIAL_PORTS) {
            let port: Arc<dyn BusDevice> = Arc::clone(port) as _;
            ports.insert(at.port.into(), layout::SERIAL_BYTES, port)?;
        }
        ports.insert(
            layout::RTC_PORT.into(),
            layout::RTC_BYTES,
            Arc::clone(&self.rtc) as _,
        )?;
        let keyboard = Arc::new(KeyboardController::new(Arc::clone(&self.power)));
        ports.insert(layout::KEYBOARD_PORT.into(), 1, keyboard)?;
        ports.insert(layout::PORT_B.into(), 1, Arc::new(PortB))?;
        ports.insert(
            layout::PCI_ADDRESS_PORT.into(),
            layout::PCI_ADDRESS_BYTES,
            Arc::new(PciAddress::new(Arc::clone(&self.power))),
        )?;
        let mut memory = Bus::new();
        memory.insert(
            layout::GED_START,
            layout::GED_BYTES,
            Arc::clone(&self.ged) as _,
        )?;
        memory.insert(
            layout::IOAPIC_START,
            layout::IOAPIC_BYTES,
            Arc::clone(&self.ioapic) as _,
        )?;
        Ok((ports, memory))
    }
}

impl Platform {
    /// Builds the platform with its workers gated: [`ungate`](Self::ungate) lets devices run.
    pub(crate) fn build(parts: Parts<'_>) -> Result<Self, BuildError> {
        let chipset = Chipset::build(&parts)?;
        let (ports, memory_bus) = chipset.buses()?;
        let Parts {
            spec,
            ram,
            backends,
            events,
            saved,
            stop,
            threads,
            ..
        } = parts;
        let memory = {
            let ram = ram.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            Arc::new(ram.memory().clone())
        };
        for (port, sink) in chipset.serial.iter().zip(backends.serial) {
            port.set_output(sink.0);
        }
        let mut slots = Slots {
            bus: memory_bus,
            next: 0,
            ioapic: Arc::clone(&chipset.ioapic),
            saved: saved.map(|saved| saved.slots.as_slice()),
            threads,
        };
        let mut disks = vec![];
        for (index, files) in backends.disks.into_iter().enumerate() {
            let disk = Disk::build(&mut slots, spec, &memory, events, index, files)?;
            disks.push(disk);
        }
        let mut io = Worker::builder("io", memory).map_err(BuildError::Worker)?;
        for (nic, tap) in spec.nics.iter().zip(backends.taps) {
            let plugged = tap.is_some();
            let tap = tap.map_or_else(unplugged, Ok).map_err(BuildError::Worker)?;
            let config = NetConfig {
                mac: nic.mac,
                link_up: plugged,
                own_mac_only: false,
                tx_offload: false,
            };
            let net = Net::new(tap, config).map_err(BuildError::Worker)?;
            slots.add(&mut io, Box::new(net))?;
        }
        slots.add(&mut io, Box::new(vsock(backends.vsock, events)?))?;
        slots.add(&mut io, Box::new(Rng::new()))?;
        slots.add(
            &mut io,
            Box::new(Balloon::new(Box::new(Reclaim(Arc::clone(ram))))),
        )?;
        let shared = slots.start(io)?;
        let io_bus = PlatformIo {
            ports,
            memory: slots.bus,
            ioapic: chipset.ioapic,
            stop,
        };
        Ok(Self {
            io: Arc::new(io_bus),
            serial: chipset.serial,
            ged: chipset.ged,
            rtc: chipset.rtc,
            disks,
            shared,
            nics: spec.nics.len(),
        })
    }

    /// Lets all devices take descriptors.
    pub(crate) fn ungate(&self) {
        self.disks
            .iter()
            .map(|disk| &disk.worker)
            .chain([&self.shared])
            .for_each(Worker::ungate);
    }

    /// Saves everything; vCPUs stand still and the caller holds all workers.
    pub(crate) fn save(&self, slots: Vec<SavedTransport>) -> SavedPlatform {
        SavedPlatform {
            ioapic: self.io.ioapic.save(),
            serial: self.serial.iter().map(|port| port.save()).collect(),
            rtc: self.rtc.save(),
            ged: self.ged.save(),
            slots,
        }
    }

    /// Gives each NIC of a clone its own address, with the link down until somebody raises it.
    pub(crate) fn adopt(&self, spec: &VmSpec) {
        let mut guard = self.shared.lock();
        for (index, nic) in spec.nics.iter().enumerate() {
            if let Some(net) = guard.device_mut::<Net>(index).filter(|_| !nic.keep_mac) {
                net.adopt(nic.mac);
            }
        }
    }

    /// Sets the link of NIC `index`; returns whether there is such a NIC.
    pub(crate) fn set_link(&self, index: usize, up: bool) -> bool {
        if index >= self.nics {
            return false;
        }
        let mut guard = self.shared.lock();
        let nic = guard.device_mut::<Net>(index);
        nic.map(|net| net.set_link(up)).is_some()
    }

    /// Makes everything that guests wrote durable; what fails is logged, since the VM ends anyway.
    pub(crate) fn sync_disks(&self) {
        for (index, disk) in self.disks.iter().enumerate() {
            disk.worker.gate();
            let mut guard = disk.worker.lock();
            if let Some(Err(error)) = stack_of(&mut guard).map(|stack| stack.sync()) {
                tracing::error!(index, %error, "a disk could not be made durable at the end");
            }
        }
    }

    /// Makes the first flush of each disk wait for the daemon's word.
    pub(crate) fn hold_flushes(&self, durability: &Durability) {
        for disk in &self.disks {
            let mut guard = disk.worker.lock();
            if let Some(stack) = stack_of(&mut guard) {
                stack.before_first_sync(durability.before_first_sync());
            }
        }
    }

    /// Lets disks that found no space try again.
    pub(crate) fn retry_disks(&self) {
        for disk in &self.disks {
            let mut guard = disk.worker.lock();
            if let Some(block) = guard.device_mut::<DiskDevice>(0) {
                block.resume();
            }
        }
    }
}

fn vsock(listener: std::os::unix::net::UnixListener, events: &EventSink) -> io::Result<Vsock> {
    let sink = Arc::clone(events);
    Vsock::new(VsockConfig {
        listener: Some(listener.into()),
        service_ports: vec![AGENT_PORT],
        on_guest_connect: GuestConnectSink::new(move |_, stream| {
            sink(PlatformEvent::Agent(stream));
        }),
    })
}

/// What stands in for a TAP where none is plugged in: a timer that never fires, so that nothing
/// arrives and what is sent is refused.
fn unplugged() -> io::Result<OwnedFd> {
    use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
    Ok(timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::CLOEXEC,
    )?)
}
