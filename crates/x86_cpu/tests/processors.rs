//! Several processors on host threads: atomics, ordering, code that another one changes.

mod board;

use board::{CODE, DATA, Memory, STACK, World, run_to_halt};
use iced_x86::code_asm::*;
use x86_cpu::Cpu;

/// Runs each processor on a thread of its own until it halts.
fn run_all(cpus: &mut [Cpu]) {
    std::thread::scope(|scope| {
        for cpu in cpus {
            scope.spawn(move || run_to_halt(cpu, &mut World::default()));
        }
    });
}

#[test]
fn locked_instructions_of_three_processors_add_up() {
    let memory = Memory::new();
    memory.furnish();
    memory.program(64, CODE, |a| {
        let mut again = a.create_label();
        a.mov(rbx, DATA).unwrap();
        a.mov(ecx, 5000).unwrap();
        a.set_label(&mut again).unwrap();
        a.lock().inc(dword_ptr(rbx)).unwrap();
        a.mov(eax, 1).unwrap();
        a.lock().xadd(qword_ptr(rbx + 8), rax).unwrap();
        // Straddles two pages.
        a.lock().add(dword_ptr(rbx + 0xffe), 1).unwrap();
        a.lock().bts(dword_ptr(rbx + 0x20), ecx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    let mut cpus = [memory.processor(), memory.processor(), memory.processor()];
    run_all(&mut cpus);
    assert_eq!(memory.peek64(DATA) as u32, 15_000);
    assert_eq!(memory.peek64(DATA + 8), 15_000);
    let straddling =
        memory.peek64(DATA + 0xff8) >> 48 | (memory.peek64(DATA + 0x1000) & 0xffff) << 16;
    assert_eq!(straddling, 15_000);
}

/// A spin lock around an unlocked counter.
#[test]
fn a_spin_lock_excludes() {
    let memory = Memory::new();
    memory.furnish();
    memory.program(64, CODE, |a| {
        let (mut again, mut taken) = (a.create_label(), a.create_label());
        a.mov(rbx, DATA).unwrap();
        a.mov(ecx, 2000).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(eax, 1).unwrap();
        a.xchg(dword_ptr(rbx), eax).unwrap();
        a.test(eax, eax).unwrap();
        a.je(taken).unwrap();
        a.pause().unwrap();
        a.jmp(again).unwrap();
        a.set_label(&mut taken).unwrap();
        a.mov(rax, qword_ptr(rbx + 8)).unwrap();
        a.inc(rax).unwrap();
        a.mov(qword_ptr(rbx + 8), rax).unwrap();
        a.mov(dword_ptr(rbx), 0).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    let mut cpus = [memory.processor(), memory.processor()];
    run_all(&mut cpus);
    assert_eq!(memory.peek64(DATA + 8), 4000);
}

/// One processor rewrites a function that the other runs again and again; they hand over by a
/// counter, and the runner serialises with CPUID as the architecture asks.
#[test]
fn code_changed_by_another_processor_runs_after_a_serialising_instruction() {
    const ROUNDS: i32 = 300;
    let memory = Memory::new();
    memory.furnish();
    let function = DATA + 0x3000;
    memory.program(64, function, |a| {
        a.mov(eax, 0).unwrap();
        a.ret().unwrap();
    });
    // The writer: puts n into the function's immediate, publishes n, waits for the echo.
    memory.program(64, CODE, |a| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        a.mov(rbx, DATA).unwrap();
        a.mov(rdi, function).unwrap();
        a.mov(ecx, 1).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(dword_ptr(rdi + 1), ecx).unwrap();
        a.mov(dword_ptr(rbx), ecx).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(rbx + 64), ecx).unwrap();
        a.jne(wait).unwrap();
        a.inc(ecx).unwrap();
        a.cmp(ecx, ROUNDS).unwrap();
        a.jbe(again).unwrap();
        a.hlt().unwrap();
    });
    // The runner: sees n, serialises, calls, counts wrong answers, echoes.
    memory.program(64, CODE + 0x1000, |a| {
        let mut again = a.create_label();
        a.mov(rsi, DATA).unwrap();
        a.mov(rdi, function).unwrap();
        a.mov(r12d, 1).unwrap();
        a.set_label(&mut again).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(rsi), r12d).unwrap();
        a.jne(again).unwrap();
        a.xor(eax, eax).unwrap();
        a.cpuid().unwrap();
        a.call(rdi).unwrap();
        a.xor(ebp, ebp).unwrap();
        a.cmp(eax, r12d).unwrap();
        a.setne(bpl).unwrap();
        a.add(r15d, ebp).unwrap();
        a.mov(dword_ptr(rsi + 64), r12d).unwrap();
        a.inc(r12d).unwrap();
        a.cmp(r12d, ROUNDS).unwrap();
        a.jbe(again).unwrap();
        a.hlt().unwrap();
    });
    let mut cpus = [memory.processor(), memory.processor()];
    cpus[1].rip = CODE + 0x1000;
    cpus[1].general[4] = STACK - 0x1000;
    run_all(&mut cpus);
    assert_eq!(cpus[1].general[12], ROUNDS as u64 + 1);
    assert_eq!(cpus[1].general[15], 0, "calls that ran old code");
}

/// A program that rewrites itself, also within the block that runs.
#[test]
fn a_program_sees_its_own_changes_at_once() {
    let memory = Memory::new();
    memory.furnish();
    memory.program(64, CODE, |a| {
        let (mut again, mut patched) = (a.create_label(), a.create_label());
        a.lea(rbx, qword_ptr(patched)).unwrap();
        a.mov(ecx, 50).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(byte_ptr(rbx + 1), cl).unwrap();
        a.set_label(&mut patched).unwrap();
        a.mov(eax, 0).unwrap();
        a.add(r15, rax).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = memory.processor();
    run_to_halt(&mut cpu, &mut World::default());
    assert_eq!(cpu.general[15], (1..=50).sum::<u64>());
}
