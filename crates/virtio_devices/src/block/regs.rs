//! Numbers of virtio-blk (virtio 1.2 §5.2).

pub(super) const SECTOR_BYTES: u64 = 512;

pub(super) const F_SEG_MAX: u32 = 2;
pub(super) const F_RO: u32 = 5;
pub(super) const F_BLK_SIZE: u32 = 6;
pub(super) const F_FLUSH: u32 = 9;
pub(super) const F_DISCARD: u32 = 13;
pub(super) const F_WRITE_ZEROES: u32 = 14;

pub(super) const T_IN: u32 = 0;
pub(super) const T_OUT: u32 = 1;
pub(super) const T_FLUSH: u32 = 4;
pub(super) const T_GET_ID: u32 = 8;
pub(super) const T_DISCARD: u32 = 11;
pub(super) const T_WRITE_ZEROES: u32 = 13;

pub(super) const S_OK: u8 = 0;
pub(super) const S_IOERR: u8 = 1;
pub(super) const S_UNSUPP: u8 = 2;

/// Type, reserved, sector.
pub(super) const HEADER_BYTES: u64 = 16;
/// Length of the answer to `GET_ID`.
pub(super) const ID_BYTES: usize = 20;
/// One range of a discard or write-zeroes request: sector, number of sectors, flags.
pub(super) const RANGE_BYTES: u64 = 16;
/// Write-zeroes flag: the device may deallocate.
pub(super) const RANGE_UNMAP: u32 = 1;

pub(super) const QUEUE_SIZE: u16 = 128;
/// Data segments of one request; header and status take two descriptors more.
pub(super) const SEG_MAX: u32 = 126;
pub(super) const MAX_SEGMENTS: usize = SEG_MAX as usize + 2;
/// Longest discarded range, sectors (2 GiB).
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Longest zeroed range, sectors (128 MiB): a back end may have to write them.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 18;
/// Ranges in one discard or write-zeroes request.
pub(super) const MAX_RANGES: u32 = 16;
/// Data is moved in pieces of at most this; the buffer stays with the device.
pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// Offsets and length of the configuration space.
pub(super) mod config {
    pub(in super::super) const SEG_MAX: usize = 12;
    pub(in super::super) const BLK_SIZE: usize = 20;
    pub(in super::super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(in super::super) const MAX_DISCARD_SEG: usize = 40;
    pub(in super::super) const DISCARD_ALIGNMENT: usize = 44;
    pub(in super::super) const MAX_ZERO_SECTORS: usize = 48;
    pub(in super::super) const MAX_ZERO_SEG: usize = 52;
    pub(in super::super) const ZERO_MAY_UNMAP: usize = 56;
    pub(in super::super) const BYTES: usize = 60;
}
