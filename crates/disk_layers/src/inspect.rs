//! What an image file says about itself, for files that nobody vouches for.

use std::fs::File;

use crate::error::LayerError;
use crate::layer::{DiskFormat, raw_size};
use crate::qcow2::header::{BackingRef, Header, MAGIC, be32, read};
use crate::storage::Storage;

/// Magic numbers of formats that would otherwise be taken for raw.
const FOREIGN: [(&[u8], &str); 6] = [
    (b"KDMV", "VMDK"),
    (b"# Disk DescriptorFile", "VMDK"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
    (b"LUKS\xba\xbe", "LUKS"),
    (b"QED\0", "QED"),
];

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

/// Guesses the format from the content and reads the header. Only for files that enter from
/// outside (import): for a layer the record knows the format, see [`inspect_as`].
pub fn inspect(file: &File) -> Result<DiskHeader, LayerError> {
    let mut start = [0u8; 24];
    read(file, 0, &mut start)?;
    if let Some((_, name)) = FOREIGN.iter().find(|(magic, _)| start.starts_with(magic)) {
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
