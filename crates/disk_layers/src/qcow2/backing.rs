//! A new backing file for an overlay, written into its header in place.
//!
//! Header, extensions and name are kept in the file's first sector where they fit, which disks
//! write whole: one write changes all of it. A longer name goes to a place of the header's cluster
//! that the old one does not touch, is made durable there, and then the first sector points to it.
//! So the file names the old backing file or the new one at every moment.

use std::fs::File;
use std::io;

use thiserror::Error;

use crate::error::LayerError;
use crate::layer::DiskFormat;
use crate::qcow2::header::{
    BackingRef, EXT_BACKING_FORMAT, EXT_END, Header, MAX_BACKING_NAME, be32, be64, field,
    put_backing_format, read,
};
use crate::storage::Storage;

/// Written whole or not at all.
const SECTOR: usize = 512;
/// Names of feature bits, for people; QEMU's takes most of a sector.
const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
/// How much of the header's cluster is used.
const AREA: u64 = 4096;

/// Why an overlay could not be given another backing file.
#[derive(Debug, Error)]
pub enum SetBackingError {
    /// The file's header is damaged, or not one that can be changed.
    #[error("cannot use the header of the overlay")]
    Header(#[from] LayerError),
    /// The file has no backing file.
    #[error("the image has no backing file: only that of an overlay can be changed")]
    NotAnOverlay,
    /// The name is too long for this file.
    #[error("a backing file name of {bytes} bytes does not fit in the header: use a shorter path")]
    NoRoom {
        /// Length of the name.
        bytes: usize,
    },
    /// The host failed a write; the file names its old backing file.
    #[error("cannot write the header of the overlay")]
    Write(#[source] io::Error),
}

/// Makes `file`, an overlay that nobody else writes to, name another backing file, which must show
/// the same content. Durable on return; a crash at any moment leaves the old name or the new one.
pub fn set_backing(
    file: &File,
    backing_name: &str,
    backing_format: DiskFormat,
) -> Result<(), SetBackingError> {
    rewrite(file, backing_name, backing_format)?;
    Storage::sync_data(file).map_err(SetBackingError::Write)
}

/// As [`set_backing`], without waiting for the last write to be durable.
pub(crate) fn rewrite(
    file: &dyn Storage,
    name: &str,
    format: DiskFormat,
) -> Result<BackingRef, SetBackingError> {
    let header = Header::parse(file)?;
    if header.backing.is_none() {
        return Err(SetBackingError::NotAnOverlay);
    }
    if header.version != 3 {
        let reason = "upgrade it with `qemu-img amend -o compat=1.1`";
        return Err(field("version", header.version.into(), reason).into());
    }
    if name.is_empty() || name.len() > MAX_BACKING_NAME || name.contains('\0') {
        return Err(LayerError::Name {
            field: "backing_file_name",
            reason: "a backing file name has 1 to 1023 bytes, none of them zero",
        }
        .into());
    }
    let mut area = vec![0; AREA.min(header.cluster_bytes()) as usize];
    read(file, 0, &mut area)?;
    let old = (be64(&area, 8), u64::from(be32(&area, 16)));
    let mut sector = fixed_part(&area, format)?;

    let no_room = SetBackingError::NoRoom { bytes: name.len() };
    let at = if sector.len() + name.len() <= SECTOR {
        let at = sector.len();
        sector.extend_from_slice(name.as_bytes());
        at as u64
    } else {
        let at = free_place(old, name.len() as u64, area.len() as u64);
        let Some(at) = at.filter(|_| sector.len() <= SECTOR) else {
            return Err(no_room);
        };
        file.write_at(at, name.as_bytes())
            .and_then(|()| file.sync_data())
            .map_err(SetBackingError::Write)?;
        at
    };
    sector.resize(SECTOR, 0);
    sector[8..16].copy_from_slice(&at.to_be_bytes());
    sector[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
    file.write_at(0, &sector).map_err(SetBackingError::Write)?;
    Ok(BackingRef {
        name: name.to_owned(),
        format: Some(format),
    })
}

/// Header and extensions as they will be: the backing format first, others as they are. The table
/// of feature names, which nothing depends on, is left out to make room.
fn fixed_part(area: &[u8], format: DiskFormat) -> Result<Vec<u8>, LayerError> {
    let mut at = be32(area, 100) as usize;
    let mut fixed = area[..at.min(area.len())].to_vec();
    put_backing_format(&mut fixed, format);
    // Every step moves on by at least 8 bytes within `area`, so this ends.
    loop {
        let end = field(
            "header extension length",
            at as u64,
            "header extensions must end within the first 4 KiB: convert it with `qemu-img convert`",
        );
        let Some(head) = area.get(at..at + 8) else {
            return Err(end);
        };
        let (kind, length) = (be32(head, 0), be32(head, 4) as usize);
        if kind == EXT_END {
            fixed.extend_from_slice(&[0; 8]);
            return Ok(fixed);
        }
        let next = at + 8 + length.next_multiple_of(8);
        let Some(extension) = area.get(at..next) else {
            return Err(end);
        };
        if kind != EXT_BACKING_FORMAT && kind != EXT_FEATURE_NAMES {
            fixed.extend_from_slice(extension);
        }
        at = next;
    }
}

/// Place for a name after the first sector, before or after the old one.
fn free_place((old, old_bytes): (u64, u64), bytes: u64, area: u64) -> Option<u64> {
    let first = SECTOR as u64;
    let after = first.max((old + old_bytes).next_multiple_of(8));
    if after == first || first + bytes <= old {
        (first + bytes <= area).then_some(first)
    } else {
        (after + bytes <= area).then_some(after)
    }
}
