//! Merging: a run of neighbouring layers becomes one layer that shows the same.
//!
//! ```text
//!   top                 top
//!   newest ┐
//!   ...    ├─ merge ──► merged
//!   oldest ┘
//!   parent              parent
//! ```
//!
//! The result is an overlay on the run's parent. A cluster that no layer of the run has stays
//! unallocated, so that the parent shows through; zeroes over content of the parent stay zeroes.
//! The parent is not opened: clusters of the result are as small as the smallest of the run, so
//! that each has one owner.

use std::fs::File;
use std::io;
use std::time::Instant;

use crate::copy::{CHUNK, CopyDiskError, is_zero};
use crate::error::{DiskError, OpenDiskError};
use crate::layer::{DiskFormat, LayerFile};
use crate::pace::{Cancelled, CopyReport, Pace, Progress};
use crate::qcow2::create::create;
use crate::qcow2::header::Header;
use crate::stack::{DiskStack, StackOptions, Visible};
use crate::storage::Storage;

/// Bytes written between two syncs, so that a guest's own sync never waits for a long backlog.
const SYNC_EVERY: u64 = 32 << 20;

/// Merges `run`, sealed qcow2 overlays of one size, nearest to the top first, into `target`
/// (empty, writable): an overlay on `backing_name`, the parent of the run's last layer. Durable on
/// return. Reads the run only; where it fails, `target` is left half-made.
pub fn merge(
    run: Vec<LayerFile>,
    target: File,
    backing_name: &str,
    backing_format: DiskFormat,
    pace: &mut Pace<'_>,
) -> Result<CopyReport, CopyDiskError> {
    let run = run
        .into_iter()
        .map(|layer| (Box::new(layer.file) as Box<dyn Storage>, layer.format))
        .collect();
    merge_storages(run, Box::new(target), (backing_name, backing_format), pace)
}

pub(crate) fn merge_storages(
    mut run: Vec<(Box<dyn Storage>, DiskFormat)>,
    target: Box<dyn Storage>,
    backing: (&str, DiskFormat),
    pace: &mut Pace<'_>,
) -> Result<CopyReport, CopyDiskError> {
    let start = Instant::now();
    let (size, cluster_bytes) = shape(&run)?;
    let parent = || (Box::new(Unread(size)) as Box<dyn Storage>, DiskFormat::Raw);
    run.push(parent());
    let options = StackOptions {
        read_only: true,
        ..StackOptions::default()
    };
    let source = DiskStack::open_storages(run, options).map_err(CopyDiskError::Source)?;
    let bits = cluster_bytes.trailing_zeros();
    create(target.as_ref(), size, Some(backing), bits).map_err(CopyDiskError::Create)?;
    let files = vec![(target, DiskFormat::Qcow2), parent()];
    let target = DiskStack::open_storages(files, StackOptions::default());
    let mut job = Job {
        source,
        target: target.map_err(CopyDiskError::Target)?,
        cluster_bytes: cluster_bytes as usize,
        copied_bytes: 0,
        unsynced_bytes: 0,
    };
    job.run(pace)?;
    job.target.sync().map_err(CopyDiskError::Write)?;
    Ok(CopyReport {
        copied_bytes: job.copied_bytes,
        elapsed: start.elapsed(),
    })
}

/// Size of the disk, and of the smallest clusters, of layers that can be merged.
fn shape(run: &[(Box<dyn Storage>, DiskFormat)]) -> Result<(u64, u64), CopyDiskError> {
    let (mut size, mut cluster_bytes) = (None, u64::MAX);
    for (layer, (file, format)) in run.iter().enumerate() {
        let unusable = |source| CopyDiskError::Source(source);
        if *format == DiskFormat::Raw {
            let below = run.len() - layer;
            return Err(unusable(OpenDiskError::RawOverlay { layer, below }));
        }
        let header = Header::parse(file.as_ref())
            .map_err(|source| unusable(OpenDiskError::Layer { layer, source }))?;
        let wanted = *size.get_or_insert(header.size);
        if header.size != wanted {
            return Err(CopyDiskError::Sizes {
                layer,
                bytes: header.size,
                wanted,
            });
        }
        cluster_bytes = cluster_bytes.min(header.cluster_bytes());
    }
    let size = size.ok_or(CopyDiskError::Source(OpenDiskError::Empty))?;
    Ok((size, cluster_bytes))
}

struct Job {
    source: DiskStack,
    target: DiskStack,
    cluster_bytes: usize,
    copied_bytes: u64,
    unsynced_bytes: u64,
}

impl Job {
    fn run(&mut self, pace: &mut Pace<'_>) -> Result<(), CopyDiskError> {
        let total_bytes = self.source.size_bytes();
        // Whole clusters, also the largest.
        let chunk = CHUNK.max(self.cluster_bytes as u64);
        let mut buf = vec![0u8; chunk as usize];
        let mut offset = 0;
        while offset < total_bytes {
            let read = |source| CopyDiskError::Read { offset, source };
            let (what, length) = self
                .source
                .visible(offset, total_bytes - offset)
                .map_err(read)?;
            let mut copied = 0;
            let done = match what {
                Visible::Base => length,
                Visible::Zero => {
                    let zeroed = self.target.write_zeroes(offset, length, true);
                    zeroed.map_err(CopyDiskError::Write)?;
                    length
                }
                Visible::Content => {
                    let piece = &mut buf[..length.min(chunk) as usize];
                    self.source.read_at(offset, piece).map_err(read)?;
                    copied = piece.len() as u64;
                    self.put(offset, &buf[..copied as usize])
                        .map_err(CopyDiskError::Write)?;
                    copied
                }
            };
            offset += done;
            self.copied_bytes += copied;
            let report = Progress {
                done_bytes: offset,
                total_bytes,
            };
            pace.step(report, copied)
                .map_err(|Cancelled| CopyDiskError::Cancelled)?;
        }
        Ok(())
    }

    /// Writes whole clusters; those that hold only zeroes take no space.
    fn put(&mut self, offset: u64, piece: &[u8]) -> Result<(), DiskError> {
        let mut start = 0;
        while start < piece.len() {
            let rest = piece[start..].chunks(self.cluster_bytes);
            let zero = rest.clone().next().is_some_and(is_zero);
            let length = rest
                .take_while(|chunk| is_zero(chunk) == zero)
                .map(<[u8]>::len)
                .sum::<usize>();
            let (at, end) = (offset + start as u64, start + length);
            if zero {
                self.target.write_zeroes(at, length as u64, true)?;
            } else {
                self.target.write_at(at, &piece[start..end])?;
            }
            start = end;
        }
        self.unsynced_bytes += piece.len() as u64;
        if self.unsynced_bytes >= SYNC_EVERY {
            self.unsynced_bytes = 0;
            self.target.sync()?;
        }
        Ok(())
    }
}

/// Stands for the parent, whose content plays no part.
#[derive(Debug)]
struct Unread(u64);

impl Storage for Unread {
    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("the parent of merged layers is not read"))
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn punch_hole(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn zero_range(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn next_data(&self, _: u64) -> io::Result<Option<(u64, u64)>> {
        Ok(None)
    }
}
