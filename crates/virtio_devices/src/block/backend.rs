//! What stores a block device's content.

use std::fmt::Debug;
use std::io;

use disk_layers::{DiskError, DiskStack};

/// The host side of a block device. Offsets and lengths are bytes; callers keep them inside
/// [`BlockBackend::size`]. Calls block.
pub trait BlockBackend: Send + Debug {
    /// Returns the size of the disk, bytes. It changes only where a medium is put into an empty slot.
    fn size(&self) -> u64;

    /// Says whether writes are refused.
    fn read_only(&self) -> bool;

    /// Fills `buf` from `offset` on.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes `buf` at `offset`.
    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Returns the unit in which [`BlockBackend::discard`] gives space back, bytes.
    fn discard_granularity(&self) -> u64 {
        4096
    }

    /// Says that the content of a range no longer matters.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes a range read as zeroes, giving its space back where `may_unmap`.
    fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()>;

    /// Writes what the back end caches to its files, without waiting for the medium.
    fn flush(&mut self) -> io::Result<()>;

    /// Makes everything written so far durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A disk in host memory: for tests, and for guests that need a scratch disk only.
#[derive(Debug)]
pub struct MemoryBackend {
    bytes: Vec<u8>,
    read_only: bool,
    syncs: u64,
}

impl MemoryBackend {
    /// Returns a disk with this content.
    pub fn new(bytes: Vec<u8>, read_only: bool) -> Self {
        Self {
            bytes,
            read_only,
            syncs: 0,
        }
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How often [`BlockBackend::sync`] was called.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    fn range(&mut self, offset: u64, len: u64) -> io::Result<&mut [u8]> {
        let end = offset
            .checked_add(len)
            .and_then(|end| usize::try_from(end).ok());
        let start = usize::try_from(offset).ok();
        start
            .zip(end)
            .and_then(|(start, end)| self.bytes.get_mut(start..end))
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
    }
}

impl BlockBackend for MemoryBackend {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(self.range(offset, buf.len() as u64)?);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.range(offset, buf.len() as u64)?.copy_from_slice(buf);
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.range(offset, len).map(|_| ())
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, _may_unmap: bool) -> io::Result<()> {
        self.range(offset, len)?.fill(0);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.syncs += 1;
        Ok(())
    }
}

impl BlockBackend for DiskStack {
    fn size(&self) -> u64 {
        self.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.is_read_only()
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        DiskStack::read_at(self, offset, buf).map_err(to_io)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        DiskStack::write_at(self, offset, buf).map_err(to_io)
    }

    fn discard_granularity(&self) -> u64 {
        DiskStack::discard_granularity(self)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        DiskStack::discard(self, offset, len).map_err(to_io)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        DiskStack::write_zeroes(self, offset, len, may_unmap).map_err(to_io)
    }

    fn flush(&mut self) -> io::Result<()> {
        DiskStack::flush(self).map_err(to_io)
    }

    fn sync(&mut self) -> io::Result<()> {
        DiskStack::sync(self).map_err(to_io)
    }
}

/// A slot that may be empty: a disk of 0 bytes, on which nothing but a flush succeeds.
impl<B: BlockBackend> BlockBackend for Option<B> {
    fn size(&self) -> u64 {
        self.as_ref().map_or(0, B::size)
    }

    fn read_only(&self) -> bool {
        self.as_ref().is_some_and(B::read_only)
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        medium(self)?.read_at(offset, buf)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        medium(self)?.write_at(offset, buf)
    }

    fn discard_granularity(&self) -> u64 {
        self.as_ref().map_or(4096, B::discard_granularity)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        medium(self)?.discard(offset, len)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        medium(self)?.write_zeroes(offset, len, may_unmap)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.as_mut().map_or(Ok(()), B::flush)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.as_mut().map_or(Ok(()), B::sync)
    }
}

fn medium<B>(slot: &mut Option<B>) -> io::Result<&mut B> {
    slot.as_mut()
        .ok_or_else(|| io::Error::other("the disk slot is empty"))
}

/// Keeps apart what a device treats differently: no space, and everything else.
fn to_io(error: DiskError) -> io::Error {
    let kind = match &error {
        DiskError::NoSpace => io::ErrorKind::StorageFull,
        DiskError::BeforeFirstSync(source) => source.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
