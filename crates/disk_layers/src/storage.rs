//! The file below a layer, as the few operations that a layer needs.
//!
//! A trait, so that tests can record, fail and replay every operation. Nothing here opens a path.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, FileType};
use rustix::io::Errno;

/// Zeroes are written in pieces of this size where the file system cannot zero a range.
const ZERO_CHUNK: usize = 64 * 1024;

/// A file of one layer. All offsets and lengths are in bytes.
pub(crate) trait Storage: Debug + Send {
    /// Fills `buf` from `offset`; what lies past the end of the file reads as zeroes.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data`, growing the file where needed.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeroes and gives its space back where the file system can.
    /// Never grows the file.
    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Makes a range read as zeroes and keeps space reserved for it where the file system can.
    fn zero_range(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Sets the length of the file.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Length of the file (or block device).
    fn len(&self) -> io::Result<u64>;
    /// Makes all that was written durable (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
    /// First offset at or after `offset` that may hold data, and where that run of data ends.
    /// `None`: only holes up to the end.
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>>;
}

impl Storage for File {
    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            match FileExt::read_at(self, buf, offset) {
                Ok(0) => {
                    buf.fill(0);
                    return Ok(());
                }
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        FileExt::write_all_at(self, data, offset)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.saturating_add(length).min(Storage::len(self)?);
        let Some(length) = end.checked_sub(offset).filter(|length| *length > 0) else {
            return Ok(());
        };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(self, flags, offset, length) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                write_zeroes(self, offset, length)
            }
            other => Ok(other?),
        }
    }

    fn zero_range(&self, offset: u64, length: u64) -> io::Result<()> {
        match fallocate(self, FallocateFlags::ZERO_RANGE, offset, length) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                write_zeroes(self, offset, length)
            }
            other => Ok(other?),
        }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        File::set_len(self, length)
    }

    fn len(&self) -> io::Result<u64> {
        // fstat itself: the call behind `File::metadata` takes paths, which a jailed process may
        // not use.
        let stat = rustix::fs::fstat(self)?;
        if FileType::from_raw_mode(stat.st_mode).is_file() {
            return Ok(stat.st_size.cast_unsigned());
        }
        // Block devices report their size only by seeking. The position is used by nobody.
        Ok(rustix::fs::seek(self, rustix::fs::SeekFrom::End(0))?)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let end = Storage::len(self)?;
        if offset >= end {
            return Ok(None);
        }
        let start = match rustix::fs::seek(self, rustix::fs::SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(_) => return Ok(Some((offset, end))),
        };
        let stop = rustix::fs::seek(self, rustix::fs::SeekFrom::Hole(start)).unwrap_or(end);
        Ok(Some((start, stop.min(end).max(start))))
    }
}

fn fallocate(file: &File, flags: FallocateFlags, offset: u64, length: u64) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, flags, offset, length))
}

fn write_zeroes(file: &File, mut offset: u64, mut length: u64) -> io::Result<()> {
    let zeroes = [0u8; ZERO_CHUNK];
    while length > 0 {
        let n = length.min(ZERO_CHUNK as u64) as usize;
        FileExt::write_all_at(file, &zeroes[..n], offset)?;
        offset += n as u64;
        length -= n as u64;
    }
    Ok(())
}

/// Whether the host says that space (or quota) is used up.
pub(crate) fn is_no_space(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
