//! Looking into disk files: which format, and where a Linux root file system is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What a file to import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Raw,
    Qcow2,
    /// A tar archive, as it is or compressed.
    Archive,
    /// A format that other tools must convert first, with its name.
    Foreign(&'static str),
}

/// Where the root file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootPlace {
    /// On the disk itself.
    WholeDisk,
    /// In a partition, counted from 1.
    Partition(u32),
    /// There is none that the kernel of an image can mount.
    Nowhere(String),
}

const SECTOR: u64 = 512;

/// Partition entries that are looked at.
const PARTITIONS_MAX: u32 = 128;

/// Tells a file's kind by its first bytes.
pub(crate) fn detect(file: &File) -> io::Result<FileKind> {
    let mut head = [0u8; 512];
    let n = read_at(file, &mut head, 0)?;
    let head = &head[..n];
    let foreign = [
        (&b"KDMV"[..], 0, "VMDK"),
        (b"# Disk DescriptorFile", 0, "VMDK"),
        (b"vhdxfile", 0, "VHDX"),
        (b"conectix", 0, "VHD"),
        (b"\x7f\x10\xda\xbe", 64, "VDI"),
        (b"QED\0", 0, "QED"),
        (b"PK\x03\x04", 0, "ZIP"),
        (b"\xfd7zXZ\0", 0, "xz"),
        (b"BZh", 0, "bzip2"),
        (b"7z\xbc\xaf", 0, "7z"),
    ];
    for (magic, at, name) in foreign {
        if head.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            return Ok(FileKind::Foreign(name));
        }
    }
    if head.starts_with(b"QFI\xfb") {
        return Ok(FileKind::Qcow2);
    }
    let tar = head.get(257..262) == Some(b"ustar");
    Ok(if tar || crate::oci::is_compressed(head) {
        FileKind::Archive
    } else {
        FileKind::Raw
    })
}

/// Refuses a qcow2 file that needs anything besides itself. The text names the reason.
pub(crate) fn check_qcow2(file: &File) -> Result<(), String> {
    const BACKING_FILE: usize = 8;
    const CRYPT_METHOD: usize = 32;
    const INCOMPATIBLE: usize = 72;
    const DIRTY: u64 = 1;
    const CORRUPT: u64 = 1 << 1;
    const DATA_FILE: u64 = 1 << 2;
    let mut head = [0u8; 104];
    let n = read_at(file, &mut head, 0).map_err(|e| e.to_string())?;
    let number = |at: usize, len: usize| -> u64 {
        head[at..at + len]
            .iter()
            .fold(0, |all, &byte| all << 8 | u64::from(byte))
    };
    let version = number(4, 4);
    if n < 72 || !(2..=3).contains(&version) || (version == 3 && n < 104) {
        return Err("it is not a whole qcow2 file of version 2 or 3".into());
    }
    if number(BACKING_FILE, 8) != 0 {
        return Err(
            "it has a backing file, and a guest is not to read a file of this host: \
                    merge it first with qemu-img convert"
                .into(),
        );
    }
    if number(CRYPT_METHOD, 4) != 0 {
        return Err("it is encrypted: decrypt it first with qemu-img convert".into());
    }
    let features = if version == 3 {
        number(INCOMPATIBLE, 8)
    } else {
        0
    };
    if features & DATA_FILE != 0 {
        return Err("its data is in another file: merge it first with qemu-img convert".into());
    }
    if features & CORRUPT != 0 {
        return Err("it is marked corrupt: repair it first with qemu-img check -r all".into());
    }
    if features & DIRTY != 0 {
        return Err("it was not closed: repair it first with qemu-img check -r all".into());
    }
    Ok(())
}

/// Finds the root file system of a raw disk: the whole disk, or the largest partition with an ext
/// file system.
pub(crate) fn find_root(disk: &File) -> io::Result<RootPlace> {
    if let Some(name) = file_system(disk, 0)? {
        return Ok(match name {
            "ext" => RootPlace::WholeDisk,
            name => RootPlace::Nowhere(format!("it has a {name} file system")),
        });
    }
    let mut partitions = gpt(disk)?;
    if partitions.is_empty() {
        partitions = mbr(disk)?;
    }
    if partitions.is_empty() {
        return Ok(RootPlace::Nowhere(
            "it has neither a file system nor partitions".into(),
        ));
    }
    partitions.sort_by_key(|partition| std::cmp::Reverse(partition.sectors));
    let mut others = Vec::new();
    for partition in &partitions {
        match file_system(disk, partition.start.saturating_mul(SECTOR))? {
            Some("ext") => return Ok(RootPlace::Partition(partition.number)),
            Some(name) => others.push(name),
            None => {}
        }
    }
    let found = if others.is_empty() {
        "none known".into()
    } else {
        others.join(", ")
    };
    Ok(RootPlace::Nowhere(format!(
        "no partition has an ext4 file system (found: {found})"
    )))
}

#[derive(Debug)]
struct Partition {
    number: u32,
    start: u64,
    sectors: u64,
}

fn file_system(disk: &File, start: u64) -> io::Result<Option<&'static str>> {
    let magic = |at: u64, wanted: &[u8]| -> io::Result<bool> {
        let mut bytes = [0u8; 8];
        let bytes = &mut bytes[..wanted.len()];
        Ok(read_at(disk, bytes, start.saturating_add(at))? == wanted.len() && bytes == wanted)
    };
    Ok(if magic(1024 + 0x38, &[0x53, 0xef])? {
        Some("ext")
    } else if magic(0, b"XFSB")? {
        Some("xfs")
    } else if magic(0x10040, b"_BHRfS_M")? {
        Some("btrfs")
    } else if magic(0, b"LUKS\xba\xbe")? {
        Some("LUKS (encrypted)")
    } else if magic(512, b"LABELONE")? {
        Some("LVM")
    } else {
        None
    })
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
            let sectors = (end - start).saturating_add(1);
            partitions.push(Partition {
                number: index + 1,
                start,
                sectors,
            });
        }
    }
    Ok(partitions)
}

/// The four primary partitions; a root file system in a logical one is not looked for.
fn mbr(disk: &File) -> io::Result<Vec<Partition>> {
    let mut sector = [0u8; 512];
    if read_at(disk, &mut sector, 0)? < sector.len() || sector[510..] != [0x55, 0xaa] {
        return Ok(Vec::new());
    }
    let entries = sector[446..510].chunks_exact(16).zip(1u32..);
    Ok(entries
        .map(|(entry, number)| Partition {
            number,
            start: le(&entry[8..12]),
            sectors: le(&entry[12..16]),
        })
        .filter(|partition| partition.sectors > 0)
        .collect())
}

fn le(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |all, &byte| all << 8 | u64::from(byte))
}

/// Reads as much as there is.
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    // An offset beyond what the kernel's signed type holds is beyond every file's end.
    let Ok(_) = i64::try_from(at.saturating_add(buffer.len() as u64)) else {
        return Ok(0);
    };
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
