//! Looking into disk files: which format, and where a Linux root file system is.

mod ext;
mod partitions;
mod root;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub(crate) use root::{RootPlace, find_root};

/// What a file to import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Raw,
    Qcow2,
    /// A tar archive, as it is or compressed.
    Archive,
    /// A format that other tools must convert first, with its name.
    Foreign(&'static str),
    /// Something inside another compression than archives may have, with its name.
    Packed(&'static str),
}

/// Tells a file's kind by its first bytes.
pub(crate) fn detect(file: &File) -> io::Result<FileKind> {
    let mut head = [0u8; 512];
    let n = read_at(file, &mut head, 0)?;
    let head = &head[..n];
    let packed = [
        (&b"PK\x03\x04"[..], "ZIP"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
        (b"7z\xbc\xaf", "7z"),
    ];
    for (magic, name) in packed {
        if head.starts_with(magic) {
            return Ok(FileKind::Packed(name));
        }
    }
    if let Some(name) = disk_layers::foreign_format(head) {
        return Ok(FileKind::Foreign(name));
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

/// A number of at most eight bytes, the lowest first.
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
