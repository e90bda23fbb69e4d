//! Interrupts of the local APIC, and what holds them back.

use iced_x86::code_asm::CodeLabel;
use iced_x86::code_asm::gpr32::*;
use iced_x86::code_asm::gpr64::{rax, rbx, rcx, rdx, rsp};
use iced_x86::code_asm::{cr8, dword_ptr, qword_ptr, ss};

use crate::Case;
use crate::kit::{APIC, Check, KERNEL_DATA, Kit, SCRATCH, TASK_STACK, USER_CODE};

pub const CASES: &[Case] = &[
    ("interrupt_to_oneself", interrupt_to_oneself),
    (
        "timer_wakes_a_halted_processor",
        timer_wakes_a_halted_processor,
    ),
    ("timer_interrupts_user_mode", timer_interrupts_user_mode),
    (
        "sti_holds_back_one_instruction",
        sti_holds_back_one_instruction,
    ),
    (
        "mov_ss_holds_back_one_instruction",
        mov_ss_holds_back_one_instruction,
    ),
    ("task_priority_holds_back", task_priority_holds_back),
    ("higher_vector_first", higher_vector_first),
    ("non_maskable_interrupt", non_maskable_interrupt),
    ("popf_lets_interrupts_in", popf_lets_interrupts_in),
];

const SPURIOUS: u64 = 0xf0;
const END: u64 = 0xb0;
const COMMAND: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
const TIMER: u64 = 0x320;
const INITIAL_COUNT: u64 = 0x380;
const DIVIDE: u64 = 0x3e0;
/// To oneself, by shorthand.
const ONESELF: u32 = 1 << 18;

/// Where handlers leave what they saw.
const SEEN: u64 = SCRATCH;

fn enable(kit: &mut Kit) {
    kit.write_apic(SPURIOUS, 0x1ff);
}

fn send(kit: &mut Kit, vector: u32) {
    kit.write_apic(COMMAND, ONESELF | vector);
}

/// A handler that counts in EBX, keeps its saved RIP at `SEEN` plus 8 times the count, ends the
/// interrupt and returns. RAX and RDX are overwritten.
fn handler(kit: &mut Kit, vector: u64) -> CodeLabel {
    let mut entry = kit.asm.create_label();
    let mut after = kit.asm.create_label();
    emit!(kit; jmp(after));
    kit.asm.set_label(&mut entry).unwrap();
    emit!(kit; inc(ebx); mov(rax, qword_ptr(rsp)); mov(edx, ebx); shl(edx, 4));
    emit!(kit; mov(qword_ptr(rdx + SEEN as i32), rax));
    emit!(kit; mov(qword_ptr(rdx + SEEN as i32 + 8), vector as i32));
    kit.write_apic(END, 0);
    emit!(kit; iretq());
    kit.asm.set_label(&mut after).unwrap();
    emit!(kit; xor(ebx, ebx));
    kit.handler(vector, entry);
    entry
}

fn interrupt_to_oneself(kit: &mut Kit) -> Check {
    enable(kit);
    handler(kit, 0x41);
    emit!(kit; sti());
    send(kit, 0x41);
    // Delivery takes its time on some processors.
    let mut again = kit.asm.create_label();
    kit.asm.set_label(&mut again).unwrap();
    emit!(kit; pause(); test(ebx, ebx); je(again); cli(); mov(rax, rbx));
    let count = kit.keep();
    Box::new(move |outcome| {
        assert_eq!(outcome.value(count), 1);
        assert_eq!(outcome.word(SEEN + 24), 0x41);
    })
}

fn timer_wakes_a_halted_processor(kit: &mut Kit) -> Check {
    enable(kit);
    handler(kit, 0x42);
    kit.write_apic(DIVIDE, 0xb);
    kit.write_apic(TIMER, 0x42);
    kit.write_apic(INITIAL_COUNT, 100_000);
    let mut again = kit.asm.create_label();
    kit.asm.set_label(&mut again).unwrap();
    emit!(kit; cli(); test(ebx, ebx));
    let mut done = kit.asm.create_label();
    emit!(kit; jne(done); sti(); hlt(); jmp(again));
    kit.asm.set_label(&mut done).unwrap();
    emit!(kit; mov(rax, rbx));
    let count = kit.keep();
    Box::new(move |outcome| {
        assert_eq!(outcome.value(count), 1);
        assert_eq!(outcome.word(SEEN + 24), 0x42);
    })
}

fn timer_interrupts_user_mode(kit: &mut Kit) -> Check {
    enable(kit);
    kit.write_apic(DIVIDE, 0xb);
    kit.write_apic(TIMER, 0x43);
    kit.write_apic(INITIAL_COUNT, 100_000);
    let trap = kit.user_trap_with(0x202, |kit| {
        let mut again = kit.asm.create_label();
        kit.asm.set_label(&mut again).unwrap();
        emit!(kit; jmp(again));
    });
    kit.write_apic(END, 0);
    Box::new(move |outcome| {
        let record = outcome.record(trap);
        assert_eq!(
            (record.vector, record.cs),
            (0x43, USER_CODE.into()),
            "{record:x?}"
        );
        assert_eq!((record.frame, record.rflags & 0x200), (TASK_STACK, 0x200));
    })
}

/// Makes an interrupt wait, with IF clear.
fn pend(kit: &mut Kit, vector: u32) {
    emit!(kit; cli());
    send(kit, vector);
    // Until the request register has it.
    let register = APIC + 0x200 + u64::from(vector / 32) * 0x10;
    let mut again = kit.asm.create_label();
    emit!(kit; mov(ecx, register as u32));
    kit.asm.set_label(&mut again).unwrap();
    emit!(kit; test(dword_ptr(rcx), 1 << (vector % 32)); je(again));
}

fn sti_holds_back_one_instruction(kit: &mut Kit) -> Check {
    enable(kit);
    handler(kit, 0x44);
    pend(kit, 0x44);
    // IF is set for one instruction only: nothing is taken.
    emit!(kit; sti(); cli(); nop(); mov(eax, ebx));
    let none = kit.keep();
    emit!(kit; xor(ecx, ecx); sti(); inc(ecx); inc(ecx); cli(); mov(eax, ebx));
    let one = kit.keep();
    let trap = kit.trap(|kit| {
        pend(kit, 0x44);
        emit!(kit; sti(); nop());
        kit.mark();
        emit!(kit; nop(); cli(); ud2());
    });
    Box::new(move |outcome| {
        assert_eq!(outcome.value(none), 0);
        assert_eq!(outcome.value(one), 1);
        assert_eq!(
            outcome.word(SEEN + 32),
            outcome.mark(trap),
            "after the one instruction"
        );
    })
}

fn mov_ss_holds_back_one_instruction(kit: &mut Kit) -> Check {
    enable(kit);
    handler(kit, 0x45);
    pend(kit, 0x45);
    let trap = kit.trap(|kit| {
        emit!(kit; mov(ecx, u32::from(KERNEL_DATA)); sti(); mov(ss, ecx); nop());
        kit.mark();
        emit!(kit; nop(); cli(); ud2());
    });
    Box::new(move |outcome| {
        let rip = outcome.word(SEEN + 16);
        let mark = outcome.mark(trap);
        // The shadow of STI covers MOV SS, whose own covers the next instruction; a processor may
        // let the interrupt in between them.
        assert!(rip == mark || rip == mark - 1, "{rip:#x}, {mark:#x}");
    })
}

fn task_priority_holds_back(kit: &mut Kit) -> Check {
    enable(kit);
    handler(kit, 0x46);
    emit!(kit; mov(eax, 4); mov(cr8, rax));
    pend(kit, 0x46);
    emit!(kit; sti(); nop(); nop(); nop(); mov(eax, ebx));
    let held = kit.keep();
    emit!(kit; mov(eax, 3); mov(cr8, rax); nop(); nop(); cli(); xor(eax, eax); mov(cr8, rax));
    emit!(kit; mov(eax, ebx));
    let taken = kit.keep();
    Box::new(move |outcome| {
        assert_eq!(outcome.value(held), 0);
        assert_eq!(outcome.value(taken), 1);
    })
}

fn higher_vector_first(kit: &mut Kit) -> Check {
    enable(kit);
    handler(kit, 0x51);
    handler(kit, 0x61);
    pend(kit, 0x51);
    pend(kit, 0x61);
    emit!(kit; sti(); nop(); nop(); nop(); nop(); cli(); mov(eax, ebx));
    let count = kit.keep();
    Box::new(move |outcome| {
        assert_eq!(outcome.value(count), 2);
        assert_eq!(outcome.word(SEEN + 24), 0x61);
        assert_eq!(outcome.word(SEEN + 40), 0x51);
    })
}

fn non_maskable_interrupt(kit: &mut Kit) -> Check {
    enable(kit);
    let trap = kit.trap(|kit| {
        emit!(kit; cli());
        kit.write_apic(COMMAND_HIGH, 0);
        // Delivery mode NMI, physical destination 0: this processor.
        kit.write_apic(COMMAND, 0x400);
        let mut again = kit.asm.create_label();
        kit.asm.set_label(&mut again).unwrap();
        emit!(kit; jmp(again));
    });
    Box::new(move |outcome| {
        let record = outcome.record(trap);
        assert_eq!(record.vector, 2, "{record:x?}");
    })
}

fn popf_lets_interrupts_in(kit: &mut Kit) -> Check {
    enable(kit);
    handler(kit, 0x47);
    pend(kit, 0x47);
    let trap = kit.trap(|kit| {
        emit!(kit; push(0x202); popfq());
        kit.mark();
        emit!(kit; nop(); cli(); ud2());
    });
    Box::new(move |outcome| {
        assert_eq!(outcome.word(SEEN + 16), outcome.mark(trap));
    })
}
