//! Changes to the tables of a writable image: mapping, unmapping, zeroing clusters.
//!
//! Everything here changes memory only (and reads tables). A cluster is mapped after its data was
//! written; until [`super::commit`] runs, the file still holds the previous state.

use crate::error::LayerError;
use crate::qcow2::alloc::{AllocError, Allocator, Extent, Freed};
use crate::qcow2::cache::{Class, SliceCache};
use crate::qcow2::header::be64;
use crate::qcow2::image::{COPIED, Entry, EntrySlice, Image, ZERO, decode};
use crate::storage::Storage;

/// How the next bytes of a write are to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WritePlan {
    /// Over clusters that this layer owns: at this offset of the file, so many bytes.
    InPlace { host: u64, length: u64 },
    /// So many clusters in a row need new space first.
    Allocate { clusters: u64 },
}

/// A layer's identity, file and cache, which every table access needs.
pub(crate) struct Access<'a> {
    pub layer: u32,
    pub file: &'a dyn Storage,
    pub cache: &'a mut SliceCache,
}

impl Image {
    /// Looks at what a write of `length` bytes at `offset` meets first.
    pub fn plan_write(
        &self,
        access: &mut Access<'_>,
        offset: u64,
        length: u64,
    ) -> Result<WritePlan, LayerError> {
        let cluster = self.header.cluster_bytes();
        let skip = offset % cluster;
        let mut covered = cluster - skip;
        let (mut first, limit) = (None, self.slice_clusters(offset));
        for index in 0..limit {
            let entry = self.entry(
                access.layer,
                access.file,
                access.cache,
                offset - skip + index * cluster,
            )?;
            let owned = match entry {
                Entry::Data { host, copied: true } => Some(host),
                _ => None,
            };
            match (index, first, owned) {
                (0, ..) => first = owned,
                (_, Some(start), Some(host)) if host == start + index * cluster => {
                    covered += cluster;
                }
                (_, None, None) => covered += cluster,
                _ => break,
            }
            if covered >= length {
                break;
            }
        }
        Ok(match first {
            Some(host) => WritePlan::InPlace {
                host: host + skip,
                length: covered.min(length),
            },
            None => WritePlan::Allocate {
                clusters: (covered + skip) / cluster,
            },
        })
    }

    /// Clusters from `offset` to the end of its slice of the L2 table.
    pub fn slice_clusters(&self, offset: u64) -> u64 {
        let per_slice = self.header.slice_bytes() / 8;
        per_slice - (offset >> self.header.cluster_bits) % per_slice
    }

    /// Makes sure that an L2 table covers a guest offset.
    pub fn ensure_table(
        &mut self,
        access: &mut Access<'_>,
        offset: u64,
    ) -> Result<EntrySlice, AllocError> {
        if let Some(slice) = self.slice(access.layer, offset) {
            let entry = self.l1[(offset / self.header.l2_span()) as usize];
            if entry & COPIED == 0 {
                return Err(AllocError::Damaged(LayerError::NotWritable {
                    reason: "it shares tables with a snapshot: convert it with `qemu-img convert`",
                }));
            }
            return Ok(slice);
        }
        let bits = self.header.cluster_bits;
        let alloc = allocator(&mut self.alloc)?;
        // Space at the end reads as zeroes, which is an empty table.
        let extent = alloc.append(access.layer, access.file, access.cache, 1)?;
        let table = extent.cluster << bits;
        let index = (offset / self.header.l2_span()) as usize;
        self.l1[index] = table | COPIED;
        self.dirty_l1.insert(index);
        self.new_tables.insert(table);
        self.slice(access.layer, offset)
            .ok_or(AllocError::Damaged(LayerError::NotWritable {
                reason: "its L1 table does not cover the disk",
            }))
    }

    /// Takes new clusters for data.
    pub fn allocate(&mut self, access: &mut Access<'_>, want: u64) -> Result<Extent, AllocError> {
        allocator(&mut self.alloc)?.allocate(access.layer, access.file, access.cache, want)
    }

    /// Gives clusters back that were not mapped.
    pub fn release(&mut self, access: &mut Access<'_>, extent: Extent) -> Result<(), AllocError> {
        allocator(&mut self.alloc)?.release(access.layer, access.file, access.cache, extent)
    }

    /// Maps the guest clusters from `offset` on to `extent`, whose data is written. The range
    /// stays within one slice of one table.
    pub fn link(
        &mut self,
        access: &mut Access<'_>,
        offset: u64,
        extent: Extent,
    ) -> Result<(), AllocError> {
        let slice = self.ensure_table(access, offset)?;
        for index in 0..extent.count {
            let host = (extent.cluster + index) << self.header.cluster_bits;
            self.replace(access, slice, index, host | COPIED, false)?;
        }
        Ok(())
    }

    /// Makes whole clusters read as zeroes, up to the end of the slice, and returns how many
    /// were handled. With nothing below this layer, unmapped clusters do that by themselves.
    pub fn zero(
        &mut self,
        access: &mut Access<'_>,
        offset: u64,
        clusters: u64,
        has_below: bool,
    ) -> Result<u64, AllocError> {
        if self.slice(access.layer, offset).is_none() && !has_below {
            let rest = self.header.l2_span() - offset % self.header.l2_span();
            return Ok(clusters.min(rest >> self.header.cluster_bits));
        }
        let slice = self.ensure_table(access, offset)?;
        let count = clusters.min(self.slice_clusters(offset));
        let entry = if has_below { ZERO } else { 0 };
        for index in 0..count {
            self.replace(access, slice, index, entry, true)?;
        }
        Ok(count)
    }

    /// Sets the entry `index` places after `slice.at` and lets go of what it pointed to.
    fn replace(
        &mut self,
        access: &mut Access<'_>,
        slice: EntrySlice,
        index: u64,
        entry: u64,
        discarded: bool,
    ) -> Result<(), AllocError> {
        let at = slice.at + index as usize * 8;
        let (bytes, bits) = (self.header.slice_bytes(), self.header.cluster_bits);
        let end = self.end_bytes();
        let table = access
            .cache
            .get(slice.key, Class::L2, bytes, access.file)
            .map_err(AllocError::Io)?;
        let raw = be64(table, at);
        if raw == entry {
            return Ok(());
        }
        let old = decode(&self.header, raw, end)?;
        let table = access
            .cache
            .get_mut(slice.key, Class::L2, bytes, access.file)
            .map_err(AllocError::Io)?;
        table[at..at + 8].copy_from_slice(&entry.to_be_bytes());

        let alloc = allocator(&mut self.alloc)?;
        match old {
            Entry::Unallocated | Entry::Zero(None) => {}
            Entry::Zero(Some(host)) => alloc.forget(Freed {
                cluster: host >> bits,
                discarded,
            }),
            Entry::Data { host, copied } => alloc.forget(Freed {
                cluster: host >> bits,
                discarded: discarded && copied,
            }),
            Entry::Compressed { offset, length } => {
                for cluster in offset >> bits..=(offset + length - 1) >> bits {
                    alloc.forget(Freed {
                        cluster,
                        discarded: false,
                    });
                }
            }
        }
        Ok(())
    }
}

fn allocator(alloc: &mut Option<Allocator>) -> Result<&mut Allocator, AllocError> {
    alloc
        .as_mut()
        .ok_or(AllocError::Damaged(LayerError::NotWritable {
            reason: "it was opened read-only",
        }))
}
