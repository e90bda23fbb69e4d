//! Writes initramfs archives: cpio in the "newc" form of the kernel's
//! `driver-api/early-userspace/buffer-format`.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written. Paths are relative, parents come before children.
#[derive(Debug)]
pub(crate) struct CpioWriter<W> {
    out: W,
    inode: u32,
}

impl<W: Write> CpioWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    pub(crate) fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.entry(path, DIRECTORY | mode, (0, 0), &[])
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | mode, (0, 0), content)
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    pub(crate) fn character_device(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
    ) -> io::Result<()> {
        self.entry(path, CHARACTER | mode, device, &[])
    }

    /// Writes the end mark and returns the output.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.write_entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        self.inode += 1;
        self.write_entry(path.trim_start_matches('/'), mode, device, content)
    }

    fn write_entry(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let too_large = |_| io::Error::other("a file of an initramfs is at most 4 GiB");
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_large)?;
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2),
        // size of the name with its zero, checksum.
        let fields = [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(header.len() + path.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out
            .write_all(&[0u8; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads an archive back: path, mode, content.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |i: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * i..14 + 8 * i]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            let (mode, size, name_size) = (field(1) as u32, field(6), field(11));
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let at = (110 + name_size).next_multiple_of(4);
            let content = bytes[at..at + size].to_vec();
            bytes = &bytes[(at + size).next_multiple_of(4)..];
            if name == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, mode, content));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(files in prop::collection::vec(("[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..40)), 0..6)) {
            let mut writer = CpioWriter::new(Vec::new());
            for (name, content) in &files {
                writer.file(name, 0o644, content).unwrap();
            }
            let entries = read(&writer.finish().unwrap());
            let expected: Vec<_> = files.into_iter().map(|(n, c)| (n, REGULAR | 0o644, c)).collect();
            prop_assert_eq!(entries, expected);
        }
    }

    #[test]
    fn kinds_have_their_modes() {
        let mut writer = CpioWriter::new(Vec::new());
        writer.directory("/dev", 0o755).unwrap();
        writer
            .character_device("/dev/console", 0o600, (5, 1))
            .unwrap();
        writer.symlink("/a", "b").unwrap();
        let entries = read(&writer.finish().unwrap());
        assert_eq!(entries[0], ("dev".into(), 0o040_755, vec![]));
        assert_eq!(entries[1].1, 0o020_600);
        assert_eq!(entries[2], ("a".into(), 0o120_777, b"b".to_vec()));
    }
}
