//! Kernel module files: dependencies read from `.modinfo`, the appended signature cut off.
//!
//! A signed module costs a guest about 13 million instructions of RSA to load; the image's builder
//! has checked the package's signature already.

/// Text that ends a signed module file (`linux/module_signature.h`).
const SIGNATURE_MARK: &[u8] = b"~Module signature appended~\n";

/// Size of `struct module_signature`, which stands before the mark.
const SIGNATURE_HEADER: usize = 12;

/// A module as it goes into an initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Name with underscores.
    pub(crate) name: String,
    /// The ELF file without signature.
    pub(crate) bytes: Vec<u8>,
    /// Names of the modules that must be loaded before.
    pub(crate) depends: Vec<String>,
}

/// Takes a module file apart.
pub(crate) fn parse(name: &str, mut bytes: Vec<u8>) -> Result<Module, String> {
    let len = unsigned_len(&bytes)?;
    bytes.truncate(len);
    let info = section(&bytes, b".modinfo").ok_or("is not an ELF file with .modinfo")?;
    let depends = info
        .split(|&b| b == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .map(|list| String::from_utf8_lossy(list).into_owned())
        .unwrap_or_default();
    let depends = depends
        .split(',')
        .filter(|d| !d.is_empty())
        .map(|d| d.replace('-', "_"));
    Ok(Module {
        name: name.to_owned(),
        depends: depends.collect(),
        bytes,
    })
}

/// Returns the length of a module file without its signature.
fn unsigned_len(bytes: &[u8]) -> Result<usize, String> {
    let Some(rest) = bytes.strip_suffix(SIGNATURE_MARK) else {
        return Ok(bytes.len());
    };
    let bad = || "has a malformed signature".to_owned();
    let header = rest.len().checked_sub(SIGNATURE_HEADER).ok_or_else(bad)?;
    let length = rest[header + 8..].first_chunk::<4>().ok_or_else(bad)?;
    let length = u32::from_be_bytes(*length) as usize;
    header.checked_sub(length).ok_or_else(bad)
}

/// Finds a section of a 64-bit little-endian ELF file by name.
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(read_u64(elf, 0x28)?).ok()?;
    let entry_size = usize::from(read_u16(elf, 0x3a)?);
    let count = usize::from(read_u16(elf, 0x3c)?);
    let names_index = usize::from(read_u16(elf, 0x3e)?);
    let header = |index: usize| elf.get(table.checked_add(index.checked_mul(entry_size)?)?..);
    let content = |header: &[u8]| {
        let offset = usize::try_from(read_u64(header, 0x18)?).ok()?;
        let size = usize::try_from(read_u64(header, 0x20)?).ok()?;
        elf.get(offset..offset.checked_add(size)?)
    };
    let names = content(header(names_index)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let name = names.get(usize::try_from(read_u32(header, 0)?).ok()?..)?;
        let name = name.split(|&b| b == 0).next()?;
        if name == wanted {
            content(header)
        } else {
            None
        }
    })
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u16::from_le_bytes(*b))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u32::from_le_bytes(*b))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An ELF file with sections "", ".modinfo" and ".shstrtab".
    pub(crate) fn elf(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut bytes = vec![0u8; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let info_at = bytes.len() as u64;
        bytes.extend(modinfo);
        let names_at = bytes.len() as u64;
        bytes.extend(names);
        let table = bytes.len() as u64;
        for (name, at, size) in [
            (0u32, 0, 0),
            (1, info_at, modinfo.len() as u64),
            (10, names_at, names.len() as u64),
        ] {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&u64::to_le_bytes(at));
            header[0x20..0x28].copy_from_slice(&size.to_le_bytes());
            bytes.extend(header);
        }
        bytes[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        bytes[0x3a..0x40].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
        bytes
    }

    fn signed(mut bytes: Vec<u8>, signature: &[u8]) -> Vec<u8> {
        bytes.extend(signature);
        bytes.extend([0u8; 8]);
        bytes.extend((signature.len() as u32).to_be_bytes());
        bytes.extend(SIGNATURE_MARK);
        bytes
    }

    #[test]
    fn dependencies_are_read_and_signatures_cut() {
        let plain = elf(b"license=GPL\0depends=virtio-ring,virtio\0name=x\0");
        let module = parse("x", signed(plain.clone(), &[7; 300])).unwrap();
        assert_eq!(module.depends, ["virtio_ring", "virtio"]);
        assert_eq!(module.bytes, plain);
        assert_eq!(parse("x", plain.clone()).unwrap().bytes, plain);
        assert!(parse("x", elf(b"depends=\0")).unwrap().depends.is_empty());
    }

    #[test]
    fn other_files_are_refused() {
        assert!(parse("x", b"text".to_vec()).is_err());
        assert!(parse("x", SIGNATURE_MARK.to_vec()).is_err());
        let mut long = signed(elf(b""), &[]);
        let end = long.len() - SIGNATURE_MARK.len();
        long[end - 4..end].copy_from_slice(&[0xff; 4]);
        assert!(parse("x", long).is_err());
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(position in 0usize..400, value in any::<u8>(), cut in 0usize..400) {
            let mut bytes = signed(elf(b"depends=a,b\0"), &[1; 20]);
            let position = position % bytes.len();
            bytes[position] = value;
            let _ = parse("x", bytes.clone());
            bytes.truncate(cut);
            let _ = parse("x", bytes);
        }
    }
}
