//! Saved state of an entropy source.

use serde::{Deserialize, Serialize};

/// Saved state of an entropy source: nothing beside its queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRng {}
