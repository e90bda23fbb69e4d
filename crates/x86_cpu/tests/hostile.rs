//! Random code, tables and registers in all modes: whatever they do ends in guest exceptions, a
//! triple fault or the end of the budget.

mod board;

use board::{CODE, GDT, IDT, Memory, ROOT, TABLE, TSS, World};
use proptest::prelude::*;
use x86_cpu::{Cpu, Stop};

/// A stream of numbers from one seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Like pointers and small numbers, at times like nothing.
    fn register(&mut self) -> u64 {
        let value = self.next();
        match value >> 61 {
            0..=3 => value & 0x1f_ffff,
            4 => value & 0xff,
            5 => value | 0xffff_8000_0000_0000,
            6 => value & 0xffff_ffff,
            _ => value,
        }
    }
}

/// Openings of system instructions, so that they come up often.
const OPENINGS: [&[u8]; 40] = [
    &[0x0f, 0x01],
    &[0x0f, 0x00],
    &[0x0f, 0x22],
    &[0x0f, 0x20],
    &[0x0f, 0x23],
    &[0x0f, 0x21],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0x05],
    &[0x0f, 0x07],
    &[0x48, 0x0f, 0x07],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0xcf],
    &[0x48, 0xcf],
    &[0xcb],
    &[0x48, 0xca],
    &[0xff],
    &[0x48, 0xff],
    &[0xcd],
    &[0xcc],
    &[0x8e],
    &[0x8c],
    &[0x0f, 0xa1],
    &[0x0f, 0xb2],
    &[0x9d],
    &[0x9c],
    &[0xf3, 0xa4],
    &[0xf3, 0xa5],
    &[0xf2, 0xae],
    &[0xf3, 0x6c],
    &[0xf3, 0x6e],
    &[0x0f, 0xae],
    &[0xf0, 0x0f, 0xc7],
    &[0xf0, 0x87],
    &[0xc8],
    &[0x0f, 0xc7],
    &[0xd9],
    &[0xdd],
    &[0x66, 0x0f],
];

fn fill(memory: &Memory, numbers: &mut Numbers) {
    for at in (CODE..CODE + 0x2000).step_by(16) {
        let opening = OPENINGS[numbers.next() as usize % OPENINGS.len()];
        let (low, high) = (numbers.next(), numbers.next());
        memory.poke64(at, low);
        memory.poke64(at + 8, high);
        memory.poke(at + (low & 7), opening);
    }
    // Handlers lead back into the random code.
    for vector in 0..=255 {
        if numbers.next() & 7 != 0 {
            let target = CODE + (numbers.next() & 0x1fff);
            memory.gate(
                vector,
                target,
                numbers.next() & 1 == 0,
                numbers.next() as u8 & 1,
            );
        }
    }
    for _ in 0..numbers.next() % 8 {
        let tables = [GDT, IDT, TSS, ROOT, 0x2000, 0x3000, TABLE];
        let table = tables[numbers.next() as usize % tables.len()];
        memory.poke64(table + (numbers.next() & 0x78), numbers.register());
    }
}

fn spoil(cpu: &mut Cpu, numbers: &mut Numbers) {
    for register in &mut cpu.general {
        *register = numbers.register();
    }
    cpu.general[4] = board::STACK - (numbers.next() & 0xff);
    cpu.rflags = numbers.next() & 0x24_7fd5 | 2;
    cpu.lstar = CODE + (numbers.next() & 0xfff);
    cpu.cstar = CODE + (numbers.next() & 0xfff);
    if numbers.next() & 7 == 0 {
        cpu.dr7 = numbers.next() & 0xffff_03ff | 0x400;
        cpu.debug_address = [
            numbers.register(),
            CODE,
            numbers.register(),
            board::STACK - 8,
        ];
    }
    let mode = numbers.next() % 6;
    match mode {
        // 64-bit, at level 0 and 3.
        0 => {}
        1 => {
            let access = [0xc0f3, 0xa0fb];
            for segment in &mut cpu.segments {
                (segment.selector, segment.access) = (board::DATA3, access[0]);
            }
            (cpu.segments[1].selector, cpu.segments[1].access) = (board::CODE3, access[1]);
        }
        // Compatibility mode.
        2 => cpu.segments[1].access = 0xc09b,
        // Protected mode without and with 32-bit paging.
        3 | 4 => {
            cpu.efer &= !0xd00;
            cpu.cr0 = if mode == 3 { 0x33 } else { 0x8001_0033 };
            cpu.cr4 = numbers.next() & 0x6b0;
            cpu.segments[1].access = if numbers.next() & 1 == 0 {
                0xc09b
            } else {
                0x009b
            };
        }
        // Real mode.
        _ => {
            (cpu.efer, cpu.cr0) = (0, 0x12);
            cpu.startup((CODE >> 12) as u8);
        }
    }
    cpu.state_replaced();
}

/// Some by default; as many as PROPTEST_CASES says, by four.
fn cases() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: config.cases / 4,
        failure_persistence: None,
        ..config
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn whatever_runs_ends_within_its_budget(seed in 1..u64::MAX) {
        let mut numbers = Numbers(seed);
        let memory = Memory::new();
        memory.furnish();
        fill(&memory, &mut numbers);
        let mut cpu = memory.processor();
        spoil(&mut cpu, &mut numbers);
        let mut world = World::default();
        for round in 0..40 {
            world.interrupt = (round % 3 == 0).then_some(numbers.next() as u8);
            world.nmi = round % 7 == 0;
            if cpu.run(&mut world, 500) == Stop::TripleFault {
                break;
            }
            // On with another instruction, so that a loop or HLT is not all.
            if round % 4 == 3 {
                cpu.rip = CODE + (numbers.next() & 0x1fff);
                cpu.state_replaced();
            }
        }
        prop_assert!(memory.fences_stand());
    }
}
