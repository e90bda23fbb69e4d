//! Numbers of virtio-balloon (virtio 1.2 §5.5).

pub(super) const F_DEFLATE_ON_OOM: u32 = 2;
pub(super) const F_REPORTING: u32 = 5;

pub(super) const INFLATE: usize = 0;
pub(super) const DEFLATE: usize = 1;
/// The reporting queue has number 4 in the specification, but drivers count only the queues whose
/// features they accepted, which makes it 2 here. Whichever of these the driver sets up is it.
pub(super) const REPORTING: std::ops::RangeInclusive<usize> = 2..=4;
pub(super) const QUEUE_SIZES: [u16; 5] = [128; 5];
pub(super) const MAX_SEGMENTS: usize = 128;

/// Unit of the balloon, bytes, whatever the guest's page size is.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Offsets and length of the configuration space.
pub(super) mod config {
    pub(in super::super) const NUM_PAGES: usize = 0;
    pub(in super::super) const ACTUAL: usize = 4;
    pub(in super::super) const BYTES: usize = 8;
}
