//! A stack of disk layers as the back end of a block device.

use std::io;

use disk_layers::{DiskError, DiskStack};
use virtio_devices::BlockBackend;

/// The disk of one VM.
#[derive(Debug)]
pub(crate) struct Disk(pub(crate) DiskStack);

/// A full host file system keeps its kind: the device holds such a request back and retries it.
fn to_io(error: DiskError) -> io::Error {
    let kind = match &error {
        DiskError::NoSpace => io::ErrorKind::StorageFull,
        DiskError::OutOfBounds { .. } => io::ErrorKind::InvalidInput,
        DiskError::ReadOnly => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl BlockBackend for Disk {
    fn size(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.0.is_read_only()
    }

    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf).map_err(to_io)
    }

    fn write_at(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, buf).map_err(to_io)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len).map_err(to_io)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.0.write_zeroes(offset, len, may_unmap).map_err(to_io)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(to_io)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync().map_err(to_io)
    }
}
