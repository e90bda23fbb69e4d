//! Exceptions of instructions: vector, error code, where RIP is.

use iced_x86::code_asm::gpr32::*;
use iced_x86::code_asm::gpr64::{rax, rbx, rcx, rdx, rsp};
use iced_x86::code_asm::{ax, cr0, ds, dword_ptr, ptr, qword_ptr, ss, st0, st1, word_ptr};
use iced_x86::code_asm::{xmm0, xmm1, xmmword_ptr};

use crate::Case;
use crate::kit::{
    ABSENT, Check, IDT, KERNEL_STACK, Kit, OTHER_STACKS, SCRATCH, TASK_STACK, USER_CODE, USER_DATA,
    USER_STACK,
};

pub const CASES: &[Case] = &[
    ("divide_error", divide_error),
    ("breakpoint_is_a_trap", breakpoint_is_a_trap),
    ("undefined_opcode", undefined_opcode),
    ("single_step", single_step),
    ("no_fpu_while_task_switched", no_fpu_while_task_switched),
    ("double_fault", double_fault),
    ("segment_not_present", segment_not_present),
    ("stack_fault", stack_fault),
    ("general_protection", general_protection),
    ("alignment_check", alignment_check),
    ("simd_exception", simd_exception),
    ("x87_exception_waits", x87_exception_waits),
    ("own_stack_by_ist", own_stack_by_ist),
    ("frame_is_aligned", frame_is_aligned),
    ("saved_state_of_user_mode", saved_state_of_user_mode),
    (
        "faulting_push_changes_nothing",
        faulting_push_changes_nothing,
    ),
];

fn divide_error(kit: &mut Kit) -> Check {
    let by_zero = kit.trap(|kit| {
        emit!(kit; xor(ecx, ecx));
        kit.mark();
        emit!(kit; div(ecx));
    });
    let overflow = kit.user_trap(|kit| {
        emit!(kit; mov(edx, 0x8000_0000_u32); mov(ecx, 1));
        kit.mark();
        emit!(kit; idiv(ecx));
    });
    Box::new(move |outcome| {
        outcome.faults(by_zero, 0, 0);
        outcome.faults(overflow, 0, 0);
    })
}

fn breakpoint_is_a_trap(kit: &mut Kit) -> Check {
    let kernel = kit.trap(|kit| {
        emit!(kit; int3());
        kit.mark();
    });
    let user = kit.user_trap(|kit| {
        emit!(kit; int3());
        kit.mark();
        emit!(kit; nop());
    });
    Box::new(move |outcome| {
        outcome.faults(kernel, 3, 0);
        let record = outcome.faults(user, 3, 0);
        assert_eq!(record.rflags & 1 << 16, 0, "RF is clear after a trap");
    })
}

fn undefined_opcode(kit: &mut Kit) -> Check {
    let ud2 = kit.trap(|kit| {
        kit.mark();
        emit!(kit; ud2());
    });
    // LOCK on an instruction that does not take it: LOCK NOP.
    let lock = kit.trap(|kit| {
        kit.mark();
        emit!(kit; db(&[0xf0, 0x90]));
    });
    let push_es = kit.user_trap(|kit| {
        kit.mark();
        emit!(kit; db(&[0x06]));
    });
    Box::new(move |outcome| {
        for trap in [ud2, lock, push_es] {
            let record = outcome.faults(trap, 6, 0);
            assert_ne!(
                record.rflags & 1 << 16,
                0,
                "RF is set in the frame of a fault"
            );
        }
    })
}

fn single_step(kit: &mut Kit) -> Check {
    let step = kit.trap(|kit| {
        emit!(kit; xor(ebx, ebx); pushfq(); or(qword_ptr(rsp), 0x100); popfq(); inc(ebx));
        kit.mark();
        emit!(kit; inc(ebx); nop());
    });
    emit!(kit; mov(eax, ebx));
    let count = kit.keep();
    Box::new(move |outcome| {
        let record = outcome.faults(step, 1, 0);
        assert_eq!(record.dr6 & 0x400f, 0x4000, "DR6.BS");
        let _ = outcome.value(count);
    })
}

fn no_fpu_while_task_switched(kit: &mut Kit) -> Check {
    let set = |kit: &mut Kit, bits: i32| {
        emit!(kit; mov(rax, cr0); or(rax, bits); mov(cr0, rax));
    };
    let clear = |kit: &mut Kit, bits: i32| {
        emit!(kit; mov(rax, cr0); and(rax, !bits); mov(cr0, rax));
    };
    set(kit, 8);
    let sse = kit.trap(|kit| {
        kit.mark();
        emit!(kit; addps(xmm0, xmm1));
    });
    let x87 = kit.user_trap(|kit| {
        kit.mark();
        emit!(kit; fld1());
    });
    let wait = kit.trap(|kit| {
        kit.mark();
        emit!(kit; wait());
    });
    emit!(kit; clts(); fninit(); fld1());
    // EM: x87 is #NM, SSE is #UD.
    set(kit, 4);
    let emulated = kit.trap(|kit| {
        kit.mark();
        emit!(kit; fld1());
    });
    let emulated_sse = kit.trap(|kit| {
        kit.mark();
        emit!(kit; addps(xmm0, xmm1));
    });
    clear(kit, 4);
    emit!(kit; fninit());
    Box::new(move |outcome| {
        for trap in [sse, x87, wait, emulated] {
            outcome.faults(trap, 7, 0);
        }
        outcome.faults(emulated_sse, 6, 0);
    })
}

fn double_fault(kit: &mut Kit) -> Check {
    // The gate of #GP is not present, so its delivery is a second contributory exception.
    kit.word(IDT + 16 * 13, 0);
    let twice = kit.trap(|kit| {
        emit!(kit; mov(rcx, 1_u64 << 62));
        kit.mark();
        emit!(kit; mov(rax, qword_ptr(rcx)));
    });
    Box::new(move |outcome| {
        let record = outcome.record(twice);
        assert_eq!((record.vector, record.error), (8, 0), "{record:x?}");
    })
}

fn segment_not_present(kit: &mut Kit) -> Check {
    let data = kit.trap(|kit| {
        emit!(kit; mov(ecx, u32::from(ABSENT)));
        kit.mark();
        emit!(kit; mov(ds, ecx));
    });
    let stack = kit.trap(|kit| {
        emit!(kit; mov(ecx, u32::from(ABSENT)));
        kit.mark();
        emit!(kit; mov(ss, ecx));
    });
    Box::new(move |outcome| {
        outcome.faults(data, 11, ABSENT.into());
        outcome.faults(stack, 12, ABSENT.into());
    })
}

fn stack_fault(kit: &mut Kit) -> Check {
    let push = kit.user_trap(|kit| {
        emit!(kit; mov(rsp, 1_u64 << 62));
        kit.mark();
        emit!(kit; push(rax));
    });
    let load = kit.user_trap(|kit| {
        emit!(kit; mov(rsp, 1_u64 << 62));
        kit.mark();
        emit!(kit; mov(rax, qword_ptr(rsp + 8)));
    });
    Box::new(move |outcome| {
        let record = outcome.faults(push, 12, 0);
        assert_eq!(record.rsp, 1 << 62);
        outcome.faults(load, 12, 0);
    })
}

fn general_protection(kit: &mut Kit) -> Check {
    let address = kit.user_trap(|kit| {
        emit!(kit; mov(rcx, 0x8000_0000_0000_u64));
        kit.mark();
        emit!(kit; mov(rax, qword_ptr(rcx)));
    });
    let selector = kit.trap(|kit| {
        emit!(kit; mov(ecx, 0x0f00));
        kit.mark();
        emit!(kit; mov(ds, ecx));
    });
    let local = kit.user_trap(|kit| {
        emit!(kit; mov(ecx, 0x0c));
        kit.mark();
        emit!(kit; mov(ds, ecx));
    });
    let unaligned = kit.trap(|kit| {
        emit!(kit; mov(rcx, SCRATCH + 8));
        kit.mark();
        emit!(kit; movaps(xmm0, xmmword_ptr(rcx)));
    });
    let jump = kit.user_trap(|kit| {
        emit!(kit; mov(rcx, 0x8000_0000_0000_u64));
        kit.mark();
        emit!(kit; jmp(rcx));
    });
    Box::new(move |outcome| {
        outcome.faults(address, 13, 0);
        outcome.faults(selector, 13, 0x0f00);
        outcome.faults(local, 13, 0x0c);
        outcome.faults(unaligned, 13, 0);
        let record = outcome.record(jump);
        assert_eq!((record.vector, record.error), (13, 0));
    })
}

fn alignment_check(kit: &mut Kit) -> Check {
    const AC: i32 = 1 << 18;
    let user = kit.user_trap_with(2 | AC, |kit| {
        emit!(kit; mov(eax, dword_ptr(rsp - 8)));
        kit.mark();
        emit!(kit; mov(eax, dword_ptr(rsp - 7)));
    });
    // Supervisor mode is not checked.
    let kernel = kit.trap(|kit| {
        emit!(kit; pushfq(); or(qword_ptr(rsp), AC); popfq());
        emit!(kit; mov(rcx, SCRATCH + 1); mov(eax, dword_ptr(rcx)));
        emit!(kit; pushfq(); and(qword_ptr(rsp), !AC); popfq());
        kit.mark();
        emit!(kit; ud2());
    });
    Box::new(move |outcome| {
        outcome.faults(user, 17, 0);
        outcome.faults(kernel, 6, 0);
    })
}

fn simd_exception(kit: &mut Kit) -> Check {
    let trap = kit.user_trap(|kit| {
        emit!(kit; mov(dword_ptr(rsp - 8), 0x1d80); ldmxcsr(dword_ptr(rsp - 8)));
        emit!(kit; mov(eax, 0x3f80_0000); movd(xmm0, eax); xorps(xmm1, xmm1));
        kit.mark();
        emit!(kit; divss(xmm0, xmm1));
    });
    emit!(kit; push(0); stmxcsr(dword_ptr(rsp)); pop(rax));
    let status = kit.keep();
    emit!(kit; push(0x1f80); ldmxcsr(dword_ptr(rsp)); pop(rax));
    Box::new(move |outcome| {
        outcome.faults(trap, 19, 0);
        assert_eq!(outcome.value(status) & 0x3f, 4, "MXCSR.ZE");
    })
}

fn x87_exception_waits(kit: &mut Kit) -> Check {
    let trap = kit.user_trap(|kit| {
        emit!(kit; fninit(); mov(word_ptr(rsp - 8), 0x37b); fldcw(word_ptr(rsp - 8)));
        emit!(kit; fldz(); fld1(); fdiv_2(st0, st1); nop());
        kit.mark();
        emit!(kit; fabs());
    });
    emit!(kit; xor(eax, eax); fnstsw(ax));
    let status = kit.keep();
    emit!(kit; fnclex(); fninit());
    Box::new(move |outcome| {
        outcome.faults(trap, 16, 0);
        assert_eq!(outcome.value(status) & 0x80bf, 0x8084, "B, ES, ZE");
    })
}

fn own_stack_by_ist(kit: &mut Kit) -> Check {
    kit.other_stack(6, 1);
    kit.other_stack(3, 2);
    let kernel = kit.trap(|kit| {
        kit.mark();
        emit!(kit; ud2());
    });
    let user = kit.user_trap(|kit| {
        kit.mark();
        emit!(kit; ud2());
    });
    let second = kit.user_trap(|kit| {
        emit!(kit; int3());
        kit.mark();
        emit!(kit; nop());
    });
    Box::new(move |outcome| {
        assert_eq!(outcome.faults(kernel, 6, 0).frame, OTHER_STACKS[0]);
        assert_eq!(outcome.faults(user, 6, 0).frame, OTHER_STACKS[0]);
        assert_eq!(outcome.faults(second, 3, 0).frame, OTHER_STACKS[1]);
    })
}

fn frame_is_aligned(kit: &mut Kit) -> Check {
    let traps = [0, 1, 8, 15].map(|offset| {
        kit.trap(|kit| {
            emit!(kit; sub(rsp, offset));
            kit.mark();
            emit!(kit; ud2());
        })
    });
    Box::new(move |outcome| {
        for (trap, offset) in traps.into_iter().zip([0, 1, 8, 15]) {
            let record = outcome.faults(trap, 6, 0);
            assert_eq!(record.rsp, KERNEL_STACK - offset);
            assert_eq!(record.frame, record.rsp & !15);
        }
    })
}

fn saved_state_of_user_mode(kit: &mut Kit) -> Check {
    let trap = kit.user_trap_with(0xad7, |kit| {
        emit!(kit; mov(rax, 0x1122_3344_5566_7788_u64));
        kit.mark();
        emit!(kit; hlt());
    });
    Box::new(move |outcome| {
        let record = outcome.faults(trap, 13, 0);
        assert_eq!((record.cs, record.ss), (USER_CODE.into(), USER_DATA.into()));
        assert_eq!((record.rsp, record.frame), (USER_STACK, TASK_STACK));
        assert_eq!(record.rflags & !(1 << 16), 0xad7, "all but RF");
        assert_eq!(record.rax, 0x1122_3344_5566_7788);
    })
}

fn faulting_push_changes_nothing(kit: &mut Kit) -> Check {
    kit.map(SCRATCH, 0);
    let push = kit.user_trap(|kit| {
        emit!(kit; mov(rsp, SCRATCH + 0x1000));
        kit.mark();
        emit!(kit; push(rax));
    });
    let call = kit.user_trap(|kit| {
        emit!(kit; mov(rsp, SCRATCH + 0x1000); lea(rcx, ptr(rsp)));
        kit.mark();
        emit!(kit; call(rcx));
    });
    let exchange = kit.user_trap(|kit| {
        emit!(kit; mov(rdx, SCRATCH); mov(rax, 7_u64); mov(rbx, 9_u64));
        kit.mark();
        emit!(kit; lock().cmpxchg(qword_ptr(rdx), rbx));
    });
    Box::new(move |outcome| {
        for trap in [push, call] {
            outcome.page_faults(trap, 6, SCRATCH + 0xff8);
            assert_eq!(outcome.record(trap).rsp, SCRATCH + 0x1000);
        }
        outcome.page_faults(exchange, 6, SCRATCH);
        assert_eq!(outcome.record(exchange).rax, 7);
    })
}
