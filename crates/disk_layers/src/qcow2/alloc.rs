//! Clusters of a writable qcow2 file: refcounts, allocation, freeing.
//!
//! New clusters come from clusters freed in this session, else from the end of the file: space
//! that another session freed is never searched for, so that refcounts which a host crash left
//! behind can never lead to a cluster with two users. A freed cluster is handed out again only
//! once the tables that let go of it are durable.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::error::LayerError;
use crate::qcow2::cache::{Class, SliceCache, SliceKey};
use crate::qcow2::header::{Header, field};
use crate::qcow2::image::read_table;
use crate::storage::Storage;

/// Reusable extents remembered at most.
const MAX_FREE_EXTENTS: usize = 1 << 16;

/// Why clusters could not be had.
#[derive(Debug)]
pub(crate) enum AllocError {
    Io(io::Error),
    Damaged(LayerError),
}

impl From<LayerError> for AllocError {
    fn from(err: LayerError) -> Self {
        AllocError::Damaged(err)
    }
}

/// A cluster whose reference went away in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freed {
    pub cluster: u64,
    /// Its content was discarded by the guest, so that zeroing it at once harms nobody.
    pub discarded: bool,
}

/// Clusters in a row, all new.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub cluster: u64,
    pub count: u64,
    /// Never written, so that it reads as zeroes.
    pub virgin: bool,
}

#[derive(Debug)]
pub(crate) struct Allocator {
    cluster_bits: u32,
    slice_bytes: u64,
    /// Host offsets of the refcount blocks; shorter than the table in the file where its rest
    /// is empty.
    reftable: Vec<u64>,
    reftable_offset: u64,
    reftable_max: usize,
    dirty_reftable: BTreeSet<usize>,
    /// First cluster that was never used.
    next: u64,
    /// Reusable clusters: start and count.
    free: BTreeMap<u64, u64>,
    /// Freed in memory only.
    pending: Vec<Freed>,
    /// Freed in the file, but the tables that let go of them are not durable yet.
    awaiting_sync: Vec<u64>,
}

impl Allocator {
    pub fn open(file: &dyn Storage, header: &Header) -> Result<Allocator, LayerError> {
        let entries = (u64::from(header.reftable_clusters) << header.cluster_bits) / 8;
        let cluster = header.cluster_bytes();
        let next = header.file_bytes.div_ceil(cluster);
        // Blocks past the end of the file count nothing, so they need not be read.
        let used = next.div_ceil(cluster / 2).min(entries) as usize;
        let reftable = read_table(file, header.reftable_offset, used)?;
        for &block in &reftable {
            if block % cluster != 0 || block >= header.file_bytes {
                return Err(field(
                    "refcount table entry",
                    block,
                    "misaligned or past the end: repair it with `qemu-img check -r all`",
                ));
            }
        }
        Ok(Allocator {
            cluster_bits: header.cluster_bits,
            slice_bytes: header.slice_bytes(),
            reftable,
            reftable_offset: header.reftable_offset,
            reftable_max: entries as usize,
            dirty_reftable: BTreeSet::new(),
            next,
            free: BTreeMap::new(),
            pending: Vec::new(),
            awaiting_sync: Vec::new(),
        })
    }

    /// End of the last cluster in use, in bytes.
    pub fn end_bytes(&self) -> u64 {
        self.next << self.cluster_bits
    }

    /// Clusters that one refcount block counts.
    fn block_span(&self) -> u64 {
        (1 << self.cluster_bits) / 2
    }

    /// Takes up to `want` clusters in a row, with a refcount of one.
    pub fn allocate(
        &mut self,
        layer: u32,
        file: &dyn Storage,
        cache: &mut SliceCache,
        want: u64,
    ) -> Result<Extent, AllocError> {
        if let Some((&cluster, &length)) = self.free.first_key_value() {
            let count = want.min(length);
            self.set_refcounts(layer, file, cache, cluster, count, 1)?;
            self.free.remove(&cluster);
            if length > count {
                self.free.insert(cluster + count, length - count);
            }
            return Ok(Extent {
                cluster,
                count,
                virgin: false,
            });
        }
        self.append(layer, file, cache, want)
    }

    /// Takes up to `want` clusters at the end of the file; they read as zeroes.
    pub fn append(
        &mut self,
        layer: u32,
        file: &dyn Storage,
        cache: &mut SliceCache,
        want: u64,
    ) -> Result<Extent, AllocError> {
        self.ensure_block(layer, file, cache)?;
        let span = self.block_span();
        let cluster = self.next;
        let count = want.min(span - cluster % span);
        self.set_refcounts(layer, file, cache, cluster, count, 1)?;
        self.next += count;
        Ok(Extent {
            cluster,
            count,
            virgin: true,
        })
    }

    /// Gives clusters back that no table ever pointed to.
    pub fn release(
        &mut self,
        layer: u32,
        file: &dyn Storage,
        cache: &mut SliceCache,
        extent: Extent,
    ) -> Result<(), AllocError> {
        self.set_refcounts(layer, file, cache, extent.cluster, extent.count, 0)?;
        self.add_free(extent.cluster, extent.count);
        Ok(())
    }

    /// Notes that a reference to a cluster went away.
    pub fn forget(&mut self, freed: Freed) {
        self.pending.push(freed);
    }

    /// Clusters freed in memory only.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Counts the pending clusters down. Returns those that are left without a user and are to
    /// be zeroed, as start and count.
    pub fn apply_pending(
        &mut self,
        layer: u32,
        file: &dyn Storage,
        cache: &mut SliceCache,
    ) -> Result<Vec<(u64, u64)>, AllocError> {
        let mut holes: Vec<(u64, u64)> = Vec::new();
        self.pending.sort_unstable_by_key(|freed| freed.cluster);
        while let Some(&freed) = self.pending.last() {
            let count = self.refcount(layer, file, cache, freed.cluster)?;
            let count = count.saturating_sub(1);
            self.set_refcounts(layer, file, cache, freed.cluster, 1, count)?;
            self.pending.pop();
            if count > 0 {
                continue;
            }
            self.awaiting_sync.push(freed.cluster);
            if freed.discarded {
                match holes.last_mut() {
                    Some((start, count)) if *start == freed.cluster + 1 => {
                        *start -= 1;
                        *count += 1;
                    }
                    _ => holes.push((freed.cluster, 1)),
                }
            }
        }
        Ok(holes)
    }

    /// The tables are durable: clusters they let go of can be used again.
    pub fn synced(&mut self) {
        for cluster in std::mem::take(&mut self.awaiting_sync) {
            self.add_free(cluster, 1);
        }
    }

    /// Refcount blocks were added that the table in the file does not name.
    pub fn has_new_blocks(&self) -> bool {
        !self.dirty_reftable.is_empty()
    }

    /// Names new refcount blocks in the file's table.
    pub fn write_reftable(&mut self, file: &dyn Storage) -> io::Result<()> {
        while let Some(&index) = self.dirty_reftable.first() {
            let entry = self.reftable[index].to_be_bytes();
            file.write_at(self.reftable_offset + index as u64 * 8, &entry)?;
            self.dirty_reftable.remove(&index);
        }
        Ok(())
    }

    fn add_free(&mut self, mut start: u64, mut count: u64) {
        // Their space is given back to the file system either way; only addresses are lost.
        if self.free.len() >= MAX_FREE_EXTENTS {
            return;
        }
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            self.free.remove(&before);
            start = before;
            count += length;
        }
        if let Some(length) = self.free.remove(&(start + count)) {
            count += length;
        }
        self.free.insert(start, count);
    }

    /// Makes sure that a refcount block counts cluster `next`, moving `next` past the block
    /// where one has to be added.
    fn ensure_block(
        &mut self,
        layer: u32,
        file: &dyn Storage,
        cache: &mut SliceCache,
    ) -> Result<(), AllocError> {
        let index = (self.next / self.block_span()) as usize;
        if index >= self.reftable_max {
            return Err(AllocError::Damaged(LayerError::NotWritable {
                reason: "its refcount table is full: flatten the disk into a new image",
            }));
        }
        if self.reftable.len() <= index {
            self.reftable.resize(index + 1, 0);
        }
        if self.reftable[index] != 0 {
            return Ok(());
        }
        // The block counts itself; it lies past everything written, so it starts as zeroes.
        let cluster = self.next;
        self.reftable[index] = cluster << self.cluster_bits;
        if let Err(err) = self.set_refcounts(layer, file, cache, cluster, 1, 1) {
            self.reftable[index] = 0;
            return Err(err);
        }
        self.dirty_reftable.insert(index);
        self.next += 1;
        Ok(())
    }

    fn refcount(
        &self,
        layer: u32,
        file: &dyn Storage,
        cache: &mut SliceCache,
        cluster: u64,
    ) -> Result<u16, AllocError> {
        let (key, at) = self.place(layer, cluster)?;
        let slice = cache
            .get(key, Class::Refcount, self.slice_bytes, file)
            .map_err(AllocError::Io)?;
        Ok(u16::from_be_bytes([slice[at], slice[at + 1]]))
    }

    fn set_refcounts(
        &self,
        layer: u32,
        file: &dyn Storage,
        cache: &mut SliceCache,
        start: u64,
        count: u64,
        value: u16,
    ) -> Result<(), AllocError> {
        let end = start + count;
        let mut cluster = start;
        while cluster < end {
            let (key, mut at) = self.place(layer, cluster)?;
            let slice = cache
                .get_mut(key, Class::Refcount, self.slice_bytes, file)
                .map_err(AllocError::Io)?;
            while cluster < end && at + 1 < slice.len() {
                slice[at..at + 2].copy_from_slice(&value.to_be_bytes());
                at += 2;
                cluster += 1;
            }
        }
        Ok(())
    }

    /// Slice and byte of a cluster's refcount.
    fn place(&self, layer: u32, cluster: u64) -> Result<(SliceKey, usize), AllocError> {
        let span = self.block_span();
        let block = self
            .reftable
            .get((cluster / span) as usize)
            .copied()
            .unwrap_or(0);
        if block == 0 {
            return Err(AllocError::Damaged(field(
                "refcount table entry",
                cluster / span,
                "a cluster in use is not counted: repair it with `qemu-img check -r all`",
            )));
        }
        let byte = cluster % span * 2;
        let key = SliceKey {
            layer,
            offset: block + byte / self.slice_bytes * self.slice_bytes,
        };
        Ok((key, (byte % self.slice_bytes) as usize))
    }
}
