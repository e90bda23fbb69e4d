//! SYSCALL and its like, far transfers, segment loads.

use super::Bench;
use crate::mmu::tests::{CODE, CODE0, CODE0_32, CODE3, CODE3_32, DATA0, DATA3, GDT, STACK, TSS};
use crate::state::Flow;
use crate::{Fault, SegmentName};

const RCX: usize = 1;
const RSP: usize = 4;
const R11: usize = 11;

fn selector(bench: &Bench, name: SegmentName) -> u16 {
    bench.cpu.segments[name as usize].selector
}

#[test]
fn syscall_enters_and_sysret_returns() {
    let mut bench = Bench::long();
    bench.cpu.star = 0x0013_0008 << 32;
    bench.cpu.lstar = 0xffff_ffff_8000_0000;
    bench.cpu.sfmask = 0x4_7700;
    bench.set_cpl(3);
    bench.cpu.rflags = 0x4_0346;
    assert_eq!(bench.run(&[0x0f, 0x05]), Ok(Flow::Leave));
    assert_eq!(
        (bench.cpu.general[RCX], bench.cpu.general[R11]),
        (CODE + 2, 0x4_0346)
    );
    assert_eq!(
        (bench.cpu.rip, bench.cpu.rflags),
        (0xffff_ffff_8000_0000, 0x46)
    );
    assert_eq!((bench.cpu.cpl(), selector(&bench, SegmentName::Cs)), (0, 8));
    assert_eq!(selector(&bench, SegmentName::Ss), 0x10);
    bench.cpu.rip = CODE;
    assert_eq!(bench.run(&[0x48, 0x0f, 0x07]), Ok(Flow::Leave));
    assert_eq!(
        (bench.cpu.rip, bench.cpu.rflags, bench.cpu.cpl()),
        (CODE + 2, 0x4_0346, 3)
    );
    assert_eq!(selector(&bench, SegmentName::Cs), 0x23);
    assert_eq!(selector(&bench, SegmentName::Ss), 0x1b);
    assert!(bench.cpu.long_code());
    assert_eq!(bench.run(&[0x48, 0x0f, 0x07]), Err(Fault::protection(0)));
}

#[test]
fn compatibility_code_calls_through_cstar() {
    let mut bench = Bench::long();
    bench.cpu.star = 0x0023_0008 << 32;
    bench.cpu.cstar = 0x7000;
    bench.use_code(CODE3_32);
    assert_eq!(bench.run(&[0x0f, 0x05]), Ok(Flow::Leave));
    assert!(bench.cpu.long_code());
    assert_eq!((bench.cpu.rip, bench.cpu.general[RCX]), (0x7000, CODE + 2));
    assert_eq!(bench.run(&[0x0f, 0x07]), Ok(Flow::Leave));
    assert!(!bench.cpu.long_code());
    assert_eq!(
        (bench.cpu.rip, selector(&bench, SegmentName::Cs)),
        (CODE + 2, 0x23)
    );
    bench.cpu.efer &= !1;
    assert_eq!(bench.run(&[0x0f, 0x05]), Err(Fault::UNDEFINED));
}

#[test]
fn sysenter_in_long_mode_is_the_vendors_matter() {
    let mut bench = Bench::long();
    bench.cpu.sysenter = [8, 0x3_9000, 0x7000];
    bench.use_code(CODE3_32);
    assert_eq!(bench.run(&[0x0f, 0x34]), Err(Fault::UNDEFINED));
    bench.world.intel = true;
    bench.cpu.state_replaced();
    assert_eq!(bench.run(&[0x0f, 0x34]), Ok(Flow::Leave));
    assert_eq!((bench.cpu.rip, bench.cpu.general[RSP]), (0x7000, 0x3_9000));
    assert!(bench.cpu.long_code() && bench.cpu.cpl() == 0);
    (bench.cpu.general[RCX], bench.cpu.general[2]) = (STACK, CODE);
    assert_eq!(bench.run(&[0x0f, 0x35]), Ok(Flow::Leave));
    assert_eq!(
        (bench.cpu.rip, bench.cpu.general[RSP], bench.cpu.cpl()),
        (CODE, STACK, 3)
    );
}

#[test]
fn a_far_jump_leaves_and_enters_64_bit_code() {
    let mut bench = Bench::long();
    bench.poke64(0x6000, 0x0028_0000_7000);
    // jmp far dword [0x6000]
    let jump = [0xff, 0x2c, 0x25, 0, 0x60, 0, 0];
    assert_eq!(bench.run(&jump), Ok(Flow::Leave));
    assert!(!bench.cpu.long_code());
    assert_eq!(
        (bench.cpu.rip, selector(&bench, SegmentName::Cs)),
        (0x7000, CODE0_32)
    );
    assert_eq!(bench.run(&[0xea, 0, 0x80, 0, 0, 0x08, 0]), Ok(Flow::Leave));
    assert!(bench.cpu.long_code());
    assert_eq!(bench.cpu.rip, 0x8000);
}

#[test]
fn far_jumps_are_checked() {
    let check = |target: u16, expected: Fault| {
        let mut bench = Bench::long();
        bench.poke64(0x6000, 0x7000 | u64::from(target) << 32);
        assert_eq!(bench.run(&[0xff, 0x2c, 0x25, 0, 0x60, 0, 0]), Err(expected));
    };
    check(0, Fault::protection(0));
    check(DATA0, Fault::protection(DATA0.into()));
    check(CODE3, Fault::protection(0x18));
    check(0x09, Fault::protection(8));
    check(TASK_SELECTOR, Fault::protection(TASK_SELECTOR.into()));
    check(0x50, Fault::protection(0x50));
}

/// REX.W widens the pointer in memory with what is pushed and loaded.
#[test]
fn far_pointers_have_wide_offsets() {
    let mut bench = Bench::long();
    bench.poke64(0x6000, 0x1_0000_7000);
    bench.poke64(0x6008, CODE0.into());
    assert_eq!(
        bench.run(&[0x48, 0xff, 0x1c, 0x25, 0, 0x60, 0, 0]),
        Ok(Flow::Leave)
    );
    assert_eq!(bench.cpu.rip, 0x1_0000_7000);
    assert_eq!(bench.frame(2), [CODE + 8, u64::from(CODE0)]);
    let mut bench = Bench::long();
    bench.poke64(0x6000, 0x1234_8765_4321);
    bench.poke64(0x6008, DATA0.into());
    assert_eq!(
        bench.run(&[0x48, 0x0f, 0xb5, 0x04, 0x25, 0, 0x60, 0, 0]),
        Ok(Flow::Leave)
    );
    assert_eq!(bench.cpu.general[0], 0x1234_8765_4321);
    assert_eq!(selector(&bench, SegmentName::Gs), DATA0);
}

const TASK_SELECTOR: u16 = crate::mmu::tests::TASK;

#[test]
fn a_call_gate_goes_to_an_inner_level_and_back() {
    let mut bench = Bench::long();
    // A gate to 0x1_0000_7000 in place of the 32-bit code segments.
    bench.poke64(GDT + 0x28, 0x0000_ec00_0008_7000);
    bench.poke64(GDT + 0x30, 1);
    bench.poke32(TSS + 4, 0x3_8000);
    bench.poke64(0x6000, 0x0028_0000_0000);
    bench.set_cpl(3);
    assert_eq!(
        bench.run(&[0xff, 0x1c, 0x25, 0, 0x60, 0, 0]),
        Ok(Flow::Leave)
    );
    assert_eq!((bench.cpu.cpl(), bench.cpu.rip), (0, 0x1_0000_7000));
    let (cs, ss) = (u64::from(CODE3), u64::from(DATA3));
    assert_eq!(bench.frame(4), [CODE + 7, cs, STACK, ss]);
    bench.cpu.rip = CODE;
    assert_eq!(bench.run(&[0x48, 0xcb]), Ok(Flow::Leave));
    assert_eq!(
        (bench.cpu.cpl(), bench.cpu.rip, bench.cpu.general[RSP]),
        (3, CODE + 7, STACK)
    );
    // A jump may not change the level.
    bench.cpu.rip = CODE;
    assert_eq!(
        bench.run(&[0xff, 0x2c, 0x25, 0, 0x60, 0, 0]),
        Err(Fault::protection(8))
    );
}

#[test]
fn a_call_gate_of_protected_mode_copies_parameters() {
    let mut bench = Bench::protected();
    bench.poke64(GDT + 8, 0x0000_ec02_0028_7000);
    bench.poke64(TSS, 0x3_8000 << 32);
    bench.poke64(TSS + 8, DATA0.into());
    bench.poke64(STACK, 0x2222_0000_1111);
    bench.use_code(CODE3_32);
    assert_eq!(bench.run(&[0x9a, 0, 0, 0, 0, 0x0b, 0]), Ok(Flow::Leave));
    assert_eq!((bench.cpu.rip, bench.cpu.cpl()), (0x7000, 0));
    let at = |slot: u64| bench.peek32(0x3_8000 - 24 + 4 * slot);
    let (cs, ss) = (CODE3_32.into(), DATA3.into());
    let frame = [at(0), at(1), at(2), at(3), at(4), at(5)];
    assert_eq!(
        frame,
        [CODE as u32 + 7, cs, 0x1111, 0x2222, STACK as u32, ss]
    );
    assert_eq!(bench.run(&[0xca, 8, 0]), Ok(Flow::Leave));
    assert_eq!((bench.cpu.cpl(), bench.cpu.general[RSP]), (3, STACK + 8));
}

#[test]
fn a_far_call_and_return_at_the_same_level() {
    let mut bench = Bench::long();
    bench.poke64(0x6000, 0x0008_0000_7000);
    assert_eq!(
        bench.run(&[0xff, 0x1c, 0x25, 0, 0x60, 0, 0]),
        Ok(Flow::Leave)
    );
    assert_eq!(bench.peek64(STACK - 8), 0x0008_0002_0007);
    assert_eq!(bench.run(&[0xcb]), Ok(Flow::Leave));
    assert_eq!((bench.cpu.rip, bench.cpu.general[RSP]), (CODE + 7, STACK));
}

#[test]
fn segment_loads_are_checked() {
    let load = |bench: &mut Bench, name: u8, value: u16| {
        bench.cpu.general[0] = value.into();
        // mov sreg, ax
        bench.run(&[0x8e, 0xc0 | name << 3])
    };
    let (es, ss, ds, fs) = (0, 2, 3, 4);
    let mut bench = Bench::long();
    assert_eq!(load(&mut bench, ds, 0), Ok(Flow::Leave));
    assert_eq!(load(&mut bench, ds, DATA3), Ok(Flow::Leave));
    assert_eq!(selector(&bench, SegmentName::Ds), DATA3);
    assert_eq!(load(&mut bench, es, 0x50), Err(Fault::protection(0x50)));
    assert_eq!(
        load(&mut bench, es, TASK_SELECTOR),
        Err(Fault::protection(0x40))
    );
    assert_eq!(
        load(&mut bench, fs, CODE0),
        Ok(Flow::Leave),
        "readable code"
    );
    assert_eq!(load(&mut bench, ss, DATA3), Err(Fault::protection(0x20)));
    assert_eq!(
        load(&mut bench, ss, 0),
        Ok(Flow::Leave),
        "null is a stack for the kernel"
    );
    assert!(bench.cpu.interrupt_shadow);
    assert_eq!(bench.cpu.cpl(), 0);
    bench.poke64(GDT + 0x20, 0x00cf_7200_0000_ffff);
    assert_eq!(load(&mut bench, ds, DATA3), Err(Fault::not_present(0x20)));
    bench.poke64(GDT + 0x20, 0x00cf_f200_0000_ffff);
    bench.set_cpl(3);
    assert_eq!(load(&mut bench, ds, DATA3), Ok(Flow::Leave));
    assert_eq!(bench.peek64(GDT + 0x20), 0x00cf_f300_0000_ffff, "accessed");
    assert_eq!(load(&mut bench, ds, DATA0), Err(Fault::protection(0x10)));
    assert_eq!(load(&mut bench, ss, 3), Err(Fault::protection(0)));
    assert_eq!(load(&mut bench, ss, 0x23), Ok(Flow::Leave));
}

#[test]
fn limits_bound_accesses_outside_64_bit_code() {
    let mut bench = Bench::protected();
    let ds = SegmentName::Ds;
    bench.cpu.segments[ds as usize].limit = 0xfff;
    bench.cpu.segments[ds as usize].base = 0x5000;
    let address =
        |bench: &Bench, offset, size, write| bench.cpu.linear_address(ds, offset, size, write);
    assert_eq!(address(&bench, 0xffc, 4, true), Ok(0x5ffc));
    assert_eq!(address(&bench, 0xffd, 4, true), Err(Fault::protection(0)));
    bench.cpu.segments[ds as usize].access &= !2;
    assert_eq!(address(&bench, 0, 1, true), Err(Fault::protection(0)));
    assert_eq!(address(&bench, 0, 1, false), Ok(0x5000));
    // Growing down: above the limit only.
    bench.cpu.segments[ds as usize].access |= 4;
    assert_eq!(address(&bench, 0xfff, 1, false), Err(Fault::protection(0)));
    assert_eq!(address(&bench, 0x1000, 1, false), Ok(0x6000));
    assert_eq!(
        address(&bench, 0xffff_ffff, 2, false),
        Err(Fault::protection(0))
    );
    let ss = bench
        .cpu
        .linear_address(SegmentName::Ss, 0xffff_fff0, 4, true);
    assert_eq!(ss, Ok(0xffff_fff0));
    bench.cpu.segments[SegmentName::Ss as usize].limit = 10;
    let ss = bench.cpu.linear_address(SegmentName::Ss, 8, 4, true);
    assert_eq!(ss, Err(Fault::stack(0)));
}

#[test]
fn far_pointers_and_pushes_of_segments() {
    let mut bench = Bench::protected();
    bench.poke64(0x6000, 0x0010_dead_beef);
    // les ebx, [0x6000]
    assert_eq!(bench.run(&[0xc4, 0x1d, 0, 0x60, 0, 0]), Ok(Flow::Leave));
    assert_eq!(
        (bench.cpu.general[3], selector(&bench, SegmentName::Es)),
        (0xdead_beef, DATA0)
    );
    assert_eq!(bench.run(&[0x1e]), Ok(Flow::Next));
    assert_eq!(bench.peek32(STACK - 4), DATA0.into());
    assert_eq!(bench.run(&[0x0f, 0xa9]), Ok(Flow::Leave));
    assert_eq!(selector(&bench, SegmentName::Gs), DATA0);
    assert_eq!(bench.cpu.general[RSP], STACK);
    let mut bench = Bench::real();
    bench.cpu.general[0] = 0x1234;
    assert_eq!(bench.run(&[0x8e, 0xd8]), Ok(Flow::Leave));
    assert_eq!(bench.cpu.segments[SegmentName::Ds as usize].base, 0x1_2340);
    assert_eq!(bench.run(&[0xea, 0x10, 0, 0, 0x20]), Ok(Flow::Leave));
    assert_eq!(
        (bench.cpu.rip, selector(&bench, SegmentName::Cs)),
        (0x10, 0x2000)
    );
}
