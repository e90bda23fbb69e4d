//! Between KVM's structures and the seam's plain state.

use kvm_bindings::{
    CpuId, kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment,
    kvm_sregs, kvm_vcpu_events,
};
use vcpu::{
    CpuidLeaf, DebugRegisters, DescriptorTable, EngineError, PendingEvents, Registers, RunState,
    Segment, SystemRegisters,
};

pub(crate) fn registers(r: &kvm_regs) -> Registers {
    Registers {
        general: [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ],
        rip: r.rip,
        rflags: r.rflags,
    }
}

pub(crate) fn kvm_registers(r: &Registers) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = r.general;
    kvm_regs {
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: r.rip,
        rflags: r.rflags,
    }
}

fn segment(s: &kvm_segment) -> Segment {
    let bits = [
        (u32::from(s.type_) & 0xf, 0),
        (u32::from(s.s), 4),
        (u32::from(s.dpl) & 3, 5),
        (u32::from(s.present), 7),
        (u32::from(s.avl), 12),
        (u32::from(s.l), 13),
        (u32::from(s.db), 14),
        (u32::from(s.g), 15),
        (u32::from(s.unusable), 16),
    ];
    let access = bits
        .iter()
        .fold(0, |all, (bit, shift)| all | (bit << shift));
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        access,
    }
}

fn kvm_segment_of(s: &Segment) -> kvm_segment {
    let bit = |shift: u32| ((s.access >> shift) & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.access & 0xf) as u8,
        present: bit(7),
        dpl: ((s.access >> 5) & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: bit(16),
        padding: 0,
    }
}

pub(crate) fn system(s: &kvm_sregs) -> SystemRegisters {
    let table = |t: &kvm_dtable| DescriptorTable {
        base: t.base,
        limit: t.limit,
    };
    SystemRegisters {
        segments: [&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt].map(segment),
        gdt: table(&s.gdt),
        idt: table(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        interrupt_bitmap: s.interrupt_bitmap,
    }
}

pub(crate) fn kvm_system(s: &SystemRegisters) -> kvm_sregs {
    let [cs, ds, es, fs, gs, ss, tr, ldt] = s.segments.map(|seg| kvm_segment_of(&seg));
    let table = |t: &DescriptorTable| kvm_dtable {
        base: t.base,
        limit: t.limit,
        padding: [0; 3],
    };
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt: table(&s.gdt),
        idt: table(&s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        interrupt_bitmap: s.interrupt_bitmap,
    }
}

pub(crate) fn debug(d: &kvm_debugregs) -> DebugRegisters {
    DebugRegisters {
        address: d.db,
        dr6: d.dr6,
        dr7: d.dr7,
    }
}

pub(crate) fn kvm_debug(d: &DebugRegisters) -> kvm_debugregs {
    kvm_debugregs {
        db: d.address,
        dr6: d.dr6,
        dr7: d.dr7,
        ..Default::default()
    }
}

const VALID_NMI_PENDING: u32 = 1;
const VALID_SIPI_VECTOR: u32 = 2;
const VALID_SHADOW: u32 = 4;
const VALID_PAYLOAD: u32 = 0x10;
const VALID_TRIPLE_FAULT: u32 = 0x20;

pub(crate) fn events(e: &kvm_vcpu_events) -> PendingEvents {
    let code = (e.exception.has_error_code != 0).then_some(e.exception.error_code);
    let payload = (e.exception_has_payload != 0).then_some(e.exception_payload);
    PendingEvents {
        exception_injected: (e.exception.injected != 0).then_some((e.exception.nr, code)),
        exception_pending: (e.exception.pending != 0).then_some((e.exception.nr, code, payload)),
        interrupt: (e.interrupt.injected != 0).then_some((e.interrupt.nr, e.interrupt.soft != 0)),
        interrupt_shadow: e.interrupt.shadow,
        nmi: (e.nmi.injected != 0, e.nmi.pending != 0, e.nmi.masked != 0),
        sipi_vector: e.sipi_vector,
        triple_fault: e.triple_fault.pending != 0,
    }
}

/// The payload and triple-fault parts are valid only where those capabilities are enabled, which
/// this engine does not do: a pending exception is then reported as injected.
pub(crate) fn kvm_events(e: &PendingEvents) -> kvm_vcpu_events {
    let mut out = kvm_vcpu_events {
        sipi_vector: e.sipi_vector,
        flags: VALID_NMI_PENDING | VALID_SIPI_VECTOR | VALID_SHADOW,
        ..Default::default()
    };
    debug_assert_eq!(out.flags & (VALID_PAYLOAD | VALID_TRIPLE_FAULT), 0);
    let exception = e
        .exception_injected
        .or(e.exception_pending.map(|(vector, code, _)| (vector, code)));
    if let Some((vector, code)) = exception {
        out.exception.injected = 1;
        out.exception.nr = vector;
        out.exception.has_error_code = code.is_some().into();
        out.exception.error_code = code.unwrap_or(0);
    }
    if let Some((vector, soft)) = e.interrupt {
        out.interrupt.injected = 1;
        out.interrupt.nr = vector;
        out.interrupt.soft = soft.into();
    }
    out.interrupt.shadow = e.interrupt_shadow;
    (out.nmi.injected, out.nmi.pending, out.nmi.masked) =
        (e.nmi.0.into(), e.nmi.1.into(), e.nmi.2.into());
    out
}

pub(crate) fn run_state(state: kvm_mp_state) -> Result<RunState, EngineError> {
    Ok(match state.mp_state {
        kvm_bindings::KVM_MP_STATE_RUNNABLE => RunState::Runnable,
        kvm_bindings::KVM_MP_STATE_HALTED => RunState::Halted,
        kvm_bindings::KVM_MP_STATE_UNINITIALIZED => RunState::Uninitialized,
        kvm_bindings::KVM_MP_STATE_INIT_RECEIVED => RunState::InitReceived,
        kvm_bindings::KVM_MP_STATE_SIPI_RECEIVED => RunState::SipiReceived,
        // AP reset hold exists for encrypted guests only.
        other => {
            let reason = format!("unknown run state {other}");
            return Err(EngineError::Unfit {
                field: "run state",
                reason,
            });
        }
    })
}

pub(crate) fn kvm_run_state(state: RunState) -> kvm_mp_state {
    let mp_state = match state {
        RunState::Runnable => kvm_bindings::KVM_MP_STATE_RUNNABLE,
        RunState::Halted => kvm_bindings::KVM_MP_STATE_HALTED,
        RunState::Uninitialized => kvm_bindings::KVM_MP_STATE_UNINITIALIZED,
        RunState::InitReceived => kvm_bindings::KVM_MP_STATE_INIT_RECEIVED,
        RunState::SipiReceived => kvm_bindings::KVM_MP_STATE_SIPI_RECEIVED,
    };
    kvm_mp_state { mp_state }
}

const INDEXED: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

pub(crate) fn cpuid(leaves: &CpuId) -> Vec<CpuidLeaf> {
    let leaf = |l: &kvm_cpuid_entry2| CpuidLeaf {
        function: l.function,
        index: l.index,
        indexed: l.flags & INDEXED != 0,
        result: [l.eax, l.ebx, l.ecx, l.edx],
    };
    leaves.as_slice().iter().map(leaf).collect()
}

pub(crate) fn kvm_cpuid(leaves: &[CpuidLeaf]) -> Result<CpuId, EngineError> {
    let leaf = |l: &CpuidLeaf| {
        let [eax, ebx, ecx, edx] = l.result;
        let flags = if l.indexed { INDEXED } else { 0 };
        let (function, index) = (l.function, l.index);
        kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    };
    let entries: Vec<_> = leaves.iter().map(leaf).collect();
    CpuId::from_entries(&entries).map_err(|_| EngineError::Unfit {
        field: "CPUID",
        reason: format!("{} leaves are more than KVM takes", leaves.len()),
    })
}
