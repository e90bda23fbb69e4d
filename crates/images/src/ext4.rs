//! Makes an ext4 disk out of a directory, without mounting anything.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::tool::Tool;
use crate::{ImageError, Watch};

/// Smallest disk, in bytes. It is sparse: what is not used takes no space.
pub(crate) const DISK_BYTES_MIN: u64 = 4 << 30;

/// Space that is left for the guest at least, in bytes.
const FREE_MIN: u64 = 1 << 30;

/// Disk sizes are multiples of this, in bytes.
const STEP: u64 = 1 << 20;

/// Largest disk, in bytes.
pub(crate) const DISK_BYTES_MAX: u64 = 16 << 40;

/// Smallest disk that the smallest system fits on, in bytes: less is refused before anything is made.
const SYSTEM_BYTES_MIN: u64 = 256 << 20;

/// Refuses sizes that no system can have.
pub(crate) fn check_size(wanted: Option<u64>) -> Result<(), ImageError> {
    match wanted {
        Some(size) if size < SYSTEM_BYTES_MIN => Err(bad_size(format!(
            "{size} bytes are too few: give {SYSTEM_BYTES_MIN} or more"
        ))),
        _ => check_most(wanted),
    }
}

fn check_most(wanted: Option<u64>) -> Result<(), ImageError> {
    match wanted {
        Some(size) if size > DISK_BYTES_MAX => Err(bad_size(format!(
            "{size} bytes are more than the possible {DISK_BYTES_MAX}"
        ))),
        _ => Ok(()),
    }
}

fn bad_size(problem: String) -> ImageError {
    ImageError::BadParameter {
        field: "disk size",
        problem,
    }
}

/// Returns the size of a disk for a directory's content: what was asked for when the content fits,
/// else a size with room to spare.
pub(crate) fn disk_size(content: &Path, wanted: Option<u64>) -> Result<u64, ImageError> {
    check_most(wanted)?;
    let used = used_bytes(content).map_err(ImageError::file("measure", content))?;
    let least = used + used / 8 + (64 << 20);
    match wanted {
        None => Ok((least + FREE_MIN)
            .max(DISK_BYTES_MIN)
            .next_multiple_of(STEP)),
        Some(size) if size < least => Err(bad_size(format!(
            "{size} bytes are too few: the content needs {least}"
        ))),
        Some(size) => Ok(size.next_multiple_of(STEP)),
    }
}

/// Writes a directory's content as an ext4 file system into a new sparse file.
pub(crate) fn make(
    content: &Path,
    disk: &Path,
    bytes: u64,
    watch: &Watch,
) -> Result<(), ImageError> {
    let file = File::create_new(disk).map_err(ImageError::file("make", disk))?;
    file.set_len(bytes)
        .map_err(ImageError::file("size", disk))?;
    drop(file);
    // Nothing is left for the kernel to initialise later: that would be written by every clone.
    Tool::new("mkfs.ext4", "e2fsprogs")
        .args(["-q", "-F", "-L", "root", "-m", "1"])
        .args([
            "-E",
            "lazy_itable_init=0,lazy_journal_init=1,nodiscard",
            "-J",
            "size=64",
            "-d",
        ])
        .arg(content)
        .arg(disk)
        .output(watch)?;
    // The empty inode tables were written as zeros.
    Tool::new("fallocate", "util-linux")
        .arg("--dig-holes")
        .arg(disk)
        .output(watch)?;
    free_unwritten(disk).map_err(ImageError::file("free the unused space of", disk))
}

/// Gives back space that is allocated but was never written, which reads as a hole.
fn free_unwritten(disk: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(disk)?;
    let len = file.metadata()?.len();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let mut at = 0;
    while at < len {
        let hole = seek(&file, SeekFrom::Hole(at))?;
        let end = match seek(&file, SeekFrom::Data(hole)) {
            Ok(data) => data,
            Err(Errno::NXIO) => len,
            Err(error) => return Err(error.into()),
        };
        if end > hole {
            fallocate(&file, flags, hole, end - hole)?;
        }
        at = end.max(hole);
    }
    Ok(())
}

/// Bytes that a directory tree takes, with what a file system adds for each file.
fn used_bytes(dir: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        total += meta.blocks() * 512 + 1024;
        if meta.is_dir() {
            total += used_bytes(&path)?;
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_fit_the_content() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), vec![1u8; 5 << 20]).unwrap();
        assert_eq!(disk_size(dir.path(), None).unwrap(), DISK_BYTES_MIN);
        assert_eq!(
            disk_size(dir.path(), Some((1 << 30) + 1)).unwrap(),
            (1 << 30) + (1 << 20)
        );
        assert!(disk_size(dir.path(), Some(1 << 20)).is_err());
        assert!(check_size(Some(1 << 20)).is_err() && check_size(Some(u64::MAX)).is_err());
        assert!(check_size(None).is_ok() && check_size(Some(1 << 30)).is_ok());
        assert!(disk_size(dir.path(), Some(u64::MAX)).is_err());
    }

    #[test]
    fn a_directory_becomes_a_sparse_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let content = dir.path().join("content");
        fs::create_dir(&content).unwrap();
        fs::write(content.join("hello"), "world\n").unwrap();
        let disk = dir.path().join("disk");
        make(&content, &disk, 1 << 30, &Watch::default()).unwrap();
        let meta = fs::metadata(&disk).unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(meta.blocks() * 512 < 8 << 20, "{} blocks", meta.blocks());
        let show = Tool::new("debugfs", "e2fsprogs")
            .args(["-R", "cat /hello"])
            .arg(&disk);
        assert_eq!(show.output(&Watch::default()).unwrap(), b"world\n");
        assert!(
            make(&content, &disk, 1 << 30, &Watch::default()).is_err(),
            "exists already"
        );
    }
}
