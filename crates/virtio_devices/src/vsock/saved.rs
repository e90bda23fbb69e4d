//! Saved state of a socket device. Connections are not part of it.

use serde::{Deserialize, Serialize};

/// Saved state of a socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVsock {
    /// Host port of the next connection that the host opens.
    pub next_host_port: u32,
}
