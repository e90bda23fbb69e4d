//! The PVH start info (`struct hvm_start_info` version 1) with module list and memory map.

use crate::layout::{COMMAND_LINE, PVH_START_INFO};
use crate::load::Placed;
use crate::memory_map::MapEntry;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const MODULES: usize = 0x40;
const MAP: usize = 0x80;

/// Returns the bytes that go to [`PVH_START_INFO`].
pub(crate) fn start_info(map: &[MapEntry], placed: &Placed) -> Vec<u8> {
    let has_initrd = placed.initrd.bytes > 0;
    let modules = if has_initrd {
        PVH_START_INFO + MODULES as u64
    } else {
        0
    };
    let mut bytes = Vec::new();
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(u32::from(has_initrd).to_le_bytes());
    bytes.extend(modules.to_le_bytes());
    bytes.extend(COMMAND_LINE.to_le_bytes());
    bytes.extend(placed.rsdp.to_le_bytes());
    bytes.extend((PVH_START_INFO + MAP as u64).to_le_bytes());
    bytes.extend((map.len() as u32).to_le_bytes());
    bytes.resize(MODULES, 0);
    for word in [placed.initrd.start, placed.initrd.bytes, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.resize(MAP, 0);
    for entry in map {
        bytes.extend(entry.start.to_le_bytes());
        bytes.extend(entry.bytes.to_le_bytes());
        bytes.extend(entry.kind.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
    }
    bytes
}
