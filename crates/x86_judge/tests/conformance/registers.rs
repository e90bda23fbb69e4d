//! System registers, ports, identification.

use iced_x86::code_asm::gpr32::*;
use iced_x86::code_asm::gpr64::{rax, rbx, rcx, rdx, rsp};
use iced_x86::code_asm::{
    al, ax, byte_ptr, cr0, cr2, cr4, cr8, cx, dr0, dr6, dr7, dword_ptr, dx, ptr, qword_ptr,
};

use crate::Case;
use crate::kit::{Check, GDT, GDT_BYTES, IDT, KERNEL_CODE, Kit, SCRATCH, TASK, USER_DATA};

pub const CASES: &[Case] = &[
    ("unknown_msr", unknown_msr),
    ("msr_values_are_checked", msr_values_are_checked),
    ("control_registers", control_registers),
    ("descriptor_table_registers", descriptor_table_registers),
    (
        "task_and_local_descriptor_registers",
        task_and_local_descriptor_registers,
    ),
    ("descriptor_queries", descriptor_queries),
    ("ports", ports),
    ("identification", identification),
    ("time_stamp_counter_advances", time_stamp_counter_advances),
    ("random_numbers", random_numbers),
    ("bit_scan_with_rep_prefix", bit_scan_with_rep_prefix),
    ("debug_registers", debug_registers),
    ("instruction_breakpoint", instruction_breakpoint),
    ("data_breakpoint", data_breakpoint),
    ("no_operations", no_operations),
];

fn unknown_msr(kit: &mut Kit) -> Check {
    let read = kit.trap(|kit| {
        emit!(kit; mov(ecx, 0x1234_5678));
        kit.mark();
        emit!(kit; rdmsr());
    });
    let write = kit.trap(|kit| {
        emit!(kit; mov(ecx, 0x1234_5678); xor(edx, edx); xor(eax, eax));
        kit.mark();
        emit!(kit; wrmsr());
    });
    Box::new(move |outcome| {
        outcome.faults(read, 13, 0);
        outcome.faults(write, 13, 0);
    })
}

fn msr_values_are_checked(kit: &mut Kit) -> Check {
    // EFER's reserved bits; non-canonical addresses in LSTAR, FS_BASE, KERNEL_GS_BASE.
    let bad = [
        (0xc000_0080, 1 << 40 | 0xd01),
        (0xc000_0082, 1 << 62),
        (0xc000_0100, 1 << 62),
        (0xc000_0102, 1 << 62),
    ];
    let traps = bad.map(|(index, value): (u32, u64)| {
        kit.trap(|kit| {
            emit!(kit; mov(ecx, index); mov(eax, value as u32); mov(edx, (value >> 32) as u32));
            kit.mark();
            emit!(kit; wrmsr());
        })
    });
    kit.write_msr(0xc000_0082, 0xffff_8000_1234_5678);
    kit.read_msr(0xc000_0082);
    let kept = kit.keep();
    kit.read_msr(0xc000_0080);
    let efer = kit.keep();
    Box::new(move |outcome| {
        for trap in traps {
            outcome.faults(trap, 13, 0);
        }
        assert_eq!(outcome.value(kept), 0xffff_8000_1234_5678);
        assert_eq!(outcome.value(efer), 0xd01);
    })
}

fn control_registers(kit: &mut Kit) -> Check {
    emit!(kit; mov(rax, cr0));
    let zero = kit.keep();
    emit!(kit; mov(rax, 0x1234_5678_9abc_def0_u64); mov(cr2, rax); xor(eax, eax); mov(rax, cr2));
    let two = kit.keep();
    emit!(kit; mov(eax, 5); mov(cr8, rax); xor(eax, eax); mov(rax, cr8));
    let eight = kit.keep();
    emit!(kit; xor(eax, eax); mov(cr8, rax));
    // Paging without protection, a reserved bit of CR4, PAE off in long mode, CR8 above 15.
    let no_protection = kit.trap(|kit| {
        emit!(kit; mov(rcx, cr0); and(rcx, !1));
        kit.mark();
        emit!(kit; mov(cr0, rcx));
    });
    let reserved = kit.trap(|kit| {
        emit!(kit; mov(rcx, cr4); mov(rdx, 1_u64 << 40); or(rcx, rdx));
        kit.mark();
        emit!(kit; mov(cr4, rcx));
    });
    let no_extension = kit.trap(|kit| {
        emit!(kit; mov(rcx, cr4); and(rcx, !0x20));
        kit.mark();
        emit!(kit; mov(cr4, rcx));
    });
    let priority = kit.trap(|kit| {
        emit!(kit; mov(ecx, 16));
        kit.mark();
        emit!(kit; mov(cr8, rcx));
    });
    Box::new(move |outcome| {
        assert_eq!(outcome.value(zero), 0x8005_0033);
        assert_eq!(outcome.value(two), 0x1234_5678_9abc_def0);
        assert_eq!(outcome.value(eight), 5);
        for trap in [no_protection, reserved, no_extension, priority] {
            outcome.faults(trap, 13, 0);
        }
    })
}

fn descriptor_table_registers(kit: &mut Kit) -> Check {
    emit!(kit; mov(rbx, SCRATCH); sgdt(ptr(rbx)); sidt(ptr(rbx + 16)));
    // The same tables with another limit.
    kit.word(SCRATCH + 0x40, 0x7f | GDT << 16);
    kit.word(SCRATCH + 0x50, 0xfff | IDT << 16);
    emit!(kit; lgdt(ptr(rbx + 0x40)); lidt(ptr(rbx + 0x50)); sgdt(ptr(rbx + 32)));
    let address = kit.trap(|kit| {
        emit!(kit; mov(rcx, 1_u64 << 62); mov(qword_ptr(rbx + 0x60), 0x7f));
        emit!(kit; mov(qword_ptr(rbx + 0x62), rcx));
        kit.mark();
        emit!(kit; lgdt(ptr(rbx + 0x60)));
    });
    Box::new(move |outcome| {
        let limit = u64::from(GDT_BYTES - 1);
        assert_eq!(outcome.word(SCRATCH), limit | GDT << 16);
        assert_eq!(outcome.word(SCRATCH + 16), 0xfff | IDT << 16);
        assert_eq!(outcome.word(SCRATCH + 32), 0x7f | GDT << 16);
        outcome.faults(address, 13, 0);
    })
}

fn task_and_local_descriptor_registers(kit: &mut Kit) -> Check {
    emit!(kit; xor(eax, eax); lldt(ax); mov(eax, -1); sldt(eax));
    let local = kit.keep();
    emit!(kit; str(eax));
    let task = kit.keep();
    let busy = kit.trap(|kit| {
        emit!(kit; mov(ecx, u32::from(TASK)));
        kit.mark();
        emit!(kit; ltr(cx));
    });
    // An available one becomes busy.
    emit!(kit; mov(rdx, GDT + u64::from(TASK)); mov(byte_ptr(rdx + 5), 0x89));
    emit!(kit; mov(eax, u32::from(TASK)); ltr(ax));
    Box::new(move |outcome| {
        assert_eq!(outcome.value(local), 0);
        assert_eq!(outcome.value(task), u64::from(TASK));
        outcome.faults(busy, 13, TASK.into());
        assert_eq!(outcome.word(GDT + u64::from(TASK)) >> 40 & 0xff, 0x8b);
    })
}

fn descriptor_queries(kit: &mut Kit) -> Check {
    let mut values = Vec::new();
    emit!(kit; mov(ecx, u32::from(USER_DATA)); verw(cx); sete(al); movzx(eax, al));
    values.push((kit.keep(), 1));
    emit!(kit; lar(eax, ecx));
    values.push((kit.keep(), 0xcf_f300));
    emit!(kit; lsl(eax, ecx));
    values.push((kit.keep(), 0xffff_ffff));
    emit!(kit; mov(ecx, u32::from(KERNEL_CODE)); verw(cx); sete(al); movzx(eax, al));
    values.push((kit.keep(), 0));
    emit!(kit; verr(cx); sete(al); movzx(eax, al));
    values.push((kit.keep(), 1));
    emit!(kit; mov(ecx, 0x0f00); mov(eax, 77); lar(eax, ecx));
    values.push((kit.keep(), 77));
    Box::new(move |outcome| {
        let found: Vec<_> = values
            .iter()
            .map(|(index, _)| outcome.value(*index))
            .collect();
        let expected: Vec<_> = values.iter().map(|(_, value)| *value).collect();
        assert_eq!(found, expected);
    })
}

fn ports(kit: &mut Kit) -> Check {
    emit!(kit; xor(eax, eax); in_(al, 0x50));
    let byte = kit.keep();
    emit!(kit; mov(edx, 0x51); mov(rax, u64::MAX); in_(ax, dx));
    let word = kit.keep();
    emit!(kit; xor(eax, eax); in_(al, dx); in_(eax, 0x51); mov(rax, u64::MAX); in_(eax, dx));
    let double = kit.keep();
    emit!(kit; mov(eax, 0x1234_5678); out(0x60, al); out(0x61, ax); out(0x62, eax));
    emit!(kit; mov(edx, 0x1234); out(dx, al); out(dx, ax); out(dx, eax));
    kit.word(SCRATCH, 0x0403_0201);
    emit!(kit; mov(iced_x86::code_asm::gpr64::rsi, SCRATCH); mov(ecx, 3); rep().outsb());
    emit!(kit; mov(iced_x86::code_asm::gpr64::rdi, SCRATCH + 8); mov(ecx, 1); rep().insd());
    Box::new(move |outcome| {
        assert_eq!(outcome.value(byte), 0x50);
        assert_eq!(outcome.value(word), 0xffff_ffff_ffff_5651);
        assert_eq!(outcome.value(double), 0x1234_5651);
        let port = 0x1234;
        let written = [
            (0x60, 0x78),
            (0x61, 0x5678),
            (0x62, 0x1234_5678),
            (port, 0x78),
            (port, 0x5678),
            (port, 0x1234_5678),
            (port, 1),
            (port, 2),
            (port, 3),
        ];
        assert_eq!(outcome.ports, written);
        assert_eq!(outcome.word(SCRATCH + 8), 0x1234_5634);
    })
}

fn identification(kit: &mut Kit) -> Check {
    emit!(kit; mov(rax, u64::MAX); mov(rbx, rax); xor(eax, eax); cpuid());
    let highest = kit.keep();
    emit!(kit; mov(rax, rbx));
    let vendor = kit.keep();
    emit!(kit; mov(eax, 1); cpuid(); mov(eax, edx));
    let features = kit.keep();
    Box::new(move |outcome| {
        assert!((1..0x100).contains(&outcome.value(highest)));
        assert!(
            outcome.value(vendor) <= u64::from(u32::MAX),
            "upper halves are cleared"
        );
        let needed = 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 24 | 1 << 25 | 1 << 26;
        let features = outcome.value(features);
        assert_eq!(
            features & needed,
            needed,
            "FPU TSC MSR PAE APIC FXSR SSE SSE2"
        );
    })
}

fn time_stamp_counter_advances(kit: &mut Kit) -> Check {
    let read = |kit: &mut Kit| {
        emit!(kit; rdtsc(); shl(rdx, 32); or(rax, rdx));
        kit.keep()
    };
    let first = read(kit);
    let mut again = kit.asm.create_label();
    emit!(kit; mov(ecx, 2000));
    kit.asm.set_label(&mut again).unwrap();
    emit!(kit; dec(ecx); jne(again));
    let second = read(kit);
    Box::new(move |outcome| assert!(outcome.value(first) < outcome.value(second)))
}

fn random_numbers(kit: &mut Kit) -> Check {
    // Only where CPUID has it.
    let mut without = kit.asm.create_label();
    emit!(kit; mov(eax, 1); cpuid(); mov(eax, 1); test(ecx, 1 << 30); je(without));
    emit!(kit; rdrand(rax); rdrand(rbx); setc(al); movzx(eax, al));
    kit.asm.set_label(&mut without).unwrap();
    emit!(kit; nop());
    let carry = kit.keep();
    Box::new(move |outcome| assert_eq!(outcome.value(carry), 1))
}

fn bit_scan_with_rep_prefix(kit: &mut Kit) -> Check {
    // F3 0F BC is TZCNT with BMI1 and BSF without; of zero, TZCNT is the operand size.
    emit!(kit; mov(eax, 7); xor(ecx, ecx); cpuid(); mov(eax, ebx); shr(eax, 3); and(eax, 1));
    let bmi = kit.keep();
    emit!(kit; mov(eax, 77); mov(ecx, 0x80); db(&[0xf3, 0x0f, 0xbc, 0xc1]));
    let found = kit.keep();
    emit!(kit; mov(eax, 77); xor(ecx, ecx); db(&[0xf3, 0x0f, 0xbc, 0xc1]));
    let of_zero = kit.keep();
    emit!(kit; mov(rax, 1_u64 << 40); mov(rcx, rax); db(&[0xf3, 0x48, 0x0f, 0xbc, 0xc1]));
    let wide = kit.keep();
    Box::new(move |outcome| {
        assert_eq!(outcome.value(found), 7);
        let nothing = if outcome.value(bmi) == 1 { 32 } else { 77 };
        assert_eq!(outcome.value(of_zero), nothing);
        assert_eq!(outcome.value(wide), 40);
    })
}

fn debug_registers(kit: &mut Kit) -> Check {
    emit!(kit; mov(rax, 0x1234_5678_9abc_u64); mov(dr0, rax); xor(eax, eax); mov(rax, dr0));
    let address = kit.keep();
    emit!(kit; mov(rax, dr7));
    let control = kit.keep();
    emit!(kit; mov(rax, dr6));
    let status = kit.keep();
    Box::new(move |outcome| {
        assert_eq!(outcome.value(address), 0x1234_5678_9abc);
        assert_eq!(outcome.value(control), 0x400);
        assert_eq!(outcome.value(status) & 0xffff_0ff0, 0xffff_0ff0);
    })
}

fn instruction_breakpoint(kit: &mut Kit) -> Check {
    let mut place = kit.asm.create_label();
    let trap = kit.trap(|kit| {
        emit!(kit; lea(rcx, ptr(place)); mov(dr0, rcx); mov(ecx, 0x402); mov(dr7, rcx); nop());
        kit.asm.set_label(&mut place).unwrap();
        emit!(kit; nop());
        kit.mark();
        emit!(kit; nop());
    });
    emit!(kit; mov(ecx, 0x400); mov(dr7, rcx));
    Box::new(move |outcome| {
        let record = outcome.record(trap);
        assert_eq!(
            (record.vector, record.rip),
            (1, outcome.mark(trap) - 1),
            "before it"
        );
        assert_eq!(record.dr6 & 0x400f, 1);
    })
}

fn data_breakpoint(kit: &mut Kit) -> Check {
    let trap = kit.trap(|kit| {
        emit!(kit; mov(rcx, SCRATCH); mov(dr0, rcx));
        // Four bytes, writes.
        emit!(kit; mov(edx, 0xd_0402); mov(dr7, rdx); mov(eax, dword_ptr(rcx)));
        emit!(kit; mov(byte_ptr(rcx + 3), 1));
        kit.mark();
        emit!(kit; nop());
    });
    emit!(kit; mov(ecx, 0x400); mov(dr7, rcx));
    Box::new(move |outcome| {
        let record = outcome.faults(trap, 1, 0);
        assert_eq!(record.dr6 & 0x400f, 1);
        assert_eq!(outcome.word(SCRATCH), 0x0100_0000);
    })
}

fn no_operations(kit: &mut Kit) -> Check {
    // ENDBR64, RDSSPQ RAX (keeps it without shadow stacks), NOP of memory that is not there.
    emit!(kit; mov(rax, 0x55_u64); endbr64(); db(&[0xf3, 0x48, 0x0f, 0x1e, 0xc8]));
    emit!(kit; mov(rcx, 1_u64 << 62); db(&[0x0f, 0x1f, 0x01]); prefetcht0(byte_ptr(rcx)); pause());
    emit!(kit; lfence(); mfence(); sfence(); wbinvd());
    let kept = kit.keep();
    emit!(kit; mov(rax, rsp));
    let stack = kit.keep();
    Box::new(move |outcome| {
        assert_eq!(outcome.value(kept), 0x55);
        assert_eq!(outcome.value(stack), crate::kit::KERNEL_STACK);
    })
}
