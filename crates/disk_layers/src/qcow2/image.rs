//! The tables of one qcow2 file: opening and lookup.

use std::collections::BTreeSet;

use crate::error::LayerError;
use crate::layer::Run;
use crate::qcow2::alloc::Allocator;
use crate::qcow2::cache::{Class, SliceCache, SliceKey};
use crate::qcow2::header::{Compression, Header, be64, field, read};
use crate::storage::Storage;

/// Set in L1 and L2 entries whose cluster has exactly one user.
pub(crate) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Set in L2 entries of version 3 that read as zeroes.
pub(crate) const ZERO: u64 = 1;
/// Host offset in L1 and L2 entries.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits that are reserved in every entry that is not compressed (bit 0 aside).
const RESERVED: u64 = !(OFFSET_MASK | COPIED | COMPRESSED | ZERO);

/// Where a compressed cluster lies, and how to unpack it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CompressedCluster {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes that may belong to it.
    pub length: u64,
    pub method: Compression,
    pub cluster_bytes: u64,
    /// Offset of the run within the cluster.
    pub skip: u64,
}

/// A decoded L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Unallocated,
    /// Reads as zeroes; a cluster may be kept for it.
    Zero(Option<u64>),
    Data {
        host: u64,
        copied: bool,
    },
    Compressed {
        offset: u64,
        length: u64,
    },
}

#[derive(Debug)]
pub(crate) struct Image {
    pub header: Header,
    /// Entries as in the file, in the host's byte order.
    pub l1: Vec<u64>,
    /// Present in images open for writing.
    pub alloc: Option<Allocator>,
    /// L1 entries that differ from the file's.
    pub dirty_l1: BTreeSet<usize>,
    /// Host offsets of L2 tables that no L1 table on disk points to yet.
    pub new_tables: BTreeSet<u64>,
}

impl Image {
    pub fn open(file: &dyn Storage, writable: bool) -> Result<Image, LayerError> {
        let header = Header::parse(file)?;
        let entries = header.size.div_ceil(header.l2_span()) as usize;
        let l1 = read_table(file, header.l1_offset, entries)?;
        for &entry in &l1 {
            check_l1_entry(&header, entry)?;
        }
        let alloc = if writable {
            check_writable(&header)?;
            Some(Allocator::open(file, &header)?)
        } else {
            None
        };
        Ok(Image {
            header,
            l1,
            alloc,
            dirty_l1: BTreeSet::new(),
            new_tables: BTreeSet::new(),
        })
    }

    /// Drops what only a writer needs. All changes must be in the file.
    pub fn seal(&mut self) {
        self.header.file_bytes = self.end_bytes();
        self.alloc = None;
    }

    /// No cluster of the guest is mapped.
    pub fn is_empty(&self) -> bool {
        self.l1.iter().all(|entry| *entry == 0)
    }

    /// End of the area in which tables and data may lie.
    pub fn end_bytes(&self) -> u64 {
        match &self.alloc {
            Some(alloc) => alloc.end_bytes(),
            None => self.header.file_bytes,
        }
    }

    /// See [`crate::layer::Layer::map`].
    pub fn map(
        &mut self,
        layer: u32,
        file: &dyn Storage,
        cache: &mut SliceCache,
        offset: u64,
        max: u64,
    ) -> Result<(Run, u64), LayerError> {
        let cluster = self.header.cluster_bytes();
        let skip = offset % cluster;
        let Some(slice) = self.slice(layer, offset) else {
            let rest = self.header.l2_span() - offset % self.header.l2_span();
            return Ok((Run::Below, rest.min(max)));
        };
        let bytes = self.header.slice_bytes();
        let table = cache
            .get(slice.key, Class::L2, bytes, file)
            .map_err(|source| LayerError::Read {
                offset: slice.key.offset,
                source,
            })?;
        let end = self.end_bytes();
        let first = decode(&self.header, be64(table, slice.at), end)?;
        let mut length = cluster - skip;
        let run = match first {
            Entry::Compressed { offset, length } => Run::Compressed(CompressedCluster {
                offset,
                length,
                method: self.header.compression,
                cluster_bytes: cluster,
                skip,
            }),
            Entry::Unallocated => Run::Below,
            Entry::Zero(_) => Run::Zero,
            Entry::Data { host, .. } => Run::Data(host + skip),
        };
        let mut at = slice.at + 8;
        while length < max && at < table.len() && !matches!(run, Run::Compressed(_)) {
            let next = decode(&self.header, be64(table, at), end)?;
            let same = match (&run, next) {
                (Run::Below, Entry::Unallocated) | (Run::Zero, Entry::Zero(_)) => true,
                (Run::Data(start), Entry::Data { host, .. }) => host == start + length,
                _ => false,
            };
            if !same {
                break;
            }
            length += cluster;
            at += 8;
        }
        Ok((run, length.min(max)))
    }

    /// The cached slice that holds the entry of a guest offset; `None` without an L2 table.
    pub fn slice(&self, layer: u32, offset: u64) -> Option<EntrySlice> {
        let l1_index = (offset / self.header.l2_span()) as usize;
        let table = self.l1.get(l1_index).copied().unwrap_or(0) & OFFSET_MASK;
        if table == 0 {
            return None;
        }
        let index = (offset >> self.header.cluster_bits) % self.header.l2_entries();
        let slice_bytes = self.header.slice_bytes();
        let byte = index * 8;
        Some(EntrySlice {
            key: SliceKey {
                layer,
                offset: table + byte / slice_bytes * slice_bytes,
            },
            at: (byte % slice_bytes) as usize,
        })
    }

    /// The decoded entry of the cluster at a guest offset.
    pub fn entry(
        &self,
        layer: u32,
        file: &dyn Storage,
        cache: &mut SliceCache,
        offset: u64,
    ) -> Result<Entry, LayerError> {
        let Some(slice) = self.slice(layer, offset) else {
            return Ok(Entry::Unallocated);
        };
        let bytes = self.header.slice_bytes();
        let table = cache
            .get(slice.key, Class::L2, bytes, file)
            .map_err(|source| LayerError::Read {
                offset: slice.key.offset,
                source,
            })?;
        decode(&self.header, be64(table, slice.at), self.end_bytes())
    }
}

/// Place of an L2 entry: the slice, and the byte within it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntrySlice {
    pub key: SliceKey,
    pub at: usize,
}

/// Decodes an L2 entry; what it points to must start before `end`.
pub(crate) fn decode(header: &Header, entry: u64, end: u64) -> Result<Entry, LayerError> {
    if entry == 0 {
        return Ok(Entry::Unallocated);
    }
    if entry & COMPRESSED != 0 {
        return decode_compressed(header, entry, end);
    }
    let host = entry & OFFSET_MASK;
    let zero = entry & ZERO != 0;
    if entry & RESERVED != 0
        || (zero && header.version == 2)
        || !host.is_multiple_of(header.cluster_bytes())
    {
        return Err(bad_entry(entry, "reserved bits or a misaligned cluster"));
    }
    if host != 0 && host >= end {
        return Err(LayerError::Truncated {
            what: "a data cluster",
            needed: host.saturating_add(header.cluster_bytes()),
            actual: end,
        });
    }
    Ok(match (zero, host) {
        (true, 0) => Entry::Zero(None),
        (true, host) => Entry::Zero(Some(host)),
        (false, 0) => return Err(bad_entry(entry, "a data cluster at offset 0")),
        (false, host) => Entry::Data {
            host,
            copied: entry & COPIED != 0,
        },
    })
}

fn decode_compressed(header: &Header, entry: u64, end: u64) -> Result<Entry, LayerError> {
    // qcow2.txt "Compressed Clusters Descriptor": offset below bit x, extra sectors above.
    let x = 62 - (header.cluster_bits - 8);
    let offset = entry & ((1 << x) - 1);
    let sectors = (entry & (COMPRESSED - 1)) >> x;
    let length = (sectors + 1) * 512 - offset % 512;
    if entry & COPIED != 0 || offset == 0 {
        return Err(bad_entry(entry, "a malformed compressed cluster"));
    }
    if offset >= end {
        return Err(LayerError::Truncated {
            what: "a compressed cluster",
            needed: offset.saturating_add(length),
            actual: end,
        });
    }
    Ok(Entry::Compressed { offset, length })
}

fn bad_entry(entry: u64, reason: &'static str) -> LayerError {
    field("L2 entry", entry, reason)
}

fn check_l1_entry(header: &Header, entry: u64) -> Result<(), LayerError> {
    let table = entry & OFFSET_MASK;
    if entry & (RESERVED | COMPRESSED | ZERO) != 0 || !table.is_multiple_of(header.cluster_bytes())
    {
        return Err(field(
            "L1 entry",
            entry,
            "reserved bits or a misaligned table: repair it with `qemu-img check -r all`",
        ));
    }
    let needed = table + header.cluster_bytes();
    if table != 0 && needed > header.file_bytes {
        return Err(LayerError::Truncated {
            what: "an L2 table",
            needed,
            actual: header.file_bytes,
        });
    }
    Ok(())
}

fn check_writable(header: &Header) -> Result<(), LayerError> {
    let reason = if header.version != 3 {
        "it has version 2: upgrade it with `qemu-img amend -o compat=1.1`"
    } else if header.snapshots != 0 {
        "it holds internal snapshots: convert it with `qemu-img convert -O qcow2`"
    } else if header.refcount_order != 4 {
        "its refcounts do not have 16 bits: convert it with `qemu-img convert -O qcow2`"
    } else if header.autoclear != 0 {
        "it holds bitmaps or unknown extensions: convert it with `qemu-img convert -O qcow2`"
    } else {
        return Ok(());
    };
    Err(LayerError::NotWritable { reason })
}

/// Reads a table of 64-bit entries, a page at a time.
pub(crate) fn read_table(
    file: &dyn Storage,
    offset: u64,
    entries: usize,
) -> Result<Vec<u64>, LayerError> {
    let mut table = Vec::with_capacity(entries);
    let mut page = [0u8; 4096];
    while table.len() < entries {
        let at = offset + table.len() as u64 * 8;
        let bytes = ((entries - table.len()) * 8).min(page.len());
        read(file, at, &mut page[..bytes])?;
        table.extend(page[..bytes].chunks_exact(8).map(|entry| be64(entry, 0)));
    }
    Ok(table)
}
