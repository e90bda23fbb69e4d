//! The way from real mode to long mode and back, INIT, start-up.

use super::Bench;
use crate::mmu::tests::{CODE, CODE0, CODE0_32};
use crate::state::Flow;
use crate::{Fault, SegmentName};

fn set_control(bench: &mut Bench, number: u8, value: u64) -> Result<Flow, Fault> {
    bench.cpu.general[0] = value;
    // mov crN, rax
    bench.run(&[0x0f, 0x22, 0xc0 | number << 3])
}

#[test]
fn real_mode_to_long_mode_and_back() {
    let mut bench = Bench::long();
    let tables = bench.cpu.cr3;
    bench.cpu.init();
    bench.cpu.startup((CODE >> 12) as u8);
    bench.cpu.gdt.base = crate::mmu::tests::GDT;
    bench.cpu.gdt.limit = 0x4f;
    set_control(&mut bench, 0, 0x11).unwrap();
    assert_eq!(bench.cpu.cpl(), 0);
    // 16-bit code still: jmp dword 0x28:CODE
    let jump = [0x66, 0xea, 0, 0, 2, 0, CODE0_32 as u8, 0];
    assert_eq!(bench.run(&jump), Ok(Flow::Leave));
    assert_eq!(bench.cpu.rip, CODE);
    set_control(&mut bench, 4, 0x20).unwrap();
    set_control(&mut bench, 3, tables).unwrap();
    bench.cpu.general[1] = 0xc000_0080;
    (bench.cpu.general[0], bench.cpu.general[2]) = (0x901, 0);
    assert_eq!(bench.run(&[0x0f, 0x30]), Ok(Flow::Leave));
    assert_eq!(bench.cpu.efer, 0x901);
    set_control(&mut bench, 0, 0x8001_0011).unwrap();
    assert_eq!(bench.cpu.efer, 0xd01);
    assert!(!bench.cpu.long_code());
    bench.cpu.rip = CODE;
    assert_eq!(
        bench.run(&[0xea, 0, 0, 2, 0, CODE0 as u8, 0]),
        Ok(Flow::Leave)
    );
    assert!(bench.cpu.long_code());
    let (cpu, env) = bench.parts();
    assert_eq!(
        cpu.load::<u8>(env, 0x10_0000).unwrap_err(),
        Fault::page(0, 0x10_0000)
    );
    // In long mode neither PAE nor LME may go, nor may 64-bit code stop paging.
    assert_eq!(set_control(&mut bench, 4, 0), Err(Fault::protection(0)));
    assert_eq!(set_control(&mut bench, 0, 0x11), Err(Fault::protection(0)));
    (bench.cpu.general[0], bench.cpu.general[2]) = (0x801, 0);
    assert_eq!(bench.run(&[0x0f, 0x30]), Err(Fault::protection(0)));
    bench.use_code(CODE0_32);
    set_control(&mut bench, 0, 0x11).unwrap();
    assert_eq!(bench.cpu.efer, 0x901);
    set_control(&mut bench, 0, 0x10).unwrap();
    assert_eq!(bench.run(&[0xea, 0, 0, 2, 0, 0, 0x10]), Ok(Flow::Leave));
}

#[test]
fn control_registers_refuse_what_does_not_exist() {
    let mut bench = Bench::long();
    for (number, value) in [
        (0, 1 << 32 | 0x8000_0031),
        (0, 0x8000_0030),
        (0, 0xa000_0031),
        (3, 1 << 45),
        (4, 0x6a0 | 1 << 21),
        (4, 0x6a0 | 1 << 13),
        (4, 0x6a0 | 1 << 63),
    ] {
        assert_eq!(
            set_control(&mut bench, number, value),
            Err(Fault::protection(0))
        );
    }
    assert_eq!(set_control(&mut bench, 1, 0), Err(Fault::UNDEFINED));
    // mov cr8, rax; mov rax, cr8
    bench.cpu.general[0] = 16;
    assert_eq!(
        bench.run(&[0x44, 0x0f, 0x22, 0xc0]),
        Err(Fault::protection(0))
    );
    bench.cpu.general[0] = 9;
    assert_eq!(bench.run(&[0x44, 0x0f, 0x22, 0xc0]), Ok(Flow::Leave));
    assert_eq!(bench.world.priority, 9);
    bench.cpu.general[0] = 0;
    assert_eq!(bench.run(&[0x44, 0x0f, 0x20, 0xc0]), Ok(Flow::Next));
    assert_eq!(bench.cpu.general[0], 9);
}

#[test]
fn write_protection_takes_effect_at_once() {
    let mut bench = Bench::long();
    bench.poke64(crate::mmu::tests::TABLE + 0x50 * 8, 0x5_0001);
    set_control(&mut bench, 0, 0x8000_0031).unwrap();
    let (cpu, env) = bench.parts();
    cpu.store::<u8>(env, 0x5_0000, 1).unwrap();
    set_control(&mut bench, 0, 0x8001_0031).unwrap();
    let (cpu, env) = bench.parts();
    assert_eq!(
        cpu.store::<u8>(env, 0x5_0000, 1),
        Err(Fault::page(3, 0x5_0000))
    );
}

#[test]
fn status_words_and_the_task_switched_flag() {
    let mut bench = Bench::long();
    bench.cpu.general[0] = 0xe;
    // lmsw ax: protection stays.
    assert_eq!(bench.run(&[0x0f, 0x01, 0xf0]), Ok(Flow::Leave));
    assert_eq!(bench.cpu.cr0, 0x8001_003f);
    bench.run(&[0x0f, 0x06]).unwrap();
    assert_eq!(bench.cpu.cr0, 0x8001_0037);
    // smsw rcx
    bench.run(&[0x48, 0x0f, 0x01, 0xe1]).unwrap();
    assert_eq!(bench.cpu.general[1], 0x8001_0037);
}

#[test]
fn init_keeps_what_it_must() {
    let mut bench = Bench::long();
    bench.cpu.star = 5;
    bench.cpu.pat = 0x0606_0606_0606_0606;
    bench.cpu.fp.xmm[3] = 7;
    bench.cpu.init();
    assert_eq!(
        (bench.cpu.efer, bench.cpu.cr0 & 0x8000_0001, bench.cpu.cr4),
        (0, 0, 0)
    );
    assert_eq!((bench.cpu.rip, bench.cpu.rflags), (0xfff0, 2));
    assert_eq!((bench.cpu.star, bench.cpu.fp.xmm[3]), (5, 7));
    bench.cpu.startup(0x9a);
    let cs = bench.cpu.segments[SegmentName::Cs as usize];
    assert_eq!((cs.selector, cs.base, bench.cpu.rip), (0x9a00, 0x9_a000, 0));
    bench.cpu.reset();
    assert_eq!((bench.cpu.star, bench.cpu.fp.xmm[3]), (0, 0));
    assert_eq!(bench.cpu.pat, 0x0007_0406_0007_0406);
    assert_eq!(bench.cpu.cr0, 0x6000_0010);
}
