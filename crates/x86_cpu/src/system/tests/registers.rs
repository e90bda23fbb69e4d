//! Model-specific, debug and table registers; identity; string I/O; floating-point permission.

use x86_fp::{FpFault, Unit};

use super::Bench;
use crate::mmu::tests::{CODE, CODE0, CODE3, DATA0, DATA3, GDT, TASK, TSS};
use crate::state::Flow;
use crate::{Fault, SegmentName};

const GP: Fault = Fault::protection(0);

fn write_msr(bench: &mut Bench, index: u64, value: u64) -> Result<Flow, Fault> {
    let general = &mut bench.cpu.general;
    (general[0], general[1], general[2]) = (value & 0xffff_ffff, index, value >> 32);
    bench.run(&[0x0f, 0x30])
}

fn read_msr(bench: &mut Bench, index: u64) -> Result<u64, Fault> {
    bench.cpu.general[1] = index;
    bench.run(&[0x0f, 0x32])?;
    Ok(bench.cpu.general[2] << 32 | bench.cpu.general[0])
}

#[test]
fn own_model_specific_registers_read_back() {
    let mut bench = Bench::long();
    let value = 0xffff_8000_1234_5678;
    for index in [0x175, 0x176, 0xc000_0081, 0xc000_0082, 0xc000_0083] {
        write_msr(&mut bench, index, value).unwrap();
        assert_eq!(read_msr(&mut bench, index), Ok(value));
    }
    for index in [0xc000_0100, 0xc000_0101, 0xc000_0102, 0x176, 0xc000_0082] {
        write_msr(&mut bench, index, value + 1).unwrap();
        assert_eq!(read_msr(&mut bench, index), Ok(value + 1));
        assert_eq!(write_msr(&mut bench, index, 1 << 47), Err(GP));
    }
    assert_eq!(bench.cpu.segments[SegmentName::Gs as usize].base, value + 1);
    bench.run(&[0x0f, 0x01, 0xf8]).unwrap();
    write_msr(&mut bench, 0xc000_0103, 3).unwrap();
    assert_eq!(write_msr(&mut bench, 0xc000_0103, 1 << 32), Err(GP));
    assert_eq!(write_msr(&mut bench, 0x277, 0x0606_0606_0606_0602), Err(GP));
    write_msr(&mut bench, 0x277, 0x0706_0504_0100_0606).unwrap();
    assert_eq!(write_msr(&mut bench, 0xc000_0080, 0xd01 | 1 << 12), Err(GP));
    write_msr(&mut bench, 0xc000_0080, 0x101).unwrap();
    assert_eq!(read_msr(&mut bench, 0xc000_0080), Ok(0x501));
}

#[test]
fn other_model_specific_registers_are_the_environments() {
    let mut bench = Bench::long();
    assert_eq!(read_msr(&mut bench, 0x1b), Ok(0xfee0_0900));
    assert_eq!(read_msr(&mut bench, 0x1234), Err(GP));
    assert_eq!(write_msr(&mut bench, 0x6e0, 99), Ok(Flow::Leave));
    assert_eq!(write_msr(&mut bench, 0x6e1, 99), Err(GP));
    assert_eq!(bench.world.msr_writes, [(0x6e0, 99), (0x6e1, 99)]);
}

#[test]
fn swapgs_swaps() {
    let mut bench = Bench::long();
    bench.cpu.kernel_gs_base = 7;
    bench.cpu.segments[SegmentName::Gs as usize].base = 9;
    bench.run(&[0x0f, 0x01, 0xf8]).unwrap();
    assert_eq!(bench.cpu.kernel_gs_base, 9);
    assert_eq!(bench.cpu.segments[SegmentName::Gs as usize].base, 7);
    // rdgsbase rax is off without its bit of CR4.
    assert_eq!(
        bench.run(&[0xf3, 0x48, 0x0f, 0xae, 0xc8]),
        Err(Fault::UNDEFINED)
    );
    bench.cpu.cr4 |= 1 << 16;
    bench.run(&[0xf3, 0x48, 0x0f, 0xae, 0xc8]).unwrap();
    assert_eq!(bench.cpu.general[0], 7);
}

#[test]
fn tables_are_loaded_and_stored() {
    let mut bench = Bench::long();
    bench.poke64(0x6000, 0x5678_0000_0000_00ff);
    bench.poke64(0x6008, 0xffff_ffff_ffff_1234);
    bench.cpu.general[0] = 0x6000;
    // lidt [rax], sidt [rax+16]
    assert_eq!(bench.run(&[0x0f, 0x01, 0x18]), Err(GP), "not canonical");
    bench.poke64(0x6000, 0xffff_8000_0000_00ff);
    bench.poke64(0x6008, 0xffff_ffff_ffff_ffff);
    assert_eq!(bench.run(&[0x0f, 0x01, 0x18]), Ok(Flow::Leave));
    assert_eq!(
        (bench.cpu.idt.limit, bench.cpu.idt.base),
        (0xff, 0xffff_ffff_8000_0000)
    );
    bench.run(&[0x0f, 0x01, 0x48, 16]).unwrap();
    assert_eq!(bench.peek64(0x6010), 0xffff_8000_0000_00ff);
    let mut bench = Bench::protected();
    bench.poke64(0x6000, 0x1234_5678_9abc_0027);
    bench.cpu.general[0] = 0x6000;
    bench.run(&[0x66, 0x0f, 0x01, 0x10]).unwrap();
    assert_eq!((bench.cpu.gdt.limit, bench.cpu.gdt.base), (0x27, 0x78_9abc));
    bench.run(&[0x0f, 0x01, 0x10]).unwrap();
    assert_eq!(bench.cpu.gdt.base, 0x5678_9abc);
}

#[test]
fn task_and_local_table_registers() {
    let mut bench = Bench::long();
    bench.cpu.general[0] = TASK.into();
    bench.poke64(GDT + u64::from(TASK) + 8, 0xffff_ffff);
    assert_eq!(bench.run(&[0x0f, 0x00, 0xd8]), Ok(Flow::Next));
    assert_eq!(bench.cpu.tr.base, 0xffff_ffff_0000_0000 | TSS);
    assert_eq!(bench.cpu.tr.access & 0xf, 0xb);
    assert_eq!(bench.peek64(GDT + u64::from(TASK)) >> 40 & 0xf, 0xb);
    assert_eq!(
        bench.run(&[0x0f, 0x00, 0xd8]),
        Err(Fault::protection(TASK.into())),
        "busy"
    );
    bench.cpu.general[0] = CODE0.into();
    assert_eq!(bench.run(&[0x0f, 0x00, 0xd0]), Err(Fault::protection(8)));
    bench.poke64(GDT + u64::from(TASK), 0x0000_8200_0000_000f | 0x6000 << 16);
    bench.poke64(GDT + u64::from(TASK) + 8, 0);
    bench.cpu.general[0] = TASK.into();
    assert_eq!(bench.run(&[0x0f, 0x00, 0xd0]), Ok(Flow::Next));
    assert_eq!((bench.cpu.ldtr.base, bench.cpu.ldtr.limit), (0x6000, 15));
    // A data segment of the local table.
    bench.poke64(0x6008, 0x00cf_9300_0000_ffff);
    bench.cpu.general[0] = 0x0c;
    assert_eq!(bench.run(&[0x8e, 0xd8]), Ok(Flow::Leave));
    bench.cpu.general[0] = 0x14;
    assert_eq!(bench.run(&[0x8e, 0xd8]), Err(Fault::protection(0x14)));
    bench.cpu.general[0] = 0;
    assert_eq!(bench.run(&[0x0f, 0x00, 0xd0]), Ok(Flow::Next));
    bench.cpu.general[0] = 0x0c;
    assert_eq!(bench.run(&[0x8e, 0xd8]), Err(Fault::protection(0x0c)));
}

#[test]
fn descriptors_are_inspected() {
    let mut bench = Bench::long();
    let mut look = |opcode: u8, selector: u16| {
        bench.cpu.general[0] = 0x1111;
        bench.cpu.general[1] = selector.into();
        bench.run(&[0x0f, opcode, 0xc1]).unwrap();
        (bench.cpu.rflags & 0x40 != 0, bench.cpu.general[0])
    };
    let (lar, lsl) = (2, 3);
    assert_eq!(look(lar, DATA0), (true, 0x00cf_9300 & 0x00ff_ff00));
    assert_eq!(look(lsl, DATA3), (true, 0xffff_ffff));
    assert_eq!(look(lsl, TASK), (true, 0x67));
    assert_eq!(look(lsl, 0), (false, 0x1111));
    assert_eq!(look(lar, 0x1000), (false, 0x1111));
    let mut verify = |write: u8, selector: u16| {
        bench.cpu.general[0] = selector.into();
        bench.run(&[0x0f, 0x00, 0xe0 | write << 3]).unwrap();
        bench.cpu.rflags & 0x40 != 0
    };
    assert!(verify(0, CODE3) && verify(1, DATA3));
    assert!(!verify(1, CODE3) && !verify(0, TASK));
    bench.set_cpl(3);
    bench.cpu.general[0] = DATA0.into();
    bench.run(&[0x0f, 0x00, 0xe0]).unwrap();
    assert_eq!(bench.cpu.rflags & 0x40, 0);
}

#[test]
fn identity_time_and_chance() {
    let mut bench = Bench::long();
    bench.cpu.general[0] = 0xffff_ffff_0000_1234;
    assert_eq!(bench.run(&[0x0f, 0xa2]), Ok(Flow::Next));
    assert_eq!(bench.cpu.general[..4], [0x1234, 2, 3, 1]);
    bench.cpu.tsc_aux = 5;
    bench.run(&[0x0f, 0x01, 0xf9]).unwrap();
    assert_eq!(bench.cpu.general[..3], [2, 5, 1]);
    bench.cpu.rflags = 0x8d7;
    // rdrand eax
    bench.run(&[0x0f, 0xc7, 0xf0]).unwrap();
    assert_eq!((bench.cpu.general[0], bench.cpu.rflags), (0x9abc_def0, 3));
    bench.cpu.cr4 |= 4;
    bench.run(&[0x0f, 0x31]).unwrap();
    bench.set_cpl(3);
    assert_eq!(bench.run(&[0x0f, 0x31]), Err(GP));
}

#[test]
fn debug_registers_and_their_guard() {
    let mut bench = Bench::long();
    bench.cpu.general[0] = 0xffff;
    // mov dr7, rax; mov dr6, rax; mov dr4, rax
    bench.run(&[0x0f, 0x23, 0xf8]).unwrap();
    assert_eq!(bench.cpu.dr7, 0x27ff);
    assert_eq!(bench.run(&[0x0f, 0x23, 0xf0]), Err(Fault::debug(1 << 13)));
    bench.cpu.dr7 = 0x400;
    bench.run(&[0x0f, 0x23, 0xf0]).unwrap();
    assert_eq!(bench.cpu.dr6, 0xffff_efff);
    bench.cpu.cr4 |= 8;
    assert_eq!(bench.run(&[0x0f, 0x23, 0xe0]), Err(Fault::UNDEFINED));
    bench.cpu.general[0] = 1 << 32;
    assert_eq!(bench.run(&[0x0f, 0x23, 0xf8]), Err(GP));
}

#[test]
fn breakpoints_and_steps_are_reported() {
    let mut bench = Bench::long();
    let cpu = &mut bench.cpu;
    assert!(!cpu.stepping());
    cpu.debug_address[2] = CODE;
    cpu.dr7 |= 1 << 4;
    assert!(cpu.stepping());
    assert_eq!(cpu.before_step(), Err(Fault::debug(4)));
    cpu.rflags |= 1 << 16;
    assert_eq!(cpu.before_step(), Ok(false), "the resume flag lets it pass");
    assert_eq!(cpu.rflags, 2);
    assert_eq!(cpu.after_step(false), None);
    cpu.dr7 = 0x400;
    cpu.rflags |= 1 << 8;
    assert!(cpu.stepping());
    assert_eq!(cpu.before_step(), Ok(true));
    let trap = cpu.after_step(true).unwrap();
    assert_eq!(trap, Fault::debug(1 << 14));
    bench.gate64(1, CODE0, 0x7000, super::GATE, 0);
    let (cpu, env) = bench.parts();
    cpu.deliver_fault(env, trap).unwrap();
    assert_eq!((cpu.dr6, cpu.rflags), (0xffff_4ff0, 2));
    assert_eq!(bench.frame(3)[2], 0x102);
}

#[test]
fn string_io_moves_and_can_be_interrupted() {
    let mut bench = Bench::long();
    let general = &mut bench.cpu.general;
    (general[1], general[2], general[6], general[7]) = (100, 0x3f8, 0x6000, 0x7000);
    // rep insd
    assert_eq!(bench.run(&[0xf3, 0x6d]), Ok(Flow::Leave));
    assert_eq!((bench.cpu.general[1], bench.cpu.rip), (36, CODE));
    assert_eq!(bench.run(&[0xf3, 0x6d]), Ok(Flow::Leave));
    assert_eq!((bench.cpu.general[1], bench.cpu.rip), (0, CODE + 2));
    assert_eq!(bench.cpu.general[7], 0x7000 + 400);
    assert_eq!(bench.peek32(0x7000 + 396), 0x8765_4321);
    bench.poke64(0x6000, 0x4142);
    bench.world.ports.clear();
    bench.cpu.rflags |= 1 << 10;
    assert_eq!(bench.run(&[0x6e]), Ok(Flow::Leave));
    assert_eq!(bench.world.ports, [(0x3f8, 1, Some(0x42))]);
    assert_eq!(bench.cpu.general[6], 0x5fff);
    // A fault keeps what was done before it.
    bench.cpu.rflags = 2;
    let general = &mut bench.cpu.general;
    (general[1], general[7]) = (10, 0xf_fff8);
    assert_eq!(bench.run(&[0xf3, 0x6d]), Err(Fault::page(2, 0x10_0000)));
    assert_eq!((bench.cpu.general[1], bench.cpu.general[7]), (8, 0x10_0000));
}

#[test]
fn floating_point_needs_its_control_bits() {
    let mut bench = Bench::long();
    let cpu = &mut bench.cpu;
    let all =
        |cpu: &crate::Cpu| [Unit::X87, Unit::Mmx, Unit::Sse].map(|unit| cpu.fp_allowed(unit).err());
    assert_eq!(all(cpu), [None; 3]);
    cpu.cr0 |= 8;
    assert_eq!(all(cpu), [Some(Fault::NO_FPU); 3]);
    assert!(cpu.wait_allowed().is_ok());
    cpu.cr0 |= 2;
    assert_eq!(cpu.wait_allowed(), Err(Fault::NO_FPU));
    cpu.cr0 |= 4;
    let undefined = Some(Fault::UNDEFINED);
    assert_eq!(all(cpu), [Some(Fault::NO_FPU), undefined, undefined]);
    cpu.cr0 = 0x8000_0031;
    cpu.cr4 &= !(1 << 9);
    assert_eq!(all(cpu), [None, None, undefined]);
    assert_eq!(cpu.fp_fault(FpFault::Simd), Fault::SIMD);
    cpu.cr4 &= !(1 << 10);
    assert_eq!(cpu.fp_fault(FpFault::Simd), Fault::UNDEFINED);
    assert_eq!(cpu.fp_fault(FpFault::X87), Fault::X87);
}
