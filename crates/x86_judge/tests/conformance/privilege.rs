//! Between privilege levels: system calls, software interrupts, returns, what user mode may not do.

use iced_x86::code_asm::gpr32::*;
use iced_x86::code_asm::gpr64::{r11, rax, rbx, rcx, rdx, rsp};
use iced_x86::code_asm::{al, byte_ptr};
use iced_x86::code_asm::{
    ax, cr0, cr3, cr4, dr0, dr7, ds, dx, es, fs, gs, ptr, qword_ptr, ss, word_ptr,
};

use crate::Case;
use crate::kit::{
    Check, IDT, KERNEL_CODE, KERNEL_DATA, Kit, SCRATCH, TASK_STACK, USER_CODE, USER_CODE_32,
    USER_DATA, USER_STACK,
};

pub const CASES: &[Case] = &[
    ("syscall_and_sysret", syscall_and_sysret),
    ("syscall_needs_efer", syscall_needs_efer),
    ("software_interrupt", software_interrupt),
    ("privileged_instructions", privileged_instructions),
    ("user_ports_by_the_io_map", user_ports_by_the_io_map),
    ("iret_to_user_mode", iret_to_user_mode),
    ("iret_refuses_bad_frames", iret_refuses_bad_frames),
    ("far_return", far_return),
    ("program_of_32_bits", program_of_32_bits),
    ("swapgs_exchanges_bases", swapgs_exchanges_bases),
    ("segment_bases", segment_bases),
    ("flags_by_privilege", flags_by_privilege),
    ("segment_registers", segment_registers),
];

/// RETFQ.
const RETFQ: [u8; 2] = [0x48, 0xcb];
const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

fn syscall_and_sysret(kit: &mut Kit) -> Check {
    let mut entry = kit.asm.create_label();
    let mut begin = kit.asm.create_label();
    emit!(kit; jmp(begin));
    kit.asm.set_label(&mut entry).unwrap();
    emit!(kit; mov(rbx, rcx); pushfq(); pop(rdx); mov(eax, ss); shl(rax, 16); mov(ax, ax));
    emit!(kit; xor(eax, eax); sysretq());
    kit.asm.set_label(&mut begin).unwrap();
    kit.write_msr(STAR, u64::from(KERNEL_CODE) << 32 | 0x23 << 48);
    kit.write_msr(SFMASK, 0x4_0701);
    emit!(kit; lea(rax, ptr(entry)); mov(rdx, rax); shr(rdx, 32); mov(ecx, LSTAR); wrmsr());
    let trap = kit.user_trap_with(0x8d7, |kit| {
        emit!(kit; mov(rdx, 0_u64); syscall());
        kit.mark();
        emit!(kit; nop(); int3());
    });
    emit!(kit; mov(rax, rbx));
    let saved_rip = kit.keep();
    emit!(kit; mov(rax, r11));
    let saved_flags = kit.keep();
    emit!(kit; mov(rax, rdx));
    let kernel_flags = kit.keep();
    Box::new(move |outcome| {
        let record = outcome.record(trap);
        assert_eq!(
            (record.vector, record.cs, record.ss),
            (3, USER_CODE.into(), USER_DATA.into())
        );
        assert_eq!(record.rsp, USER_STACK);
        assert_eq!(record.rflags & 0xfff, 0x8d7, "flags come back");
        assert_eq!(outcome.value(saved_rip), outcome.mark(trap), "RCX");
        assert_eq!(outcome.value(saved_flags) & 0xfff, 0x8d7, "R11");
        assert_eq!(
            outcome.value(kernel_flags) & 0xfff,
            0x8d6 & !0x700,
            "masked"
        );
    })
}

fn syscall_needs_efer(kit: &mut Kit) -> Check {
    kit.write_msr(EFER, 0xd00);
    let trap = kit.user_trap(|kit| {
        kit.mark();
        emit!(kit; syscall());
    });
    kit.write_msr(EFER, 0xd01);
    Box::new(move |outcome| {
        outcome.faults(trap, 6, 0);
    })
}

fn software_interrupt(kit: &mut Kit) -> Check {
    let allowed = kit.user_trap(|kit| {
        emit!(kit; int(0x60));
        kit.mark();
        emit!(kit; nop());
    });
    let refused = kit.user_trap(|kit| {
        kit.mark();
        emit!(kit; int(0x61));
    });
    let kernel = kit.trap(|kit| {
        emit!(kit; int(0x61));
        kit.mark();
    });
    kit.word(IDT + 16 * 0x62, 0);
    let absent = kit.trap(|kit| {
        kit.mark();
        emit!(kit; int(0x62));
    });
    Box::new(move |outcome| {
        let record = outcome.faults(allowed, 0x60, 0);
        assert_eq!((record.cs, record.frame), (USER_CODE.into(), TASK_STACK));
        outcome.faults(refused, 13, 0x61 * 8 + 2);
        let record = outcome.faults(kernel, 0x61, 0);
        assert_eq!(record.cs, u64::from(KERNEL_CODE));
        let record = outcome.record(absent);
        assert!(matches!(record.vector, 11 | 13), "{record:x?}");
        assert_eq!(record.error, 0x62 * 8 + 2);
    })
}

/// Adds one instruction.
type Emit = fn(&mut Kit);

fn privileged_instructions(kit: &mut Kit) -> Check {
    let all: [(&str, Emit); 22] = [
        ("hlt", |kit| emit!(kit; hlt())),
        ("cli", |kit| emit!(kit; cli())),
        ("sti", |kit| emit!(kit; sti())),
        ("in", |kit| emit!(kit; in_(al, dx))),
        ("out", |kit| emit!(kit; out(dx, al))),
        ("lgdt", |kit| emit!(kit; lgdt(ptr(rsp)))),
        ("lidt", |kit| emit!(kit; lidt(ptr(rsp)))),
        ("lldt", |kit| emit!(kit; lldt(ax))),
        ("ltr", |kit| emit!(kit; ltr(ax))),
        ("lmsw", |kit| emit!(kit; lmsw(ax))),
        ("clts", |kit| emit!(kit; clts())),
        ("mov cr0", |kit| emit!(kit; mov(cr0, rax))),
        ("from cr3", |kit| emit!(kit; mov(rax, cr3))),
        ("mov cr4", |kit| emit!(kit; mov(cr4, rax))),
        ("mov dr7", |kit| emit!(kit; mov(dr7, rax))),
        ("from dr0", |kit| emit!(kit; mov(rax, dr0))),
        ("rdmsr", |kit| emit!(kit; rdmsr())),
        ("wrmsr", |kit| emit!(kit; wrmsr())),
        ("invlpg", |kit| emit!(kit; invlpg(ptr(rsp)))),
        ("invd", |kit| emit!(kit; invd())),
        ("wbinvd", |kit| emit!(kit; wbinvd())),
        ("swapgs", |kit| emit!(kit; swapgs())),
    ];
    let traps = all.map(|(_, instruction)| {
        kit.user_trap(|kit| {
            kit.mark();
            instruction(kit);
        })
    });
    Box::new(move |outcome| {
        for (trap, (name, _)) in traps.into_iter().zip(all) {
            let record = outcome.record(trap);
            let found = (record.vector, record.error, record.rip);
            assert_eq!(found, (13, 0, outcome.mark(trap)), "{name}");
        }
    })
}

fn user_ports_by_the_io_map(kit: &mut Kit) -> Check {
    let trap = kit.user_trap(|kit| {
        emit!(kit; mov(al, 0x5a); out(0x80, al));
        kit.mark();
        emit!(kit; out(0x81, al));
    });
    let word = kit.user_trap(|kit| {
        kit.mark();
        emit!(kit; out(0x80, ax));
    });
    Box::new(move |outcome| {
        outcome.faults(trap, 13, 0);
        outcome.faults(word, 13, 0);
        assert_eq!(outcome.ports, [(0x80, 0x5a)]);
    })
}

fn iret_to_user_mode(kit: &mut Kit) -> Check {
    // IOPL and IF come from the frame, VM and the reserved bits do not.
    let trap = kit.user_trap_with(0x3ad7, |kit| {
        emit!(kit; pushfq(); pop(rax));
        kit.mark();
        emit!(kit; ud2());
    });
    Box::new(move |outcome| {
        let record = outcome.faults(trap, 6, 0);
        assert_eq!(record.rax, 0x3ad7);
        assert_eq!((record.cs, record.ss), (USER_CODE.into(), USER_DATA.into()));
    })
}

fn iret_refuses_bad_frames(kit: &mut Kit) -> Check {
    let frame = |kit: &mut Kit, code: u64, stack: u64, rip: u64| {
        kit.trap(|kit| {
            emit!(kit; push(stack as i32); push(USER_STACK as i32); push(2); push(code as i32));
            emit!(kit; mov(rax, rip); push(rax));
            kit.mark();
            emit!(kit; iretq());
        })
    };
    let (user, data) = (u64::from(USER_CODE), u64::from(USER_DATA));
    let outside = frame(kit, 0x0f03, data, 0x10_0000);
    let not_code = frame(kit, u64::from(KERNEL_DATA), data, 0x10_0000);
    let stack = frame(kit, user, u64::from(KERNEL_DATA), 0x10_0000);
    let null_stack = frame(kit, user, 3, 0x10_0000);
    Box::new(move |outcome| {
        outcome.faults(outside, 13, 0x0f00);
        outcome.faults(not_code, 13, KERNEL_DATA.into());
        outcome.faults(stack, 13, KERNEL_DATA.into());
        outcome.faults(null_stack, 13, 0);
    })
}

fn far_return(kit: &mut Kit) -> Check {
    let mut there = kit.asm.create_label();
    emit!(kit; push(i32::from(KERNEL_CODE)); lea(rax, ptr(there)); push(rax); db(&RETFQ); ud2());
    kit.asm.set_label(&mut there).unwrap();
    emit!(kit; mov(rax, rsp));
    let stack = kit.keep();
    let trap = kit.trap(|kit| {
        emit!(kit; push(i32::from(USER_DATA)); lea(rax, ptr(there)); push(rax));
        kit.mark();
        emit!(kit; db(&RETFQ));
    });
    Box::new(move |outcome| {
        assert_eq!(outcome.value(stack), crate::kit::KERNEL_STACK);
        outcome.faults(trap, 13, u64::from(USER_DATA) & !3);
    })
}

fn program_of_32_bits(kit: &mut Kit) -> Check {
    // MOV EAX, 0xfffffffe; INC EAX; PUSH EAX; POP ECX; MOV EBX, [ESP-4]; INT3
    let mut code = kit.asm.create_label();
    let mut begin = kit.asm.create_label();
    emit!(kit; jmp(begin));
    kit.asm.set_label(&mut code).unwrap();
    emit!(kit; db(&[0xb8, 0xfe, 0xff, 0xff, 0xff, 0x40, 0x50, 0x59, 0x8b, 0x5c, 0x24, 0xfc, 0xcc]));
    kit.asm.set_label(&mut begin).unwrap();
    let trap = kit.trap(|kit| {
        emit!(kit; mov(rbx, -1_i64 as u64); mov(rcx, rbx));
        emit!(kit; push(i32::from(USER_DATA)); push(USER_STACK as i32); push(2));
        emit!(kit; push(i32::from(USER_CODE_32)); lea(rax, ptr(code)); push(rax); iretq());
    });
    emit!(kit; mov(rax, rcx));
    let popped = kit.keep();
    Box::new(move |outcome| {
        let record = outcome.record(trap);
        assert_eq!(
            (record.vector, record.cs),
            (3, USER_CODE_32.into()),
            "{record:x?}"
        );
        assert_eq!((record.rax, record.rsp), (0xffff_ffff, USER_STACK));
        assert_eq!(outcome.value(popped), 0xffff_ffff);
    })
}

fn swapgs_exchanges_bases(kit: &mut Kit) -> Check {
    kit.write_msr(GS_BASE, SCRATCH);
    kit.write_msr(KERNEL_GS_BASE, SCRATCH + 0x100);
    kit.word(SCRATCH, 0x1111);
    kit.word(SCRATCH + 0x100, 0x2222);
    emit!(kit; mov(rax, qword_ptr(0).gs()));
    let before = kit.keep();
    emit!(kit; swapgs(); mov(rax, qword_ptr(0).gs()));
    let after = kit.keep();
    kit.read_msr(KERNEL_GS_BASE);
    let other = kit.keep();
    Box::new(move |outcome| {
        let values = [before, after, other].map(|index| outcome.value(index));
        assert_eq!(values, [0x1111, 0x2222, SCRATCH]);
    })
}

fn segment_bases(kit: &mut Kit) -> Check {
    kit.word(SCRATCH + 8, 0x77);
    kit.write_msr(FS_BASE, SCRATCH);
    emit!(kit; mov(rax, qword_ptr(8).fs()));
    let through = kit.keep();
    // A 32-bit address size cuts the offset, not the sum.
    kit.write_msr(FS_BASE, SCRATCH + 16);
    emit!(kit; mov(rcx, u64::MAX - 7); mov(rax, qword_ptr(rcx).fs()));
    let negative = kit.keep();
    emit!(kit; mov(eax, u32::from(USER_DATA)); mov(fs, eax));
    kit.read_msr(FS_BASE);
    let loaded = kit.keep();
    Box::new(move |outcome| {
        assert_eq!(outcome.value(through), 0x77);
        assert_eq!(outcome.value(negative), 0x77);
        assert_eq!(
            outcome.value(loaded),
            0,
            "a selector loads its descriptor's base"
        );
    })
}

fn flags_by_privilege(kit: &mut Kit) -> Check {
    let user = kit.user_trap(|kit| {
        emit!(kit; push(0x3ed7); popfq(); pushfq(); pop(rax));
        kit.mark();
        emit!(kit; ud2());
    });
    emit!(kit; push(0x3002); popfq(); pushfq(); pop(rax); push(2); popfq());
    let kernel = kit.keep();
    Box::new(move |outcome| {
        let record = outcome.faults(user, 6, 0);
        assert_eq!(record.rax, 0x0cd7, "IF and IOPL stay");
        assert_eq!(outcome.value(kernel), 0x3002);
    })
}

fn segment_registers(kit: &mut Kit) -> Check {
    emit!(kit; mov(eax, u32::from(USER_DATA)); mov(ds, eax); mov(es, eax));
    emit!(kit; mov(rax, -1_i64 as u64); mov(eax, ds));
    let wide = kit.keep();
    emit!(kit; mov(rcx, SCRATCH); mov(word_ptr(rcx), es); xor(eax, eax); mov(gs, eax));
    emit!(kit; mov(eax, u32::from(KERNEL_DATA)); mov(ds, eax));
    // A null selector in DS does no harm in 64-bit mode.
    emit!(kit; xor(eax, eax); mov(ds, eax); mov(al, byte_ptr(rcx)));
    let null = kit.keep();
    let stack = kit.trap(|kit| {
        emit!(kit; mov(ecx, u32::from(USER_DATA)));
        kit.mark();
        emit!(kit; mov(ss, ecx));
    });
    Box::new(move |outcome| {
        assert_eq!(outcome.value(wide), u64::from(USER_DATA));
        assert_eq!(outcome.word(SCRATCH) & 0xffff, u64::from(USER_DATA));
        assert_eq!(outcome.value(null), u64::from(USER_DATA));
        outcome.faults(stack, 13, u64::from(USER_DATA) & !3);
    })
}
