//! Saved state of a block device. A stalled request is still in the queue, so only what the guest
//! was told about the disk has to be kept, to be compared with the disk it gets back.

use serde::{Deserialize, Serialize};

/// Saved state of a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBlock {
    /// Size that the guest was told, sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// The guest was told that it cannot write.
    pub read_only: bool,
}
