//! The memory map that kernels are given, in the terms of E820 (ACPI 15.1).

use crate::layout::{KERNEL_START_MIN, LOW_MEMORY_END, RamRegion};

/// Usable RAM.
pub(crate) const USABLE: u32 = 1;
/// Not for the guest to use: tables and firmware data.
pub(crate) const RESERVED: u32 = 2;

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapEntry {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) kind: u32,
}

/// Returns the map for the given RAM, lowest address first.
pub(crate) fn memory_map(ram: &[RamRegion]) -> Vec<MapEntry> {
    let range = |start, end, kind| MapEntry {
        start,
        bytes: end - start,
        kind,
    };
    let mut map = vec![
        range(0, LOW_MEMORY_END, USABLE),
        range(LOW_MEMORY_END, KERNEL_START_MIN, RESERVED),
    ];
    for region in ram {
        map.push(range(
            region.start.max(KERNEL_START_MIN),
            region.end(),
            USABLE,
        ));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{GIB, MIB, ram_regions};

    #[test]
    fn map_covers_ram_and_reserves_the_tables() {
        let check = |ram_bytes, expect: &[(u64, u64, u32)]| {
            let map = memory_map(&ram_regions(ram_bytes).unwrap());
            let got: Vec<_> = map
                .iter()
                .map(|e| (e.start, e.start + e.bytes, e.kind))
                .collect();
            assert_eq!(got, expect);
        };
        let low = [(0, 0x9fc00, USABLE), (0x9fc00, MIB, RESERVED)];
        check(64 * MIB, &[low[0], low[1], (MIB, 64 * MIB, USABLE)]);
        let split = [(MIB, 3 * GIB, USABLE), (4 * GIB, 9 * GIB, USABLE)];
        check(8 * GIB, &[low[0], low[1], split[0], split[1]]);
    }
}
