//! Finds out whether this machine's KVM can run a stock kernel, by running guest code on it.
//!
//! The guest counts down in 64-bit mode, as a kernel would run. A KVM that executes guests reaches
//! hundreds of millions of instructions per second even under a software CPU; one that only
//! emulates instructions reaches a few million.
#![expect(unsafe_code, reason = "KVM is told the address of guest memory")]

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Speed above which a KVM is worth using, in million instructions per second.
const USABLE_MIPS: f64 = 100.0;
/// Longest wait for the guest; a loop takes milliseconds.
const LIMIT: Duration = Duration::from_secs(10);
/// A loop of this length gives a figure; shorter ones are repeated with more turns.
const ENOUGH: Duration = Duration::from_millis(20);
const RUNS_LONG_ENOUGH: u32 = 3;
const TURNS_FIRST: u32 = 50_000;
const TURNS_MAX: u32 = 400_000_000;
const INSTRUCTIONS_PER_TURN: f64 = 2.0;

const MEMORY_BYTES: usize = 2 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const CODE_ADDRESS: u64 = 0x8000;
/// `loop: dec ecx; jnz loop; hlt`
const CODE: [u8; 5] = [0xff, 0xc9, 0x75, 0xfc, 0xf4];

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const CR0_PE_MP_ET_NE_PG: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// Interrupts off; bit 1 is always set.
const RFLAGS: u64 = 1 << 1;

/// What this machine's KVM is good for.
#[derive(Debug, Clone, PartialEq)]
pub enum KvmProbe {
    /// There is no `/dev/kvm`.
    Missing,
    /// There is one that this process must not open.
    NotPermitted,
    /// It cannot run the guest at all.
    Broken {
        /// What failed.
        reason: String,
    },
    /// It runs the guest too slowly for a stock kernel.
    Emulating {
        /// Million guest instructions per second.
        mips: f64,
    },
    /// It runs guests.
    Usable {
        /// Million guest instructions per second.
        mips: f64,
    },
}

/// Runs a loop on `/dev/kvm` and measures it; takes well below a second where KVM works.
pub fn probe_kvm() -> KvmProbe {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            return match io::Error::from(error).kind() {
                io::ErrorKind::NotFound => KvmProbe::Missing,
                io::ErrorKind::PermissionDenied => KvmProbe::NotPermitted,
                _ => KvmProbe::Broken {
                    reason: format!("open /dev/kvm: {error}"),
                },
            };
        }
    };
    let (sender, receiver) = mpsc::channel();
    // In a thread of its own: a guest that never exits must not hold the caller.
    thread::spawn(move || sender.send(measure(&kvm)));
    match receiver.recv_timeout(LIMIT) {
        Ok(Ok(mips)) => classify(mips),
        Ok(Err(reason)) => KvmProbe::Broken { reason },
        Err(_) => KvmProbe::Broken {
            reason: format!("no exit after {} s", LIMIT.as_secs()),
        },
    }
}

fn classify(mips: f64) -> KvmProbe {
    if mips > USABLE_MIPS {
        KvmProbe::Usable { mips }
    } else {
        KvmProbe::Emulating { mips }
    }
}

/// Returns the speed of the counting loop in million instructions per second.
fn measure(kvm: &Kvm) -> Result<f64, String> {
    if !kvm.check_extension(Cap::UserMemory) {
        return Err("KVM lacks KVM_CAP_USER_MEMORY".to_owned());
    }
    let vm = kvm.create_vm().map_err(|e| format!("create a VM: {e}"))?;
    let memory = guest_memory().map_err(|e| format!("make guest memory: {e}"))?;
    map(&vm, &memory)?;
    let mut vcpu = vm
        .create_vcpu(0)
        .map_err(|e| format!("create a vCPU: {e}"))?;
    // Without CPUID the vCPU has no 64-bit mode.
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|e| format!("read the supported CPUID: {e}"))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(|e| format!("set CPUID: {e}"))?;
    enter_long_mode(&vcpu)?;
    // The first run also pays for mapping the guest's pages.
    count_down(&mut vcpu, TURNS_FIRST)?;
    let mut turns = TURNS_FIRST;
    let mut mips = 0.0_f64;
    let mut enough = 0;
    // The best of some runs: others may take the CPU away in one of them.
    while enough < RUNS_LONG_ENOUGH {
        let elapsed = count_down(&mut vcpu, turns)?;
        let instructions = f64::from(turns) * INSTRUCTIONS_PER_TURN;
        mips = mips.max(instructions / elapsed.as_secs_f64() / 1e6);
        if elapsed >= ENOUGH || turns >= TURNS_MAX {
            enough += 1;
        } else {
            turns *= 4;
        }
    }
    Ok(mips)
}

/// Makes memory with the code and page tables that map it one to one.
fn guest_memory() -> io::Result<GuestMemoryMmap> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)])
        .map_err(io::Error::other)?;
    let write = |address: u64, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(io::Error::other)
    };
    write(PML4, &(PDPT | PRESENT_WRITABLE).to_le_bytes())?;
    write(PDPT, &(DIRECTORY | PRESENT_WRITABLE).to_le_bytes())?;
    write(DIRECTORY, &(LARGE_PAGE | PRESENT_WRITABLE).to_le_bytes())?;
    write(CODE_ADDRESS, &CODE)?;
    Ok(memory)
}

fn map(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), String> {
    let host = memory
        .get_host_address(GuestAddress(0))
        .map_err(|e| format!("map memory: {e}"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: host as u64,
    };
    // SAFETY: the region is the whole of `memory`'s one mapping, which its owner `measure` drops
    // only after the VM and its vCPU have ended.
    unsafe { vm.set_user_memory_region(region) }.map_err(|e| format!("map memory: {e}"))
}

/// Puts the vCPU into 64-bit mode with flat segments (SDM 3A 10.8.5 describes the state).
fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), String> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(|e| format!("read registers: {e}"))?;
    let code = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x8,
        type_: 0b1011,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: 0x10,
        type_: 0b0011,
        l: 0,
        db: 1,
        ..code
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    sregs.cr0 = CR0_PE_MP_ET_NE_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME_LMA;
    vcpu.set_sregs(&sregs)
        .map_err(|e| format!("set registers: {e}"))
}

/// Runs the loop for `turns` turns and returns the time it took.
fn count_down(vcpu: &mut VcpuFd, turns: u32) -> Result<Duration, String> {
    let mut regs = vcpu
        .get_regs()
        .map_err(|e| format!("read registers: {e}"))?;
    regs.rip = CODE_ADDRESS;
    regs.rcx = u64::from(turns);
    regs.rflags = RFLAGS;
    vcpu.set_regs(&regs)
        .map_err(|e| format!("set registers: {e}"))?;
    let begin = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => break,
            Ok(VcpuExit::Intr) => {}
            Ok(exit) => return Err(format!("run the guest: unexpected exit {exit:?}")),
            Err(error) if io::Error::from(error).kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("run the guest: {error}")),
        }
    }
    let elapsed = begin.elapsed();
    let left = vcpu
        .get_regs()
        .map_err(|e| format!("read registers: {e}"))?
        .rcx;
    if left == 0 {
        Ok(elapsed)
    } else {
        Err(format!("run the guest: stopped with {left} turns left"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_decides() {
        assert!(matches!(classify(4.0), KvmProbe::Emulating { .. }));
        assert!(matches!(classify(960.0), KvmProbe::Usable { .. }));
    }

    #[test]
    fn probe_returns_a_plausible_answer_on_any_machine() {
        match probe_kvm() {
            KvmProbe::Emulating { mips } => assert!(mips > 0.0 && mips <= USABLE_MIPS),
            KvmProbe::Usable { mips } => assert!(mips > USABLE_MIPS && mips < 100_000.0),
            KvmProbe::Broken { reason } => assert!(!reason.is_empty()),
            KvmProbe::Missing | KvmProbe::NotPermitted => {}
        }
    }
}
