//! Reads and writes of a stack.

use std::io::{IoSlice, IoSliceMut};

use super::{DiskStack, alloc_error, damaged, io_error};
use crate::error::DiskError;
use crate::layer::{Kind, Layer, Run};
use crate::qcow2::alloc::Extent;
use crate::qcow2::cache::SliceCache;
use crate::qcow2::compressed;
use crate::qcow2::image::{CompressedCluster, Image};
use crate::qcow2::update::{Access, WritePlan};

static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// The compressed cluster read last, unpacked.
#[derive(Debug)]
pub(crate) struct Unpacked {
    layer: u32,
    offset: u64,
    data: Vec<u8>,
}

/// Where bytes come from: a layer (by its place in the stack) and a run in it.
enum Source {
    Zero,
    Data {
        layer: usize,
        offset: u64,
    },
    Compressed {
        layer: usize,
        cluster: CompressedCluster,
    },
}

/// What a range shows, seen from the lowest layer of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Visible {
    /// What the lowest layer has there.
    Base,
    /// Zeroes, which a layer above the lowest put there.
    Zero,
    /// Content of a layer above the lowest.
    Content,
}

impl DiskStack {
    /// Fills `buf` from `offset`. Both can have any alignment.
    pub fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.check_bounds(offset, buf.len() as u64)?;
        self.read_visible(offset, buf).map(|_| ())
    }

    /// As [`DiskStack::read_at`], into several buffers in turn.
    pub fn read_vectored_at(
        &mut self,
        mut offset: u64,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Result<(), DiskError> {
        self.check_bounds(offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        for buf in bufs {
            self.read_visible(offset, buf)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// Writes `data` at `offset`. On [`DiskError::NoSpace`] a part may have been written; the
    /// same request can be repeated.
    pub fn write_at(&mut self, mut offset: u64, mut data: &[u8]) -> Result<(), DiskError> {
        self.check_write(offset, data.len() as u64)?;
        while !data.is_empty() {
            let done = self.write_some(offset, data)?;
            data = &data[done..];
            offset += done as u64;
        }
        Ok(())
    }

    /// As [`DiskStack::write_at`], from several buffers in turn. One buffer of whole clusters is
    /// cheaper than many small ones.
    pub fn write_vectored_at(
        &mut self,
        mut offset: u64,
        bufs: &[IoSlice<'_>],
    ) -> Result<(), DiskError> {
        self.check_write(offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        for buf in bufs {
            self.write_at(offset, buf)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// Makes a range read as zeroes. With `unmap`, its space may be given back.
    pub fn write_zeroes(&mut self, offset: u64, length: u64, unmap: bool) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        let Some(layer) = self.layers.last_mut() else {
            return Ok(());
        };
        if matches!(layer.kind, Kind::Raw) {
            layer.unsynced = true;
            let done = if unmap {
                layer.storage.punch_hole(offset, length)
            } else {
                layer.storage.zero_range(offset, length)
            };
            return done.map_err(|err| io_error("zero", 0, err));
        }
        let end = offset + length;
        let (first, last) = self.whole_clusters(offset, end);
        if first >= last {
            return self.zero_bytes(offset, end);
        }
        self.zero_bytes(offset, first)?;
        self.zero_clusters(first, last)?;
        self.zero_bytes(last.min(end), end)
    }

    /// Tells that nobody needs a range. Whole units of
    /// [`DiskStack::discard_granularity`] read as zeroes afterwards; the rest keeps its content.
    pub fn discard(&mut self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.check_write(offset, length)?;
        let Some(layer) = self.layers.last_mut() else {
            return Ok(());
        };
        if matches!(layer.kind, Kind::Raw) {
            let first = offset.next_multiple_of(4096);
            let last = (offset + length) / 4096 * 4096;
            if first >= last {
                return Ok(());
            }
            layer.unsynced = true;
            let done = layer.storage.punch_hole(first, last - first);
            return done.map_err(|err| io_error("zero", 0, err));
        }
        let (first, last) = self.whole_clusters(offset, offset + length);
        self.zero_clusters(first, last)
    }

    /// How many bytes from `offset` (at most `max`) are alike in whether they can be anything but
    /// zeroes.
    pub(crate) fn data_run(&mut self, offset: u64, max: u64) -> Result<(bool, u64), DiskError> {
        let (source, length) = locate(&mut self.layers, &mut self.cache, offset, max)?;
        let Source::Data { layer, offset: at } = source else {
            return Ok((!matches!(source, Source::Zero), length));
        };
        let top = self.layers.len() - 1;
        let next = self.layers[layer]
            .storage
            .next_data(at)
            .map_err(|err| io_error("read", top - layer, err))?;
        Ok(match next {
            None => (false, length),
            Some((start, _)) if start > at => (false, (start - at).min(length)),
            Some((_, end)) => (true, end.saturating_sub(at).clamp(1, length)),
        })
    }

    /// What is seen at `offset`, and how far (at most `max` bytes) that goes.
    pub(crate) fn visible(&mut self, offset: u64, max: u64) -> Result<(Visible, u64), DiskError> {
        let (source, length) = locate(&mut self.layers, &mut self.cache, offset, max)?;
        let what = match source {
            Source::Zero => Visible::Zero,
            Source::Data { layer: 0, .. } | Source::Compressed { layer: 0, .. } => Visible::Base,
            Source::Data { .. } | Source::Compressed { .. } => Visible::Content,
        };
        Ok((what, length))
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        self.check_bounds(offset, length)
    }

    /// The clusters that lie wholly in a range; the last one of a disk may be short.
    fn whole_clusters(&self, offset: u64, end: u64) -> (u64, u64) {
        let cluster = self.discard_granularity();
        let last = if end == self.size_bytes() {
            end.next_multiple_of(cluster)
        } else {
            end / cluster * cluster
        };
        (offset.next_multiple_of(cluster), last)
    }

    /// Returns whether only zero runs were met.
    fn read_visible(&mut self, mut offset: u64, mut buf: &mut [u8]) -> Result<bool, DiskError> {
        let top = self.layers.len() - 1;
        let mut only_zeroes = true;
        while !buf.is_empty() {
            let (source, length) =
                locate(&mut self.layers, &mut self.cache, offset, buf.len() as u64)?;
            let (now, rest) = buf.split_at_mut(length as usize);
            only_zeroes &= matches!(source, Source::Zero);
            match source {
                Source::Zero => now.fill(0),
                Source::Data { layer, offset } => {
                    self.layers[layer]
                        .storage
                        .read_at(offset, now)
                        .map_err(|err| io_error("read", top - layer, err))?
                }
                Source::Compressed { layer, cluster } => self.unpack(layer, &cluster, now)?,
            }
            buf = rest;
            offset += length;
        }
        Ok(only_zeroes)
    }

    fn unpack(
        &mut self,
        at: usize,
        cluster: &CompressedCluster,
        buf: &mut [u8],
    ) -> Result<(), DiskError> {
        let layer = &self.layers[at];
        let skip = cluster.skip as usize;
        let held = self.unpacked.take().filter(|held| {
            held.layer == layer.id && held.offset == cluster.offset && !layer.writable
        });
        let held = match held {
            Some(held) => held,
            None => Unpacked {
                layer: layer.id,
                offset: cluster.offset,
                data: compressed::unpack(layer.storage.as_ref(), cluster)
                    .map_err(damaged(self.layers.len() - 1 - at))?,
            },
        };
        buf.copy_from_slice(&held.data[skip..skip + buf.len()]);
        self.unpacked = Some(held);
        Ok(())
    }

    /// Writes a first part of `data` and returns its length.
    fn write_some(&mut self, offset: u64, data: &[u8]) -> Result<usize, DiskError> {
        self.make_room()?;
        let Some(layer) = self.layers.last_mut() else {
            return Ok(data.len());
        };
        layer.unsynced = true;
        let (host, length) = match &mut layer.kind {
            Kind::Raw => (offset, data.len()),
            Kind::Qcow2(image) => {
                let mut access = Access {
                    layer: layer.id,
                    file: layer.storage.as_ref(),
                    cache: &mut self.cache,
                };
                let plan = image
                    .plan_write(&mut access, offset, data.len() as u64)
                    .map_err(damaged(0))?;
                match plan {
                    WritePlan::InPlace { host, length } => (host, length as usize),
                    WritePlan::Allocate { clusters } => {
                        return self.write_new(offset, data, clusters);
                    }
                }
            }
        };
        layer
            .storage
            .write_at(host, &data[..length])
            .map_err(|err| io_error("write", 0, err))?;
        Ok(length)
    }

    /// Writes into up to `clusters` clusters that have to be allocated, and maps them.
    fn write_new(&mut self, offset: u64, data: &[u8], clusters: u64) -> Result<usize, DiskError> {
        let (extent, cluster) = self.with_image(|image, access| {
            image.ensure_table(access, offset)?;
            let extent = image.allocate(access, clusters)?;
            Ok((extent, image.header.cluster_bytes()))
        })?;
        let start = offset / cluster * cluster;
        let room = start + extent.count * cluster - offset;
        let length = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if let Err(err) = self.fill_extent(offset, &data[..length], extent, cluster) {
            self.with_image(|image, access| image.release(access, extent))?;
            return Err(err);
        }
        self.with_image(|image, access| image.link(access, start, extent))?;
        Ok(length)
    }

    /// Writes `data` to the clusters that will hold the guest bytes from `offset` on, and what is
    /// visible today to the parts of the first and last cluster that `data` leaves out.
    fn fill_extent(
        &mut self,
        mut offset: u64,
        mut data: &[u8],
        extent: Extent,
        cluster: u64,
    ) -> Result<(), DiskError> {
        let start = offset / cluster * cluster;
        let host = extent.cluster * cluster;
        while !data.is_empty() {
            let skip = offset % cluster;
            let at = host + (offset - start);
            let whole = data.len() as u64 / cluster * cluster;
            let length = if skip == 0 && whole > 0 {
                let layer = &self.layers[self.layers.len() - 1];
                layer
                    .storage
                    .write_at(at, &data[..whole as usize])
                    .map_err(|err| io_error("write", 0, err))?;
                whole as usize
            } else {
                let length = data.len().min((cluster - skip) as usize);
                self.write_merged(offset, at - skip, &data[..length], extent.virgin, cluster)?;
                length
            };
            data = &data[length..];
            offset += length as u64;
        }
        Ok(())
    }

    /// Writes one new cluster at `host`: `data`, which belongs at the guest's `offset`, amid what
    /// the guest sees around it.
    fn write_merged(
        &mut self,
        offset: u64,
        host: u64,
        data: &[u8],
        virgin: bool,
        cluster: u64,
    ) -> Result<(), DiskError> {
        let start = offset / cluster * cluster;
        let (skip, size) = ((offset - start) as usize, self.size_bytes());
        let mut merged = std::mem::take(&mut self.scratch);
        merged.clear();
        merged.resize(cluster as usize, 0);
        let (head, rest) = merged.split_at_mut(skip);
        let (middle, tail) = rest.split_at_mut(data.len());
        middle.copy_from_slice(data);
        let after = offset + data.len() as u64;
        let visible = tail.len().min(size.saturating_sub(after) as usize);
        let done = self.read_visible(start, head).and_then(|no_head| {
            let no_tail = self.read_visible(after, &mut tail[..visible])?;
            // New space at the end of the file reads as zeroes already.
            let from = if virgin && no_head { skip } else { 0 };
            let to = if virgin && no_tail {
                skip + data.len()
            } else {
                cluster as usize
            };
            Ok(from..to)
        });
        let done = done.and_then(|range| {
            let layer = &self.layers[self.layers.len() - 1];
            layer
                .storage
                .write_at(host + range.start as u64, &merged[range])
                .map_err(|err| io_error("write", 0, err))
        });
        self.scratch = merged;
        done
    }

    /// Writes zeroes where the guest sees something else. Less than a cluster, mostly.
    fn zero_bytes(&mut self, mut offset: u64, end: u64) -> Result<(), DiskError> {
        while offset < end {
            let (source, length) = locate(&mut self.layers, &mut self.cache, offset, end - offset)?;
            let length = length.min(ZEROES.len() as u64);
            if !matches!(source, Source::Zero) {
                self.write_at(offset, &ZEROES[..length as usize])?;
            }
            offset += length;
        }
        Ok(())
    }

    /// Makes whole clusters of the top read as zeroes.
    fn zero_clusters(&mut self, mut offset: u64, end: u64) -> Result<(), DiskError> {
        let has_below = self.layers.len() > 1;
        let cluster = self.discard_granularity();
        while offset < end {
            self.make_room()?;
            if let Some(layer) = self.layers.last_mut() {
                layer.unsynced = true;
            }
            let done = self.with_image(|image, access| {
                image.zero(access, offset, (end - offset) / cluster, has_below)
            })?;
            offset += done * cluster;
        }
        Ok(())
    }

    /// Runs `change` on the top's tables; the top must be qcow2.
    fn with_image<T>(
        &mut self,
        change: impl FnOnce(&mut Image, &mut Access<'_>) -> Result<T, crate::qcow2::alloc::AllocError>,
    ) -> Result<T, DiskError> {
        let Some(Layer {
            id,
            storage,
            kind: Kind::Qcow2(image),
            ..
        }) = self.layers.last_mut()
        else {
            return Err(DiskError::ReadOnly);
        };
        let mut access = Access {
            layer: *id,
            file: storage.as_ref(),
            cache: &mut self.cache,
        };
        change(image, &mut access).map_err(alloc_error)
    }
}

/// Finds who holds the bytes at `offset`, and how far (at most `max`) that goes.
fn locate(
    layers: &mut [Layer],
    cache: &mut SliceCache,
    offset: u64,
    mut max: u64,
) -> Result<(Source, u64), DiskError> {
    let top = layers.len() - 1;
    for (at, layer) in layers.iter_mut().enumerate().rev() {
        // A disk that grew: past the end of the smaller layer there are zeroes.
        if offset >= layer.size {
            break;
        }
        max = max.min(layer.size - offset);
        let (run, length) = layer.map(cache, offset, max).map_err(damaged(top - at))?;
        max = length;
        let source = match run {
            Run::Below => continue,
            Run::Zero => Source::Zero,
            Run::Data(offset) => Source::Data { layer: at, offset },
            Run::Compressed(cluster) => Source::Compressed { layer: at, cluster },
        };
        return Ok((source, max));
    }
    Ok((Source::Zero, max))
}
