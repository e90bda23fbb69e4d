//! What user code may not do.

use super::Bench;
use crate::mmu::tests::{CODE, STACK, TSS};
use crate::state::Flow;
use crate::{Fault, Stop};

const GP: Fault = Fault::protection(0);

#[test]
fn user_code_may_not() {
    let instructions: [&[u8]; 20] = [
        &[0xf4],
        &[0xfa],
        &[0xfb],
        &[0x0f, 0x06],
        &[0x0f, 0x08],
        &[0x0f, 0x09],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x22, 0xd8],
        &[0x0f, 0x21, 0xf8],
        &[0x0f, 0x23, 0xf8],
        &[0x0f, 0x30],
        &[0x0f, 0x32],
        &[0x0f, 0x33],
        &[0x0f, 0x01, 0x38],
        &[0x0f, 0x01, 0x10],
        &[0x0f, 0x01, 0xf0],
        &[0x0f, 0x00, 0xd0],
        &[0x0f, 0x00, 0xd8],
        &[0x0f, 0x01, 0xf8],
        &[0xec],
    ];
    for bytes in instructions {
        let mut bench = Bench::long();
        bench.set_cpl(3);
        assert_eq!(bench.run(bytes), Err(GP), "{bytes:x?}");
        assert_eq!(bench.cpu.rip, CODE);
    }
}

#[test]
fn what_does_not_exist_is_undefined() {
    let instructions: [&[u8]; 10] = [
        &[0x0f, 0x01, 0xc8],
        &[0x0f, 0x01, 0xc9],
        &[0x0f, 0x01, 0xd0],
        &[0x0f, 0x01, 0xd1],
        &[0x0f, 0x01, 0xc1],
        &[0x0f, 0x01, 0xd9],
        &[0x0f, 0xaa],
        &[0x0f, 0x01, 0xca],
        &[0x0f, 0x0b],
        &[0x0f, 0xff, 0xc0],
    ];
    for bytes in instructions {
        let mut bench = Bench::long();
        assert_eq!(bench.run(bytes), Err(Fault::UNDEFINED), "{bytes:x?}");
    }
}

#[test]
fn the_io_bitmap_opens_ports() {
    let mut bench = Bench::long();
    // The bitmap starts at 0x68 and closes port 0x3f9 only.
    bench.cpu.tr.limit = 0x68 + 0x80;
    bench.poke64(TSS + 0x60, 0x0068 << 48);
    bench.poke64(TSS + 0x68 + 0x78, 2 << 56);
    bench.set_cpl(3);
    bench.cpu.general[0] = 0xffff_ffff_ffff_ff5a;
    bench.cpu.general[2] = 0x3f8;
    assert_eq!(bench.run(&[0xee]), Ok(Flow::Leave));
    assert_eq!(bench.world.ports, [(0x3f8, 1, Some(0x5a))]);
    assert_eq!(
        bench.run(&[0x66, 0xef]),
        Err(GP),
        "0x3f9 is the second byte"
    );
    bench.cpu.general[2] = 0x3f9;
    assert_eq!(bench.run(&[0xec]), Err(GP));
    bench.cpu.general[2] = 0x3fa;
    assert_eq!(bench.run(&[0xed]), Ok(Flow::Next));
    assert_eq!(bench.cpu.general[0], 0x8765_4321);
    bench.cpu.general[2] = 0x408;
    assert_eq!(bench.run(&[0xec]), Err(GP), "beyond the limit");
    bench.cpu.rflags |= 0x3000;
    assert_eq!(bench.run(&[0xec]), Ok(Flow::Next), "IOPL 3");
    assert_eq!(bench.run(&[0xfa]), Ok(Flow::Next));
}

#[test]
fn flags_change_as_far_as_the_level_goes() {
    for (cpl, popped, expected) in [(0, 0x24_7fd7, 0x24_7fd7), (3, 0x24_7fd7, 0x24_4dd7)] {
        let mut bench = Bench::long();
        bench.set_cpl(cpl);
        bench.poke64(STACK, popped);
        assert_eq!(bench.run(&[0x9d]), Ok(Flow::Leave));
        assert_eq!(bench.cpu.rflags, expected);
        bench.cpu.rflags |= 1 << 16;
        assert_eq!(bench.run(&[0x9c]), Ok(Flow::Next));
        assert_eq!(bench.peek64(STACK), expected, "RF is not pushed");
    }
}

#[test]
fn interrupts_wait_for_the_instruction_after_sti() {
    let mut bench = Bench::long();
    assert_eq!(bench.run(&[0xfb]), Ok(Flow::Leave));
    assert!(bench.cpu.interrupt_shadow);
    bench.cpu.interrupt_shadow = false;
    assert_eq!(bench.run(&[0xfb]), Ok(Flow::Next));
    assert!(!bench.cpu.interrupt_shadow);
    assert_eq!(bench.run(&[0xf4]), Ok(Flow::Stop(Stop::Halted)));
    assert_eq!(bench.cpu.rip, CODE + 3);
}

#[test]
fn user_mode_instruction_prevention_hides_tables() {
    let mut bench = Bench::long();
    bench.cpu.general[0] = 0x6000;
    bench.set_cpl(3);
    for bytes in [
        [0x0f, 0x01, 0x00],
        [0x0f, 0x01, 0x08],
        [0x0f, 0x00, 0xc9],
        [0x0f, 0x01, 0xe1],
    ] {
        bench.cpu.cr4 &= !(1 << 11);
        assert_eq!(bench.run(&bytes), Ok(Flow::Next));
        bench.cpu.cr4 |= 1 << 11;
        assert_eq!(bench.run(&bytes), Err(GP));
    }
}
