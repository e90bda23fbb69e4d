//! What an image file says about itself, for files that nobody vouches for.

use std::fs::File;

use crate::error::LayerError;
use crate::layer::{DiskFormat, raw_size};
use crate::qcow2::header::{BackingRef, Header, MAGIC, be32, read};
use crate::storage::Storage;

/// Magic numbers of formats that would otherwise be taken for raw, and where they stand.
const FOREIGN: [(&[u8], usize, &str); 7] = [
    (b"KDMV", 0, "VMDK"),
    (b"# Disk DescriptorFile", 0, "VMDK"),
    (b"vhdxfile", 0, "VHDX"),
    (b"conectix", 0, "VHD"),
    (b"\x7f\x10\xda\xbe", 64, "VDI"),
    (b"LUKS\xba\xbe", 0, "LUKS"),
    (b"QED\0", 0, "QED"),
];

/// Length of a file's start that tells its format, in bytes.
const START_BYTES: usize = 512;

/// The checked facts of a disk image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskHeader {
    /// Format of the file.
    pub format: DiskFormat,
    /// Size of the guest's disk in bytes, whole sectors.
    pub virtual_size_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Cluster size of qcow2 files.
    pub cluster_bytes: Option<u64>,
    /// The backing file named, if any. Only a name: nothing was opened.
    pub backing: Option<BackingRef>,
}

/// Names the format of a file that begins with `start`, if it is one that others must convert
/// first. A sector's worth is enough.
pub fn foreign_format(start: &[u8]) -> Option<&'static str> {
    FOREIGN.iter().find_map(|&(magic, at, name)| {
        let rest = start.get(at..)?;
        rest.starts_with(magic).then_some(name)
    })
}

/// Guesses the format from the content and reads the header. Only for files that enter from
/// outside (import): for a layer the record knows the format, see [`inspect_as`].
pub fn inspect(file: &File) -> Result<DiskHeader, LayerError> {
    let mut start = [0u8; START_BYTES];
    read(file, 0, &mut start)?;
    if let Some(name) = foreign_format(&start) {
        return Err(LayerError::ForeignFormat { name });
    }
    let format = if be32(&start, 0) == MAGIC {
        DiskFormat::Qcow2
    } else {
        DiskFormat::Raw
    };
    inspect_as(file, format)
}

/// Reads the header of a file whose format is known.
pub fn inspect_as(file: &File, format: DiskFormat) -> Result<DiskHeader, LayerError> {
    match format {
        DiskFormat::Raw => Ok(DiskHeader {
            format,
            virtual_size_bytes: raw_size(file)?,
            file_bytes: Storage::len(file)
                .map_err(|source| LayerError::Read { offset: 0, source })?,
            cluster_bytes: None,
            backing: None,
        }),
        DiskFormat::Qcow2 => {
            let header = Header::parse(file)?;
            Ok(DiskHeader {
                format,
                virtual_size_bytes: header.size,
                file_bytes: header.file_bytes,
                cluster_bytes: Some(header.cluster_bytes()),
                backing: header.backing,
            })
        }
    }
}
