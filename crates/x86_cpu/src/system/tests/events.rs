//! Exceptions and interrupts: frames, stacks, levels, faults of their delivery.

use super::{Bench, GATE};
use crate::mmu::tests::{CODE, CODE0, CODE0_32, CODE3, CODE3_32, DATA0, DATA3, STACK, TSS};
use crate::state::Flow;
use crate::system::TripleFault;
use crate::{Fault, SegmentName};

const HANDLER: u64 = 0x1234_5678_9abc;
const RSP: usize = 4;

fn deliver(bench: &mut Bench, fault: Fault) -> Result<(), TripleFault> {
    let (cpu, env) = bench.parts();
    cpu.deliver_fault(env, fault)
}

#[test]
fn an_exception_at_the_same_level_pushes_five_values_and_its_error() {
    let mut bench = Bench::long();
    bench.gate64(13, CODE0, HANDLER, GATE, 0);
    bench.cpu.general[RSP] = STACK - 3;
    bench.cpu.rflags = 0x4302;
    deliver(&mut bench, Fault::protection(0x58)).unwrap();
    let cpu = &bench.cpu;
    assert_eq!((cpu.rip, cpu.rflags, cpu.cpl()), (HANDLER, 2, 0));
    assert_eq!(cpu.general[RSP], STACK - 16 - 48);
    let (cs, ss) = (u64::from(CODE0), u64::from(DATA0));
    assert_eq!(bench.frame(6), [0x58, CODE, cs, 0x1_4302, STACK - 3, ss]);
}

#[test]
fn a_trap_gate_keeps_interrupts_on() {
    let mut bench = Bench::long();
    bench.gate64(0x31, CODE0, HANDLER, GATE + 1, 0);
    bench.cpu.rflags = 0x202;
    let (cpu, env) = bench.parts();
    cpu.deliver_interrupt(env, 0x31).unwrap();
    assert_eq!(cpu.rflags, 0x202);
    // An interrupt's frame has no resume flag.
    assert_eq!(bench.frame(3)[2], 0x202);
}

#[test]
fn user_code_changes_to_the_stack_of_the_task_segment() {
    let mut bench = Bench::long();
    bench.gate64(14, CODE0, HANDLER, GATE, 0);
    bench.poke32(TSS + 4, 0x3_8008);
    bench.set_cpl(3);
    deliver(&mut bench, Fault::page(6, 0xdead_b000)).unwrap();
    assert_eq!(bench.cpu.cr2, 0xdead_b000);
    assert_eq!(bench.cpu.cpl(), 0);
    let ss = bench.cpu.segments[SegmentName::Ss as usize];
    assert_eq!((ss.selector, ss.access & 1 << 16), (0, 1 << 16));
    assert_eq!(bench.cpu.general[RSP], 0x3_8000 - 48);
    let (cs, ss) = (u64::from(CODE3), u64::from(DATA3));
    assert_eq!(bench.frame(6), [6, CODE, cs, 0x1_0002, STACK, ss]);
}

#[test]
fn an_interrupt_stack_is_used_at_any_level() {
    for cpl in [0, 3] {
        let mut bench = Bench::long();
        bench.gate64(2, CODE0, HANDLER, GATE, 3);
        // The third one, at offset 0x34.
        bench.poke32(TSS + 0x34, 0x3_9000);
        bench.set_cpl(cpl);
        let (cpu, env) = bench.parts();
        cpu.deliver_nmi(env).unwrap();
        assert!(cpu.nmi_blocked);
        assert_eq!(cpu.general[RSP], 0x3_9000 - 40);
        assert_eq!(bench.run(&[0x48, 0xcf]), Ok(Flow::Leave));
        assert!(!bench.cpu.nmi_blocked);
        assert_eq!((bench.cpu.cpl(), bench.cpu.general[RSP]), (cpl, STACK));
        assert_eq!(bench.cpu.rip, CODE);
    }
}

#[test]
fn software_interrupts_need_the_gates_permission() {
    let mut bench = Bench::long();
    bench.gate64(0x80, CODE0, HANDLER, GATE, 0);
    bench.gate64(0x81, CODE0, HANDLER, GATE | 0x60, 0);
    bench.gate64(3, CODE0, HANDLER, GATE | 0x60, 0);
    bench.poke32(TSS + 4, 0x3_8000);
    bench.set_cpl(3);
    assert_eq!(bench.run(&[0xcd, 0x80]), Err(Fault::protection(0x402)));
    assert_eq!(bench.cpu.rip, CODE);
    assert_eq!(bench.run(&[0xcd, 0x82]), Err(Fault::protection(0x412)));
    assert_eq!(bench.run(&[0xcd, 0x81]), Ok(Flow::Leave));
    assert_eq!((bench.cpu.rip, bench.frame(1)[0]), (HANDLER, CODE + 2));
    bench.set_cpl(3);
    bench.cpu.rip = CODE;
    assert_eq!(bench.run(&[0xcc]), Ok(Flow::Leave));
    assert_eq!(bench.frame(1)[0], CODE + 1);
}

#[test]
fn bad_gates_fault_with_their_vector() {
    let check = |setup: &dyn Fn(&mut Bench), expected: Fault| {
        let mut bench = Bench::long();
        bench.gate64(0x20, CODE0, HANDLER, GATE, 0);
        bench.poke32(TSS + 4, 0x3_8000);
        setup(&mut bench);
        let (cpu, env) = bench.parts();
        let event = super::super::delivery::Event {
            vector: 0x20,
            error: None,
            software: false,
        };
        let (rip, flags, stack) = (cpu.rip, cpu.rflags, cpu.general[RSP]);
        assert_eq!(cpu.deliver(env, event), Err(expected));
        assert_eq!((cpu.rip, cpu.rflags, cpu.general[RSP]), (rip, flags, stack));
    };
    check(
        &|bench| bench.cpu.idt.limit = 0x20e,
        Fault::protection(0x103),
    );
    check(
        &|b| b.gate64(0x20, CODE0, HANDLER, 0x8c, 0),
        Fault::protection(0x103),
    );
    check(
        &|b| b.gate64(0x20, CODE0, HANDLER, 0x0e, 0),
        Fault::not_present(0x103),
    );
    check(
        &|b| b.gate64(0x20, 3, HANDLER, GATE, 0),
        Fault::protection(1),
    );
    check(
        &|b| b.gate64(0x20, DATA0, HANDLER, GATE, 0),
        Fault::protection(0x11),
    );
    check(
        &|b| b.gate64(0x20, CODE3, HANDLER, GATE, 0),
        Fault::protection(0x19),
    );
    check(
        &|b| b.gate64(0x20, CODE0_32, HANDLER, GATE, 0),
        Fault::protection(0x29),
    );
    check(
        &|b| b.gate64(0x20, 0x1000, HANDLER, GATE, 0),
        Fault::protection(0x1001),
    );
    check(
        &|b| b.gate64(0x20, 0x0c, HANDLER, GATE, 0),
        Fault::protection(0x0d),
    );
    check(
        &|b| b.gate64(0x20, CODE0, 1 << 47, GATE, 0),
        Fault::protection(1),
    );
    check(
        &|bench| {
            bench.poke64(crate::mmu::tests::GDT + 8, 0x00af_1b00_0000_ffff);
        },
        Fault::not_present(9),
    );
    check(
        &|bench| {
            bench.set_cpl(3);
            bench.cpu.tr.limit = 10;
        },
        Fault::task_segment(0x41),
    );
    check(
        &|bench| {
            bench.set_cpl(3);
            bench.poke64(TSS + 8, 0x8000);
        },
        Fault::stack(1),
    );
    check(
        &|bench| {
            bench.set_cpl(3);
            bench.poke32(TSS + 4, 0x20_0000);
        },
        Fault::page(2, 0x1f_fff8),
    );
}

#[test]
fn faults_while_delivering_make_double_and_triple_faults() {
    // #PF whose gate is not present: #NP is contributory.
    let mut bench = Bench::long();
    bench.gate64(8, CODE0, HANDLER, GATE, 0);
    deliver(&mut bench, Fault::page(0, 0x1000)).unwrap();
    assert_eq!((bench.cpu.rip, bench.frame(1)[0]), (HANDLER, 0));
    // #GP (0), then #NP: contributory after contributory.
    let mut bench = Bench::long();
    bench.gate64(8, CODE0, HANDLER, GATE, 0);
    deliver(&mut bench, Fault::protection(0)).unwrap();
    assert_eq!(bench.cpu.rip, HANDLER);
    // #UD is benign: what its gate raises is delivered in its place.
    let mut bench = Bench::long();
    bench.gate64(13, CODE0, HANDLER, GATE, 0);
    deliver(&mut bench, Fault::UNDEFINED).unwrap();
    assert_eq!((bench.cpu.rip, bench.frame(1)[0]), (HANDLER, 0x33));
    // An interrupt too.
    let mut bench = Bench::long();
    bench.gate64(13, CODE0, HANDLER, GATE, 0);
    let (cpu, env) = bench.parts();
    cpu.deliver_interrupt(env, 0x40).unwrap();
    assert_eq!(bench.frame(1)[0], 0x203);
    // No gate for the double fault.
    let mut bench = Bench::long();
    assert_eq!(
        deliver(&mut bench, Fault::page(0, 0x1000)),
        Err(TripleFault)
    );
    assert_eq!(deliver(&mut bench, Fault::UNDEFINED), Err(TripleFault));
    bench.cpu.idt.limit = 0;
    assert_eq!(deliver(&mut bench, Fault::DIVIDE), Err(TripleFault));
}

#[test]
fn a_page_fault_on_the_stack_is_a_double_fault_on_its_own_stack() {
    let mut bench = Bench::long();
    bench.gate64(14, CODE0, HANDLER, GATE, 0);
    bench.gate64(8, CODE0, HANDLER + 1, GATE, 1);
    bench.poke32(TSS + 0x24, 0x3_a000);
    bench.cpu.general[RSP] = 0x50_0000;
    deliver(&mut bench, Fault::page(2, 0x77_0000)).unwrap();
    assert_eq!(
        (bench.cpu.rip, bench.cpu.general[RSP]),
        (HANDLER + 1, 0x3_a000 - 48)
    );
    assert_eq!(bench.cpu.cr2, 0x4f_fff8);
}

#[test]
fn compatibility_code_is_interrupted_into_long_mode() {
    let mut bench = Bench::long();
    bench.gate64(0x80, CODE0, HANDLER, GATE | 0x60, 0);
    bench.poke32(TSS + 4, 0x3_8000);
    bench.use_code(CODE3_32);
    assert_eq!(bench.run(&[0xcd, 0x80]), Ok(Flow::Leave));
    assert!(bench.cpu.long_code());
    let (cs, ss) = (u64::from(CODE3_32), u64::from(DATA3));
    assert_eq!(bench.frame(5), [CODE + 2, cs, 2, STACK, ss]);
    assert_eq!(bench.run(&[0x48, 0xcf]), Ok(Flow::Leave));
    assert!(!bench.cpu.long_code());
    assert_eq!((bench.cpu.cpl(), bench.cpu.rip), (3, CODE + 2));
}

#[test]
fn protected_mode_pushes_four_byte_values() {
    let mut bench = Bench::protected();
    bench.gate32(13, CODE0_32, 0x1_2345, GATE);
    deliver(&mut bench, Fault::protection(8)).unwrap();
    assert_eq!(
        (bench.cpu.rip, bench.cpu.general[RSP]),
        (0x1_2345, STACK - 16)
    );
    let at = |offset| bench.peek32(STACK - 16 + offset);
    assert_eq!(
        [at(0), at(4), at(8), at(12)],
        [8, CODE as u32, CODE0_32.into(), 0x1_0002]
    );
    // The handler drops the error code.
    bench.cpu.general[RSP] += 4;
    assert_eq!(bench.run(&[0xcf]), Ok(Flow::Leave));
    assert_eq!((bench.cpu.rip, bench.cpu.rflags), (CODE, 2));
}

#[test]
fn protected_mode_changes_stacks_and_returns() {
    let mut bench = Bench::protected();
    bench.gate32(0x80, CODE0_32, 0x1_2345, GATE | 0x60);
    bench.poke64(TSS, 0x3_8000 << 32);
    bench.poke64(TSS + 8, DATA0.into());
    bench.use_code(CODE3_32);
    assert_eq!(bench.run(&[0xcd, 0x80]), Ok(Flow::Leave));
    let ss = bench.cpu.segments[SegmentName::Ss as usize].selector;
    assert_eq!(
        (bench.cpu.cpl(), ss, bench.cpu.general[RSP]),
        (0, DATA0, 0x3_8000 - 20)
    );
    assert_eq!(bench.peek32(0x3_8000 - 4), DATA3.into());
    assert_eq!(bench.peek32(0x3_8000 - 8), STACK as u32);
    assert_eq!(bench.run(&[0xcf]), Ok(Flow::Leave));
    assert_eq!(
        (bench.cpu.cpl(), bench.cpu.rip, bench.cpu.general[RSP]),
        (3, CODE + 2, STACK)
    );
    // Data segments of level 3 stay.
    assert_eq!(bench.cpu.segments[SegmentName::Ds as usize].selector, DATA3);
    bench.poke64(TSS + 8, 0);
    bench.cpu.rip = CODE;
    assert_eq!(bench.run(&[0xcd, 0x80]), Err(Fault::task_segment(0)));
    bench.poke64(TSS + 8, DATA3.into());
    assert_eq!(bench.run(&[0xcd, 0x80]), Err(Fault::task_segment(0x20)));
}

#[test]
fn real_mode_uses_the_vector_table() {
    let mut bench = Bench::real();
    bench.poke32(0x21 * 4, 0x1000_0042);
    bench.cpu.rflags = 0x202;
    assert_eq!(bench.run(&[0xcd, 0x21]), Ok(Flow::Leave));
    let cs = bench.cpu.segments[SegmentName::Cs as usize];
    assert_eq!(
        (cs.selector, cs.base, bench.cpu.rip),
        (0x1000, 0x1_0000, 0x42)
    );
    assert_eq!((bench.cpu.rflags, bench.cpu.general[RSP]), (2, 0xffea));
    assert_eq!(bench.peek64(0xffe8) >> 16, 0x0202_2000_0002);
    assert_eq!(bench.run(&[0xcf]), Ok(Flow::Leave));
    assert_eq!(
        (bench.cpu.rip, bench.cpu.rflags, bench.cpu.general[RSP]),
        (2, 0x202, 0xfff0)
    );
    bench.cpu.idt.limit = 0x80;
    assert_eq!(bench.run(&[0xcd, 0x21]).unwrap_err().vector, 13);
}

#[test]
fn returns_are_checked() {
    let check = |frame: [u64; 5], expected: Fault| {
        let mut bench = Bench::long();
        for (at, value) in (STACK..).step_by(8).zip(frame) {
            bench.poke64(at, value);
        }
        assert_eq!(bench.run(&[0x48, 0xcf]), Err(expected));
        assert_eq!((bench.cpu.rip, bench.cpu.general[RSP]), (CODE, STACK));
    };
    let (code, data) = (u64::from(CODE3), u64::from(DATA3));
    check([CODE, 0, 2, STACK, data], Fault::protection(0));
    check([CODE, data, 2, STACK, data], Fault::protection(0x20));
    check([1 << 63, code, 2, STACK, data], Fault::protection(0));
    check([CODE, code, 2, STACK, 0], Fault::protection(0));
    check(
        [CODE, code, 2, STACK, DATA0.into()],
        Fault::protection(0x10),
    );
    check([CODE, code - 3, 2, STACK, data], Fault::protection(0x18));
    check([CODE, 0x1008, 2, STACK, data], Fault::protection(0x1008));
    let mut bench = Bench::long();
    bench.cpu.rflags |= 0x4000;
    assert_eq!(bench.run(&[0x48, 0xcf]), Err(Fault::protection(0)));
    bench.cpu.general[RSP] = 0x30_0000;
    bench.cpu.rflags = 2;
    assert_eq!(bench.run(&[0x48, 0xcf]), Err(Fault::page(0, 0x30_0000)));
}

#[test]
fn user_code_returns_with_its_own_rights_to_flags() {
    let mut bench = Bench::long();
    bench.set_cpl(3);
    let frame = [CODE + 9, CODE3.into(), 0x24_7fd7, STACK, DATA3.into()];
    for (at, value) in (STACK..).step_by(8).zip(frame) {
        bench.poke64(at, value);
    }
    bench.run(&[0x48, 0xcf]).unwrap();
    // Neither IF nor IOPL.
    assert_eq!(bench.cpu.rflags, 0x24_4dd7);
}
