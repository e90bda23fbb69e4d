//! Saved state of a network interface.

use serde::{Deserialize, Serialize};

/// Saved state of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedNet {
    /// Hardware address in the configuration space.
    pub mac: [u8; 6],
    /// The link is up.
    pub link_up: bool,
    /// Frames from other hardware addresses are dropped.
    pub own_mac_only: bool,
}
