//! Saving and loading one vCPU.
//!
//! Order of loading: CPUID first (it decides what the rest may hold), then the system registers
//! (the APIC base decides the form of the APIC page), the TSC, the local APIC and only then the TSC
//! deadline, which KVM turns into a timer at once.
//!
//! Every call on a vCPU loads it into the processor first, 6 µs on a host that is itself a virtual
//! machine: what does not change after the start is asked once, what is as after a reset is not
//! set.

use kvm_bindings::{Msrs, Xsave, kvm_lapic_state, kvm_msr_entry, kvm_xcrs};
use kvm_ioctls::{Cap, VcpuFd};
use vcpu::{CpuidLeaf, DebugRegisters, EngineError, Msr, PendingEvents, RunState, VcpuState};

use crate::engine::Shared;
use crate::time::{self, MSR_TSC};
use crate::{convert, failed};

const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// Types of memory of variable and fixed ranges: KVM has these registers and does not list them.
const MSR_MTRRS: [std::ops::RangeInclusive<u32>; 4] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f];
const MSR_MTRR_DEFAULT: u32 = 0x2ff;
/// Enabled, fixed ranges not, and all memory write-back: as firmware would leave it.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// A save of all MSRs that took longer than this, nanoseconds, does not tell when the first of them
/// was read: the thread lost its processor in the middle of it.
const SAVE_PROMPT_NS: u64 = 200_000;
/// Most MSRs in one call (`MAX_IO_MSRS` of KVM).
const MSRS_PER_CALL: usize = 256;
/// Most MSRs that a saved state may hold.
const MSRS_MAX: usize = 4096;
/// Size of the XSAVE area in the first form of the call, bytes.
const XSAVE_BYTES: usize = 4096;
/// Largest XSAVE area that is taken from a saved state, bytes (AMX needs 11 KiB).
const XSAVE_BYTES_MAX: usize = 64 << 10;

/// XCR0 after a reset: x87 state only.
const XCR0_RESET: u64 = 1;
/// Debug registers after a reset (SDM 3A 18.2).
const DEBUG_RESET: DebugRegisters = DebugRegisters {
    address: [0; 4],
    dr6: 0xffff_0ff0,
    dr7: 0x400,
};

/// Saves vCPU number `index`, whose guest was given `cpuid`.
pub(crate) fn save(
    vm: &Shared,
    fd: &VcpuFd,
    index: u8,
    cpuid: &[CpuidLeaf],
) -> Result<VcpuState, EngineError> {
    // Asked first: it lets a vCPU act on INIT and start-up IPIs, which the rest then shows.
    let run_state = fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
    let registers = fd.get_regs().map_err(failed("KVM_GET_REGS"))?;
    let system = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    let events = fd
        .get_vcpu_events()
        .map_err(failed("KVM_GET_VCPU_EVENTS"))?;
    let debug = fd.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?;
    let lapic = fd.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    Ok(VcpuState {
        registers: convert::registers(&registers),
        system: convert::system(&system),
        xsave: save_xsave(vm, fd)?,
        xcr0: fd
            .get_xcrs()
            .ok()
            .filter(|x| x.nr_xcrs > 0)
            .map(|x| x.xcrs[0].value),
        debug: convert::debug(&debug),
        lapic: lapic.regs.iter().map(|byte| *byte as u8).collect(),
        events: convert::events(&events),
        run_state: convert::run_state(run_state)?,
        msrs: save_msrs(vm, fd, index)?,
        cpuid: cpuid.to_vec(),
        tsc_khz: vm.tsc_khz(|| fd.get_tsc_khz().ok()),
    })
}

fn save_xsave(vm: &Shared, fd: &VcpuFd) -> Result<Vec<u8>, EngineError> {
    let size = usize::try_from(vm.fd.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    let words: Vec<u32> = if size <= XSAVE_BYTES {
        fd.get_xsave()
            .map_err(failed("KVM_GET_XSAVE"))?
            .region
            .to_vec()
    } else {
        let extra = (size - XSAVE_BYTES).div_ceil(4);
        let mut area = Xsave::new(extra).map_err(|_| too_large("XSAVE area", size))?;
        // SAFETY: the area has room for the size that KVM named for this VM.
        unsafe { fd.get_xsave2(&mut area) }.map_err(failed("KVM_GET_XSAVE2"))?;
        let head = area.as_fam_struct_ref().xsave.region;
        head.iter().chain(area.as_slice()).copied().collect()
    };
    Ok(words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn too_large(field: &'static str, len: usize) -> EngineError {
    EngineError::Unfit {
        field,
        reason: format!("length {len} is out of range"),
    }
}

/// Reads MSRs `indices`, leaving out those that KVM lists but refuses to read.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<Msr>, EngineError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(MSRS_PER_CALL)];
        let entries: Vec<_> = chunk
            .iter()
            .map(|i| kvm_msr_entry {
                index: *i,
                ..Default::default()
            })
            .collect();
        let mut msrs =
            Msrs::from_entries(&entries).map_err(|_| too_large("MSR list", chunk.len()))?;
        let count = fd.get_msrs(&mut msrs).map_err(failed("KVM_GET_MSRS"))?;
        found.extend(msrs.as_slice()[..count].iter().map(|e| Msr {
            index: e.index,
            value: e.data,
        }));
        // A short count stops at the one that cannot be read.
        rest = &rest[if count < chunk.len() {
            count + 1
        } else {
            count
        }..];
    }
    Ok(found)
}

/// Finds out what a save needs to know, so that the first one, in a stun, need not.
pub(crate) fn learn(vm: &Shared, fd: &VcpuFd) -> Result<(), EngineError> {
    vm.tsc_khz(|| fd.get_tsc_khz().ok());
    msr_indices(vm, fd).map(|_| ())
}

/// Reads all MSRs that hold guest state, and notes when the time-stamp counter was read.
fn save_msrs(vm: &Shared, fd: &VcpuFd, index: u8) -> Result<Vec<Msr>, EngineError> {
    let indices = msr_indices(vm, fd)?;
    let from = time::now_ns();
    let mut msrs = read_msrs(fd, indices)?;
    let took = time::now_ns().saturating_sub(from);
    // It is the first of the list: as of the call's begin, unless the thread had to wait in it.
    let mut at = from;
    if took > SAVE_PROMPT_NS
        && let Some(counter) = msrs.iter_mut().find(|msr| msr.index == MSR_TSC)
    {
        (counter.value, at, _) = time::promptly(|| read_counter(fd))?;
    }
    vm.times.counter_saved(index, at);
    Ok(msrs)
}

/// Reads the time-stamp counter, ticks.
fn read_counter(fd: &VcpuFd) -> Result<u64, EngineError> {
    let read = read_msrs(fd, &[MSR_TSC])?;
    let counter = read.first().map(|msr| msr.value);
    counter.ok_or(EngineError::Missing("a readable time-stamp counter"))
}

fn msr_indices<'a>(vm: &'a Shared, fd: &VcpuFd) -> Result<&'a [u32], EngineError> {
    vm.msr_indices(|mut all| {
        let more = [MSR_TSC_DEADLINE, MSR_MTRR_DEFAULT].into_iter();
        for index in more.chain(MSR_MTRRS.into_iter().flatten()) {
            if !all.contains(&index) {
                all.push(index);
            }
        }
        let readable = read_msrs(fd, &all)?;
        Ok(counter_first(readable.iter().map(|msr| msr.index)))
    })
}

/// Puts the time-stamp counter before all other MSRs.
fn counter_first(indices: impl Iterator<Item = u32>) -> Vec<u32> {
    let (mut first, rest): (Vec<_>, Vec<_>) = indices.partition(|index| *index == MSR_TSC);
    first.extend(rest);
    first
}

/// Makes all memory write-back for a vCPU that is about to boot.
pub(crate) fn set_memory_types(fd: &VcpuFd) -> Result<(), EngineError> {
    let default = Msr {
        index: MSR_MTRR_DEFAULT,
        value: MTRR_WRITE_BACK,
    };
    write_msrs(fd, &[default])
}

/// Gives a vCPU that never ran the CPUID that its guest knows.
pub(crate) fn restore_cpuid(fd: &VcpuFd, leaves: &[CpuidLeaf]) -> Result<(), EngineError> {
    fd.set_cpuid2(&convert::kvm_cpuid(leaves)?)
        .map_err(failed("KVM_SET_CPUID2"))
}

/// Loads a vCPU that was just made and has its CPUID; `first` says whether it is the one that boots
/// a machine.
pub(crate) fn restore(
    vm: &Shared,
    fd: &VcpuFd,
    first: bool,
    state: &VcpuState,
) -> Result<(), EngineError> {
    restore_tsc_khz(vm, fd, state.tsc_khz)?;
    fd.set_sregs(&convert::kvm_system(&state.system))
        .map_err(failed("KVM_SET_SREGS"))?;
    fd.set_regs(&convert::kvm_registers(&state.registers))
        .map_err(failed("KVM_SET_REGS"))?;
    if let Some(value) = state.xcr0.filter(|value| *value != XCR0_RESET) {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = value;
        fd.set_xcrs(&xcrs).map_err(failed("KVM_SET_XCRS"))?;
    }
    restore_xsave(vm, fd, &state.xsave)?;
    if state.debug != DEBUG_RESET {
        fd.set_debug_regs(&convert::kvm_debug(&state.debug))
            .map_err(failed("KVM_SET_DEBUGREGS"))?;
    }
    restore_msrs(fd, &state.msrs)?;
    vm.know_msr_indices(counter_first(state.msrs.iter().map(|msr| msr.index)));
    note_counter(vm, fd, state)?;
    fd.set_lapic(&lapic(&state.lapic)?)
        .map_err(failed("KVM_SET_LAPIC"))?;
    let deadline = state
        .msrs
        .iter()
        .find(|m| m.index == MSR_TSC_DEADLINE && m.value != 0);
    if let Some(msr) = deadline {
        write_msrs(fd, &[*msr])?;
    }
    if state.events != PendingEvents::default() {
        fd.set_vcpu_events(&convert::kvm_events(&state.events))
            .map_err(failed("KVM_SET_VCPU_EVENTS"))?;
    }
    if first && state.run_state == RunState::Runnable {
        return Ok(());
    }
    fd.set_mp_state(convert::kvm_run_state(state.run_state))
        .map_err(failed("KVM_SET_MP_STATE"))
}

fn restore_tsc_khz(vm: &Shared, fd: &VcpuFd, saved: Option<u32>) -> Result<(), EngineError> {
    let now = fd.get_tsc_khz().ok();
    if let Some(khz) = saved.filter(|_| saved != now) {
        fd.set_tsc_khz(khz).map_err(|error| EngineError::Unfit {
            field: "TSC frequency",
            reason: format!("{khz} kHz cannot be had on this host ({error})"),
        })?;
    }
    vm.tsc_khz(|| saved.or(now));
    Ok(())
}

/// Tells the VM's clock how far the counter of a vCPU that was just loaded has gone on. KVM may
/// have given it the offset of a vCPU that was loaded earlier, so it is read back.
fn note_counter(vm: &Shared, fd: &VcpuFd, state: &VcpuState) -> Result<(), EngineError> {
    let saved = state.msrs.iter().find(|msr| msr.index == MSR_TSC);
    let (Some(saved), Some(khz)) = (saved, vm.tsc_khz(|| None)) else {
        return Ok(());
    };
    vm.times.counter_loaded(saved.value, khz, || {
        time::promptly(|| read_counter(fd)).map(|(tsc, at, _)| (tsc, at))
    })
}

fn lapic(bytes: &[u8]) -> Result<kvm_lapic_state, EngineError> {
    let mut page = kvm_lapic_state::default();
    if bytes.len() != page.regs.len() {
        return Err(too_large("local APIC page", bytes.len()));
    }
    for (to, from) in page.regs.iter_mut().zip(bytes) {
        *to = *from as _;
    }
    Ok(page)
}

fn restore_xsave(vm: &Shared, fd: &VcpuFd, bytes: &[u8]) -> Result<(), EngineError> {
    if !(XSAVE_BYTES..=XSAVE_BYTES_MAX).contains(&bytes.len()) || !bytes.len().is_multiple_of(4) {
        return Err(too_large("XSAVE area", bytes.len()));
    }
    let size = usize::try_from(vm.fd.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    if bytes.len() < size {
        let reason = format!("it has {} bytes, this host's KVM reads {size}", bytes.len());
        return Err(EngineError::Unfit {
            field: "XSAVE area",
            reason,
        });
    }
    let extra = (bytes.len() - XSAVE_BYTES) / 4;
    let mut area = Xsave::new(extra).map_err(|_| too_large("XSAVE area", bytes.len()))?;
    let word = |chunk: &[u8]| u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    let (head, tail) = bytes.split_at(XSAVE_BYTES);
    // SAFETY: only the plain words of the area are changed, not its length.
    let header = unsafe { area.as_mut_fam_struct() };
    for (to, chunk) in header.xsave.region.iter_mut().zip(head.chunks_exact(4)) {
        *to = word(chunk);
    }
    for (to, chunk) in area.as_mut_slice().iter_mut().zip(tail.chunks_exact(4)) {
        *to = word(chunk);
    }
    // SAFETY: the area is at least as long as KVM reads for this VM, checked above.
    unsafe { fd.set_xsave2(&area) }.map_err(failed("KVM_SET_XSAVE"))
}

fn restore_msrs(fd: &VcpuFd, msrs: &[Msr]) -> Result<(), EngineError> {
    if msrs.len() > MSRS_MAX {
        return Err(too_large("MSR list", msrs.len()));
    }
    let mut ordered: Vec<Msr> = msrs
        .iter()
        .filter(|m| m.index == MSR_TSC)
        .copied()
        .collect();
    let rest = msrs
        .iter()
        .filter(|m| m.index != MSR_TSC && m.index != MSR_TSC_DEADLINE);
    ordered.extend(rest);
    write_msrs(fd, &ordered)
}

/// Writes MSRs. One that KVM refuses is read-only state: it must already hold the saved value, or
/// the state does not fit this host.
fn write_msrs(fd: &VcpuFd, msrs: &[Msr]) -> Result<(), EngineError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(MSRS_PER_CALL)];
        let entries: Vec<_> = chunk
            .iter()
            .map(|m| kvm_msr_entry {
                index: m.index,
                data: m.value,
                ..Default::default()
            })
            .collect();
        let list = Msrs::from_entries(&entries).map_err(|_| too_large("MSR list", chunk.len()))?;
        let count = fd.set_msrs(&list).map_err(failed("KVM_SET_MSRS"))?;
        if count < chunk.len() {
            let refused = chunk[count];
            let now = read_msrs(fd, &[refused.index])?;
            if now.first().is_none_or(|msr| msr.value != refused.value) {
                return Err(EngineError::Unfit {
                    field: "MSR",
                    reason: format!("{:#x} = {:#x} is refused", refused.index, refused.value),
                });
            }
        }
        rest = &rest[if count < chunk.len() {
            count + 1
        } else {
            count
        }..];
    }
    Ok(())
}
