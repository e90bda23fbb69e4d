//! Instructions that begin in one page and end in the next: either page may change.

use iced_x86::code_asm::*;

use super::{CODE, Machine};
use crate::interp::operand::{RAX, RBX, RDX};

/// The page table's entry of the second 2 MiB, and a table for it.
const DIRECTORY_ENTRY: u64 = 0x3008;
const TABLE: u64 = 0x5000;
/// Where two pages are mapped one behind the other.
const PAIR: u64 = 0x20_0000;
/// The first of them, and two that take turns as the second.
const FIRST: u64 = 0x30_0000;
const SECONDS: [u64; 2] = [0x30_2000, 0x30_3000];
/// `mov eax, N` with two bytes in the first page.
const PLACE: u64 = 0xffe;

/// A machine with `mov eax, 5 | HIGH << 8; ret` across two pages; HIGH is 0 or 1 by the second page.
fn machine() -> Machine {
    let mut machine = Machine::new();
    machine.write(DIRECTORY_ENTRY, &(TABLE | 3).to_le_bytes());
    for page in 0..512 {
        let entry = (PAIR + page * 0x1000) | 3;
        machine.write(TABLE + page * 8, &entry.to_le_bytes());
    }
    machine.write(TABLE, &(FIRST | 3).to_le_bytes());
    machine.write(TABLE + 8, &(SECONDS[0] | 3).to_le_bytes());
    machine.write(FIRST + PLACE, &[0xb8, 5]);
    for (high, page) in SECONDS.into_iter().enumerate() {
        machine.write(page, &[high as u8, 0, 0, 0xc3]);
    }
    machine
}

/// Calls it often, changes the second page's mapping or content by `change`, calls it again.
fn called_before_and_after(change: impl Fn(&mut CodeAssembler)) {
    for slice in [1, 3, 100_000] {
        let mut machine = machine();
        machine.run(slice, |a| {
            let mut top = a.create_label();
            a.mov(ecx, 100).unwrap();
            a.mov(edi, PAIR as u32 + PLACE as u32).unwrap();
            a.set_label(&mut top).unwrap();
            a.call(rdi).unwrap();
            a.call(PAIR + PLACE).unwrap();
            a.dec(ecx).unwrap();
            a.jnz(top).unwrap();
            a.mov(ebx, eax).unwrap();
            change(a);
            a.call(rdi).unwrap();
            a.mov(edx, eax).unwrap();
            a.call(PAIR + PLACE).unwrap();
        });
        let general = machine.cpu.general;
        let values = (general[RBX], general[RDX], general[RAX]);
        assert_eq!(values, (5, 0x105, 0x105), "slices of {slice}");
    }
}

#[test]
fn the_second_page_is_mapped_elsewhere() {
    called_before_and_after(|a| {
        a.mov(esi, TABLE as u32 + 8).unwrap();
        a.mov(dword_ptr(rsi), SECONDS[1] as i32 | 3).unwrap();
        a.mov(esi, PAIR as u32 + 0x1000).unwrap();
        a.invlpg(ptr(rsi)).unwrap();
    });
}

#[test]
fn all_is_mapped_anew() {
    called_before_and_after(|a| {
        a.mov(esi, TABLE as u32 + 8).unwrap();
        a.mov(dword_ptr(rsi), SECONDS[1] as i32 | 3).unwrap();
        a.mov(rsi, cr3).unwrap();
        a.mov(cr3, rsi).unwrap();
    });
}

#[test]
fn the_second_page_is_written_to() {
    called_before_and_after(|a| {
        a.mov(esi, SECONDS[0] as u32).unwrap();
        a.mov(byte_ptr(rsi), 1).unwrap();
    });
}

#[test]
fn a_loop_begins_with_one() {
    // The loop's first instruction straddles: its branch back and what is before it lead to one.
    for slice in [1, 5, 1000] {
        let mut machine = Machine::new();
        let mut code = vec![0x90; 0xffd];
        // xor eax, eax; mov edx, 3
        code[..7].copy_from_slice(&[0x31, 0xc0, 0xba, 3, 0, 0, 0]);
        code.extend([0x48, 0x83, 0xc0, 7]); // add rax, 7
        code.extend([0xff, 0xca]); // dec edx
        code.extend([0x75, 0xf8]); // jnz to the addition
        let end = CODE + code.len() as u64;
        code.extend([0xeb, 0xfe]);
        machine.write(CODE, &code);
        while machine.cpu.rip != end {
            machine.cpu.run(&mut super::Nothing, slice);
        }
        assert_eq!(machine.cpu.general[0], 21, "slices of {slice}");
    }
}
