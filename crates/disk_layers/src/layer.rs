//! One layer: a file, its format, and where it maps a guest range to.

use std::fs::File;

use crate::error::LayerError;
use crate::qcow2::cache::SliceCache;
use crate::qcow2::image::{CompressedCluster, Image};
use crate::storage::Storage;

/// Format of a layer's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// The bytes of the disk, as they are.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl DiskFormat {
    /// Name of the format, as in qcow2 headers and `qemu-img -f`.
    pub fn name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }

    /// The format of that name.
    pub fn from_name(name: &str) -> Option<DiskFormat> {
        match name {
            "raw" => Some(DiskFormat::Raw),
            "qcow2" => Some(DiskFormat::Qcow2),
            _ => None,
        }
    }
}

/// An open file to use as a layer. The format comes from whoever keeps the record of the layer,
/// never from the content: a guest can write a qcow2 header into a raw disk.
#[derive(Debug)]
pub struct LayerFile {
    /// The file: readable, and writable for a top.
    pub file: File,
    /// Its format.
    pub format: DiskFormat,
}

/// Where a run of guest bytes is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// It reads as zeroes.
    Zero,
    /// This layer has nothing there: ask the next one.
    Below,
    /// At this offset of the layer's file.
    Data(u64),
    /// In a compressed cluster; the run never crosses a cluster.
    Compressed(CompressedCluster),
}

#[derive(Debug)]
pub(crate) enum Kind {
    Raw,
    Qcow2(Box<Image>),
}

#[derive(Debug)]
pub(crate) struct Layer {
    /// Unique within the stack; key of cached slices.
    pub id: u32,
    pub storage: Box<dyn Storage>,
    pub kind: Kind,
    /// Size of the guest's disk in this layer, whole sectors.
    pub size: u64,
    /// May hold writes that are not durable yet.
    pub unsynced: bool,
    /// Is the top, or was it until it was covered by one that can still be taken away.
    pub writable: bool,
}

impl Layer {
    pub fn open(
        id: u32,
        storage: Box<dyn Storage>,
        format: DiskFormat,
        writable: bool,
    ) -> Result<Layer, LayerError> {
        let (kind, size) = match format {
            DiskFormat::Raw => (Kind::Raw, raw_size(storage.as_ref())?),
            DiskFormat::Qcow2 => {
                let image = Image::open(storage.as_ref(), writable)?;
                let size = image.header.size;
                (Kind::Qcow2(Box::new(image)), size)
            }
        };
        Ok(Layer {
            id,
            storage,
            kind,
            size,
            unsynced: true,
            writable,
        })
    }

    /// Ends all writing to this layer for good.
    pub fn seal(&mut self) {
        if self.writable {
            self.writable = false;
            if let Kind::Qcow2(image) = &mut self.kind {
                image.seal();
            }
        }
    }

    /// Finds `offset` and how far (at most `max` bytes) the answer holds. `max` is not 0 and
    /// `offset` lies within the layer.
    pub fn map(
        &mut self,
        cache: &mut SliceCache,
        offset: u64,
        max: u64,
    ) -> Result<(Run, u64), LayerError> {
        match &mut self.kind {
            Kind::Raw => Ok((Run::Data(offset), max)),
            Kind::Qcow2(image) => image.map(self.id, self.storage.as_ref(), cache, offset, max),
        }
    }

    pub fn names_backing(&self) -> bool {
        matches!(&self.kind, Kind::Qcow2(image) if image.header.backing.is_some())
    }
}

/// Size of the disk in a raw file: its length, padded with zeroes to whole sectors.
pub(crate) fn raw_size(file: &dyn Storage) -> Result<u64, LayerError> {
    let length = file
        .len()
        .map_err(|source| LayerError::Read { offset: 0, source })?;
    if length == 0 || length > crate::MAX_DISK_BYTES {
        return Err(LayerError::Field {
            field: "file length",
            value: length,
            reason: "a raw disk must have between one byte and 64 TiB",
        });
    }
    Ok(length.next_multiple_of(512))
}
