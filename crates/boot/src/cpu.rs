//! The boot CPU's first state: descriptor table, page tables and registers for both entries.

use crate::layout::{BOOT_PARAMS, GDT_START, PAGE_BYTES, PAGE_TABLES, PVH_START_INFO, STACK_TOP};
use crate::state::{DescriptorTable, EntryMode, InitialRegisters, Segment};

const SELECTOR_CODE: u16 = 0x10;
const SELECTOR_DATA: u16 = 0x18;
const SELECTOR_TASK: u16 = 0x20;
/// Present, readable code, accessed, 4 KiB granularity; 64-bit.
const ACCESS_CODE_64: u32 = 0xa09b;
/// The same, 32-bit.
const ACCESS_CODE_32: u32 = 0xc09b;
/// Present, writable data, accessed, 4 KiB granularity, 32-bit.
const ACCESS_DATA: u32 = 0xc093;
/// Present, busy task state.
const ACCESS_TASK: u32 = 0x008b;
const ACCESS_UNUSABLE: u32 = 1 << 16;
const TASK_LIMIT: u32 = 0x67;

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_MONITOR_COPROCESSOR: u64 = 1 << 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_NUMERIC_ERROR: u64 = 1 << 5;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// SSE is on, since compilers use it unless told otherwise.
const CR4_FXSR: u64 = 1 << 9;
const CR4_XMM_EXCEPTIONS: u64 = 1 << 10;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_LARGE: u64 = 1 << 7;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const ENTRIES: u64 = 512;
const DIRECTORIES: u64 = 4;

/// Returns the registers for an entry at `rip`.
pub(crate) fn registers(entry: EntryMode, rip: u64) -> InitialRegisters {
    let long = entry == EntryMode::Long64;
    let segment = |selector, limit, access| Segment {
        selector,
        base: 0,
        limit,
        access,
    };
    let code = if long { ACCESS_CODE_64 } else { ACCESS_CODE_32 };
    let long_cr0 = CR0_PAGING | CR0_NUMERIC_ERROR | CR0_MONITOR_COPROCESSOR;
    InitialRegisters {
        rip,
        rsp: if long { STACK_TOP } else { 0 },
        rbx: if long { 0 } else { PVH_START_INFO },
        rsi: if long { BOOT_PARAMS } else { 0 },
        rflags: RFLAGS_RESERVED,
        cr0: CR0_PROTECTED | CR0_EXTENSION_TYPE | if long { long_cr0 } else { 0 },
        cr3: if long { PAGE_TABLES } else { 0 },
        cr4: if long {
            CR4_PAE | CR4_FXSR | CR4_XMM_EXCEPTIONS
        } else {
            0
        },
        efer: if long { EFER_LONG_MODE } else { 0 },
        cs: segment(SELECTOR_CODE, u32::MAX, code),
        data: segment(SELECTOR_DATA, u32::MAX, ACCESS_DATA),
        tr: segment(SELECTOR_TASK, TASK_LIMIT, ACCESS_TASK),
        ldtr: segment(0, 0, ACCESS_UNUSABLE),
        gdt: DescriptorTable {
            base: GDT_START,
            limit: (8 * GDT_ENTRIES - 1) as u16,
        },
        idt: DescriptorTable { base: 0, limit: 0 },
    }
}

const GDT_ENTRIES: usize = 6;

/// Returns the descriptor table that the selectors of [`registers`] point into.
pub(crate) fn gdt(registers: &InitialRegisters) -> Vec<u8> {
    let task = descriptor(&registers.tr);
    // A task descriptor has 16 bytes in long mode; the upper half is base 63:32, zero.
    let entries: [u64; GDT_ENTRIES] = [
        0,
        0,
        descriptor(&registers.cs),
        descriptor(&registers.data),
        task,
        0,
    ];
    entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

/// Packs a segment with base 0 (SDM 3A 3.4.5).
fn descriptor(segment: &Segment) -> u64 {
    let access = u64::from(segment.access);
    let granular = access >> 15 & 1 == 1;
    let limit = u64::from(if granular {
        segment.limit >> 12
    } else {
        segment.limit
    });
    limit & 0xffff | (access & 0xff) << 40 | (limit >> 16 & 0xf) << 48 | (access >> 12 & 0xf) << 52
}

/// Returns six pages that map the first 4 GiB to themselves with 2 MiB pages.
pub(crate) fn identity_map() -> Vec<u8> {
    let table = |index: u64| (PAGE_TABLES + index * PAGE_BYTES) | PAGE_PRESENT_WRITABLE;
    let page_of = |entries: &mut dyn Iterator<Item = u64>| {
        let mut page: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        page.resize(PAGE_BYTES as usize, 0);
        page
    };
    let mut bytes = page_of(&mut std::iter::once(table(1)));
    bytes.extend(page_of(
        &mut (0..DIRECTORIES).map(|directory| table(2 + directory)),
    ));
    bytes.extend(
        (0..DIRECTORIES * ENTRIES)
            .map(|page| (page * LARGE_PAGE_BYTES) | PAGE_LARGE | PAGE_PRESENT_WRITABLE)
            .flat_map(u64::to_le_bytes),
    );
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_well_known_flat_ones() {
        let words = |entry| -> Vec<u64> {
            let bytes = gdt(&registers(entry, 0));
            bytes
                .chunks(8)
                .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
                .collect()
        };
        let data = 0x00cf_9300_0000_ffff;
        let task = 0x0000_8b00_0000_0067;
        assert_eq!(
            words(EntryMode::Long64),
            [0, 0, 0x00af_9b00_0000_ffff, data, task, 0]
        );
        assert_eq!(
            words(EntryMode::Pvh32),
            [0, 0, 0x00cf_9b00_0000_ffff, data, task, 0]
        );
    }

    #[test]
    fn identity_map_translates_every_address_below_4_gib_to_itself() {
        let tables = identity_map();
        assert_eq!(tables.len() as u64, 6 * PAGE_BYTES);
        let entry = |table: u64, index: u64| {
            let at = (table - PAGE_TABLES + index * 8) as usize;
            u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
        };
        for address in [0, 0x1234_5678, 0xbfff_ffff, 0xfee0_0000, 0xffff_ffff_u64] {
            let directories = entry(PAGE_TABLES, 0) & !0xfff;
            let directory = entry(directories, address >> 30) & !0xfff;
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page & 0xfff, 0x83);
            assert_eq!(page & !0xfff | address & 0x1f_ffff, address);
        }
        assert_eq!(entry(PAGE_TABLES, 1), 0);
    }
}
