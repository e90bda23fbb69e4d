//! Why a saved device state is refused.

/// A saved state that no device can have written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("saved {device} state: field {field} has the impossible value {value:#x}")]
pub struct RestoreError {
    /// Device the state is for.
    pub device: &'static str,
    /// Field of the saved state.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
}
