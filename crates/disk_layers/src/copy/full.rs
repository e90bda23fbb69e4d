//! Full copies: a disk that shares nothing with the one it was copied from, as cheap as the file
//! system allows.

use std::fs::File;
use std::io;
use std::time::Instant;

use rustix::io::Errno;

use super::{CHUNK, CopyDiskError, flatten_at};
use crate::error::{DiskError, OpenDiskError};
use crate::layer::{DiskFormat, LayerFile};
use crate::pace::{Cancelled, CopyReport, Pace, Progress};
use crate::qcow2::create::CreateDiskError;
use crate::qcow2::image::Image;
use crate::repair::check;
use crate::storage::{Storage, is_no_space};

/// How a full copy was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyMethod {
    /// The file system shares the blocks of both files until one is written to.
    Reflink,
    /// The file was copied as it is, without its holes.
    File,
    /// What the chain shows was written to a new image.
    Flatten,
}

/// Copies what a chain (top first) shows into `target` (empty, writable), which becomes a
/// standalone qcow2 image, durable on return. A chain of one sound, standalone qcow2 file is
/// copied as a file, with shared blocks where the file system has reflinks.
pub fn copy_full(
    chain: Vec<LayerFile>,
    target: File,
    pace: &mut Pace<'_>,
) -> Result<(CopyMethod, CopyReport), CopyDiskError> {
    let start = Instant::now();
    let (method, copied_bytes) = match chain.as_slice() {
        [single] if is_sound_standalone(single)? => copy_file(&single.file, &target, pace)?,
        _ => (CopyMethod::Flatten, flatten_at(chain, target, pace)?),
    };
    let report = CopyReport {
        copied_bytes,
        elapsed: start.elapsed(),
    };
    Ok((method, report))
}

/// Whether a copy of the file is a disk that can be written to. Where a crash left its counts
/// wrong, a new image is better than a copy of the damage.
fn is_sound_standalone(layer: &LayerFile) -> Result<bool, CopyDiskError> {
    if layer.format != DiskFormat::Qcow2 {
        return Ok(false);
    }
    let unusable = |source| CopyDiskError::Source(OpenDiskError::Layer { layer: 0, source });
    let image = Image::open(&layer.file, false).map_err(unusable)?;
    if image.header.backing.is_some() {
        return Err(CopyDiskError::Source(OpenDiskError::BackingMismatch {
            layer: 0,
            named: true,
        }));
    }
    Ok(Image::open(&layer.file, true).is_ok()
        && check(&layer.file).is_ok_and(|report| report.is_clean()))
}

fn copy_file(
    source: &File,
    target: &File,
    pace: &mut Pace<'_>,
) -> Result<(CopyMethod, u64), CopyDiskError> {
    let length = Storage::len(target).map_err(write_error)?;
    if length != 0 {
        return Err(CopyDiskError::Create(CreateDiskError::NotEmpty { length }));
    }
    let total_bytes = Storage::len(source).map_err(|error| read_error(0, error))?;
    let mut job = FileCopy {
        source,
        target,
        total_bytes,
        in_kernel: true,
        copied_bytes: 0,
    };
    let method = if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        job.tell(pace, total_bytes, 0)?;
        CopyMethod::Reflink
    } else {
        job.run(pace)?;
        CopyMethod::File
    };
    Storage::sync_data(target).map_err(write_error)?;
    Ok((method, job.copied_bytes))
}

struct FileCopy<'a> {
    source: &'a File,
    target: &'a File,
    total_bytes: u64,
    /// The kernel copies between these files without a detour over our memory.
    in_kernel: bool,
    copied_bytes: u64,
}

impl FileCopy<'_> {
    fn run(&mut self, pace: &mut Pace<'_>) -> Result<(), CopyDiskError> {
        Storage::set_len(self.target, self.total_bytes).map_err(write_error)?;
        let mut offset = 0;
        loop {
            let next = Storage::next_data(self.source, offset);
            let Some((start, end)) = next.map_err(|error| read_error(offset, error))? else {
                return self.tell(pace, self.total_bytes, 0);
            };
            offset = start;
            while offset < end {
                let copied = self.copy_some(offset, (end - offset).min(CHUNK))?;
                if copied == 0 {
                    let error = io::ErrorKind::UnexpectedEof.into();
                    return Err(read_error(offset, error));
                }
                offset += copied;
                self.copied_bytes += copied;
                self.tell(pace, offset, copied)?;
            }
        }
    }

    fn copy_some(&mut self, offset: u64, length: u64) -> Result<u64, CopyDiskError> {
        if self.in_kernel {
            let (mut from, mut to) = (offset, offset);
            let done = rustix::io::retry_on_intr(|| {
                let (from, to) = (Some(&mut from), Some(&mut to));
                rustix::fs::copy_file_range(self.source, from, self.target, to, length as usize)
            });
            match done {
                Ok(0)
                | Err(Errno::NOSYS | Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM) =>
                {
                    self.in_kernel = false;
                }
                Ok(copied) => return Ok(copied as u64),
                Err(errno) => return Err(write_error(errno.into())),
            }
        }
        let mut piece = vec![0; length as usize];
        Storage::read_at(self.source, offset, &mut piece)
            .map_err(|error| read_error(offset, error))?;
        Storage::write_at(self.target, offset, &piece).map_err(write_error)?;
        Ok(length)
    }

    fn tell(&self, pace: &mut Pace<'_>, done_bytes: u64, copied: u64) -> Result<(), CopyDiskError> {
        let report = Progress {
            done_bytes,
            total_bytes: self.total_bytes,
        };
        pace.step(report, copied)
            .map_err(|Cancelled| CopyDiskError::Cancelled)
    }
}

fn read_error(offset: u64, source: io::Error) -> CopyDiskError {
    let source = DiskError::Io {
        action: "read",
        layer: 0,
        source,
    };
    CopyDiskError::Read { offset, source }
}

fn write_error(source: io::Error) -> CopyDiskError {
    if is_no_space(&source) {
        return CopyDiskError::Write(DiskError::NoSpace);
    }
    CopyDiskError::Write(DiskError::Io {
        action: "write",
        layer: 0,
        source,
    })
}
