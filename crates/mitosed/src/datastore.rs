//! The directory of a datastore: what is where in it, how full it is, and whether it is there.
//!
//! ```text
//! .mitose-datastore   tells that the directory is there and whose it is
//! layers/             delta disks and full copies, never moved
//! vms/<id>/           home folders
//! pool/<id>/<n>/      full copies made ahead
//! memory/             memory of snapshots, fork points and suspended VMs
//! .new/               what is being made and has no name yet
//! ```
//!
//! The mark is a file with random content that the inventory knows too: where a file system is not
//! mounted, its directory has none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use crate::config::make_dir;
use crate::inventory::sync_directory;
use crate::nursery;

/// Name of the mark.
const MARK: &str = ".mitose-datastore";
/// Longest mark that is read, bytes.
const MAX_MARK_BYTES: usize = 256;

/// Directory of a datastore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreDir {
    root: PathBuf,
}

/// How full a file system is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Its size, bytes.
    pub capacity_bytes: u64,
    /// What can be written to it, bytes.
    pub free_bytes: u64,
}

/// What the mark of a directory says.
#[derive(Debug, PartialEq, Eq)]
pub enum Mark {
    /// It has the mark that was looked for.
    Right,
    /// It has none.
    Missing,
    /// It has another one.
    Other,
}

impl StoreDir {
    /// The datastore in the directory `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Delta disks and full copies.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Home folders.
    pub fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// Home folder of one VM.
    pub fn vm(&self, id: &str) -> PathBuf {
        self.vms().join(id)
    }

    /// Full copies made ahead.
    pub fn pools(&self) -> PathBuf {
        self.root.join("pool")
    }

    /// Guest memory and checkpoints.
    pub fn memory(&self) -> PathBuf {
        self.root.join("memory")
    }

    fn dirs(&self) -> [PathBuf; 4] {
        [self.layers(), self.vms(), self.pools(), self.memory()]
    }

    /// Makes the directories in it.
    pub fn make_dirs(&self) -> anyhow::Result<()> {
        for dir in self.dirs() {
            make_dir(&dir)?;
        }
        nursery::lay(&self.root)
    }

    /// Something in it, where it is not empty. What every new file system has does not count, nor
    /// what a datastore that was removed leaves behind.
    pub fn foreign_content(&self) -> Option<PathBuf> {
        let is_empty = |dir: &Path| fs::read_dir(dir).is_ok_and(|mut dir| dir.next().is_none());
        let left = |path: &Path| self.dirs().iter().any(|dir| dir == path) && is_empty(path);
        let own = [self.root.join("lost+found"), self.root.join(nursery::NAME)];
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut paths = entries.map(|entry| entry.path());
        paths.find(|path| !own.contains(path) && !left(path))
    }

    /// How full its file system is.
    pub fn space(&self) -> io::Result<Space> {
        let stat = statvfs(&self.root)?;
        Ok(Space {
            capacity_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// Path of its mark.
    pub fn mark_path(&self) -> PathBuf {
        self.root.join(MARK)
    }

    /// Its mark, where it has one.
    pub fn read_mark(&self) -> io::Result<Option<String>> {
        match fs::read(self.mark_path()) {
            Ok(bytes) => {
                let text = &bytes[..bytes.len().min(MAX_MARK_BYTES)];
                Ok(Some(String::from_utf8_lossy(text).trim().to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Compares its mark with one that is known.
    pub fn compare_mark(&self, mark: &str) -> io::Result<Mark> {
        Ok(match self.read_mark()? {
            Some(found) if found == mark => Mark::Right,
            Some(_) => Mark::Other,
            None => Mark::Missing,
        })
    }

    /// Marks it, durably.
    pub fn write_mark(&self, mark: &str) -> io::Result<()> {
        let mut file = File::create(self.mark_path())?;
        writeln!(file, "{mark}")?;
        file.sync_all()?;
        sync_directory(&self.root)
    }

    /// Removes what is empty in it, then the mark: a daemon that ends in between knows it again.
    pub fn unmark(&self) -> io::Result<()> {
        for dir in self.dirs() {
            let _ = fs::remove_dir(dir);
        }
        let _ = nursery::clear(&self.root);
        match fs::remove_file(self.mark_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // It is in use as before.
                let _ = self.make_dirs();
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_told_by_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::new(dir.path().to_owned());
        assert_eq!(store.compare_mark("a").unwrap(), Mark::Missing);
        store.write_mark("a").unwrap();
        assert_eq!(store.compare_mark("a").unwrap(), Mark::Right);
        assert_eq!(store.compare_mark("b").unwrap(), Mark::Other);
        assert_eq!(store.foreign_content(), Some(store.mark_path()));
        std::fs::remove_file(store.mark_path()).unwrap();
        store.make_dirs().unwrap();
        assert_eq!(store.foreign_content(), None);
        std::fs::create_dir(dir.path().join("lost+found")).unwrap();
        assert_eq!(store.foreign_content(), None);
        std::fs::write(store.layers().join("x"), b"").unwrap();
        assert_eq!(store.foreign_content(), Some(store.layers()));
        store.unmark().unwrap();
        assert_eq!(store.compare_mark("a").unwrap(), Mark::Missing);
        assert!(store.layers().exists() && !store.vms().exists());
    }

    #[test]
    fn space_is_told_of_the_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let space = StoreDir::new(dir.path().to_owned()).space().unwrap();
        assert!(space.capacity_bytes >= space.free_bytes && space.capacity_bytes > 0);
        assert!(StoreDir::new(dir.path().join("none")).space().is_err());
    }
}
