//! What all initramfs archives have in common: agent, modules, the console.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use agent_protocol::guest_paths;

use crate::ImageError;
use crate::cpio::CpioWriter;
use crate::kernel_module::Module;

/// An initramfs file being written; parent directories are made as needed.
#[derive(Debug)]
pub(crate) struct Initramfs {
    writer: CpioWriter<BufWriter<File>>,
    directories: BTreeSet<String>,
}

impl Initramfs {
    /// Starts a file with the agent as `/init` and the modules in loading order.
    pub(crate) fn create(
        path: &Path,
        agent: &[u8],
        modules: &[Module],
    ) -> Result<Self, ImageError> {
        let file = File::create(path).map_err(ImageError::file("make", path))?;
        let writer = CpioWriter::new(BufWriter::with_capacity(1 << 20, file));
        let mut archive = Self {
            writer,
            directories: BTreeSet::new(),
        };
        archive
            .fill(agent, modules)
            .map_err(ImageError::file("write", path))?;
        Ok(archive)
    }

    /// The archive that finds a disk and leaves: used by every image with a disk.
    pub(crate) fn write_for_disk(
        path: &Path,
        agent: &[u8],
        modules: &[Module],
    ) -> Result<(), ImageError> {
        let mut archive = Self::create(path, agent, modules)?;
        let written = archive.file(guest_paths::INITRAMFS, 0o644, b"");
        written
            .and_then(|()| archive.finish())
            .map_err(ImageError::file("write", path))
    }

    fn fill(&mut self, agent: &[u8], modules: &[Module]) -> io::Result<()> {
        for directory in ["/proc", "/sys", "/run", "/newroot"] {
            self.directory(directory, 0o755)?;
        }
        self.directory("/dev", 0o755)?;
        self.writer
            .character_device("/dev/console", 0o600, (5, 1))?;
        self.file("/init", 0o755, agent)?;
        let mut list = String::new();
        for module in modules {
            let path = format!("/lib/modules/{}.ko", module.name);
            self.file(&path, 0o644, &module.bytes)?;
            list.push_str(&path);
            list.push('\n');
        }
        self.file(guest_paths::MODULES, 0o644, list.as_bytes())
    }

    pub(crate) fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.parents(path)?;
        if self.directories.insert(path.to_owned()) {
            self.writer.directory(path, mode)?;
        }
        Ok(())
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.writer.file(path, mode, content)
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parents(path)?;
        self.writer.symlink(path, target)
    }

    pub(crate) fn finish(self) -> io::Result<()> {
        let mut out = self.writer.finish()?;
        out.flush()
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        for (at, _) in path.match_indices('/').skip(1) {
            let parent = &path[..at];
            if self.directories.insert(parent.to_owned()) {
                self.writer.directory(parent, 0o755)?;
            }
        }
        Ok(())
    }
}
