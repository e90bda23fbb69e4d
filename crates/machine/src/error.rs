//! Errors of building and driving a machine.

use std::io;

use chipset::{RangeTaken, RestoreError as ChipsetRestoreError};
use disk_layers::{OpenDiskError, SwapTopError};
use guest_memory::{CreateRamError, MapError, SealError};
use vcpu::EngineError;
use vmm_protocol::ForkStep;

use crate::checkpoint::CheckpointError;

/// A machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The saved state has another number of serial ports.
    #[error("saved state has {found} serial ports, the machine has {wanted}")]
    SerialPorts {
        /// In the saved state.
        found: usize,
        /// In the machine.
        wanted: usize,
    },
    /// The description is out of range.
    #[error("the machine description is not valid")]
    Spec(#[from] vm_spec::SpecError),
    /// Fewer or more back ends than devices.
    #[error("device {0} has no slot or no saved state")]
    Slots(usize),
    /// The engine failed.
    #[error("cannot set up the virtual processors")]
    Engine(#[from] EngineError),
    /// Guest RAM failed.
    #[error("cannot set up guest RAM")]
    Ram(#[from] CreateRamError),
    /// The kernel could not be loaded.
    #[error("cannot load the kernel")]
    Boot(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A disk could not be opened.
    #[error("cannot open disk {index}")]
    OpenDisk {
        /// Index of the disk.
        index: usize,
        /// Why.
        #[source]
        source: OpenDiskError,
    },
    /// An empty slot is for a disk that can be written to.
    #[error("disk {index}: an empty slot cannot be read-only; give it layers or make it writable")]
    EmptyReadOnly {
        /// Index of the disk.
        index: usize,
    },
    /// A clone's medium does not go into its slot.
    #[error("cannot put a medium into disk slot {index}")]
    Insert {
        /// Index of the disk.
        index: usize,
        /// Why.
        #[source]
        source: virtio_devices::InsertError,
    },
    /// A device could not be set up.
    #[error("cannot set up device {index}")]
    Device {
        /// Number of the slot.
        index: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device cannot take its saved state.
    #[error("cannot restore a device")]
    RestoreDevice(#[source] virtio_devices::RestoreError),
    /// The chipset cannot take its saved state.
    #[error("cannot restore the chipset")]
    RestoreChipset(#[from] ChipsetRestoreError),
    /// Two devices want the same addresses.
    #[error("cannot place a device")]
    Place(#[from] RangeTaken),
    /// A thread or descriptor could not be made.
    #[error("cannot start a device worker")]
    Worker(#[from] io::Error),
    /// The checkpoint is of another machine.
    #[error("cannot load the checkpoint")]
    Checkpoint(#[from] CheckpointError),
}

/// A fork failed; the source is as it was.
#[derive(Debug, thiserror::Error)]
#[error("fork failed at step {step:?}")]
pub struct ForkError {
    /// Where.
    pub step: ForkStep,
    /// Why.
    #[source]
    pub cause: ForkCause,
}

/// Why a step of a fork failed.
#[derive(Debug, thiserror::Error)]
pub enum ForkCause {
    /// A test asked for it.
    #[error("failure injected for a test")]
    Injected,
    /// The number of new tops is not the number of disks that can be written to.
    #[error("{found} new tops for {wanted} writable disks with a medium")]
    Tops {
        /// Given.
        found: usize,
        /// Disks with a medium that can be written to.
        wanted: usize,
    },
    /// A new top cannot be used.
    #[error("cannot open the next top of disk {index}")]
    OpenTop {
        /// Index of the disk.
        index: usize,
        /// Why.
        #[source]
        source: OpenDiskError,
    },
    /// Requests in flight took too long.
    #[error("disk {index} did not finish its requests within {ms} ms")]
    Busy {
        /// Index of the disk.
        index: usize,
        /// Limit, milliseconds.
        ms: u32,
    },
    /// A disk could not write its caches.
    #[error("cannot flush disk {index}")]
    Flush {
        /// Index of the disk.
        index: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// State could not be saved.
    #[error("cannot save the virtual processors")]
    Engine(#[from] EngineError),
    /// Disk tops could not be swapped.
    #[error("cannot swap the top of disk {index}")]
    Swap {
        /// Index of the disk.
        index: usize,
        /// Why.
        #[source]
        source: SwapTopError,
    },
    /// RAM addresses could not be reserved.
    #[error("cannot prepare guest RAM")]
    PrepareRam(#[from] MapError),
    /// RAM could not be switched.
    #[error("cannot seal guest RAM")]
    Seal(#[from] SealError),
    /// The process could not be split.
    #[error("cannot hold guest RAM by fork()")]
    Hold(#[from] jail::JailError),
    /// The checkpoint could not be written.
    #[error("cannot write the checkpoint")]
    Write(#[source] io::Error),
    /// The checkpoint could not be encoded.
    #[error("cannot encode the checkpoint")]
    Encode(#[from] CheckpointError),
}
