//! A guest moves from the software engine to KVM and back while it runs: saved states name no
//! engine, and what the guest was promised of its processor is there on both.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::OpenOptions;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vcpu::{Engine, EngineError, Exit, GuestIo, RamSlot, Registers, Vcpu, VcpuState, VmClock};
use vcpu_kvm::KvmEngine;
use vcpu_soft::SoftEngine;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const RAM_BYTES: u64 = 4 << 20;
const CODE: u64 = 0x10_0000;
/// `mov eax, 1; movd xmm1, eax`, then `inc rbx; jmp back`: instructions that any KVM can run, and a
/// register that only the XSAVE area carries.
const PROGRAM: &[u8] = &[
    0xb8, 1, 0, 0, 0, 0x66, 0x0f, 0x6e, 0xc8, // once
    0x48, 0xff, 0xc3, 0xeb, 0xfb, // for ever
];

/// Rate of the counter of a guest that the software engine booted. Only a KVM that can scale the
/// counter takes it; this guest reads no counter, so the test leaves the rate to KVM there.
const SOFT_TSC_KHZ: u32 = 1_000_000;

/// How much later than the vCPU the VM's clock is saved and loaded, as on a host that is busy.
const LATE: Duration = Duration::from_millis(20);
/// How far the clock may step against the counter over a save and a load. Linux takes half a
/// millisecond for a broken counter.
const STEP_NS_MAX: u64 = 250_000;
/// The time-stamp counter.
const TSC: u32 = 0x10;

struct Io(AtomicBool);

impl GuestIo for Io {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn end_of_interrupt(&self, _: u8) {}
    fn stop_wanted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

type Load<'a> = &'a dyn Fn(&mut dyn Vcpu) -> Result<(), EngineError>;

/// Runs a vCPU of a new VM for a moment and returns what it was then, and the VM's clock.
fn run_on(
    engine: &dyn Engine,
    memory: &GuestMemoryMmap,
    load: Load<'_>,
    clock: Option<VmClock>,
) -> Result<(VcpuState, VmClock), EngineError> {
    let host_address = memory.get_host_address(GuestAddress(0)).unwrap() as u64;
    let vm = engine.create_vm(&[RamSlot {
        gpa: 0,
        host_address,
        len: RAM_BYTES,
    }])?;
    let mut vcpu = vm.create_vcpu(0, 1)?;
    load(vcpu.as_mut())?;
    if let Some(clock) = clock {
        std::thread::sleep(LATE);
        vm.restore_clock(&clock)?;
    }
    let io = Arc::new(Io(AtomicBool::new(false)));
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = {
        let io = Arc::clone(&io);
        std::thread::spawn(move || {
            sender.send(vcpu.attach()).unwrap();
            assert_eq!(vcpu.run(&*io), Exit::Kicked);
            vcpu.save()
        })
    };
    let kick = receiver.recv().unwrap()?;
    std::thread::sleep(Duration::from_millis(20));
    io.0.store(true, Ordering::SeqCst);
    kick.kick();
    let mut states = [thread.join().unwrap()?];
    std::thread::sleep(LATE);
    let clock = vm.save_clock(&mut states)?;
    let [state] = states;
    Ok((state, clock))
}

fn boot(vcpu: &mut dyn Vcpu) -> Result<(), EngineError> {
    vcpu.set_cpu_model()?;
    let mut system = vcpu.system_registers()?;
    for (index, segment) in system.segments.iter_mut().enumerate().take(6) {
        segment.access = if index == 0 { 0xa09b } else { 0xc093 };
        segment.selector = if index == 0 { 0x10 } else { 0x18 };
        (segment.base, segment.limit) = (0, u32::MAX);
    }
    (system.cr0, system.cr3, system.cr4, system.efer) = (0x8000_0033, 0x1000, 0x6a0, 0x500);
    let registers = Registers {
        rip: CODE,
        rflags: 2,
        ..Registers::default()
    };
    vcpu.set_boot_state(&registers, &system)
}

/// RBX and the low half of XMM1.
fn registers(state: &VcpuState) -> (u64, u64) {
    let low = state.xsave[176..184].first_chunk().copied();
    (state.registers.general[3], u64::from_le_bytes(low.unwrap()))
}

/// The guest's time-stamp counter, nanoseconds.
fn counter_ns(state: &VcpuState) -> u64 {
    let ticks = state.msrs.iter().find(|msr| msr.index == TSC).unwrap();
    let khz = u128::from(state.tsc_khz.unwrap());
    (u128::from(ticks.value) * 1_000_000 / khz) as u64
}

#[test]
fn a_guest_moves_between_the_engines() {
    let kvm = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(device) => KvmEngine::new(device.into()).unwrap(),
        Err(error) => {
            eprintln!("skipped: /dev/kvm cannot be opened: {error}");
            return;
        }
    };
    let ranges = [(GuestAddress(0), RAM_BYTES as usize)];
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    memory.write_obj(0x2003_u64, GuestAddress(0x1000)).unwrap();
    memory.write_obj(0x3003_u64, GuestAddress(0x2000)).unwrap();
    memory.write_obj(0x83_u64, GuestAddress(0x3000)).unwrap();
    memory.write_slice(PROGRAM, GuestAddress(CODE)).unwrap();

    let (mut state, mut clock) = run_on(&SoftEngine, &memory, &boot, None).unwrap();
    let engines: [&dyn Engine; 5] = [&SoftEngine, &kvm, &SoftEngine, &kvm, &SoftEngine];
    for engine in engines {
        let before = (registers(&state).0, clock.ns, state.tsc_khz);
        let mut counted = counter_ns(&state);
        // A busy host may not let it run in its moment.
        while registers(&state).0 <= before.0 {
            if before.2 == Some(SOFT_TSC_KHZ) && engine.name() == "kvm" {
                state.tsc_khz = None;
            }
            let load: Load<'_> = &|vcpu| vcpu.restore(&state);
            let from = clock.ns;
            (state, clock) = run_on(engine, &memory, load, Some(clock)).unwrap();
            let (by_counter, by_clock) =
                (counter_ns(&state).wrapping_sub(counted), clock.ns - from);
            counted = counter_ns(&state);
            // Another rate makes other nanoseconds of the same count.
            let step = by_counter.abs_diff(by_clock);
            assert!(
                step < STEP_NS_MAX || state.tsc_khz != before.2,
                "{}: {step} ns between counter and clock",
                engine.name()
            );
        }
        assert_eq!(registers(&state).1, 1, "{} keeps XMM1", engine.name());
        assert!(clock.ns > before.1, "time goes on");
        let kept = before.2 == Some(SOFT_TSC_KHZ) || state.tsc_khz == before.2;
        assert!(kept, "{} keeps the counter's rate", engine.name());
    }
}
