//! A PC of RAM, vCPUs, IOAPIC, one serial port and one virtio slot, just enough to run a guest.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use boot::layout::{self, MIB};
use boot::{BootRequest, BootState, Kernel, Platform};
use chipset::{Bus, IoApic, MsiMessage, MsiSink, Serial};
use vcpu::{Exit, GuestIo, Kick, RamSlot, Registers, Segment, SystemRegisters, Vm};
use virtio_devices::{VirtioDevice, Worker};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Emulated guests are slow and test machines busy.
const PATIENCE: Duration = Duration::from_secs(120);
const RAM_BYTES: u64 = 64 * MIB;

/// A running guest; stops when dropped.
pub struct Pc {
    serial: Arc<Serial>,
    output: Output,
    io: Arc<Io>,
    threads: Vec<(Arc<dyn Kick>, JoinHandle<()>)>,
    _worker: Worker,
}

impl Pc {
    /// Boots `elf`, or returns `None` where the host lacks the engine.
    pub fn start(elf: &[u8], command_line: &str, vcpus: u8) -> Option<Self> {
        Self::start_with(elf, command_line, vcpus, None)
    }

    /// Boots `elf` with a device in virtio slot 0.
    pub fn start_with(
        elf: &[u8],
        command_line: &str,
        vcpus: u8,
        device: Option<Box<dyn VirtioDevice>>,
    ) -> Option<Self> {
        let engine = crate::engine()?;
        let ram_bytes = RAM_BYTES;
        let ranges = [(GuestAddress(0), ram_bytes as usize)];
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let platform = Platform {
            ram_bytes,
            vcpus,
            serial_ports: [true, false, false, false],
            virtio_slots: vec![0],
            generation_id: [1; 16],
            uuid: [0; 16],
        };
        let kernel = Kernel::from_bytes(elf.to_vec()).unwrap();
        let request = BootRequest {
            platform: &platform,
            kernel: &kernel,
            command_line,
            initrd: None,
            entry: None,
        };
        let state = boot::load(&memory, request).unwrap();

        let host_address = memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let vm = engine
            .create_vm(&[RamSlot {
                gpa: 0,
                host_address,
                len: ram_bytes,
            }])
            .unwrap();
        let ioapic = IoApic::new(Arc::new(Lapics(Arc::clone(&vm))));
        let port = layout::SERIAL_PORTS[0];
        let serial = Arc::new(Serial::new(ioapic.line(port.gsi)));
        let output = Output::default();
        serial.set_output(Box::new(output.clone()));
        let (mut ports, mut memory_bus) = (Bus::new(), Bus::new());
        ports
            .insert(port.port.into(), layout::SERIAL_BYTES, serial.clone())
            .unwrap();
        memory_bus
            .insert(layout::IOAPIC_START, layout::IOAPIC_BYTES, ioapic.clone())
            .unwrap();
        let mut worker = Worker::builder("test", Arc::new(memory.clone())).unwrap();
        if let Some(device) = device {
            let slot = layout::virtio_slot(0).unwrap();
            let transport = worker.add(device, ioapic.line(slot.gsi)).unwrap();
            memory_bus
                .insert(slot.base, layout::VIRTIO_BYTES, transport)
                .unwrap();
        }
        let worker = worker.spawn().unwrap();
        worker.ungate();
        let stop = AtomicBool::new(false);
        let io = Arc::new(Io {
            ports,
            memory_bus,
            ioapic,
            stop,
            _memory: memory,
        });
        let threads = start_vcpus(&vm, vcpus, &state, &io, &output);
        Some(Self {
            serial,
            output,
            io,
            threads,
            _worker: worker,
        })
    }

    /// Gives the guest bytes on its serial port.
    pub fn send(&self, bytes: &[u8]) {
        assert_eq!(self.serial.push_input(bytes), bytes.len());
    }

    /// Waits for the next whole line that starts with `prefix` and returns the rest of it.
    pub fn wait_for(&self, prefix: &str) -> String {
        self.output.wait_for(prefix)
    }
}

impl Drop for Pc {
    fn drop(&mut self) {
        self.io.stop.store(true, Ordering::SeqCst);
        for (kick, thread) in self.threads.drain(..) {
            kick.kick();
            let _ = thread.join();
        }
    }
}

fn start_vcpus(
    vm: &Arc<dyn Vm>,
    count: u8,
    state: &BootState,
    io: &Arc<Io>,
    output: &Output,
) -> Vec<(Arc<dyn Kick>, JoinHandle<()>)> {
    // Every vCPU exists before the first one runs and can send it a start-up IPI.
    let vcpus: Vec<_> = (0..count)
        .map(|index| {
            let mut vcpu = vm.create_vcpu(index, count).unwrap();
            vcpu.set_cpu_model().unwrap();
            if index == 0 {
                let mut system = vcpu.system_registers().unwrap();
                set_system(&mut system, state);
                vcpu.set_boot_state(&general(state), &system).unwrap();
            }
            vcpu
        })
        .collect();
    let mut threads = Vec::new();
    for mut vcpu in vcpus {
        let (sender, receiver) = mpsc::channel();
        let (io, output) = (Arc::clone(io), output.clone());
        let thread = std::thread::spawn(move || {
            sender.send(vcpu.attach().unwrap()).unwrap();
            while !io.stop.load(Ordering::SeqCst) {
                match vcpu.run(&*io) {
                    Exit::Kicked => {}
                    end => {
                        let _ = writeln!(output.clone(), "\nE {end:?}");
                        break;
                    }
                }
            }
        });
        threads.push((receiver.recv().unwrap(), thread));
    }
    threads
}

fn general(state: &BootState) -> Registers {
    let from = &state.registers;
    let mut general = [0; 16];
    (general[3], general[4], general[6]) = (from.rbx, from.rsp, from.rsi);
    Registers {
        general,
        rip: from.rip,
        rflags: from.rflags,
    }
}

fn set_system(system: &mut SystemRegisters, state: &BootState) {
    let from = &state.registers;
    let segment = |s: boot::Segment| Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        access: s.access,
    };
    let data = segment(from.data);
    system.segments = [
        segment(from.cs),
        data,
        data,
        data,
        data,
        data,
        segment(from.tr),
        segment(from.ldtr),
    ];
    system.gdt = vcpu::DescriptorTable {
        base: from.gdt.base,
        limit: from.gdt.limit,
    };
    system.idt = vcpu::DescriptorTable {
        base: from.idt.base,
        limit: from.idt.limit,
    };
    (system.cr0, system.cr3, system.cr4) = (from.cr0, from.cr3, from.cr4);
    system.efer = from.efer;
}

#[derive(Debug)]
struct Io {
    ports: Bus,
    memory_bus: Bus,
    ioapic: Arc<IoApic>,
    stop: AtomicBool,
    _memory: GuestMemoryMmap,
}

impl GuestIo for Io {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.memory_bus.read(address, data);
    }

    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.memory_bus.write(address, data);
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.eoi(vector);
    }

    fn stop_wanted(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
struct Lapics(Arc<dyn Vm>);

impl MsiSink for Lapics {
    fn signal_msi(&self, message: MsiMessage) {
        self.0.signal_msi(message.address, message.data);
    }
}

/// Serial output, collected; lines are taken once.
#[derive(Clone, Default)]
struct Output(Arc<(Mutex<String>, Condvar)>);

impl Output {
    fn wait_for(&self, prefix: &str) -> String {
        let (text, changed) = &*self.0;
        let end = Instant::now() + PATIENCE;
        let mut text = text.lock().unwrap();
        let mut seen = String::new();
        loop {
            while let Some(length) = text.find('\n') {
                let line: String = text.drain(..=length).collect();
                let line = line.trim_end();
                if let Some(rest) = line.strip_prefix(prefix) {
                    return rest.to_owned();
                }
                assert!(!line.starts_with('E'), "{line}, after {seen:?}");
                seen = line.to_owned();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "no line {prefix:?}; last {seen:?}, rest {text:?}"
            );
            text = changed.wait_timeout(text, left).unwrap().0;
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .0
            .lock()
            .unwrap()
            .extend(bytes.iter().map(|byte| char::from(*byte)));
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
