//! SMBIOS tables (DSP0134, version 3.0): what a guest's inventory tools read of its machine, above
//! all its UUID.
//!
//! The entry point lies where firmware without EFI is scanned for it. The table lies in the page of
//! the generation id, which every clone writes anyway: giving a clone its UUID costs it no page.

#[cfg(test)]
mod tests;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use crate::layout::{KIB, MIB, SMBIOS_START, SMBIOS_TABLE};

/// Bytes of the 64-bit entry point.
pub(crate) const ENTRY_BYTES: usize = 24;
/// Room for the table: the rest of its page.
const TABLE_BYTES_MAX: usize = 0xf00;
const VERSION: (u8, u8) = (3, 0);

const VENDOR: &str = "Mitose";
const PRODUCT: &str = "Mitose Virtual Machine";
const RELEASE: &str = "1";
const RELEASE_DATE: &str = "01/01/2025";

/// BIOS characteristics: bit 3, none are told.
const BIOS_NOT_TOLD: u64 = 1 << 3;
/// Second extension byte of the BIOS characteristics: this is a virtual machine.
const BIOS_VIRTUAL: u8 = 1 << 4;
const WOKEN_BY_SWITCH: u8 = 6;
const BOARD_HOSTS: u8 = 1;
const BOARD_MOTHER: u8 = 0x0a;
/// "Other" of most enumerations.
const OTHER: u8 = 1;
/// "Safe", of a chassis' states; also "none", of its security and of error correction.
const SAFE: u8 = 3;
const CENTRAL_PROCESSOR: u8 = 3;
/// A socket that is populated, with a processor that is enabled.
const PROCESSOR_ENABLED: u8 = 0x41;
const PROCESSOR_64_BIT: u16 = 1 << 2;
const ON_SYSTEM_BOARD: u8 = 3;
const SYSTEM_MEMORY: u8 = 3;
const NO_ERROR_RECORD: u16 = 0xfffe;
const UNKNOWN: u16 = 0xffff;
const DIMM: u8 = 9;
const RAM: u8 = 7;
/// Sizes that do not fit an old field stand in an extended one.
const CAPACITY_EXTENDED: u32 = 0x8000_0000;
const SIZE_EXTENDED: u16 = 0x7fff;

/// What the tables tell of a machine.
#[derive(Clone, Copy, Debug)]
pub struct MachineFacts {
    /// Its UUID, bytes in the order in which they are written (RFC 9562); zeroes for none.
    pub uuid: [u8; 16],
    /// Number of CPUs.
    pub vcpus: u8,
    /// Size of guest RAM, bytes.
    pub ram_bytes: u64,
}

/// Puts the UUID of a clone into tables that its source was booted with; returns whether there are
/// such. What a guest has put there itself is left alone.
pub fn adopt_uuid<M: GuestMemory + ?Sized>(
    memory: &M,
    facts: &MachineFacts,
) -> Result<bool, GuestMemoryError> {
    let table = table(facts);
    let mut found = [0; ENTRY_BYTES];
    memory.read_slice(&mut found, GuestAddress(SMBIOS_START))?;
    if found != entry_point(&table) {
        return Ok(false);
    }
    memory.write_slice(&table, GuestAddress(SMBIOS_TABLE))?;
    Ok(true)
}

/// Returns the bytes that go to [`SMBIOS_START`]; the same for all tables of one length.
pub(crate) fn entry_point(table: &[u8]) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    entry[..5].copy_from_slice(b"_SM3_");
    entry[6] = ENTRY_BYTES as u8;
    (entry[7], entry[8]) = VERSION;
    // Revision of the entry point itself.
    entry[10] = 1;
    entry[12..16].copy_from_slice(&(table.len() as u32).to_le_bytes());
    entry[16..].copy_from_slice(&SMBIOS_TABLE.to_le_bytes());
    entry[5] = entry.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    entry
}

/// Returns the bytes that go to [`SMBIOS_TABLE`]. Their number depends on nothing.
pub(crate) fn table(facts: &MachineFacts) -> Vec<u8> {
    let mut table = Table::default();
    let serial = serial_of(&facts.uuid);
    bios(&mut table);
    system(&mut table, facts, &serial);
    let chassis = chassis(&mut table, &serial);
    board(&mut table, &serial, chassis);
    processor(&mut table, facts.vcpus);
    memory_devices(&mut table, facts.ram_bytes);
    // Boot status: no errors.
    Structure::new(32).bytes(&[0; 7]).end(&mut table);
    Structure::new(127).end(&mut table);
    assert!(
        table.bytes.len() <= TABLE_BYTES_MAX,
        "the table fits its page"
    );
    table.bytes
}

fn bios(table: &mut Table) {
    Structure::new(0)
        .text(VENDOR)
        .text(RELEASE)
        .word(0xf000)
        .text(RELEASE_DATE)
        .byte(0)
        .bytes(&BIOS_NOT_TOLD.to_le_bytes())
        .bytes(&[0, BIOS_VIRTUAL])
        // No releases of firmware and of an embedded controller.
        .bytes(&[0xff; 4])
        .end(table);
}

fn system(table: &mut Table, facts: &MachineFacts, serial: &str) {
    Structure::new(1)
        .text(VENDOR)
        .text(PRODUCT)
        .text(RELEASE)
        .text(serial)
        .bytes(&uuid_on_the_wire(facts.uuid))
        .byte(WOKEN_BY_SWITCH)
        .bytes(&[0, 0])
        .end(table);
}

fn chassis(table: &mut Table, serial: &str) -> u16 {
    Structure::new(3)
        .text(VENDOR)
        .byte(OTHER)
        .text(RELEASE)
        .text(serial)
        .byte(0)
        .bytes(&[SAFE; 4])
        .bytes(&[0; 9])
        .end(table)
}

fn board(table: &mut Table, serial: &str, chassis: u16) {
    Structure::new(2)
        .text(VENDOR)
        .text(PRODUCT)
        .text(RELEASE)
        .text(serial)
        .byte(0)
        .byte(BOARD_HOSTS)
        .byte(0)
        .word(chassis)
        .bytes(&[BOARD_MOTHER, 0])
        .end(table);
}

/// One socket with a core for each CPU.
fn processor(table: &mut Table, vcpus: u8) {
    let cores = u16::from(vcpus);
    Structure::new(4)
        .text("CPU 0")
        .bytes(&[CENTRAL_PROCESSOR, OTHER])
        .text(VENDOR)
        .bytes(&[0; 8])
        .text(RELEASE)
        // Voltage, clock and speeds are not told.
        .bytes(&[0; 7])
        .bytes(&[PROCESSOR_ENABLED, OTHER])
        // No handles of caches.
        .bytes(&[0xff; 6])
        .bytes(&[0; 3])
        .bytes(&[vcpus; 3])
        .word(PROCESSOR_64_BIT)
        .word(OTHER.into())
        .word(cores)
        .word(cores)
        .word(cores)
        .end(table);
}

fn memory_devices(table: &mut Table, ram_bytes: u64) {
    let (kib, mib) = (ram_bytes / KIB, ram_bytes / MIB);
    let capacity = u32::try_from(kib)
        .ok()
        .filter(|kib| *kib < CAPACITY_EXTENDED);
    let array = Structure::new(16)
        .bytes(&[ON_SYSTEM_BOARD, SYSTEM_MEMORY, SAFE])
        .bytes(&capacity.unwrap_or(CAPACITY_EXTENDED).to_le_bytes())
        .word(NO_ERROR_RECORD)
        .word(1)
        .bytes(&capacity.map_or(ram_bytes, |_| 0).to_le_bytes())
        .end(table);
    let size = u16::try_from(mib).ok().filter(|mib| *mib < SIZE_EXTENDED);
    let extended = size.map_or(u32::try_from(mib).unwrap_or(u32::MAX >> 1), |_| 0);
    Structure::new(17)
        .word(array)
        .word(NO_ERROR_RECORD)
        .word(UNKNOWN)
        .word(UNKNOWN)
        .word(size.unwrap_or(SIZE_EXTENDED))
        .bytes(&[DIMM, 0])
        .text("DIMM 0")
        .byte(0)
        .byte(RAM)
        // Detail: other.
        .word(1 << 1)
        .word(0)
        .text(VENDOR)
        .bytes(&[0; 4])
        .bytes(&extended.to_le_bytes())
        .bytes(&[0; 8])
        .end(table);
}

/// A serial number that is the UUID's, so that clones have their own.
fn serial_of(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("mitose-{hex}")
}

/// The first three fields of a UUID are little-endian in a table (DSP0134 7.2.1).
fn uuid_on_the_wire(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[0..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}

#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    structures: u16,
}

/// One structure: formatted part, then its strings.
struct Structure {
    formatted: Vec<u8>,
    texts: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8) -> Self {
        Self {
            formatted: vec![kind, 0, 0, 0],
            texts: vec![],
            count: 0,
        }
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.formatted.extend_from_slice(bytes);
        self
    }

    fn byte(self, byte: u8) -> Self {
        self.bytes(&[byte])
    }

    fn word(self, word: u16) -> Self {
        self.bytes(&word.to_le_bytes())
    }

    fn text(mut self, text: &str) -> Self {
        self.texts.extend_from_slice(text.as_bytes());
        self.texts.push(0);
        self.count += 1;
        let number = self.count;
        self.byte(number)
    }

    /// Appends it and returns its handle.
    fn end(mut self, table: &mut Table) -> u16 {
        let handle = table.structures;
        table.structures += 1;
        self.formatted[1] = self.formatted.len() as u8;
        self.formatted[2..4].copy_from_slice(&handle.to_le_bytes());
        table.bytes.append(&mut self.formatted);
        if self.texts.is_empty() {
            self.texts.push(0);
        }
        table.bytes.append(&mut self.texts);
        table.bytes.push(0);
        handle
    }
}
