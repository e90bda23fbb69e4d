//! Numbers of virtio-vsock (virtio 1.2 §5.10) and the bounds of this device.

/// The guest's context identifier, the same in every VM.
pub const GUEST_CID: u64 = 3;
/// The host's context identifier.
pub const HOST_CID: u64 = 2;

pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;
pub(super) const QUEUE_SIZES: [u16; 3] = [128, 128, 16];
/// Most buffers of a chain: as many as the queue has (virtio 1.2 §2.7.5).
pub(super) const MAX_SEGMENTS: usize = 128;

/// `struct virtio_vsock_event` with `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
pub(super) const EVENT_TRANSPORT_RESET: [u8; 4] = [0; 4];

pub(super) const HEADER_BYTES: usize = 44;
/// Longest payload of one packet, as in Linux.
pub(super) const PAYLOAD_BYTES_MAX: usize = 64 << 10;

pub(super) const TYPE_STREAM: u16 = 1;

pub(super) const OP_REQUEST: u16 = 1;
pub(super) const OP_RESPONSE: u16 = 2;
pub(super) const OP_RST: u16 = 3;
pub(super) const OP_SHUTDOWN: u16 = 4;
pub(super) const OP_RW: u16 = 5;
pub(super) const OP_CREDIT_UPDATE: u16 = 6;
pub(super) const OP_CREDIT_REQUEST: u16 = 7;

/// The sender of a shutdown receives no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of a shutdown sends no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Bytes that the guest may send ahead of what the host program has taken, per connection.
pub(super) const BUF_ALLOC: u32 = 256 << 10;
/// Bytes held for host programs over all connections; above it the guest's queue waits.
pub(super) const BUFFERED_BYTES_MAX: usize = 32 << 20;
/// Connections of all kinds.
pub(super) const CONNECTIONS_MAX: usize = 1024;
/// Connections that the guest opened to services.
pub(super) const SERVICE_CONNECTIONS_MAX: usize = 64;
/// Resets for unknown connections that wait for a receive buffer; above it the guest's queue waits.
pub(super) const STRAY_RESETS_MAX: usize = 64;
/// Longest `CONNECT <port>\n`.
pub(super) const GREETING_BYTES_MAX: usize = 32;
/// Host ports of connections that the host opens start here.
pub(super) const HOST_PORT_FIRST: u32 = 1 << 30;

/// Packets or connections handled before other devices have their turn.
pub(super) const STEPS_PER_TURN: usize = 64;
