//! Writes cpio archives in the "newc" format, which the kernel unpacks as its initramfs.
//!
//! Format: kernel documentation, `driver-api/early-userspace/buffer-format`.

const MODE_DIRECTORY: u32 = 0o040_755;
const MODE_PROGRAM: u32 = 0o100_755;
const TRAILER: &str = "TRAILER!!!";

/// An archive under construction, kept in memory.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory; parents must be added first.
    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, MODE_DIRECTORY, &[]);
    }

    /// Adds a file with mode 0755.
    pub(crate) fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, MODE_PROGRAM, content);
    }

    /// Ends the archive and returns its bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("an initramfs file is below 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        let links = 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        // namesize, check
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(bytes: &[u8], index: usize) -> usize {
        let text = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
        usize::from_str_radix(text, 16).unwrap()
    }

    #[test]
    fn entries_are_aligned_and_ended_by_the_trailer() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.program("bin/five", b"12345");
        let bytes = archive.finish();
        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let header = &bytes[at..];
            assert_eq!(&header[..6], b"070701");
            let (size, name_size) = (field(header, 6), field(header, 11));
            let name = &header[110..110 + name_size - 1];
            names.push((String::from_utf8(name.to_vec()).unwrap(), size));
            at += (110 + name_size).next_multiple_of(4) + size.next_multiple_of(4);
        }
        let expected = [("bin", 0), ("bin/five", 5), (TRAILER, 0)];
        assert_eq!(names, expected.map(|(name, size)| (name.to_owned(), size)));
    }
}
