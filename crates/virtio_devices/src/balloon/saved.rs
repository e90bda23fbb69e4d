//! Saved state of a balloon.

use serde::{Deserialize, Serialize};

/// Saved state of a balloon, in its pages of 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedBalloon {
    /// Size that the host wants.
    pub target_pages: u32,
    /// Size that the driver last reported.
    pub actual_pages: u32,
}
