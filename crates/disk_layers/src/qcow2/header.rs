//! The qcow2 header: parsing of untrusted files and writing of our own.
//!
//! Field names and numbers follow QEMU's `docs/interop/qcow2.txt`. Everything that is not
//! understood is refused, so that the rest of the crate deals with known features only.

use crate::error::LayerError;
use crate::layer::DiskFormat;
use crate::storage::Storage;

/// "QFI\xfb".
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// Largest disk accepted: 64 TiB.
pub const MAX_DISK_BYTES: u64 = 1 << 46;
/// Smallest and largest cluster: 512 bytes and 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Largest L1 table read (QEMU's limit too).
const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table read (QEMU's limit too).
const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// Longest backing file name of the format.
pub(crate) const MAX_BACKING_NAME: usize = 1023;
/// How much of the first cluster is looked at for extensions and the backing name.
const MAX_HEADER_AREA: usize = 64 * 1024;
/// Read first; header extensions are a few hundred bytes.
const USUAL_HEADER_AREA: u64 = 4096;
pub(crate) const V2_LENGTH: usize = 72;
pub(crate) const V3_LENGTH: usize = 104;
/// Length of the header that we write: with the compression type field and its padding.
pub(crate) const OWN_LENGTH: usize = 112;

pub(crate) const EXT_END: u32 = 0;
pub(crate) const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;

const INCOMPAT_DIRTY: u64 = 1 << 0;
const INCOMPAT_CORRUPT: u64 = 1 << 1;
const INCOMPAT_DATA_FILE: u64 = 1 << 2;
const INCOMPAT_COMPRESSION: u64 = 1 << 3;
const INCOMPAT_EXTENDED_L2: u64 = 1 << 4;

/// How compressed clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Zlib,
    Zstd,
}

/// A backing file, as a qcow2 header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingRef {
    /// The name as written; relative names are relative to the overlay's directory.
    pub name: String,
    /// The format, where the header says it.
    pub format: Option<DiskFormat>,
}

/// A validated header.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub l1_offset: u64,
    pub l1_entries: u32,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    pub refcount_order: u32,
    pub snapshots: u32,
    pub autoclear: u64,
    pub compression: Compression,
    pub backing: Option<BackingRef>,
    /// Length of the file when the header was read.
    pub file_bytes: u64,
}

impl Header {
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of one L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_bytes() / 8
    }

    /// Guest bytes that one L2 table maps.
    pub fn l2_span(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Bytes of the tables cached at once: a page, or a cluster where that is smaller.
    pub fn slice_bytes(&self) -> u64 {
        self.cluster_bytes().min(4096)
    }

    /// Reads and checks the header of `file`.
    pub fn parse(file: &dyn Storage) -> Result<Header, LayerError> {
        let file_bytes = file
            .len()
            .map_err(|source| LayerError::Read { offset: 0, source })?;
        let mut fixed = [0u8; V3_LENGTH + 8];
        read(file, 0, &mut fixed)?;
        let magic = be32(&fixed, 0);
        if magic != MAGIC {
            return Err(LayerError::NotQcow2 { magic });
        }
        need(file_bytes, "the header", V2_LENGTH as u64)?;
        let version = be32(&fixed, 4);
        match version {
            2 => {}
            3 => need(file_bytes, "the header", V3_LENGTH as u64)?,
            _ => {
                return Err(field(
                    "version",
                    version.into(),
                    "only qcow2 versions 2 and 3 are supported",
                ));
            }
        }
        let mut header = parse_fixed(&fixed, version, file_bytes)?;
        let header_length = check_features(&mut header, &fixed)?;
        check_tables(&header)?;

        let area_bytes = (MAX_HEADER_AREA as u64)
            .min(header.cluster_bytes())
            .min(file_bytes);
        let mut area = vec![0u8; area_bytes.min(USUAL_HEADER_AREA) as usize];
        read(file, 0, &mut area)?;
        if !holds_all(&area, &fixed, header_length) {
            area.resize(area_bytes as usize, 0);
            read(file, 0, &mut area)?;
        }
        let format = backing_format(&area, header_length)?;
        header.backing = backing_name(&area, &fixed)?.map(|name| BackingRef { name, format });
        Ok(header)
    }
}

fn parse_fixed(fixed: &[u8], version: u32, file_bytes: u64) -> Result<Header, LayerError> {
    let cluster_bits = be32(fixed, 20);
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return Err(field(
            "cluster_bits",
            cluster_bits.into(),
            "clusters must have 512 bytes to 2 MiB (9 to 21 bits)",
        ));
    }
    let size = be64(fixed, 24);
    if size > MAX_DISK_BYTES {
        return Err(field("size", size, "disks are limited to 64 TiB"));
    }
    if size == 0 || !size.is_multiple_of(512) {
        return Err(field(
            "size",
            size,
            "a disk must have at least one sector, and whole sectors of 512 bytes",
        ));
    }
    let crypt_method = be32(fixed, 32);
    if crypt_method != 0 {
        return Err(field(
            "crypt_method",
            crypt_method.into(),
            "encrypted images are not supported: decrypt it with `qemu-img convert`",
        ));
    }
    let refcount_order = if version == 3 { be32(fixed, 96) } else { 4 };
    if refcount_order > 6 {
        return Err(field(
            "refcount_order",
            refcount_order.into(),
            "refcounts have at most 64 bits (order 6)",
        ));
    }
    Ok(Header {
        version,
        cluster_bits,
        size,
        l1_entries: be32(fixed, 36),
        l1_offset: be64(fixed, 40),
        reftable_offset: be64(fixed, 48),
        reftable_clusters: be32(fixed, 56),
        snapshots: be32(fixed, 60),
        refcount_order,
        autoclear: if version == 3 { be64(fixed, 88) } else { 0 },
        compression: Compression::Zlib,
        backing: None,
        file_bytes,
    })
}

/// Checks the feature bits and returns the header's length.
fn check_features(header: &mut Header, fixed: &[u8]) -> Result<usize, LayerError> {
    if header.version == 2 {
        return Ok(V2_LENGTH);
    }
    let incompatible = be64(fixed, 72);
    let refuse = |bit: u64, reason: &'static str| {
        if incompatible & bit != 0 {
            return Err(field("incompatible_features", incompatible, reason));
        }
        Ok(())
    };
    refuse(
        INCOMPAT_DIRTY,
        "the dirty bit is set: repair it with `qemu-img check -r all`",
    )?;
    refuse(
        INCOMPAT_CORRUPT,
        "the corrupt bit is set: repair it with `qemu-img check -r all`",
    )?;
    refuse(
        INCOMPAT_DATA_FILE,
        "external data files are not supported: convert it with `qemu-img convert`",
    )?;
    refuse(
        INCOMPAT_EXTENDED_L2,
        "subclusters are not supported: convert it with `qemu-img convert`",
    )?;
    refuse(
        !INCOMPAT_COMPRESSION,
        "unknown feature bits are set: convert it with the tool that made it",
    )?;
    let length = be32(fixed, 100);
    if length < V3_LENGTH as u32
        || !length.is_multiple_of(8)
        || u64::from(length) > header.cluster_bytes()
    {
        return Err(field(
            "header_length",
            length.into(),
            "must be a multiple of 8, at least 104, and within the first cluster",
        ));
    }
    if incompatible & INCOMPAT_COMPRESSION != 0 {
        header.compression = match fixed[V3_LENGTH] {
            1 if length as usize > V3_LENGTH => Compression::Zstd,
            other => {
                return Err(field(
                    "compression_type",
                    other.into(),
                    "only deflate (0, without a feature bit) and zstd (1) are known",
                ));
            }
        };
    }
    Ok(length as usize)
}

fn check_tables(header: &Header) -> Result<(), LayerError> {
    let cluster = header.cluster_bytes();
    let l1_bytes = u64::from(header.l1_entries) * 8;
    let l1_needed = header.size.div_ceil(header.l2_span());
    if l1_bytes > MAX_L1_BYTES || u64::from(header.l1_entries) < l1_needed {
        return Err(field(
            "l1_size",
            header.l1_entries.into(),
            "the L1 table is too small for the disk or larger than 32 MiB",
        ));
    }
    let reftable_bytes = u64::from(header.reftable_clusters) << header.cluster_bits;
    if reftable_bytes == 0 || reftable_bytes > MAX_REFTABLE_BYTES {
        return Err(field(
            "refcount_table_clusters",
            header.reftable_clusters.into(),
            "the refcount table must have between one cluster and 8 MiB",
        ));
    }
    for (name, what, offset, bytes) in [
        (
            "l1_table_offset",
            "the L1 table",
            header.l1_offset,
            l1_bytes,
        ),
        (
            "refcount_table_offset",
            "the refcount table",
            header.reftable_offset,
            reftable_bytes,
        ),
    ] {
        if offset == 0 || offset % cluster != 0 || offset > i64::MAX as u64 {
            return Err(field(
                name,
                offset,
                "tables must start at a cluster boundary after the header",
            ));
        }
        need(header.file_bytes, what, offset + bytes)?;
    }
    Ok(())
}

fn backing_name(area: &[u8], fixed: &[u8]) -> Result<Option<String>, LayerError> {
    let offset = be64(fixed, 8);
    let length = be32(fixed, 16);
    if offset == 0 {
        return Ok(None);
    }
    if length == 0 || length as usize > MAX_BACKING_NAME {
        return Err(field(
            "backing_file_size",
            length.into(),
            "a backing file name has 1 to 1023 bytes",
        ));
    }
    let bytes = usize::try_from(offset)
        .ok()
        .and_then(|start| area.get(start..start.checked_add(length as usize)?))
        .ok_or_else(|| {
            field(
                "backing_file_offset",
                offset,
                "the backing file name must lie in the first cluster",
            )
        })?;
    match std::str::from_utf8(bytes) {
        Ok(name) if !name.contains('\0') => Ok(Some(name.to_owned())),
        _ => Err(LayerError::Name {
            field: "backing_file_name",
            reason: "it must be UTF-8 without zero bytes: set it with `qemu-img rebase -u`",
        }),
    }
}

/// Says whether `area`, the beginning of the first cluster, has all header extensions and the name
/// of the backing file.
fn holds_all(area: &[u8], fixed: &[u8], start: usize) -> bool {
    let name_end = be64(fixed, 8).saturating_add(be32(fixed, 16).into());
    let mut at = start;
    // Every step moves on by at least 8 bytes within `area`, so this ends.
    while let Some(head) = area.get(at..at + 8) {
        if be32(head, 0) == EXT_END {
            return name_end <= area.len() as u64;
        }
        at += 8 + (be32(head, 4) as usize).next_multiple_of(8);
    }
    false
}

/// Walks the header extensions for the backing format.
fn backing_format(area: &[u8], start: usize) -> Result<Option<DiskFormat>, LayerError> {
    let mut format = None;
    let mut at = start;
    // Every step moves on by at least 8 bytes within `area`, so this ends.
    while let Some(head) = area.get(at..at + 8) {
        let (kind, length) = (be32(head, 0), be32(head, 4) as usize);
        if kind == EXT_END {
            break;
        }
        let Some(data) = area.get(at + 8..).and_then(|rest| rest.get(..length)) else {
            return Err(field(
                "header extension length",
                length as u64,
                "a header extension must end within the first cluster",
            ));
        };
        if kind == EXT_BACKING_FORMAT {
            format = Some(match data {
                b"raw" | b"file" | b"host_device" => DiskFormat::Raw,
                b"qcow2" => DiskFormat::Qcow2,
                _ => {
                    return Err(LayerError::Name {
                        field: "backing format name",
                        reason: "only raw and qcow2 backing files are supported: \
                                 set it with `qemu-img rebase -u -F`",
                    });
                }
            });
        }
        at += 8 + length.next_multiple_of(8);
    }
    Ok(format)
}

/// What [`encode`] needs to know.
#[derive(Debug)]
pub(crate) struct NewHeader<'a> {
    pub cluster_bits: u32,
    pub size: u64,
    pub l1_offset: u64,
    pub l1_entries: u32,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    pub backing: Option<(&'a str, DiskFormat)>,
}

/// Builds the bytes of a version 3 header with 16-bit refcounts.
pub(crate) fn encode(new: &NewHeader<'_>) -> Result<Vec<u8>, LayerError> {
    let mut bytes = vec![0u8; OWN_LENGTH];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &MAGIC.to_be_bytes());
    put(4, &3u32.to_be_bytes());
    put(20, &new.cluster_bits.to_be_bytes());
    put(24, &new.size.to_be_bytes());
    put(36, &new.l1_entries.to_be_bytes());
    put(40, &new.l1_offset.to_be_bytes());
    put(48, &new.reftable_offset.to_be_bytes());
    put(56, &new.reftable_clusters.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &(OWN_LENGTH as u32).to_be_bytes());
    if let Some((name, format)) = new.backing {
        if name.is_empty() || name.len() > MAX_BACKING_NAME || name.contains('\0') {
            return Err(LayerError::Name {
                field: "backing_file_name",
                reason: "a backing file name has 1 to 1023 bytes, none of them zero",
            });
        }
        put_backing_format(&mut bytes, format);
        bytes.extend_from_slice(&[0u8; 8]);
        let at = bytes.len();
        bytes.extend_from_slice(name.as_bytes());
        bytes[8..16].copy_from_slice(&(at as u64).to_be_bytes());
        bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
    } else {
        bytes.extend_from_slice(&[0u8; 8]);
    }
    if bytes.len() as u64 > 1 << new.cluster_bits {
        return Err(LayerError::Name {
            field: "backing_file_name",
            reason: "it does not fit in the first cluster: use a shorter name",
        });
    }
    Ok(bytes)
}

/// Appends the header extension that tells the backing file's format.
pub(crate) fn put_backing_format(bytes: &mut Vec<u8>, format: DiskFormat) {
    let format = format.name().as_bytes();
    bytes.extend_from_slice(&EXT_BACKING_FORMAT.to_be_bytes());
    bytes.extend_from_slice(&(format.len() as u32).to_be_bytes());
    bytes.extend_from_slice(format);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

pub(crate) fn field(field: &'static str, value: u64, reason: &'static str) -> LayerError {
    LayerError::Field {
        field,
        value,
        reason,
    }
}

fn need(actual: u64, what: &'static str, needed: u64) -> Result<(), LayerError> {
    if actual < needed {
        return Err(LayerError::Truncated {
            what,
            needed,
            actual,
        });
    }
    Ok(())
}

pub(crate) fn read(file: &dyn Storage, offset: u64, buf: &mut [u8]) -> Result<(), LayerError> {
    file.read_at(offset, buf)
        .map_err(|source| LayerError::Read { offset, source })
}

/// Big-endian integer at a byte offset that the caller has checked.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0u8; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(value)
}

/// Big-endian integer at a byte offset that the caller has checked.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0u8; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(value)
}
