//! ACPI tables of the machine: hardware-reduced, no PCI (ACPI 6.4).
//!
//! RSDP, XSDT, FADT, MADT and DSDT lie behind each other from [`layout::ACPI_START`].

mod dsdt;
#[cfg(test)]
mod tests;

use acpi_tables::sdt::Sdt;

use crate::layout::{self, ACPI_END, ACPI_START};
use crate::load::Platform;

const OEM_ID: [u8; 6] = *b"MITOSE";
const OEM_TABLE_ID: [u8; 8] = *b"MITOSEVM";
const OEM_REVISION: u32 = 1;
const HEADER_BYTES: usize = 36;
const RSDP_BYTES: usize = 36;
const TABLE_ALIGN: usize = 16;

const FADT_BYTES: u32 = 276;
const FADT_REVISION: u8 = 6;
const FADT_DSDT: usize = 40;
const FADT_CENTURY: usize = 108;
const FADT_BOOT_ARCH: usize = 109;
const FADT_FLAGS: usize = 112;
const FADT_RESET_REGISTER: usize = 116;
const FADT_RESET_VALUE: usize = 128;
const FADT_X_DSDT: usize = 140;
const FADT_SLEEP_CONTROL: usize = 244;
const FADT_SLEEP_STATUS: usize = 256;
/// WBINVD works, no fixed power or sleep button, reset register, hardware-reduced.
const FADT_FLAG_BITS: u32 = 1 << 0 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20;
/// No VGA; a clear bit 1 says that there is no 8042 either.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
/// CMOS register that holds the century.
const RTC_CENTURY: u8 = 0x32;

const MADT_REVISION: u8 = 5;
const MADT_LOCAL_APIC: u8 = 0;
const MADT_IOAPIC: u8 = 1;
const MADT_LOCAL_APIC_NMI: u8 = 4;
const MADT_ENABLED: u32 = 1;
const EVERY_CPU: u8 = 0xff;

/// Returns the bytes that go to [`layout::ACPI_START`], the RSDP first.
pub(crate) fn tables(platform: &Platform) -> Vec<u8> {
    let mut blob = Blob {
        bytes: vec![0; RSDP_BYTES.next_multiple_of(TABLE_ALIGN)],
    };
    let dsdt = blob.push(&dsdt::dsdt(platform));
    let fadt = blob.push(&fadt(dsdt));
    let madt = blob.push(&madt(platform.vcpus));
    let xsdt = blob.push(&xsdt(&[fadt, madt]));
    blob.bytes[..RSDP_BYTES].copy_from_slice(&rsdp(xsdt));
    assert!(
        blob.bytes.len() as u64 <= ACPI_END - ACPI_START,
        "the tables fit their room"
    );
    blob.bytes
}

struct Blob {
    bytes: Vec<u8>,
}

impl Blob {
    /// Appends a table and returns its guest address.
    fn push(&mut self, table: &Sdt) -> u64 {
        let address = ACPI_START + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table.as_slice());
        self.bytes
            .resize(self.bytes.len().next_multiple_of(TABLE_ALIGN), 0);
        address
    }
}

fn table(signature: [u8; 4], bytes: u32, revision: u8) -> Sdt {
    Sdt::new(
        signature,
        bytes,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    )
}

fn rsdp(xsdt: u64) -> [u8; RSDP_BYTES] {
    let mut rsdp = [0; RSDP_BYTES];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(&OEM_ID);
    rsdp[15] = 2;
    rsdp[20..24].copy_from_slice(&(RSDP_BYTES as u32).to_le_bytes());
    rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

/// Returns the byte that makes the sum of `bytes` and itself 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn xsdt(entries: &[u64]) -> Sdt {
    let mut xsdt = table(*b"XSDT", HEADER_BYTES as u32, 1);
    for entry in entries {
        xsdt.append_slice(&entry.to_le_bytes());
    }
    xsdt
}

fn fadt(dsdt: u64) -> Sdt {
    let mut fadt = table(*b"FACP", FADT_BYTES, FADT_REVISION);
    fadt.write_u32(FADT_DSDT, dsdt as u32);
    fadt.write_u8(FADT_CENTURY, RTC_CENTURY);
    fadt.write_u16(FADT_BOOT_ARCH, BOOT_ARCH_NO_VGA);
    fadt.write_u32(FADT_FLAGS, FADT_FLAG_BITS);
    fadt.write_bytes(FADT_RESET_REGISTER, &byte_register(layout::GED_RESET));
    fadt.write_u8(FADT_RESET_VALUE, layout::GED_RESET_VALUE);
    fadt.write_u64(FADT_X_DSDT, dsdt);
    fadt.write_bytes(
        FADT_SLEEP_CONTROL,
        &byte_register(layout::GED_SLEEP_CONTROL),
    );
    fadt.write_bytes(FADT_SLEEP_STATUS, &byte_register(layout::GED_SLEEP_STATUS));
    fadt
}

/// Returns the generic address of an 8-bit register of the event device (ACPI 5.2.3.2).
fn byte_register(offset: u64) -> [u8; 12] {
    let mut register = [0; 12];
    // System memory, 8 bits wide from bit 0, byte access.
    register[..4].copy_from_slice(&[0, 8, 0, 1]);
    register[4..].copy_from_slice(&(layout::GED_START + offset).to_le_bytes());
    register
}

fn madt(vcpus: u8) -> Sdt {
    let mut madt = table(*b"APIC", HEADER_BYTES as u32, MADT_REVISION);
    madt.append_slice(&(layout::LOCAL_APIC_START as u32).to_le_bytes());
    // Flags: no 8259 pair.
    madt.append_slice(&0u32.to_le_bytes());
    for id in 0..vcpus {
        madt.append_slice(&[MADT_LOCAL_APIC, 8, id, id]);
        madt.append_slice(&MADT_ENABLED.to_le_bytes());
    }
    madt.append_slice(&[MADT_IOAPIC, 12, 0, 0]);
    madt.append_slice(&(layout::IOAPIC_START as u32).to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    madt.append_slice(&[MADT_LOCAL_APIC_NMI, 6, EVERY_CPU, 0, 0, 1]);
    madt
}
