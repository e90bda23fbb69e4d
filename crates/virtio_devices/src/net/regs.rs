//! Numbers of virtio-net (virtio 1.2 §5.1).

pub(super) const F_CSUM: u32 = 0;
pub(super) const F_MAC: u32 = 5;
pub(super) const F_HOST_TSO4: u32 = 11;
pub(super) const F_HOST_TSO6: u32 = 12;
pub(super) const F_STATUS: u32 = 16;

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const QUEUE_SIZES: [u16; 2] = [256, 256];
/// Most buffers of a chain: as many as the queue has (virtio 1.2 §2.7.5).
pub(super) const MAX_SEGMENTS: usize = 256;

/// `struct virtio_net_hdr_v1`.
pub(super) const HEADER_BYTES: usize = 12;
/// Offset of `gso_type` in the header.
pub(super) const HEADER_GSO_TYPE: usize = 1;
/// Offset of `num_buffers` in the header.
pub(super) const HEADER_NUM_BUFFERS: usize = 10;
/// Shortest frame: two addresses and the type.
pub(super) const FRAME_BYTES_MIN: usize = 14;
/// Longest frame: 64 KiB of IP packet, Ethernet header, two VLAN tags.
pub(super) const FRAME_BYTES_MAX: usize = 65_536 + 14 + 8;

pub(super) const S_LINK_UP: u16 = 1;

/// Offsets and length of the configuration space.
pub(super) mod config {
    pub(in super::super) const MAC: usize = 0;
    pub(in super::super) const STATUS: usize = 6;
    pub(in super::super) const BYTES: usize = 8;
}
