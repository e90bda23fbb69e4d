//! Copies of whole disks: import of an image, and a chain made into one standalone image.

pub(crate) mod full;

use std::fs::File;
use std::ops::ControlFlow;

use thiserror::Error;

use crate::error::{DiskError, OpenDiskError};
use crate::layer::{DiskFormat, LayerFile};
use crate::pace::{Cancelled, Pace, Progress};
use crate::qcow2::create::{CLUSTER_BITS, CreateDiskError, create_full};
use crate::stack::{DiskStack, StackOptions};

/// Bytes copied between two progress reports.
pub(crate) const CHUNK: u64 = 1 << 20;
const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// Why a copy stopped.
#[derive(Debug, Error)]
pub enum CopyDiskError {
    /// The source is not usable.
    #[error("cannot open the source disk")]
    Source(#[source] OpenDiskError),
    /// The source cannot be read to its end.
    #[error("cannot read the source disk at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// What failed.
        #[source]
        source: DiskError,
    },
    /// The target cannot be made.
    #[error("cannot create the target image")]
    Create(#[source] CreateDiskError),
    /// The target was made but cannot be opened.
    #[error("cannot open the target image")]
    Target(#[source] OpenDiskError),
    /// The target cannot be written.
    #[error("cannot write the target image")]
    Write(#[source] DiskError),
    /// Layers to be merged differ in size.
    #[error(
        "disk layer {layer} has {bytes} bytes, the one above it {wanted}: they cannot be merged"
    )]
    Sizes {
        /// Position, counted from the nearest to the top.
        layer: usize,
        /// Its size.
        bytes: u64,
        /// Size of the first.
        wanted: u64,
    },
    /// The progress callback said stop.
    #[error("copy was cancelled")]
    Cancelled,
}

/// Copies a disk image into `target` (empty, writable), which becomes a standalone, sparse qcow2
/// image, durable on return. A source with a backing file is refused: its name could lead to any
/// file of the host.
pub fn import_disk(
    source: LayerFile,
    target: File,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), CopyDiskError> {
    flatten(vec![source], target, progress)
}

/// Copies what a chain (top first) shows into `target` (empty, writable), which becomes a
/// standalone, sparse qcow2 image, durable on return.
pub fn flatten(
    chain: Vec<LayerFile>,
    target: File,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), CopyDiskError> {
    flatten_at(chain, target, &mut Pace::free(progress)).map(|_| ())
}

/// As [`flatten`]; returns the bytes copied.
fn flatten_at(
    chain: Vec<LayerFile>,
    target: File,
    pace: &mut Pace<'_>,
) -> Result<u64, CopyDiskError> {
    let mut chain = chain.into_iter();
    let Some(top) = chain.next() else {
        return Err(CopyDiskError::Source(OpenDiskError::Empty));
    };
    let options = StackOptions {
        read_only: true,
        ..StackOptions::default()
    };
    let mut source =
        DiskStack::open(top, chain.collect(), options).map_err(CopyDiskError::Source)?;
    create_full(&target, source.size_bytes()).map_err(CopyDiskError::Create)?;
    let target = LayerFile {
        file: target,
        format: DiskFormat::Qcow2,
    };
    let mut target = DiskStack::open(target, Vec::new(), StackOptions::default())
        .map_err(CopyDiskError::Target)?;
    let copied = copy(&mut source, &mut target, pace)?;
    target.sync().map_err(CopyDiskError::Write)?;
    Ok(copied)
}

fn copy(
    source: &mut DiskStack,
    target: &mut DiskStack,
    pace: &mut Pace<'_>,
) -> Result<u64, CopyDiskError> {
    let total_bytes = source.size_bytes();
    let mut copied_bytes = 0;
    let mut buf = vec![0u8; CHUNK as usize];
    // Always at a cluster of the target.
    let mut offset = 0;
    while offset < total_bytes {
        let read = |source| CopyDiskError::Read { offset, source };
        let (is_data, run) = source
            .data_run(offset, total_bytes - offset)
            .map_err(read)?;
        let holes = match offset + run {
            end if end == total_bytes => run,
            end => (end / CLUSTER * CLUSTER).saturating_sub(offset),
        };
        let mut copied = 0;
        if !is_data && holes > 0 {
            offset += holes;
        } else {
            let buf = &mut buf[..CHUNK.min(total_bytes - offset) as usize];
            source.read_at(offset, buf).map_err(read)?;
            write_data(target, offset, buf).map_err(CopyDiskError::Write)?;
            copied = buf.len() as u64;
            offset += copied;
        }
        copied_bytes += copied;
        let report = Progress {
            done_bytes: offset,
            total_bytes,
        };
        pace.step(report, copied)
            .map_err(|Cancelled| CopyDiskError::Cancelled)?;
    }
    Ok(copied_bytes)
}

/// Writes the clusters of `buf` that hold anything but zeroes, neighbours together.
fn write_data(target: &mut DiskStack, offset: u64, buf: &[u8]) -> Result<(), DiskError> {
    let cluster = CLUSTER as usize;
    let mut start = 0;
    while start < buf.len() {
        let run = buf[start..]
            .chunks(cluster)
            .take_while(|chunk| !is_zero(chunk))
            .map(<[u8]>::len)
            .sum::<usize>();
        target.write_at(offset + start as u64, &buf[start..start + run])?;
        start += if run == 0 { cluster } else { run };
    }
    Ok(())
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [0; 16]) && rest.iter().all(|byte| *byte == 0)
}
