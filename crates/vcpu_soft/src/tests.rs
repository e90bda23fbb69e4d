//! The engine as a machine uses it: small programs in machine code, on a thread of their own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vcpu::{
    Engine, EngineError, Exit, GuestIo, Kick, RamSlot, Registers, RunState, Vcpu, VcpuState, Vm,
};

use crate::SoftEngine;

const RAM_BYTES: usize = 4 << 20;
/// Where programs start; page tables, descriptors and the stack lie below.
const CODE: u64 = 0x10_0000;
const IDT: u64 = 0x8000;
const GDT: u64 = 0x7000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
/// Vector of the test's interrupts, and what handles them: `out 0x10, al; wrmsr EOI; iretq`.
const VECTOR: u8 = 0x41;
const HANDLER: u64 = 0x9000;
const HANDLER_CODE: &[u8] = &[
    0xe6, 0x10, // out 0x10, al
    0x50, 0x51, 0x52, // push rax, rcx, rdx
    0xb9, 0x0b, 0x08, 0, 0, // mov ecx, 0x80b
    0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, // xor eax, eax; xor edx, edx; wrmsr
    0x5a, 0x59, 0x58, 0x48, 0xcf, // pop rdx, rcx, rax; iretq
];
/// Turns x2APIC mode and the APIC on, with interrupts taken: then `code` of the test follows.
const PROLOGUE: &[u8] = &[
    0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, // mov ecx, 0x1b; rdmsr
    0x0d, 0, 0x0c, 0, 0, 0x0f, 0x30, // or eax, 0xc00; wrmsr
    0xb9, 0x0f, 0x08, 0, 0, // mov ecx, 0x80f
    0xb8, 0xff, 0x01, 0, 0, 0x31, 0xd2, 0x0f, 0x30, // mov eax, 0x1ff; xor edx, edx; wrmsr
    0xb0, 7,    // mov al, 7
    0xfb, // sti
];
/// `cli; out 0x11, al; sti; hlt; jmp back`: no interrupt comes between the two.
const HALTS: &[u8] = &[0xfa, 0xe6, 0x11, 0xfb, 0xf4, 0xeb, 0xf9];
/// `inc rbx; jmp back`.
const SPINS: &[u8] = &[0x48, 0xff, 0xc3, 0xeb, 0xfb];

struct Io {
    stop: AtomicBool,
    ports: Mutex<mpsc::Sender<(u16, u8)>>,
}

impl GuestIo for Io {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.lock().unwrap().send((port, data[0])).unwrap();
    }
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn end_of_interrupt(&self, _: u8) {}
    fn stop_wanted(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// A vCPU on its thread, between runs.
struct Pc {
    vm: Arc<dyn Vm>,
    vcpu: Option<Box<dyn Vcpu>>,
    kick: Arc<dyn Kick>,
    io: Arc<Io>,
    ports: mpsc::Receiver<(u16, u8)>,
    // Guest RAM: outlives the vCPU.
    _ram: Arc<Vec<u64>>,
}

type Running = JoinHandle<(Box<dyn Vcpu>, Exit)>;

fn put(ram: &mut [u64], at: u64, bytes: &[u8]) {
    for (index, byte) in (at..).zip(bytes) {
        let (word, shift) = ((index / 8) as usize, index % 8 * 8);
        ram[word] = ram[word] & !(0xff << shift) | u64::from(*byte) << shift;
    }
}

/// RAM of 4 MiB with identity mapping, one interrupt gate and `code`.
fn ram(code: &[u8]) -> (Arc<Vec<u64>>, Vec<RamSlot>) {
    let mut words = vec![0_u64; (RAM_BYTES + 4096) / 8];
    let skip = (words.as_ptr() as u64).wrapping_neg() % 4096 / 8;
    let guest = &mut words[skip as usize..];
    put(guest, PML4, &(PDPT | 3).to_le_bytes());
    // One page of 1 GiB.
    put(guest, PDPT, &0x83_u64.to_le_bytes());
    put(guest, GDT + 16, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    put(guest, GDT + 24, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    let gate = HANDLER & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (HANDLER >> 16 & 0xffff) << 48;
    put(guest, IDT + 16 * u64::from(VECTOR), &gate.to_le_bytes());
    put(guest, HANDLER, HANDLER_CODE);
    put(guest, CODE, PROLOGUE);
    put(guest, CODE + PROLOGUE.len() as u64, code);
    let host_address = guest.as_ptr() as u64;
    let slot = RamSlot {
        gpa: 0,
        host_address,
        len: RAM_BYTES as u64,
    };
    (Arc::new(words), vec![slot])
}

impl Pc {
    fn over(
        ram: Arc<Vec<u64>>,
        slots: &[RamSlot],
        load: impl FnOnce(&mut dyn Vcpu) -> Result<(), EngineError>,
    ) -> Self {
        let vm = SoftEngine.create_vm(slots).unwrap();
        let mut vcpu = vm.create_vcpu(0, 1).unwrap();
        load(vcpu.as_mut()).unwrap();
        let kick = vcpu.attach().unwrap();
        let (sender, ports) = mpsc::channel();
        let io = Arc::new(Io {
            stop: AtomicBool::new(false),
            ports: Mutex::new(sender),
        });
        Self {
            vm,
            vcpu: Some(vcpu),
            kick,
            io,
            ports,
            _ram: ram,
        }
    }

    fn new(code: &[u8]) -> Self {
        let (ram, slots) = ram(code);
        Self::over(ram, &slots, |vcpu| {
            vcpu.set_cpu_model()?;
            let mut system = vcpu.system_registers()?;
            for (index, access, selector) in [(0, 0xa09b, 0x10), (5, 0xc093, 0x18)] {
                system.segments[index].access = access;
                system.segments[index].selector = selector;
                system.segments[index].base = 0;
                system.segments[index].limit = u32::MAX;
            }
            (system.gdt.base, system.gdt.limit) = (GDT, 31);
            (system.idt.base, system.idt.limit) = (IDT, 0xfff);
            (system.cr0, system.cr3, system.cr4) = (0x8000_0033, PML4, 0x6a0);
            system.efer = 0x500;
            let mut registers = Registers {
                rip: CODE,
                rflags: 2,
                ..Registers::default()
            };
            registers.general[4] = 0x6000;
            vcpu.set_boot_state(&registers, &system)
        })
    }

    fn start(&mut self) -> Running {
        self.io.stop.store(false, Ordering::SeqCst);
        let (mut vcpu, io) = (self.vcpu.take().unwrap(), Arc::clone(&self.io));
        std::thread::spawn(move || {
            let exit = vcpu.run(io.as_ref());
            (vcpu, exit)
        })
    }

    fn stop(&mut self, running: Running) -> Exit {
        self.io.stop.store(true, Ordering::SeqCst);
        self.kick.kick();
        let (vcpu, exit) = running.join().unwrap();
        self.vcpu = Some(vcpu);
        exit
    }

    fn save(&mut self) -> VcpuState {
        self.vcpu.as_mut().unwrap().save().unwrap()
    }

    /// Runs until RBX is above `turns`, and returns it.
    fn run_beyond(&mut self, turns: u64) -> u64 {
        loop {
            let running = self.start();
            std::thread::yield_now();
            assert_eq!(self.stop(running), Exit::Kicked);
            let now = self.save().registers.general[3];
            if now > turns {
                return now;
            }
        }
    }

    fn next_out(&self) -> (u16, u8) {
        self.ports.recv_timeout(Duration::from_secs(60)).unwrap()
    }
}

/// Linux's `ptp_kvm` asks KVM for the host's time as soon as it finds KVM's name.
#[test]
fn a_call_to_the_hypervisor_is_answered_with_no() {
    let code = [
        0xb8, 9, 0, 0, 0, // mov eax, 9 (pair clocks)
        0x0f, 0x01, 0xd9, // vmmcall
        0x48, 0x05, 0xe8, 0x03, 0, 0, // add rax, 1000
        0xe6, 0x12, // out 0x12, al
        0xb8, 9, 0, 0, 0, 0x0f, 0x01, 0xc1, // mov eax, 9; vmcall
        0x48, 0x05, 0xe9, 0x03, 0, 0, // add rax, 1001
        0xe6, 0x13, // out 0x13, al
        0xf4,
    ];
    let mut pc = Pc::new(&code);
    let running = pc.start();
    assert_eq!(pc.next_out(), (0x12, 0));
    assert_eq!(pc.next_out(), (0x13, 1));
    pc.stop(running);
}

#[test]
fn a_halted_vcpu_wakes_for_each_message() {
    let mut pc = Pc::new(HALTS);
    let running = pc.start();
    assert_eq!(pc.next_out(), (0x11, 7));
    for _ in 0..100 {
        pc.vm.signal_msi(0xfee0_0000, VECTOR.into());
        assert_eq!(pc.next_out(), (0x10, 7));
        assert_eq!(pc.next_out(), (0x11, 7));
    }
    assert_eq!(pc.stop(running), Exit::Kicked);
    while pc.save().run_state != RunState::Halted {
        let running = pc.start();
        assert_eq!(pc.stop(running), Exit::Kicked);
    }
    // It also wakes for one that came while it stood still.
    pc.vm.signal_msi(0xfee0_0000, VECTOR.into());
    let running = pc.start();
    assert_eq!(pc.next_out(), (0x10, 7));
    assert_eq!(pc.stop(running), Exit::Kicked);
}

#[test]
fn a_spinning_vcpu_takes_interrupts_and_kicks() {
    let mut pc = Pc::new(SPINS);
    let mut turns = 0;
    for _ in 0..20 {
        turns = pc.run_beyond(turns);
        pc.vm.signal_msi(0xfee0_0000, VECTOR.into());
        let running = pc.start();
        assert_eq!(pc.next_out(), (0x10, 7));
        assert_eq!(pc.stop(running), Exit::Kicked);
    }
}

#[test]
fn a_timer_wakes_a_halted_vcpu() {
    // mov ecx, 0x832; mov eax, VECTOR; xor edx, edx; wrmsr: one shot
    // mov ecx, 0x838; mov eax, 2_000_000; wrmsr: in 4 ms, divided by 2
    let mut code = vec![
        0xb9, 0x32, 0x08, 0, 0, 0xb8, VECTOR, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30,
    ];
    code.extend([
        0xb9, 0x38, 0x08, 0, 0, 0xb8, 0x80, 0x84, 0x1e, 0, 0x0f, 0x30,
    ]);
    code.extend(HALTS);
    let mut pc = Pc::new(&code);
    let from = Instant::now();
    let running = pc.start();
    assert_eq!(pc.next_out().0, 0x11);
    assert_eq!(pc.next_out().0, 0x10);
    assert!(from.elapsed() >= Duration::from_millis(4));
    assert_eq!(pc.stop(running), Exit::Kicked);
}

#[test]
fn a_state_goes_on_in_another_vm() {
    let mut pc = Pc::new(SPINS);
    pc.run_beyond(0);
    // Asked for and not taken yet: it goes along.
    pc.vm.signal_msi(0xfee0_0000, VECTOR.into());
    let state = pc.save();
    let (ram, slots) = ram(SPINS);
    let mut other = Pc::over(ram, &slots, |vcpu| vcpu.restore(&state));
    let loaded = other.save();
    let without_time = |state: &VcpuState| {
        let mut state = state.clone();
        state.msrs.retain(|msr| msr.index != crate::registers::TSC);
        state
    };
    assert_eq!(without_time(&loaded), without_time(&state));
    let running = other.start();
    assert_eq!(other.next_out(), (0x10, 7));
    assert_eq!(other.stop(running), Exit::Kicked);
    other.run_beyond(state.registers.general[3]);
}

#[test]
fn memory_types_go_along_and_are_write_back_where_a_state_has_none() {
    let mut pc = Pc::new(SPINS);
    let mut state = pc.save();
    assert_ne!(
        state.cpuid[1].result[3] & 1 << 12,
        0,
        "the CPU model has MTRRs"
    );
    let mtrrs = |state: &VcpuState| -> Vec<(u32, u64)> {
        let own = state
            .msrs
            .iter()
            .filter(|m| matches!(m.index, 0x200..=0x2ff));
        let pat = 0x277;
        own.filter(|m| m.index != pat)
            .map(|m| (m.index, m.value))
            .collect()
    };
    assert_eq!(mtrrs(&state), [(0x2ff, 0x806)]);
    let mut loaded = |change: &dyn Fn(&mut VcpuState)| {
        change(&mut state);
        let (_ram, slots) = ram(SPINS);
        let vm = SoftEngine.create_vm(&slots).unwrap();
        let mut vcpu = vm.create_vcpu(0, 1).unwrap();
        vcpu.restore(&state).unwrap();
        mtrrs(&vcpu.save().unwrap())
    };
    // As checkpoints of older engines are.
    assert_eq!(
        loaded(&|s| s.msrs.retain(|m| m.index != 0x2ff)),
        [(0x2ff, 0x806)]
    );
    let add = |s: &mut VcpuState| {
        for (index, value) in [(0x203, 0xff_c000_0800), (0x2ff, 0)] {
            s.msrs.push(vcpu::Msr { index, value });
        }
    };
    assert_eq!(loaded(&add), [(0x203, 0xff_c000_0800), (0x2ff, 0)]);
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let mut pc = Pc::new(SPINS);
    let state = pc.save();
    let refused = |change: &dyn Fn(&mut VcpuState)| {
        let mut state = state.clone();
        change(&mut state);
        let (_ram, slots) = ram(SPINS);
        let vm = SoftEngine.create_vm(&slots).unwrap();
        let mut vcpu = vm.create_vcpu(0, 1).unwrap();
        vcpu.restore(&state).unwrap_err().to_string()
    };
    for (message, wanted) in [
        (refused(&|s| s.xcr0 = Some(7)), "XCR0"),
        (refused(&|s| s.xsave.truncate(100)), "XSAVE area"),
        (refused(&|s| s.xsave[27] = 0xff), "MXCSR"),
        (refused(&|s| s.lapic.truncate(8)), "local APIC page"),
        (refused(&|s| s.lapic[0x23] = 5), "local APIC page"),
        (refused(&|s| s.tsc_khz = Some(0)), "TSC frequency"),
        (
            refused(&|s| s.system.apic_base = 1 << 50),
            "local APIC base",
        ),
        (refused(&|s| s.cpuid[1].result[2] |= 1 << 28), "AVX"),
    ] {
        assert!(message.contains(wanted), "{message} lacks {wanted}");
    }
}

#[test]
fn a_triple_fault_ends_the_run() {
    // lidt of zeros, then ud2: nothing can be delivered.
    let mut pc = Pc::new(&[0x0f, 0x01, 0x1c, 0x25, 0, 0, 0x20, 0, 0x0f, 0x0b]);
    let running = pc.start();
    let (_, exit) = running.join().unwrap();
    assert_eq!(exit, Exit::TripleFault);
}
