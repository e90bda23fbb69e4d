//! Saved state of a virtio device and its transport: plain data, not trusted when it comes back.

use serde::{Deserialize, Serialize};

pub use crate::balloon::SavedBalloon;
pub use crate::block::SavedBlock;
pub use crate::net::SavedNet;
pub use crate::rng::SavedRng;
pub use crate::vsock::SavedVsock;

/// Registers, queues and device state of one virtio-mmio slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTransport {
    /// Device ID register (virtio 1.2 §5).
    pub device_id: u32,
    /// Device status register without `DEVICE_NEEDS_RESET`.
    pub status: u32,
    /// `DEVICE_NEEDS_RESET` was set.
    pub needs_reset: bool,
    /// `DeviceFeaturesSel` register.
    pub device_features_sel: u32,
    /// `DriverFeaturesSel` register.
    pub driver_features_sel: u32,
    /// Feature bits that the driver wrote.
    pub driver_features: u64,
    /// `QueueSel` register.
    pub queue_sel: u32,
    /// `InterruptStatus` register.
    pub interrupt_status: u32,
    /// `ConfigGeneration` register.
    pub config_generation: u32,
    /// All queues of the device, used or not.
    pub queues: Vec<SavedQueue>,
    /// What the device itself keeps.
    pub device: SavedDevice,
}

/// One virtqueue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    /// Size that the driver chose, descriptors.
    pub size: u32,
    /// `QueueReady` register.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub desc_gpa: u64,
    /// Guest-physical address of the available ring.
    pub avail_gpa: u64,
    /// Guest-physical address of the used ring.
    pub used_gpa: u64,
    /// Next entry of the available ring to take.
    pub next_avail: u16,
    /// Next entry of the used ring to fill.
    pub next_used: u16,
}

/// State of one kind of device beside its queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedDevice {
    /// Block device.
    Block(SavedBlock),
    /// Network interface.
    Net(SavedNet),
    /// Socket device.
    Vsock(SavedVsock),
    /// Entropy source.
    Rng(SavedRng),
    /// Memory balloon.
    Balloon(SavedBalloon),
}

/// A saved state does not fit the device or is not one that a device can have.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state belongs to another kind of device.
    #[error("saved virtio device has ID {saved}, the slot holds a device with ID {expected}")]
    Kind {
        /// ID in the state.
        saved: u32,
        /// ID of the device in the slot.
        expected: u32,
    },
    /// A field has a value that no running device has.
    #[error("saved virtio device {device_id}: field {field} has the impossible value {value:#x}")]
    Field {
        /// ID of the device.
        device_id: u32,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A queue cannot be set up.
    #[error("saved virtio device {device_id}: queue {queue} does not lie in guest memory")]
    Queue {
        /// ID of the device.
        device_id: u32,
        /// Index of the queue.
        queue: usize,
    },
    /// A host resource could not be set up.
    #[error("cannot set up virtio device {device_id}")]
    Host {
        /// ID of the device.
        device_id: u32,
        /// Why.
        source: std::io::Error,
    },
}
