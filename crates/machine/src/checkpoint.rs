//! State of one instant: vCPUs, clock, platform. No memory and no disk content.

use saved_state::{DecodeError, EncodeError, Kind};
use serde::{Deserialize, Serialize};
use vcpu::{Engine, VcpuState, VmClock};
use vcpu_soft::SoftEngine;
use vm_spec::VmSpec;

use crate::platform::SavedPlatform;

/// Container tag and schema version.
const KIND: Kind = Kind {
    tag: *b"CKPT",
    version: 3,
};

/// State of one instant of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Engine that ran the guest.
    pub engine: String,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Guest RAM, bytes.
    pub memory_bytes: u64,
    /// One for each vCPU.
    pub vcpus: Vec<VcpuState>,
    /// Paravirtual clock.
    pub clock: VmClock,
    /// Interrupt controller, ports and devices.
    pub platform: SavedPlatform,
}

/// A checkpoint cannot be loaded into this machine.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The bytes are no checkpoint.
    #[error("cannot read the checkpoint")]
    Decode(#[from] DecodeError),
    /// The bytes could not be made.
    #[error("cannot write the checkpoint")]
    Encode(#[from] EncodeError),
    /// It was taken of another machine.
    #[error("checkpoint has {field} {found}, the machine has {wanted}")]
    Differs {
        /// What differs.
        field: &'static str,
        /// In the checkpoint.
        found: String,
        /// In the machine.
        wanted: String,
    },
}

impl Checkpoint {
    /// Returns it in its container.
    pub fn encode(&self) -> Result<Vec<u8>, CheckpointError> {
        Ok(saved_state::encode(KIND, self)?)
    }

    /// Reads a container; the values are checked when devices load them.
    pub fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        Ok(saved_state::decode(KIND, bytes)?)
    }

    /// Returns whether it was taken on the software engine.
    pub fn is_of_soft(&self) -> bool {
        self.engine == SoftEngine.name()
    }

    /// Checks that it was taken of a machine like `spec`. On which engine does not matter: the one
    /// that loads it checks what the guest was promised of its processor.
    pub fn fits(&self, spec: &VmSpec) -> Result<(), CheckpointError> {
        let devices = spec.disks.len() + spec.nics.len() + vm_spec::FIXED_VIRTIO_DEVICES;
        let pairs = [
            ("cpus", self.cpus.to_string(), spec.cpus.to_string()),
            (
                "memory",
                self.memory_bytes.to_string(),
                spec.memory_bytes.to_string(),
            ),
            (
                "vCPU states",
                self.vcpus.len().to_string(),
                spec.cpus.to_string(),
            ),
            (
                "devices",
                self.platform.slots.len().to_string(),
                devices.to_string(),
            ),
        ];
        for (field, found, wanted) in pairs {
            if found != wanted {
                return Err(CheckpointError::Differs {
                    field,
                    found,
                    wanted,
                });
            }
        }
        Ok(())
    }
}

/// Longest checkpoint file, bytes.
pub const CHECKPOINT_BYTES_MAX: u64 = saved_state::MAX_BODY_BYTES as u64 + 4096;
