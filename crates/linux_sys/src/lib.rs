//! Linux calls that have no safe wrapper elsewhere: opening a TAP interface, and starting a
//! process with one descriptor at a fixed number.

#![expect(
    unsafe_code,
    reason = "ioctls on the TAP device and work between fork and exec have no safe wrapper"
)]

mod spawn;
mod tap;

pub use spawn::spawn_with_fd;
pub use tap::{TapError, open_tap};
