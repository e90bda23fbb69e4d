//! The agent's program file: checked before it goes into an image.

use std::fs;
use std::path::Path;

use crate::ImageError;

/// Program header that asks for a dynamic loader.
const PT_INTERP: u32 = 3;

/// Reads the agent; it must be a static x86-64 program, since an initramfs has no libraries.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    let bytes = fs::read(path).map_err(ImageError::file("read the guest agent", path))?;
    let bad = |problem: &str| ImageError::BadParameter {
        field: "agent",
        problem: format!("{} {problem}", path.display()),
    };
    let interpreter = has_interpreter(&bytes)
        .ok_or_else(|| bad("is not an x86-64 program: build mitose-guest as README.md says"))?;
    if interpreter {
        return Err(bad(
            "is linked dynamically: build it with -C target-feature=+crt-static",
        ));
    }
    Ok(bytes)
}

/// Whether an x86-64 ELF file has a PT_INTERP header; `None` when it is not such a file.
fn has_interpreter(elf: &[u8]) -> Option<bool> {
    if !elf.starts_with(b"\x7fELF\x02\x01") || elf.get(18..20)? != [62, 0] {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(*elf.get(32..)?.first_chunk()?)).ok()?;
    let size = usize::from(u16::from_le_bytes(*elf.get(54..)?.first_chunk()?));
    let count = usize::from(u16::from_le_bytes(*elf.get(56..)?.first_chunk()?));
    let mut found = false;
    for index in 0..count {
        let kind = elf.get(table.checked_add(index * size)?..)?.first_chunk()?;
        found |= u32::from_le_bytes(*kind) == PT_INTERP;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_static_programs_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(matches!(
            read(&script),
            Err(ImageError::BadParameter { .. })
        ));
        assert!(matches!(
            read(&dir.path().join("none")),
            Err(ImageError::File { .. })
        ));
        // A test program is linked dynamically.
        let own = std::env::current_exe().unwrap();
        let error = read(&own).unwrap_err().to_string();
        assert!(error.contains("crt-static"), "{error}");
    }
}
