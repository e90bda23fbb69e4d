//! Runs a program on an engine.

use std::fs::OpenOptions;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use vcpu::{
    DescriptorTable, Engine, Exit, GuestIo, Kick, RamSlot, Registers, Segment, SystemRegisters,
};
use vcpu_kvm::KvmEngine;
use vcpu_soft::SoftEngine;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::kit::{
    GDT, GDT_BYTES, IDT, KERNEL_CODE, KERNEL_DATA, KERNEL_STACK, Outcome, PAGE_TABLES, Program,
    RAM_BYTES, TASK, TSS, TSS_BYTES,
};

/// Port by whose writing a program ends.
pub const END_PORT: u16 = 0xf4;
/// Emulated guests are slow and test machines busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a program ended.
pub enum End {
    /// At its end.
    Finished,
    /// The engine says that it cannot run it here.
    Unsupported(String),
    /// In no good way.
    Wrong(String),
}

/// An engine.
pub struct Engines(Box<dyn Engine>);

impl Engines {
    /// The software engine.
    pub fn soft() -> Self {
        Self(Box::new(SoftEngine))
    }

    /// KVM, or why there is none.
    pub fn kvm() -> Result<Self, String> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let device = device.map_err(|error| format!("/dev/kvm cannot be opened: {error}"))?;
        let engine = KvmEngine::new(device.into()).map_err(|error| error.to_string())?;
        Ok(Self(Box::new(engine)))
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.0.name()
    }

    /// Runs `program` to its end.
    pub fn run(&self, program: &Program) -> (End, Outcome) {
        let ranges = [(GuestAddress(0), RAM_BYTES as usize)];
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        for (address, bytes) in &program.image {
            memory.write_slice(bytes, GuestAddress(*address)).unwrap();
        }
        let host_address = memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let slot = RamSlot {
            gpa: 0,
            host_address,
            len: RAM_BYTES,
        };
        let vm = self.0.create_vm(&[slot]).unwrap();
        let mut vcpu = vm.create_vcpu(0, 1).unwrap();
        vcpu.set_cpu_model().unwrap();
        let mut system = vcpu.system_registers().unwrap();
        set_system(&mut system);
        let mut registers = Registers {
            rip: program.entry,
            rflags: 2,
            ..Registers::default()
        };
        registers.general[4] = KERNEL_STACK;
        vcpu.set_boot_state(&registers, &system).unwrap();
        let io = Io {
            stop: Arc::default(),
            ended: AtomicBool::new(false),
            kick: vcpu.attach().unwrap(),
            ports: Mutex::default(),
        };
        let (done, timer) = watch(&io);
        let exit = vcpu.run(&io);
        drop(done);
        timer.join().unwrap();
        let mut ram = vec![0; RAM_BYTES as usize];
        memory.read_slice(&mut ram, GuestAddress(0)).unwrap();
        let ended = io.ended.load(Ordering::SeqCst);
        let ports = io.ports.into_inner().unwrap();
        let outcome = Outcome::new(program, &ram, ports);
        let end = match exit {
            _ if ended => End::Finished,
            Exit::Fault(reason) if self.name() == "kvm" => End::Unsupported(reason),
            Exit::Kicked => End::Wrong("it does not end".to_owned()),
            exit => End::Wrong(format!("{exit:?}")),
        };
        (end, outcome)
    }
}

/// Stops the program when it takes too long.
fn watch(io: &Io) -> (mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (done, waiting) = mpsc::channel::<()>();
    let (stop, kick) = (Arc::clone(&io.stop), Arc::clone(&io.kick));
    let timer = std::thread::spawn(move || {
        if waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            stop.store(true, Ordering::SeqCst);
            kick.kick();
        }
    });
    (done, timer)
}

fn set_system(system: &mut SystemRegisters) {
    let flat = |selector, access| Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        access,
    };
    let code = flat(KERNEL_CODE, 0xa09b);
    let data = flat(KERNEL_DATA, 0xc093);
    let task = Segment {
        base: TSS,
        limit: TSS_BYTES - 1,
        selector: TASK,
        access: 0x8b,
    };
    let none = Segment {
        access: 1 << 16,
        ..Segment::default()
    };
    // CS, DS, ES, FS, GS, SS, TR, LDTR.
    system.segments = [code, data, data, data, data, data, task, none];
    system.gdt = DescriptorTable {
        base: GDT,
        limit: GDT_BYTES - 1,
    };
    system.idt = DescriptorTable {
        base: IDT,
        limit: 4095,
    };
    system.cr0 = 0x8005_0033;
    system.cr3 = PAGE_TABLES;
    system.cr4 = 0x6b0;
    system.efer = 0xd01;
}

/// A port access: port, size, value.
pub type PortWrite = (u16, u32);

struct Io {
    stop: Arc<AtomicBool>,
    ended: AtomicBool,
    kick: Arc<dyn Kick>,
    ports: Mutex<Vec<PortWrite>>,
}

impl GuestIo for Io {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        let bytes = (0x1234_5600 | u32::from(port & 0xff)).to_le_bytes();
        let length = data.len().min(4);
        data[..length].copy_from_slice(&bytes[..length]);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        if port == END_PORT {
            self.ended.store(true, Ordering::SeqCst);
            self.stop.store(true, Ordering::SeqCst);
            self.kick.kick();
            return;
        }
        let mut bytes = [0; 4];
        bytes[..data.len()].copy_from_slice(data);
        self.ports
            .lock()
            .unwrap()
            .push((port, u32::from_le_bytes(bytes)));
    }

    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = (address as u8).wrapping_add(index as u8);
        }
    }

    fn mmio_write(&self, _address: u64, _data: &[u8]) {}

    fn end_of_interrupt(&self, _vector: u8) {}

    fn stop_wanted(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}
