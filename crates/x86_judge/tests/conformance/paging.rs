//! Paging: error codes, accessed and dirty bits, invalidation, changed code.

use iced_x86::code_asm::gpr32::*;
use iced_x86::code_asm::gpr64::{rax, rcx, rdi, rdx};
use iced_x86::code_asm::{al, byte_ptr, cr0, cr3, cr4, dword_ptr, ptr, qword_ptr};

use crate::Case;
use crate::kit::{
    ACCESSED, Check, DIRTY, GLOBAL, Kit, NO_EXECUTE, PAGE_TABLES, PRESENT, SCRATCH, USER, WRITABLE,
};

pub const CASES: &[Case] = &[
    ("page_fault_error_codes", page_fault_error_codes),
    ("reserved_bit_in_an_entry", reserved_bit_in_an_entry),
    ("write_protection_off", write_protection_off),
    ("accessed_and_dirty_bits", accessed_and_dirty_bits),
    ("access_over_two_pages", access_over_two_pages),
    ("invlpg_drops_a_translation", invlpg_drops_a_translation),
    ("cr3_load_drops_translations", cr3_load_drops_translations),
    ("global_pages_go_with_pge", global_pages_go_with_pge),
    ("changed_code_runs", changed_code_runs),
    (
        "code_changed_through_an_alias",
        code_changed_through_an_alias,
    ),
    (
        "repeated_store_stops_at_the_page",
        repeated_store_stops_at_the_page,
    ),
    ("upper_levels_restrict", upper_levels_restrict),
];

const PAGE: u64 = 4096;
const RET: u64 = 0xc3;

fn scratch(index: u64) -> u64 {
    SCRATCH + index * PAGE
}

/// What an access does.
#[derive(Clone, Copy, PartialEq)]
enum Access {
    Read,
    Write,
    Execute,
}

fn access(kit: &mut Kit, address: u64, access: Access) {
    emit!(kit; mov(rcx, address));
    kit.mark();
    match access {
        Access::Read => kit.asm.mov(al, byte_ptr(rcx)).unwrap(),
        Access::Write => kit.asm.mov(byte_ptr(rcx), 1).unwrap(),
        Access::Execute => kit.asm.jmp(rcx).unwrap(),
    }
}

fn page_fault_error_codes(kit: &mut Kit) -> Check {
    use Access::{Execute, Read, Write};
    let bits = [
        0,
        PRESENT,
        PRESENT | WRITABLE | USER | NO_EXECUTE,
        PRESENT | USER,
    ];
    for (index, bits) in bits.into_iter().enumerate() {
        kit.map(scratch(index as u64), scratch(index as u64) | bits);
    }
    // Page, access, whether by user mode, error code.
    let expected = [
        (0, Read, false, 0x00),
        (0, Write, false, 0x02),
        (0, Execute, false, 0x10),
        (0, Read, true, 0x04),
        (0, Write, true, 0x06),
        (0, Execute, true, 0x14),
        (1, Write, false, 0x03),
        (1, Read, true, 0x05),
        (1, Write, true, 0x07),
        (1, Execute, true, 0x15),
        (2, Execute, false, 0x11),
        (2, Execute, true, 0x15),
        (3, Write, false, 0x03),
        (3, Write, true, 0x07),
    ];
    let traps = expected.map(|(page, kind, user, _)| {
        let address = scratch(page) + 0x123;
        if user {
            kit.user_trap(|kit| access(kit, address, kind))
        } else {
            kit.trap(|kit| access(kit, address, kind))
        }
    });
    Box::new(move |outcome| {
        for (trap, (page, kind, user, error)) in traps.into_iter().zip(expected) {
            let address = scratch(page) + 0x123;
            let record = outcome.record(trap);
            let place = format!("page {page}, user {user}, {record:x?}");
            assert_eq!(
                (record.vector, record.error, record.cr2),
                (14, error, address),
                "{place}"
            );
            let rip = if kind == Execute {
                address
            } else {
                outcome.mark(trap)
            };
            assert_eq!(record.rip, rip, "{place}");
        }
    })
}

fn reserved_bit_in_an_entry(kit: &mut Kit) -> Check {
    // Bit 7 is reserved in the highest table.
    kit.word(PAGE_TABLES + 8, 0x2000 | PRESENT | WRITABLE | USER | 0x80);
    let address = 1 << 39;
    let kernel = kit.trap(|kit| access(kit, address, Access::Read));
    let user = kit.user_trap(|kit| access(kit, address, Access::Write));
    Box::new(move |outcome| {
        outcome.page_faults(kernel, 0x09, address);
        outcome.page_faults(user, 0x0f, address);
    })
}

fn write_protection_off(kit: &mut Kit) -> Check {
    const WP: i32 = 1 << 16;
    kit.map(SCRATCH, SCRATCH | PRESENT | USER);
    emit!(kit; mov(rax, cr0); and(rax, !WP); mov(cr0, rax));
    emit!(kit; mov(rcx, SCRATCH); mov(dword_ptr(rcx), 0x77));
    let user = kit.user_trap(|kit| access(kit, SCRATCH, Access::Write));
    emit!(kit; mov(rax, cr0); or(rax, WP); mov(cr0, rax));
    let kernel = kit.trap(|kit| access(kit, SCRATCH, Access::Write));
    Box::new(move |outcome| {
        assert_eq!(outcome.word(SCRATCH), 0x77);
        outcome.page_faults(user, 7, SCRATCH);
        outcome.page_faults(kernel, 3, SCRATCH);
    })
}

fn accessed_and_dirty_bits(kit: &mut Kit) -> Check {
    kit.map(scratch(2), scratch(2) | PRESENT | USER);
    emit!(kit; mov(rcx, scratch(0)); mov(al, byte_ptr(rcx)));
    emit!(kit; mov(rcx, scratch(1)); mov(byte_ptr(rcx), 1));
    // Read, then written through the same translation.
    emit!(kit; mov(rcx, scratch(4)); mov(al, byte_ptr(rcx)); mov(byte_ptr(rcx), 1));
    let refused = kit.trap(|kit| access(kit, scratch(2), Access::Write));
    Box::new(move |outcome| {
        let bits = |page| outcome.word(Kit::entry_of(scratch(page))) & (ACCESSED | DIRTY);
        assert_eq!(bits(0), ACCESSED, "read");
        assert_eq!(bits(1), ACCESSED | DIRTY, "written");
        outcome.page_faults(refused, 3, scratch(2));
        assert_eq!(bits(2) & DIRTY, 0, "a write that was refused");
        assert_eq!(bits(3), 0, "never touched");
        assert_eq!(bits(4), ACCESSED | DIRTY, "read, then written");
        assert_ne!(outcome.word(PAGE_TABLES) & ACCESSED, 0, "upper levels too");
    })
}

fn access_over_two_pages(kit: &mut Kit) -> Check {
    kit.map(scratch(1), 0);
    kit.map(scratch(3), scratch(3) | PRESENT);
    let read = kit.trap(|kit| {
        emit!(kit; mov(rcx, scratch(1) - 3));
        kit.mark();
        emit!(kit; mov(rax, qword_ptr(rcx)));
    });
    let write = kit.trap(|kit| {
        emit!(kit; mov(rcx, scratch(3) - 3); mov(rax, u64::MAX));
        kit.mark();
        emit!(kit; mov(qword_ptr(rcx), rax));
    });
    Box::new(move |outcome| {
        outcome.page_faults(read, 0, scratch(1));
        outcome.page_faults(write, 3, scratch(3));
        assert_eq!(outcome.word(scratch(3) - 8), 0, "nothing is half written");
    })
}

/// Reads through a page, points its entry elsewhere, has `drop` invalidate it and reads again.
fn remapped(kit: &mut Kit, bits: u64, drop: fn(&mut Kit)) -> Check {
    let entry = |page: u64| scratch(page) | PRESENT | WRITABLE | bits;
    kit.map(scratch(0), entry(1));
    kit.word(scratch(1), 0x1111);
    kit.word(scratch(2), 0x2222);
    emit!(kit; mov(rcx, scratch(0)); mov(rax, qword_ptr(rcx)));
    let before = kit.keep();
    emit!(kit; mov(rdx, Kit::entry_of(scratch(0))); mov(rax, entry(2)));
    emit!(kit; mov(qword_ptr(rdx), rax); mov(rcx, scratch(0)));
    drop(kit);
    emit!(kit; mov(rax, qword_ptr(rcx)); mov(dword_ptr(rcx + 8), 0x3333));
    let after = kit.keep();
    Box::new(move |outcome| {
        assert_eq!(outcome.value(before), 0x1111);
        assert_eq!(outcome.value(after), 0x2222);
        assert_eq!(outcome.word(scratch(2) + 8), 0x3333);
    })
}

fn invlpg_drops_a_translation(kit: &mut Kit) -> Check {
    remapped(kit, GLOBAL, |kit| kit.asm.invlpg(ptr(rcx)).unwrap())
}

fn cr3_load_drops_translations(kit: &mut Kit) -> Check {
    remapped(kit, 0, |kit| {
        emit!(kit; mov(rax, cr3); mov(cr3, rax));
    })
}

fn global_pages_go_with_pge(kit: &mut Kit) -> Check {
    remapped(kit, GLOBAL, |kit| {
        emit!(kit; mov(rax, cr4); xor(eax, 0x80); mov(cr4, rax); xor(eax, 0x80); mov(cr4, rax));
    })
}

fn changed_code_runs(kit: &mut Kit) -> Check {
    // MOV EAX, imm32; RET, whose operand changes.
    kit.word(SCRATCH, 0xb8 | 0x11 << 8 | RET << 40);
    emit!(kit; mov(rdi, SCRATCH); call(rdi));
    let first = kit.keep();
    emit!(kit; mov(byte_ptr(rdi + 1), 0x22); call(rdi));
    let second = kit.keep();
    // Many times, so that the code is hot before it changes.
    let mut again = kit.asm.create_label();
    emit!(kit; mov(ecx, 1000));
    kit.asm.set_label(&mut again).unwrap();
    emit!(kit; call(rdi); dec(ecx); jne(again));
    emit!(kit; mov(dword_ptr(rdi + 1), 0x4433); call(rdi));
    let third = kit.keep();
    Box::new(move |outcome| {
        let values = [first, second, third].map(|index| outcome.value(index));
        assert_eq!(values, [0x11, 0x22, 0x4433]);
    })
}

fn code_changed_through_an_alias(kit: &mut Kit) -> Check {
    kit.word(SCRATCH, 0xb8 | 0x11 << 8 | RET << 40);
    kit.map(scratch(1), SCRATCH | PRESENT | WRITABLE);
    emit!(kit; mov(rdi, SCRATCH); mov(rdx, scratch(1)); call(rdi));
    let first = kit.keep();
    emit!(kit; mov(byte_ptr(rdx + 1), 0x55); call(rdi));
    let second = kit.keep();
    Box::new(move |outcome| {
        assert_eq!(outcome.value(first), 0x11);
        assert_eq!(outcome.value(second), 0x55);
    })
}

fn repeated_store_stops_at_the_page(kit: &mut Kit) -> Check {
    kit.map(scratch(1), 0);
    let trap = kit.trap(|kit| {
        emit!(kit; mov(rdi, scratch(1) - 32); mov(ecx, 100); mov(al, 0x5a));
        kit.mark();
        emit!(kit; rep().stosb());
    });
    emit!(kit; mov(rax, rcx));
    let left = kit.keep();
    emit!(kit; mov(rax, rdi));
    let place = kit.keep();
    Box::new(move |outcome| {
        outcome.page_faults(trap, 2, scratch(1));
        assert_eq!(outcome.value(left), 100 - 32);
        assert_eq!(outcome.value(place), scratch(1));
        assert_eq!(outcome.word(scratch(1) - 8), 0x5a5a_5a5a_5a5a_5a5a);
    })
}

fn upper_levels_restrict(kit: &mut Kit) -> Check {
    // A second way to the lowest 4 MiB, whose highest level allows reading only.
    kit.word(PAGE_TABLES + 8, 0x2000 | PRESENT);
    let address = (1 << 39) + SCRATCH;
    kit.map(SCRATCH, SCRATCH | PRESENT | WRITABLE | USER);
    emit!(kit; mov(rcx, address); mov(al, byte_ptr(rcx)));
    let write = kit.trap(|kit| access(kit, address, Access::Write));
    let user = kit.user_trap(|kit| access(kit, address, Access::Read));
    Box::new(move |outcome| {
        outcome.page_faults(write, 3, address);
        outcome.page_faults(user, 5, address);
    })
}
