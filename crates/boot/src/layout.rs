//! The guest-physical address map and the interrupt wiring of the machine: every constant that
//! tables, devices and loader must agree on.
//!
//! ```text
//! 0000_0000  low page, GDT, start info, boot_params, page tables, stack, command line
//! 0009_FC00  reserved up to 1 MiB: ACPI tables, generation id, SMBIOS
//! 0010_0000  RAM up to C000_0000; kernel from the bottom, initial RAM disk at the top
//! C000_0000  hole: event device, virtio-mmio slots, IOAPIC, local APICs
//! 1_0000_0000  the rest of RAM
//! ```

/// One kibibyte, in bytes.
pub const KIB: u64 = 1 << 10;
/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
pub const GIB: u64 = 1 << 30;

/// Size of a guest page, bytes.
pub const PAGE_BYTES: u64 = 4 * KIB;
/// Least RAM a machine can have.
pub const RAM_BYTES_MIN: u64 = 4 * MIB;
/// Most RAM a machine can have.
pub const RAM_BYTES_MAX: u64 = 512 * GIB;
/// First address of the hole below 4 GiB: low RAM ends here at the latest.
pub const HOLE_START: u64 = 0xC000_0000;
/// First address of the RAM that does not fit below the hole.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// Global descriptor table that the boot CPU starts with.
pub const GDT_START: u64 = 0x1000;
/// PVH start info with its module list and memory map, at most two pages.
pub const PVH_START_INFO: u64 = 0x2000;
/// The Linux zero page (`struct boot_params`), one page.
pub const BOOT_PARAMS: u64 = 0x7000;
/// Top-level page table; the page-directory pages follow it (six pages in all).
pub const PAGE_TABLES: u64 = 0x9000;
/// End of the 32 KiB stack of guests entered in long mode, 16-byte aligned.
pub const STACK_TOP: u64 = 0x2_0000;
/// Kernel command line, NUL-terminated.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line of any guest, bytes without the NUL.
pub const COMMAND_LINE_BYTES_MAX: usize = 0xFFFF;
/// Longest command line that Linux takes on x86, bytes without the NUL (`COMMAND_LINE_SIZE`).
pub const LINUX_COMMAND_LINE_BYTES_MAX: usize = 2047;
/// End of the conventional memory a guest may use below 1 MiB.
pub const LOW_MEMORY_END: u64 = 0x9_FC00;

/// ACPI tables; the RSDP comes first, where a scan finds it (ACPI 5.2.5.1).
pub const ACPI_START: u64 = 0xE_0000;
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = 0xE_F000;
/// Page whose first 16 bytes are the VM generation id.
pub const GENERATION_ID: u64 = 0xE_F000;
/// SMBIOS structures, in the same page.
pub const SMBIOS_TABLE: u64 = GENERATION_ID + 0x100;
/// SMBIOS entry point, where a scan finds it.
pub const SMBIOS_START: u64 = 0xF_0000;
/// Where a kernel jumps in real mode (F000:FFF0) to have the firmware reset the machine.
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// Lowest address at which a kernel is loaded.
pub const KERNEL_START_MIN: u64 = MIB;

/// Event, sleep and reset registers (`chipset::Ged`).
pub const GED_START: u64 = 0xFEA0_0000;
/// Length of the event device's window, bytes.
pub const GED_BYTES: u64 = 0x1000;
/// Interrupt of the event device.
pub const GED_GSI: u8 = 9;
/// Offset of the event register: bit 0 power button, bit 1 generation id changed.
pub const GED_EVENT: u64 = 0x00;
/// Offset of the ACPI sleep control register.
pub const GED_SLEEP_CONTROL: u64 = 0x10;
/// Offset of the ACPI sleep status register.
pub const GED_SLEEP_STATUS: u64 = 0x14;
/// Offset of the ACPI reset register.
pub const GED_RESET: u64 = 0x18;
/// Value that resets the machine when written to the reset register.
pub const GED_RESET_VALUE: u8 = 0x42;

/// First virtio-mmio slot.
pub const VIRTIO_START: u64 = 0xFEB0_0000;
/// Length and distance of the virtio-mmio slots, bytes.
pub const VIRTIO_BYTES: u64 = 0x1000;
/// Number of virtio-mmio slots.
pub const VIRTIO_SLOTS: u8 = 14;

/// The IOAPIC's window.
pub const IOAPIC_START: u64 = 0xFEC0_0000;
/// Length of the IOAPIC's window, bytes.
pub const IOAPIC_BYTES: u64 = 0x1000;
/// Number of IOAPIC pins; pin and GSI numbers are the same.
pub const IOAPIC_PINS: u8 = 24;
/// The local APICs' window.
pub const LOCAL_APIC_START: u64 = 0xFEE0_0000;

/// Most CPUs a machine can have: xAPIC ids stay below 255 with room to spare.
pub const VCPUS_MAX: u8 = 64;

/// Port and interrupt of COM1 to COM4.
pub const SERIAL_PORTS: [SerialPort; 4] = [
    SerialPort {
        port: 0x3f8,
        gsi: 4,
    },
    SerialPort {
        port: 0x2f8,
        gsi: 3,
    },
    SerialPort {
        port: 0x3e8,
        gsi: 4,
    },
    SerialPort {
        port: 0x2e8,
        gsi: 3,
    },
];
/// Number of ports of one UART.
pub const SERIAL_BYTES: u64 = 8;
/// Index port of the real-time clock; its data port follows.
pub const RTC_PORT: u16 = 0x70;
/// Number of ports of the real-time clock.
pub const RTC_BYTES: u64 = 2;
/// Command port of the keyboard controller, of which only the reset command exists.
pub const KEYBOARD_PORT: u16 = 0x64;
/// Port of NMI status and control.
pub const PORT_B: u16 = 0x61;

/// Address port of PCI configuration mechanism 1, behind which there is no device.
pub const PCI_ADDRESS_PORT: u16 = 0xcf8;
/// Number of its ports.
pub const PCI_ADDRESS_BYTES: u64 = 4;

/// Where a UART answers and which interrupt it raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// First of its eight ports.
    pub port: u16,
    /// Its interrupt, edge-triggered; COM1 shares with COM3, COM2 with COM4.
    pub gsi: u8,
}

/// Where a virtio-mmio slot answers and which interrupt it raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// First address of its [`VIRTIO_BYTES`] window.
    pub base: u64,
    /// Its interrupt, edge-triggered.
    pub gsi: u8,
}

/// Returns address and interrupt of virtio-mmio slot `index`, counted from 0.
pub const fn virtio_slot(index: u8) -> Option<VirtioSlot> {
    if index >= VIRTIO_SLOTS {
        return None;
    }
    let gsi = if index < 8 {
        16 + index
    } else {
        10 + index - 8
    };
    Some(VirtioSlot {
        base: VIRTIO_START + VIRTIO_BYTES * index as u64,
        gsi,
    })
}

/// A range of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// First guest-physical address.
    pub start: u64,
    /// Length, bytes; a multiple of [`PAGE_BYTES`].
    pub bytes: u64,
}

impl RamRegion {
    /// Returns the first address after the region.
    pub const fn end(&self) -> u64 {
        self.start + self.bytes
    }
}

/// A RAM size that no machine can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("memory size {ram_bytes} is not possible: give a multiple of 4 KiB from 4 MiB to 512 GiB")]
pub struct BadRamSize {
    /// The refused size, bytes.
    pub ram_bytes: u64,
}

/// Returns the ranges of guest RAM, lowest first: one, or two where RAM reaches past the hole.
pub fn ram_regions(ram_bytes: u64) -> Result<Vec<RamRegion>, BadRamSize> {
    if !(RAM_BYTES_MIN..=RAM_BYTES_MAX).contains(&ram_bytes)
        || !ram_bytes.is_multiple_of(PAGE_BYTES)
    {
        return Err(BadRamSize { ram_bytes });
    }
    let low = RamRegion {
        start: 0,
        bytes: ram_bytes.min(HOLE_START),
    };
    let mut regions = vec![low];
    if ram_bytes > low.bytes {
        regions.push(RamRegion {
            start: HIGH_RAM_START,
            bytes: ram_bytes - low.bytes,
        });
    }
    Ok(regions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_at_the_hole() {
        let check = |bytes, expect: &[(u64, u64)]| {
            let regions = ram_regions(bytes).unwrap();
            let got: Vec<_> = regions.iter().map(|r| (r.start, r.bytes)).collect();
            assert_eq!(got, expect, "{bytes:#x}");
            assert_eq!(regions.iter().map(|r| r.bytes).sum::<u64>(), bytes);
        };
        check(4 * MIB, &[(0, 4 * MIB)]);
        check(3 * GIB, &[(0, 3 * GIB)]);
        check(3 * GIB + 4096, &[(0, 3 * GIB), (4 * GIB, 4096)]);
        check(512 * GIB, &[(0, 3 * GIB), (4 * GIB, 509 * GIB)]);
    }

    #[test]
    fn impossible_ram_sizes_are_refused() {
        for bytes in [
            0,
            4095,
            4 * MIB - 1,
            4 * MIB + 1,
            512 * GIB + 4096,
            u64::MAX,
        ] {
            assert_eq!(ram_regions(bytes), Err(BadRamSize { ram_bytes: bytes }));
        }
    }

    #[test]
    fn slots_have_interrupts_of_their_own() {
        let slots: Vec<_> = (0..VIRTIO_SLOTS).map(|i| virtio_slot(i).unwrap()).collect();
        let mut gsis: Vec<u8> = slots.iter().map(|s| s.gsi).collect();
        gsis.extend([GED_GSI, 8, 3, 4]);
        gsis.sort_unstable();
        let count = gsis.len();
        gsis.dedup();
        assert_eq!(gsis.len(), count);
        assert!(gsis.iter().all(|gsi| *gsi < IOAPIC_PINS));
        assert_eq!(
            slots[13],
            VirtioSlot {
                base: 0xFEB0_D000,
                gsi: 15
            }
        );
        assert_eq!(virtio_slot(VIRTIO_SLOTS), None);
    }
}
