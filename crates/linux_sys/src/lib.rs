//! Linux calls that have no safe wrapper elsewhere: TAP interfaces and bridges, a pseudo-terminal or
//! the page map of a VM process, the priority of disk accesses, how a process ended, what a
//! fork costs, and starting a process with one descriptor at a fixed number.

#![expect(
    unsafe_code,
    reason = "ioctls on TAP and terminal devices and work between fork and exec have no safe wrapper"
)]

mod bridge;
mod fork_cost;
mod io_priority;
mod pagemap;
mod pidfd;
mod pty;
mod spawn;
mod tap;

pub use bridge::{BridgeError, find_bridge, make_bridge, make_tap, remove_bridge};
pub use fork_cost::fork_cost;
pub use io_priority::IdleIo;
pub use pagemap::open_pagemap;
pub use pidfd::{ProcessEnd, process_end};
pub use pty::{Pty, open_pty};
pub use spawn::spawn_with_fd;
pub use tap::{TapError, check_tap, open_tap};
