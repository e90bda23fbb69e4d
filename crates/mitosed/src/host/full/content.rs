//! What a full clone copies, and how its content is told from another without reading it.
//!
//! A disk shows what the nearest of its layers with content of its own shows: empty deltas above
//! it change nothing. That layer's file, its size and the time of its last write tell the content.
//! So a VM that was never written to shows what its image does. A merged layer says of itself what
//! it shows: the same as the layers that it was made of.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use api_types::{ErrorKind, ImageFormat};
use disk_layers::{DiskFormat, create_overlay, inspect_as};
use rustix::fs::{MemfdFlags, memfd_create, statfs};
use vmm_protocol::LayerFormat;

use crate::error::{OpError, OpResult};
use crate::host::Host;
use crate::inventory::{LayerRow, VmRow};
use crate::layers::{backing_name, disk_format};

/// Tables of a copy beside its content, bytes.
const TABLES_BYTES: u64 = 1 << 20;
/// Kinds of file systems whose files can share blocks: Btrfs, XFS, bcachefs.
const SHARING_KINDS: [i128; 3] = [0x9123_683E, 0x5846_5342, 0xCA45_1A4E];
/// Longest file that is looked at for being an empty delta, bytes.
const MAX_EMPTY_BYTES: u64 = 64 << 20;

/// Disks that a full clone gets copies of, in order; empty slots stay empty.
#[derive(Clone, Debug)]
pub(in crate::host) struct Content {
    /// Layers of each disk, nearest first.
    pub chains: Vec<Vec<LayerRow>>,
    /// What tells the content of each disk.
    pub stamps: Vec<String>,
    /// Most that a copy of all of them takes, bytes.
    pub bytes: u64,
}

impl Host {
    /// Content of a VM's writable disks. It stays while nobody starts the VM.
    pub(in crate::host) fn content_of(&self, row: &VmRow) -> OpResult<Content> {
        let mut chains = Vec::new();
        for (disk, spec) in row.disks.iter().zip(&row.spec.disks) {
            if let (Some(top), false) = (&disk.top, spec.read_only) {
                chains.push(self.layers().chain(top)?);
            }
        }
        Ok(Content::of(chains)?)
    }

    /// Content of an image's disk.
    pub(in crate::host) fn content_of_image(&self, name: &str) -> OpResult<Content> {
        let image = crate::image::resolve(&self.config.home, name)?;
        let Some((path, format)) = image.disk else {
            return Err(OpError::invalid(format!(
                "source: the image {name} has no disk, so there is nothing to copy"
            )));
        };
        let format = match format {
            ImageFormat::Raw => LayerFormat::Raw,
            ImageFormat::Qcow2 => LayerFormat::Qcow2,
        };
        let header = File::open(&path)
            .map_err(anyhow::Error::from)
            .and_then(|file| Ok(inspect_as(&file, disk_format(format))?))
            .with_context(|| format!("cannot read the disk of image {name}"))
            .map_err(|error| OpError::caused(ErrorKind::Failed, error))?;
        let layer = LayerRow {
            id: format!("base:{}", path.display()),
            parent: None,
            path,
            format,
            size_bytes: header.virtual_size_bytes,
            owned: false,
            content: None,
        };
        Ok(Content::of(vec![vec![layer]])?)
    }
}

impl Content {
    fn of(chains: Vec<Vec<LayerRow>>) -> anyhow::Result<Self> {
        let stamps = chains.iter().map(|chain| stamp_of(chain));
        let stamps = stamps.collect::<anyhow::Result<_>>()?;
        let bytes = chains.iter().map(|chain| copy_bytes(chain)).sum();
        Ok(Self {
            chains,
            stamps,
            bytes,
        })
    }
}

impl Content {
    /// Whether copies in `dir` may share blocks with the files that they are copies of: all of them
    /// are single files of a file system of a kind that can.
    pub fn may_share_blocks(&self, dir: &Path) -> bool {
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
        let kind = statfs(dir).ok().map(|found| found.f_type);
        let here = device(dir);
        kind.is_some_and(|kind| SHARING_KINDS.contains(&i128::from(kind)))
            && self.chains.iter().all(|chain| match &chain[..] {
                [only] => here.is_some() && device(&only.path) == here,
                _ => false,
            })
    }
}

/// Most that a copy of a disk takes: what its layers take, or all of the disk.
fn copy_bytes(chain: &[LayerRow]) -> u64 {
    let allocated = |layer: &LayerRow| fs::metadata(&layer.path).map_or(0, |m| m.blocks() * 512);
    let layers: u64 = chain.iter().map(allocated).sum();
    let disk = chain.first().map_or(0, |top| top.size_bytes);
    layers.min(disk) + TABLES_BYTES
}

/// What tells the content of a disk with these layers, nearest first.
pub(in crate::host) fn stamp_of(chain: &[LayerRow]) -> anyhow::Result<String> {
    let mut layers = chain;
    let nearest = loop {
        match layers {
            [] => anyhow::bail!("a disk has no layers"),
            [nearest, ..] if nearest.content.is_some() => break nearest,
            [top, below, ..] if is_empty(top, below)? => layers = &layers[1..],
            [nearest, ..] => break nearest,
        }
    };
    if let Some(content) = &nearest.content {
        return Ok(content.clone());
    }
    let path = &nearest.path;
    let failed = || format!("cannot read the disk layer {}", path.display());
    let file = fs::metadata(path).with_context(failed)?;
    Ok(format!(
        "{} {} {} {}.{:09}",
        path.display(),
        file.ino(),
        file.len(),
        file.mtime(),
        file.mtime_nsec()
    ))
}

/// Whether a delta is as it was made: without content of its own.
fn is_empty(delta: &LayerRow, below: &LayerRow) -> anyhow::Result<bool> {
    if disk_format(delta.format) != DiskFormat::Qcow2 || !delta.owned {
        return Ok(false);
    }
    let failed = || format!("cannot read the disk layer {}", delta.path.display());
    let mut file = File::open(&delta.path).with_context(failed)?;
    let fresh = memfd_create("mitose-delta", MemfdFlags::CLOEXEC);
    let mut fresh = File::from(fresh.context("cannot make a memory file")?);
    let backing = backing_name(&delta.path, &below.path);
    create_overlay(
        &fresh,
        delta.size_bytes,
        &backing,
        disk_format(below.format),
    )?;
    let length = fresh.metadata()?.len();
    if length > MAX_EMPTY_BYTES || file.metadata().with_context(failed)?.len() != length {
        return Ok(false);
    }
    std::io::Seek::rewind(&mut fresh)?;
    let (mut found, mut wanted) = (Vec::new(), Vec::new());
    file.read_to_end(&mut found).with_context(failed)?;
    fresh.read_to_end(&mut wanted)?;
    Ok(found == wanted)
}

/// Checks a finished copy: a whole, standalone qcow2 image of the right size.
pub(in crate::host) fn verify_copy(path: &Path, size_bytes: u64) -> anyhow::Result<()> {
    let failed = || format!("the copy {} is not whole", path.display());
    let file = File::open(path).with_context(failed)?;
    let header = inspect_as(&file, DiskFormat::Qcow2).with_context(failed)?;
    if header.virtual_size_bytes != size_bytes || header.backing.is_some() {
        anyhow::bail!(
            "the copy {} has {} bytes, {size_bytes} were copied",
            path.display(),
            header.virtual_size_bytes
        );
    }
    disk_layers::check_whole(&file).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::make_delta;

    fn row(dir: &Path, id: &str, parent: Option<&str>, format: LayerFormat) -> LayerRow {
        LayerRow {
            id: id.into(),
            parent: parent.map(str::to_owned),
            path: dir.join(id),
            format,
            size_bytes: 1 << 20,
            owned: parent.is_some(),
            content: None,
        }
    }

    #[test]
    fn empty_deltas_do_not_change_the_content_and_writes_do() {
        let dir = tempfile::tempdir().unwrap();
        let layers = dir.path().join("layers");
        fs::create_dir(&layers).unwrap();
        let base = row(&layers, "base", None, LayerFormat::Raw);
        fs::write(&base.path, vec![1; 1 << 20]).unwrap();
        let delta = row(&layers, "delta", Some("base"), LayerFormat::Qcow2);
        let next = row(&layers, "next", Some("delta"), LayerFormat::Qcow2);
        make_delta(&delta, &base).unwrap();
        make_delta(&next, &delta).unwrap();
        let of_base = stamp_of(std::slice::from_ref(&base)).unwrap();
        let chain = [next, delta.clone(), base];
        assert_eq!(stamp_of(&chain).unwrap(), of_base);
        let file = File::options().append(true).open(&delta.path).unwrap();
        file.set_len(file.metadata().unwrap().len() + 1).unwrap();
        let written = stamp_of(&chain).unwrap();
        assert!(written.contains("/delta "), "{written}");
        fs::remove_file(&delta.path).unwrap();
        assert!(stamp_of(&chain).is_err());
    }
}
