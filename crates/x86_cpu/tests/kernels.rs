//! Small kernels: mode switches, system calls, page faults, interrupts, debugging.

mod board;

use board::{
    CODE, CODE0, CODE0_32, CODE3, CODE3_32, DATA, DATA0, DATA3, GDT, HANDLERS, Memory, ROOT, STACK,
    TABLE, USER, USER_STACK, World, run_to_halt,
};
use iced_x86::code_asm::*;
use x86_cpu::{Attention, Cpu};

/// Bytes of hand-made instructions that the assembler's names do not reach.
fn far_jump32(offset: u32, selector: u16) -> Vec<u8> {
    let mut bytes = vec![0xea];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(selector.to_le_bytes());
    bytes
}

#[test]
fn an_application_processor_starts_in_real_mode_and_reaches_long_mode() {
    let memory = Memory::new();
    memory.furnish();
    // Where the descriptor table is, for lgdt.
    memory.poke64(0x7000, 0x47 | GDT << 16);
    memory.program(16, 0x6000, |a| {
        a.cli().unwrap();
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        a.lgdt(ptr(0x7000u32)).unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0x66]).unwrap();
        a.db(&far_jump32(0x6100, CODE0_32)).unwrap();
    });
    memory.program(32, 0x6100, |a| {
        a.mov(ax, i32::from(DATA0)).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(esp, STACK as u32).unwrap();
        a.mov(eax, 0x6a0).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, ROOT as u32).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, 0xc000_0080u32).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, 0x901).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, 0x8001_0033u32).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&far_jump32(0x6200, CODE0)).unwrap();
    });
    memory.program(64, 0x6200, |a| {
        a.mov(rax, 0x1234_5678_9abc_def0u64).unwrap();
        a.push(rax).unwrap();
        a.pop(r15).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = Cpu::new(memory.ram.clone(), Attention::default());
    cpu.init();
    cpu.startup(6);
    let mut world = World::default();
    run_to_halt(&mut cpu, &mut world);
    assert_eq!(cpu.general[15], 0x1234_5678_9abc_def0);
    assert_eq!((cpu.efer, cpu.segments[1].selector), (0xd01, CODE0));
}

/// Goes to level 3 at `USER`.
fn enter_user(a: &mut CodeAssembler, code: u16) {
    a.push(i32::from(DATA3)).expect("an instruction");
    a.push(USER_STACK as i32).expect("an instruction");
    a.push(0x202).expect("an instruction");
    a.push(i32::from(code)).expect("an instruction");
    a.push(USER as i32).expect("an instruction");
    a.iretq().expect("an instruction");
}

#[test]
fn a_user_program_makes_system_calls() {
    let memory = Memory::new();
    memory.furnish();
    memory.program(64, CODE, |a| enter_user(a, CODE3));
    memory.program(64, USER, |a| {
        let mut again = a.create_label();
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(edi, ebx).unwrap();
        a.syscall().unwrap();
        a.add(r12, rax).unwrap();
        a.inc(ebx).unwrap();
        a.cmp(ebx, 100).unwrap();
        a.jne(again).unwrap();
        a.int(0x80).unwrap();
    });
    // Answers with the square on a stack of its own.
    memory.program(64, HANDLERS, |a| {
        a.mov(rsp, STACK).unwrap();
        a.push(rcx).unwrap();
        a.mov(eax, edi).unwrap();
        a.imul_2(rax, rax).unwrap();
        a.pop(rcx).unwrap();
        a.mov(rsp, USER_STACK).unwrap();
        a.sysretq().unwrap();
    });
    memory.program(64, HANDLERS + 0x100, |a| a.hlt().unwrap());
    memory.gate(0x80, HANDLERS + 0x100, true, 0);
    let mut cpu = memory.processor();
    cpu.lstar = HANDLERS;
    cpu.sfmask = 0x200;
    run_to_halt(&mut cpu, &mut World::default());
    assert_eq!(cpu.general[12], (0..100u64).map(|n| n * n).sum());
    let frame = STACK - 40;
    assert_eq!(memory.peek64(frame + 8), CODE3.into());
    assert_eq!(memory.peek64(frame + 16) & 0x200, 0x200);
}

#[test]
fn a_32_bit_program_runs_under_a_64_bit_kernel() {
    let memory = Memory::new();
    memory.furnish();
    memory.program(64, CODE, |a| enter_user(a, CODE3_32));
    memory.program(32, USER, |a| {
        a.mov(eax, 0xffff_fff0u32).unwrap();
        a.add(eax, 0x20).unwrap();
        a.adc(ecx, 0).unwrap();
        a.push(eax).unwrap();
        a.pop(ebx).unwrap();
        a.syscall().unwrap();
        a.int(0x80).unwrap();
    });
    memory.program(64, HANDLERS, |a| {
        a.mov(r15, rcx).unwrap();
        a.sysret().unwrap();
    });
    memory.program(64, HANDLERS + 0x100, |a| a.hlt().unwrap());
    memory.gate(0x80, HANDLERS + 0x100, true, 0);
    let mut cpu = memory.processor();
    cpu.cstar = HANDLERS;
    run_to_halt(&mut cpu, &mut World::default());
    assert_eq!((cpu.general[0], cpu.general[3]), (0x10, 0x10));
    assert_eq!(cpu.general[15] & !0xff, USER);
    assert_eq!(memory.peek64(STACK - 32), CODE3_32.into());
}

/// A handler maps the page that a string instruction needs; it goes on where it stopped.
#[test]
fn repeated_moves_go_on_after_page_faults() {
    let memory = Memory::new();
    memory.furnish();
    let pages = 4;
    for page in 0..pages {
        memory.poke64(TABLE + ((DATA >> 12) + page) * 8, 0);
    }
    memory.program(64, CODE, |a| {
        a.mov(rdi, DATA + 5).unwrap();
        a.mov(rsi, 0x10_0003u64).unwrap();
        a.mov(ecx, 0x3f00).unwrap();
        a.rep().movsb().unwrap();
        a.hlt().unwrap();
    });
    memory.program(64, HANDLERS, |a| {
        a.push(rax).unwrap();
        a.push(rbx).unwrap();
        a.mov(rax, cr2).unwrap();
        a.shr(rax, 12).unwrap();
        a.mov(rbx, rax).unwrap();
        a.shl(rbx, 12).unwrap();
        a.or(rbx, 7).unwrap();
        a.mov(qword_ptr(rax * 8 + TABLE as i32), rbx).unwrap();
        a.inc(r15).unwrap();
        a.pop(rbx).unwrap();
        a.pop(rax).unwrap();
        a.add(rsp, 8).unwrap();
        a.iretq().unwrap();
    });
    memory.gate(14, HANDLERS, false, 0);
    for at in (0..0x4000).step_by(8) {
        memory.poke64(0x10_0000 + at, at.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    let mut cpu = memory.processor();
    run_to_halt(&mut cpu, &mut World::default());
    assert_eq!(cpu.general[15], pages);
    assert_eq!((cpu.general[1], cpu.general[7]), (0, DATA + 5 + 0x3f00));
    let byte = |at: u64| memory.peek64(at & !7) >> (at % 8 * 8) & 0xff;
    for at in 0..0x3f00 {
        assert_eq!(byte(DATA + 5 + at), byte(0x10_0003 + at), "{at:#x}");
    }
}

#[test]
fn exceptions_of_user_code_reach_their_handlers() {
    let memory = Memory::new();
    memory.furnish();
    memory.program(64, CODE, |a| enter_user(a, CODE3));
    // Each of these raises something; the handler skips the instruction.
    memory.program(64, USER, |a| {
        a.nop().unwrap();
        a.hlt().unwrap();
        a.db(&[0x90; 7]).unwrap();
        a.ud2().unwrap();
        a.db(&[0x90; 8]).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.div(ecx).unwrap();
        a.db(&[0x90; 8]).unwrap();
        a.mov(rax, 0x8000_0000_0000_0000u64).unwrap();
        a.mov(rax, qword_ptr(rax)).unwrap();
        a.db(&[0x90; 8]).unwrap();
        a.int(0x80).unwrap();
    });
    for (number, vector) in [0u64, 6, 13].into_iter().enumerate() {
        let at = HANDLERS + 0x100 * number as u64;
        memory.program(64, at, |a| {
            if vector == 13 {
                a.add(rsp, 8).unwrap();
            }
            // A digit for each vector, most recent last.
            a.shl(r15, 4).unwrap();
            a.or(r15, vector as i32).unwrap();
            // Instructions here are at most eight bytes, with NOPs after them.
            a.add(qword_ptr(rsp), 8).unwrap();
            a.and(qword_ptr(rsp), -8).unwrap();
            a.iretq().unwrap();
        });
        memory.gate(vector as u8, at, false, 0);
    }
    memory.program(64, HANDLERS + 0x800, |a| a.hlt().unwrap());
    memory.gate(0x80, HANDLERS + 0x800, true, 0);
    let mut cpu = memory.processor();
    run_to_halt(&mut cpu, &mut World::default());
    assert_eq!(cpu.general[15], 0xd60d);
}

#[test]
fn interrupts_come_between_instructions_and_after_the_shadow() {
    let memory = Memory::new();
    memory.furnish();
    memory.program(64, CODE, |a| {
        a.cli().unwrap();
        a.mov(al, 1).unwrap();
        a.out(0x20, al).unwrap();
        a.mov(ebx, 1).unwrap();
        a.sti().unwrap();
        a.mov(ebx, 2).unwrap();
        a.mov(ebx, 3).unwrap();
        a.hlt().unwrap();
    });
    memory.program(64, HANDLERS, |a| {
        a.mov(r15, rbx).unwrap();
        a.iretq().unwrap();
    });
    memory.gate(0x40, HANDLERS, false, 0);
    memory.program(64, HANDLERS + 0x100, |a| {
        a.mov(r14d, 77).unwrap();
        a.hlt().unwrap();
    });
    memory.gate(2, HANDLERS + 0x100, false, 0);
    let mut cpu = memory.processor();
    let mut world = World {
        on_request: Some(0x40),
        ..World::default()
    };
    run_to_halt(&mut cpu, &mut world);
    assert_eq!((cpu.general[15], cpu.general[3]), (2, 3));
    // It wakes from HLT and goes on after it.
    world.nmi = true;
    run_to_halt(&mut cpu, &mut world);
    assert_eq!(cpu.general[14], 77);
    assert!(cpu.nmi_blocked);
}

/// Runs code that begins with interrupts off and one that waits, up to its HLT. Returns `witness` as
/// the interrupt's handler found it and as it is at the end.
fn interrupted(
    witness: (AsmRegister64, usize),
    write: impl FnOnce(&mut CodeAssembler),
) -> (u64, u64) {
    let (register, number) = witness;
    let memory = Memory::new();
    memory.furnish();
    memory.program(64, CODE, |a| {
        a.cli().expect("it can be assembled");
        a.mov(al, 1).expect("it can be assembled");
        a.out(0x20, al).expect("it can be assembled");
        write(a);
        a.hlt().expect("it can be assembled");
    });
    memory.program(64, HANDLERS, |a| {
        a.mov(r15, register).expect("it can be assembled");
        a.iretq().expect("it can be assembled");
    });
    memory.gate(0x40, HANDLERS, false, 0);
    let mut cpu = memory.processor();
    let mut world = World {
        on_request: Some(0x40),
        ..World::default()
    };
    run_to_halt(&mut cpu, &mut world);
    (cpu.general[15], cpu.general[number])
}

/// An interrupt that waits comes one instruction behind STI, wherever STI stands in its block or page.
#[test]
fn the_shadow_of_sti_reaches_over_the_ends_of_blocks_and_pages() {
    for nops in (50..70).chain(4060..4090) {
        for sti in [&[0xfb][..], &[0x66, 0xfb]] {
            let seen = interrupted((rbx, 3), |a| {
                a.mov(ebx, 1).unwrap();
                for _ in 0..nops {
                    a.nop().unwrap();
                }
                a.db(sti).unwrap();
                a.mov(ebx, 2).unwrap();
                a.mov(ebx, 3).unwrap();
            });
            assert_eq!(seen, (2, 3), "{nops} NOPs before {sti:x?}");
        }
    }
}

#[test]
fn a_string_instruction_behind_sti_is_begun_before_an_interrupt() {
    let seen = interrupted((rcx, 1), |a| {
        a.mov(rdi, DATA).unwrap();
        a.mov(ecx, 2).unwrap();
        a.sti().unwrap();
        a.rep().stosb().unwrap();
    });
    assert_eq!(seen, (1, 0));
}

/// A debugger in the guest: steps through a loop, then watches a variable, then breaks on code.
#[test]
fn steps_watchpoints_and_breakpoints() {
    let memory = Memory::new();
    memory.furnish();
    let target = CODE + 0x800;
    memory.program(64, CODE, |a| {
        let mut again = a.create_label();
        // Eight instructions are stepped through: ten with the one that turns it off.
        a.pushfq().unwrap();
        a.or(qword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.mov(ecx, 3).unwrap();
        a.set_label(&mut again).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.pushfq().unwrap();
        a.and(qword_ptr(rsp), !0x100).unwrap();
        a.popfq().unwrap();
        a.mov(r14, r15).unwrap();
        // Watch writes of eight bytes at DATA, and execution at the target.
        a.mov(rax, DATA).unwrap();
        a.mov(dr0, rax).unwrap();
        a.mov(rax, target).unwrap();
        a.mov(dr1, rax).unwrap();
        a.mov(eax, 0x0009_0405).unwrap();
        a.mov(dr7, rax).unwrap();
        a.mov(rbx, DATA).unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.mov(byte_ptr(rbx + 3), 1).unwrap();
        a.mov(byte_ptr(rbx + 8), 1).unwrap();
        a.mov(rax, target).unwrap();
        a.jmp(rax).unwrap();
    });
    memory.program(64, target, |a| {
        a.mov(r13, 99u64).unwrap();
        a.hlt().unwrap();
    });
    memory.program(64, HANDLERS, |a| {
        a.inc(r15).unwrap();
        a.mov(r12, dr6).unwrap();
        a.shl(r11, 16).unwrap();
        a.mov(r11w, r12w).unwrap();
        a.push(rax).unwrap();
        a.mov(eax, 0xffff_0ff0u32).unwrap();
        a.mov(dr6, rax).unwrap();
        // Lets a breakpoint's instruction run.
        a.or(dword_ptr(rsp + 24), 0x1_0000).unwrap();
        a.pop(rax).unwrap();
        a.iretq().unwrap();
    });
    memory.gate(1, HANDLERS, false, 0);
    let mut cpu = memory.processor();
    run_to_halt(&mut cpu, &mut World::default());
    // mov, 3 x (dec, jne), pushfq, and, popfq.
    assert_eq!(cpu.general[14], 10);
    assert_eq!(cpu.general[15], 12);
    assert_eq!(cpu.general[11] as u32, 0x0ff1_0ff2);
    assert_eq!(cpu.general[13], 99);
}

/// A step ends after each iteration of a repeated instruction, and so does one whose store is watched; a
/// breakpoint on it comes once.
#[test]
fn repeated_instructions_are_stepped_through() {
    let memory = Memory::new();
    memory.furnish();
    let target = CODE + 0x800;
    memory.program(64, CODE, |a| {
        a.mov(rdi, DATA).unwrap();
        a.mov(rsi, DATA + 0x100).unwrap();
        a.mov(ecx, 20).unwrap();
        a.pushfq().unwrap();
        a.or(qword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.rep().movsb().unwrap();
        a.mov(dx, 0x80).unwrap();
        a.mov(ecx, 5).unwrap();
        a.rep().outsb().unwrap();
        a.pushfq().unwrap();
        a.and(qword_ptr(rsp), !0x100).unwrap();
        a.popfq().unwrap();
        a.mov(r14, r15).unwrap();
        // Watch writes of eight bytes at DATA + 0x40, and execution at the target.
        a.mov(rax, DATA + 0x40).unwrap();
        a.mov(dr0, rax).unwrap();
        a.mov(rax, target).unwrap();
        a.mov(dr1, rax).unwrap();
        a.mov(eax, 0x0009_0405).unwrap();
        a.mov(dr7, rax).unwrap();
        a.mov(rdi, DATA + 0x30).unwrap();
        a.mov(ecx, 30).unwrap();
        a.mov(rax, target).unwrap();
        a.jmp(rax).unwrap();
    });
    memory.program(64, target, |a| {
        a.rep().stosb().unwrap();
        a.hlt().unwrap();
    });
    memory.program(64, HANDLERS, |a| {
        a.inc(r15).unwrap();
        // Where it goes on.
        a.mov(r12, qword_ptr(rsp)).unwrap();
        a.push(rax).unwrap();
        a.mov(eax, 0xffff_0ff0u32).unwrap();
        a.mov(dr6, rax).unwrap();
        a.or(dword_ptr(rsp + 24), 0x1_0000).unwrap();
        a.pop(rax).unwrap();
        a.iretq().unwrap();
    });
    memory.gate(1, HANDLERS, false, 0);
    let mut cpu = memory.processor();
    run_to_halt(&mut cpu, &mut World::default());
    // 20 of MOVS, two MOVs, 5 of OUTS, PUSHF, AND, POPF.
    assert_eq!(cpu.general[14], 30);
    // The breakpoint, and the eight stores that are watched.
    assert_eq!(cpu.general[15], 30 + 9);
    assert_eq!((cpu.general[1], cpu.general[7]), (0, DATA + 0x4e));
    assert_eq!(cpu.general[12], target);
}

/// A step over INT n, INT3 or INT1 ends where the handler returns to, not in the handler; what MOV SS
/// held back comes with INT1's own #DB.
#[test]
fn no_step_ends_in_the_handler_of_a_software_interrupt() {
    let memory = Memory::new();
    memory.furnish();
    let other = HANDLERS + 0x400;
    memory.program(64, CODE, |a| {
        a.pushfq().unwrap();
        a.or(qword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.int(0x40).unwrap();
        a.int3().unwrap();
        a.int1().unwrap();
        a.pushfq().unwrap();
        a.and(qword_ptr(rsp), !0x100).unwrap();
        a.popfq().unwrap();
        a.mov(r14, r15).unwrap();
        a.mov(rax, DATA).unwrap();
        a.mov(word_ptr(rax), ss).unwrap();
        a.mov(dr0, rax).unwrap();
        a.mov(eax, 0x0003_0401).unwrap();
        a.mov(dr7, rax).unwrap();
        a.mov(rax, DATA).unwrap();
        a.mov(ss, word_ptr(rax)).unwrap();
        a.int1().unwrap();
        a.hlt().unwrap();
    });
    memory.program(64, HANDLERS, |a| {
        a.inc(r15).unwrap();
        a.mov(r12, dr6).unwrap();
        a.iretq().unwrap();
    });
    memory.program(64, other, |a| {
        a.inc(r13).unwrap();
        a.iretq().unwrap();
    });
    memory.gate(1, HANDLERS, false, 0);
    memory.gate(3, other, false, 0);
    memory.gate(0x40, other, false, 0);
    let mut cpu = memory.processor();
    run_to_halt(&mut cpu, &mut World::default());
    // INT 40H and INT3; INT1 itself, PUSHFQ, AND, POPFQ.
    assert_eq!((cpu.general[13], cpu.general[14]), (2, 4));
    assert_eq!(cpu.general[15], 5);
    assert_eq!(cpu.general[12] & 0xf, 1);
}

#[test]
fn a_stack_overflow_is_a_double_fault_on_another_stack() {
    let memory = Memory::new();
    memory.furnish();
    memory.poke64(TABLE + (DATA >> 12) * 8, 0);
    memory.poke64(board::TSS + 0x24, STACK);
    memory.program(64, CODE, |a| {
        a.mov(rsp, DATA + 0x1000).unwrap();
        a.push(rax).unwrap();
    });
    memory.program(64, HANDLERS, |a| {
        a.mov(r15, qword_ptr(rsp + 8)).unwrap();
        a.mov(r14, cr2).unwrap();
        a.hlt().unwrap();
    });
    memory.gate(8, HANDLERS, false, 1);
    memory.gate(14, HANDLERS + 0x800, false, 0);
    let mut cpu = memory.processor();
    run_to_halt(&mut cpu, &mut World::default());
    assert_eq!(cpu.general[15], CODE + 10);
    assert_eq!(cpu.general[14], DATA + 0xff8);
    // Nobody catches it: the machine resets.
    let mut cpu = memory.processor();
    cpu.idt.limit = 0;
    let stop = cpu.run(&mut World::default(), 1000);
    assert_eq!(stop, x86_cpu::Stop::TripleFault);
}

/// The lazy way to switch floating-point state: #NM, CLTS, on with it.
#[test]
fn floating_point_is_switched_on_demand() {
    let memory = Memory::new();
    memory.furnish();
    memory.program(64, CODE, |a| {
        a.mov(rax, cr0).unwrap();
        a.or(rax, 8).unwrap();
        a.mov(cr0, rax).unwrap();
        a.mov(eax, 42).unwrap();
        a.cvtsi2sd(xmm3, eax).unwrap();
        a.addsd(xmm3, xmm3).unwrap();
        a.cvttsd2si(rbx, xmm3).unwrap();
        a.hlt().unwrap();
    });
    memory.program(64, HANDLERS, |a| {
        a.inc(r15).unwrap();
        a.clts().unwrap();
        a.iretq().unwrap();
    });
    memory.gate(7, HANDLERS, false, 0);
    let mut cpu = memory.processor();
    run_to_halt(&mut cpu, &mut World::default());
    assert_eq!((cpu.general[15], cpu.general[3]), (1, 84));
}

#[test]
fn new_page_tables_take_effect_after_invlpg_and_cr3() {
    let memory = Memory::new();
    memory.furnish();
    let entry = TABLE + (DATA >> 12) * 8;
    memory.poke64(0x10_0000, 1);
    memory.poke64(0x10_1000, 2);
    memory.poke64(DATA, 0);
    memory.program(64, CODE, |a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(r13, qword_ptr(rbx)).unwrap();
        a.mov(qword_ptr(entry), 0x10_0007).unwrap();
        a.invlpg(byte_ptr(rbx + 0x123)).unwrap();
        a.mov(r14, qword_ptr(rbx)).unwrap();
        a.mov(qword_ptr(entry), 0x10_1007).unwrap();
        a.mov(rax, cr3).unwrap();
        a.mov(cr3, rax).unwrap();
        a.mov(r15, qword_ptr(rbx)).unwrap();
        // Code too: the same address, another page.
        a.mov(rcx, DATA + 0x10).unwrap();
        a.call(rcx).unwrap();
        a.mov(qword_ptr(entry), 0x10_0007).unwrap();
        a.invlpg(byte_ptr(rbx)).unwrap();
        a.call(rcx).unwrap();
        a.hlt().unwrap();
    });
    for (page, value) in [(0x10_0000, 11), (0x10_1000, 22)] {
        memory.program(64, page + 0x10, |a| {
            a.shl(r12, 8).unwrap();
            a.or(r12, value).unwrap();
            a.ret().unwrap();
        });
    }
    let mut cpu = memory.processor();
    run_to_halt(&mut cpu, &mut World::default());
    assert_eq!(cpu.general[13..], [0, 1, 2]);
    assert_eq!(cpu.general[12], 22 << 8 | 11);
}

#[test]
fn real_mode_calls_with_32_bit_operands() {
    let memory = Memory::new();
    memory.program(16, 0x6000, |a| {
        // mov eax, 0x6020; call eax; mov ebx, eax; hlt
        a.db(&[0x66, 0xb8, 0x20, 0x60, 0, 0, 0x66, 0xff, 0xd0])
            .unwrap();
        a.mov(ebx, eax).unwrap();
        a.hlt().unwrap();
    });
    memory.program(16, 0x6020, |a| {
        a.mov(eax, 0x1234).unwrap();
        // retl
        a.db(&[0x66, 0xc3]).unwrap();
    });
    let mut cpu = Cpu::new(memory.ram.clone(), Attention::default());
    cpu.init();
    cpu.startup(0);
    cpu.rip = 0x6000;
    cpu.general[4] = 0x5000;
    run_to_halt(&mut cpu, &mut World::default());
    assert_eq!((cpu.general[3], cpu.general[4]), (0x1234, 0x5000));
}
