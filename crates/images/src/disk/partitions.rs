//! Partition tables: GPT, and MBR with logical partitions.

use std::fs::File;
use std::io;

use super::{le, read_at};

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;

/// GPT entries that are looked at, and most logical partitions.
const PARTITIONS_MAX: u32 = 128;

/// Type of root partitions for x86-64 (Discoverable Partitions Specification),
/// 4f68bce3-e8cd-4db1-96e7-fbcaf984b709 in the table's byte order.
const ROOT_TYPE: [u8; 16] = [
    0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
];

/// A partition, with the number that Linux gives it.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) number: u32,
    pub(super) start: u64,
    pub(super) sectors: u64,
    /// Whether the table says that it holds the root file system.
    pub(super) is_root: bool,
}

/// Reads the table of a disk; no partitions where there is none.
pub(super) fn read(disk: &File) -> io::Result<Vec<Partition>> {
    let partitions = gpt(disk)?;
    if partitions.is_empty() {
        return mbr(disk);
    }
    Ok(partitions)
}

/// UEFI specification 5.3: header in sector 1, entries where it says.
fn gpt(disk: &File) -> io::Result<Vec<Partition>> {
    let mut header = [0u8; 92];
    let n = read_at(disk, &mut header, SECTOR)?;
    if n < header.len() || !header.starts_with(b"EFI PART") {
        return Ok(Vec::new());
    }
    let table = le(&header[72..80]).saturating_mul(SECTOR);
    let count = (le(&header[80..84]) as u32).min(PARTITIONS_MAX);
    let size = le(&header[84..88]);
    if !(128..=4096).contains(&size) {
        return Ok(Vec::new());
    }
    let mut partitions = Vec::new();
    for index in 0..count {
        let mut entry = [0u8; 48];
        let at = table.saturating_add(u64::from(index) * size);
        if read_at(disk, &mut entry, at)? < entry.len() {
            break;
        }
        let (start, end) = (le(&entry[32..40]), le(&entry[40..48]));
        if entry[..16] != [0; 16] && end >= start {
            partitions.push(Partition {
                number: index + 1,
                start,
                sectors: (end - start).saturating_add(1),
                is_root: entry[..16] == ROOT_TYPE,
            });
        }
    }
    Ok(partitions)
}

/// One of the four entries of a boot record.
struct Slot {
    kind: u8,
    start: u64,
    sectors: u64,
}

impl Slot {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

fn slots(disk: &File, sector: u64) -> io::Result<Vec<Slot>> {
    let mut record = [0u8; 512];
    let n = read_at(disk, &mut record, sector.saturating_mul(SECTOR))?;
    if n < record.len() || record[510..] != [0x55, 0xaa] {
        return Ok(Vec::new());
    }
    let entries = record[446..510].chunks_exact(16);
    Ok(entries
        .map(|entry| Slot {
            kind: entry[4],
            start: le(&entry[8..12]),
            sectors: le(&entry[12..16]),
        })
        .collect())
}

fn mbr(disk: &File) -> io::Result<Vec<Partition>> {
    let mut partitions = Vec::new();
    let mut logical = Vec::new();
    for (slot, number) in slots(disk, 0)?.iter().zip(1u32..) {
        if slot.sectors == 0 {
            continue;
        }
        if slot.is_extended() {
            let numbers = 5 + logical.len() as u32..;
            logical.extend(logical_ones(disk, slot, numbers)?);
        } else {
            partitions.push(partition(number, slot, 0));
        }
    }
    partitions.append(&mut logical);
    Ok(partitions)
}

/// Follows the chain of boot records in an extended partition, as Linux does: each has a partition
/// relative to itself and a link relative to the extended partition.
fn logical_ones(
    disk: &File,
    extended: &Slot,
    mut numbers: impl Iterator<Item = u32>,
) -> io::Result<Vec<Partition>> {
    let mut partitions = Vec::new();
    let mut record = extended.start;
    for _ in 0..PARTITIONS_MAX {
        let slots = slots(disk, record)?;
        let data = slots.iter().take(2);
        for slot in data.filter(|slot| slot.sectors > 0 && !slot.is_extended()) {
            let Some(number) = numbers.next() else { break };
            partitions.push(partition(number, slot, record));
        }
        let link = slots
            .iter()
            .find(|slot| slot.sectors > 0 && slot.is_extended());
        match link {
            Some(link) => record = extended.start + link.start,
            None => break,
        }
    }
    Ok(partitions)
}

fn partition(number: u32, slot: &Slot, base: u64) -> Partition {
    Partition {
        number,
        start: base + slot.start,
        sectors: slot.sectors,
        is_root: false,
    }
}
