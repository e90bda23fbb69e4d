//! Instructions that are joined with others into one op do what they do one by one.

use super::*;

/// A register other than RSP and RSI, which points to data.
fn register(random: u64) -> AsmRegister64 {
    const ALL: [AsmRegister64; 10] = [rax, rbx, rcx, rdx, rbp, rdi, r8, r9, r12, r15];
    ALL[random as usize % ALL.len()]
}

fn narrow(random: u64) -> AsmRegister32 {
    const ALL: [AsmRegister32; 10] = [eax, ebx, ecx, edx, ebp, edi, r8d, r9d, r12d, r15d];
    ALL[random as usize % ALL.len()]
}

fn byte(random: u64) -> AsmRegister8 {
    const ALL: [AsmRegister8; 6] = [al, bl, cl, dl, dil, r9b];
    ALL[random as usize % ALL.len()]
}

/// Adds one of the instructions that pairs and runs are made of.
fn instruction(a: &mut CodeAssembler, mut random: impl FnMut() -> u64) {
    let (to, from) = (register(random()), register(random()));
    let (to_32, from_32) = (narrow(random()), narrow(random()));
    // At times in two pages.
    let place = rsi + (random() % 64) as i32 - 32;
    let scaled = rsi + r13 * 4 + (random() % 64) as i32 - 32;
    let number = (random() % 200) as i32 - 100;
    match random() % 40 {
        0 => a.mov(to, from),
        1 => a.mov(to_32, from_32),
        2 => a.mov(to, qword_ptr(place)),
        3 => a.mov(to_32, dword_ptr(place)),
        4 => a.mov(byte(random()), byte_ptr(place)),
        5 => a.movzx(to_32, byte_ptr(place)),
        6 => a.movsxd(to, dword_ptr(place)),
        7 => a.mov(qword_ptr(place), from),
        8 => a.mov(dword_ptr(place), from_32),
        9 => a.lea(to, qword_ptr(from + number)),
        10 => a.lea(to_32, dword_ptr(from + number)),
        11 | 12 => (0..1 + random() % 8).try_for_each(|_| a.push(register(random()))),
        13 | 14 => (0..1 + random() % 8).try_for_each(|_| a.pop(register(random()))),
        15 => a.push(rsp),
        16 => a.inc(to),
        17 => a.inc(to_32),
        18 => a.dec(to),
        19 => a.dec(to_32),
        20 => a.sub(to, from),
        21 => a.sub(to_32, from_32),
        22 => a.add(to, from),
        23 => a.xor(to_32, from_32),
        24 => a.and(to_32, number),
        25 => a.and(to, number),
        26 => a.add(to, number),
        27 => a.sub(to, number),
        28 => a.xchg(to, from),
        29 => a.mov(to_32, number),
        30 => a.mov(to, qword_ptr(scaled)),
        31 => a.mov(byte(random()), byte_ptr(scaled)),
        32 => a.movzx(to_32, byte(random())),
        33 => a.lea(to, qword_ptr(from + register(random()) * 8 + number)),
        34 => a.sub(to, qword_ptr(scaled)),
        35 => a.lea(to, qword_ptr(from + register(random()) * 8 + number).fs()),
        36 => a.lea(to, qword_ptr(from + number).gs()),
        37 => a.mov(to, qword_ptr(rsi + r13 * 8).fs()),
        38 => a.sub(to, qword_ptr(rsi).gs()),
        _ => a.sub(to_32, number),
    }
    .unwrap();
}

/// Adds a comparison or none, and a branch over one instruction.
fn branch(a: &mut CodeAssembler, mut random: impl FnMut() -> u64) {
    let mut over = a.create_label();
    let place = rsi + r13 * 4 + (random() % 64) as i32 - 32;
    match random() % 13 {
        0 => a.test(register(random()), register(random())).unwrap(),
        1 => a.test(narrow(random()), narrow(random())).unwrap(),
        2 => a.test(byte(random()), byte(random())).unwrap(),
        3 => a.cmp(register(random()), register(random())).unwrap(),
        4 => a.cmp(narrow(random()), (random() % 9) as i32 - 4).unwrap(),
        5 => a.cmp(byte(random()), (random() % 9) as i32 - 4).unwrap(),
        6 => a.cmp(byte_ptr(rsi), (random() % 9) as i32 - 4).unwrap(),
        7 => a.cmp(byte(random()), byte_ptr(place)).unwrap(),
        8 => a.cmp(register(random()), qword_ptr(place)).unwrap(),
        9 => a.cmp(dword_ptr(place), narrow(random())).unwrap(),
        10 => a.test(dword_ptr(place), (random() % 9) as i32).unwrap(),
        11 => a.sub(register(random()), qword_ptr(place)).unwrap(),
        _ => {}
    }
    match random() % 16 {
        0 => a.jo(over),
        1 => a.jno(over),
        2 => a.jb(over),
        3 => a.jae(over),
        4 => a.je(over),
        5 => a.jne(over),
        6 => a.jbe(over),
        7 => a.ja(over),
        8 => a.js(over),
        9 => a.jns(over),
        10 => a.jp(over),
        11 => a.jnp(over),
        12 => a.jl(over),
        13 => a.jge(over),
        14 => a.jle(over),
        _ => a.jg(over),
    }
    .unwrap();
    instruction(a, &mut random);
    a.set_label(&mut over).unwrap();
    a.nop().unwrap();
}

/// Adds jumps over one instruction, forwards and back.
fn jumps(a: &mut CodeAssembler, mut random: impl FnMut() -> u64) {
    let (mut middle, mut last) = (a.create_label(), a.create_label());
    let mut over = a.create_label();
    a.jmp(last).unwrap();
    a.set_label(&mut middle).unwrap();
    instruction(a, &mut random);
    a.jmp(over).unwrap();
    a.set_label(&mut last).unwrap();
    instruction(a, &mut random);
    a.jmp(middle).unwrap();
    a.set_label(&mut over).unwrap();
    a.nop().unwrap();
}

/// Some hundred instructions in a loop, with calls of a function that keeps registers on the stack,
/// to be put at `base`.
fn program(seed: u64, base: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut assembler = CodeAssembler::new(64).unwrap();
    let a = &mut assembler;
    let (mut again, mut function, mut start) =
        (a.create_label(), a.create_label(), a.create_label());
    a.jmp(start).unwrap();
    a.set_label(&mut function).unwrap();
    for register in [rbx, rbp, r12, r13, r14, r15] {
        a.push(register).unwrap();
    }
    a.mov(r12, rdi).unwrap();
    a.xor(ebx, ebx).unwrap();
    a.add(rax, r12).unwrap();
    for register in [r15, r14, r13, r12, rbp, rbx] {
        a.pop(register).unwrap();
    }
    a.ret().unwrap();
    a.set_label(&mut start).unwrap();
    a.mov(r14d, 3).unwrap();
    a.mov(r13d, 5).unwrap();
    a.set_label(&mut again).unwrap();
    // The stack and the data end and begin in the middle of a page's end.
    a.mov(rsp, STACK + 0x1000 + 24).unwrap();
    a.mov(rsi, DATA + 0x1000).unwrap();
    for _ in 0..60 {
        match random() % 8 {
            0 | 7 => branch(a, &mut random),
            6 => jumps(a, &mut random),
            1 => {
                a.mov(register(random()), register(random())).unwrap();
                a.call(function).unwrap();
            }
            _ => instruction(a, &mut random),
        }
        if random() % 8 == 0 {
            // Pops would go beyond RAM some time, pushes to the data.
            a.mov(rsp, STACK + 0x1000 + 8 * (random() % 8)).unwrap();
        }
    }
    a.dec(r14d).unwrap();
    a.jne(again).unwrap();
    a.hlt().unwrap();
    assembler.assemble(base).unwrap()
}

fn ends_after(base: u64, code: &[u8], slice: u64) -> ([u64; 16], u64, Vec<u64>) {
    let mut machine = Machine::new();
    for at in (0..0x2000_u64).step_by(8) {
        let word = at.wrapping_mul(0x0123_4567_89ab_cdef);
        machine.write(DATA + at, &word.to_le_bytes());
    }
    machine.write(base, code);
    machine.cpu.rip = base;
    (machine.cpu.segments[4].base, machine.cpu.segments[5].base) = (0x38, 0x141);
    machine.cpu.state_replaced();
    for _ in 0..1_000_000 {
        match machine.cpu.run(&mut Nothing, slice) {
            Stop::Halted => {
                let places = (DATA..DATA + 0x2000).chain(STACK..STACK + 0x2000);
                let memory = places.step_by(8).map(|at| machine.read(at)).collect();
                return (machine.cpu.general, machine.cpu.rflags, memory);
            }
            stop => assert_eq!(stop, Stop::Budget),
        }
    }
    panic!("no end in sight at {:#x}", machine.cpu.rip);
}

#[test]
fn joined_instructions_do_what_they_do_one_by_one() {
    for seed in 0..400 {
        // Half of them have branches to another page.
        let base = CODE + [0, 0xe00][seed as usize % 2];
        let code = program(seed, base);
        let expected = ends_after(base, &code, 1);
        for slice in [97, 100_000] {
            assert!(
                ends_after(base, &code, slice) == expected,
                "program {seed}, slices of {slice}"
            );
        }
    }
}

/// Runs code in one half of RAM with the stack at its end to the other half, which is not there.
/// Returns registers, RIP and the words around the end.
fn faults_after(slice: u64, lower: bool, code: &[u8]) -> ([u64; 16], u64, Vec<u64>) {
    const HALF: u64 = 0x20_0000;
    let mut machine = Machine::new();
    let (missing, start, stack) = match lower {
        true => (0x3008, CODE, HALF - 16),
        false => (0x3000, STACK, HALF + 16),
    };
    machine.write(missing, &0_u64.to_le_bytes());
    machine.write(start, code);
    for at in (HALF - 64..HALF + 64).step_by(8) {
        machine.write(at, &(0x11 * at).to_le_bytes());
    }
    for (number, register) in (0x100..).zip(&mut machine.cpu.general) {
        *register = number;
    }
    machine.cpu.general[4] = stack;
    machine.cpu.rip = start;
    loop {
        match machine.cpu.run(&mut Nothing, slice) {
            Stop::Budget => {}
            // There are no handlers: the fault of a fault of a fault.
            Stop::TripleFault => break,
            stop => panic!("{stop:?}"),
        }
    }
    let words = (HALF - 64..HALF + 64).step_by(8);
    let words = words.map(|at| machine.read(at)).collect();
    (machine.cpu.general, machine.cpu.rip, words)
}

#[test]
fn joined_instructions_fault_at_the_one_that_does() {
    let assemble = |write: fn(&mut CodeAssembler)| {
        let mut assembler = CodeAssembler::new(64).unwrap();
        write(&mut assembler);
        assembler.hlt().unwrap();
        assembler.assemble(0).unwrap()
    };
    let pops = assemble(|a| {
        for register in [rax, rbx, rcx, rdx, rbp, rdi] {
            a.pop(register).unwrap();
        }
        a.ret().unwrap();
    });
    let pushes = assemble(|a| {
        for register in [rax, rbx, rcx, rdx, rbp, rdi] {
            a.push(register).unwrap();
        }
    });
    let pairs = assemble(|a| {
        a.mov(rax, rbx).unwrap();
        a.mov(rcx, qword_ptr(rsp)).unwrap();
        a.mov(qword_ptr(rsp + 8), rdi).unwrap();
        a.mov(rdx, qword_ptr(rsp + 24)).unwrap();
    });
    for (lower, code) in [(true, &pops), (false, &pushes), (true, &pairs)] {
        let expected = faults_after(1, lower, code);
        for slice in [300, 100_000] {
            assert_eq!(faults_after(slice, lower, code), expected);
        }
    }
}

#[test]
fn a_pair_that_changes_its_second_half_runs_it_as_changed() {
    // The store of eight bytes puts another instruction over the next one: MOV RAX, RDX for MOV RAX,
    // RBX, with NOPs behind.
    check(7, |a| {
        let mut changed = a.create_label();
        a.mov(ebx, 5).unwrap();
        a.mov(edx, 7).unwrap();
        a.lea(rsi, qword_ptr(changed)).unwrap();
        a.mov(rcx, 0x9090_9090_90d0_8948_u64).unwrap();
        a.mov(qword_ptr(rsi), rcx).unwrap();
        a.set_label(&mut changed).unwrap();
        a.mov(rax, rbx).unwrap();
        for _ in 0..8 {
            a.nop().unwrap();
        }
    });
}

#[test]
fn a_run_of_pushes_over_the_code_behind_it_takes_effect_at_once() {
    check(7, |a| {
        let (mut behind, mut end) = (a.create_label(), a.create_label());
        a.mov(ebx, 5).unwrap();
        a.mov(edx, 7).unwrap();
        a.mov(rcx, 0x9090_9090_90d0_8948_u64).unwrap();
        a.mov(rdi, 0x9090_9090_9090_9090_u64).unwrap();
        a.mov(r8, rsp).unwrap();
        a.lea(rsp, qword_ptr(end)).unwrap();
        a.push(rdi).unwrap();
        a.push(rdi).unwrap();
        a.push(rcx).unwrap();
        a.set_label(&mut behind).unwrap();
        a.mov(rax, rbx).unwrap();
        for _ in 0..21 {
            a.nop().unwrap();
        }
        a.set_label(&mut end).unwrap();
        a.mov(rsp, r8).unwrap();
    });
}

#[test]
fn a_store_over_what_a_jump_leads_to_takes_effect_at_once() {
    check(7, |a| {
        let (mut changed, mut back) = (a.create_label(), a.create_label());
        let mut start = a.create_label();
        a.jmp(start).unwrap();
        a.set_label(&mut back).unwrap();
        a.inc(rbx).unwrap();
        a.jmp(changed).unwrap();
        a.set_label(&mut start).unwrap();
        a.lea(rsi, qword_ptr(changed)).unwrap();
        a.mov(dword_ptr(rsi + 1), 7).unwrap();
        a.jmp(back).unwrap();
        a.set_label(&mut changed).unwrap();
        a.mov(eax, 5).unwrap();
    });
}

#[test]
fn a_loop_of_jumps_ends_with_its_budget() {
    let mut machine = Machine::new();
    // JMP to a JMP back to it.
    machine.write(CODE, &[0xeb, 0x02, 0x90, 0x90, 0xeb, 0xfa]);
    for budget in [1, 2, 500, 10_001] {
        machine.cpu.rip = CODE;
        assert_eq!(machine.cpu.run(&mut Nothing, budget), Stop::Budget);
        assert_eq!(machine.cpu.rip, CODE + 4 * (budget % 2));
    }
}
