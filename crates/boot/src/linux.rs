//! The Linux zero page (`struct boot_params`, Documentation/arch/x86/zero-page.rst).

use crate::bzimage::HEADER_START;
use crate::layout::{COMMAND_LINE, PAGE_BYTES};
use crate::load::Placed;
use crate::memory_map::MapEntry;

const ACPI_RSDP: usize = 0x070;
const E820_COUNT: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADER_KIND: usize = 0x210;
const LOAD_FLAGS: usize = 0x211;
const INITRD_START: usize = 0x218;
const INITRD_BYTES: usize = 0x21c;
const COMMAND_LINE_POINTER: usize = 0x228;
const COMMAND_LINE_BYTES: usize = 0x238;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_BYTES: usize = 20;

/// Boot protocol 2.15.
const PROTOCOL: u16 = 0x020f;
const LOADED_HIGH: u8 = 1;
/// A boot loader without an assigned number.
const LOADER_UNKNOWN: u8 = 0xff;

/// Returns the zero page.
pub(crate) fn boot_params(
    setup_header: &[u8],
    map: &[MapEntry],
    placed: &Placed,
    command_line_bytes_max: usize,
) -> Vec<u8> {
    let mut page = vec![0; PAGE_BYTES as usize];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(HEADER_START, setup_header);
    put(ACPI_RSDP, &placed.rsdp.to_le_bytes());
    put(BOOT_FLAG, &[0x55, 0xaa]);
    put(MAGIC, b"HdrS");
    put(VERSION, &PROTOCOL.to_le_bytes());
    put(LOADER_KIND, &[LOADER_UNKNOWN]);
    put(LOAD_FLAGS, &[LOADED_HIGH]);
    put(INITRD_START, &(placed.initrd.start as u32).to_le_bytes());
    put(INITRD_BYTES, &(placed.initrd.bytes as u32).to_le_bytes());
    put(COMMAND_LINE_POINTER, &(COMMAND_LINE as u32).to_le_bytes());
    put(
        COMMAND_LINE_BYTES,
        &(command_line_bytes_max as u32).to_le_bytes(),
    );
    put(E820_COUNT, &[map.len() as u8]);
    for (index, entry) in map.iter().enumerate() {
        let at = E820_TABLE + index * E820_ENTRY_BYTES;
        put(at, &entry.start.to_le_bytes());
        put(at + 8, &entry.bytes.to_le_bytes());
        put(at + 16, &entry.kind.to_le_bytes());
    }
    page
}
