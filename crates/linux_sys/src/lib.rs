//! Linux calls that have no safe wrapper elsewhere: TAP interfaces and bridges, a pseudo-terminal or
//! the page map of a VM process, time slices and the priority of disk accesses, how a process
//! ended, what a fork costs, and signals that are read.

#![expect(
    unsafe_code,
    reason = "ioctls on TAP and terminal devices and the scheduler's calls have no safe wrapper"
)]

mod background;
mod bridge;
mod fork_cost;
mod own_code;
mod pagemap;
mod pidfd;
mod pty;
mod signals;
mod tap;
mod time_slice;

pub use background::Background;
pub use bridge::{BridgeError, find_bridge, make_bridge, make_tap, remove_bridge};
pub use fork_cost::fork_cost;
pub use own_code::map_own_code;
pub use pagemap::open_pagemap;
pub use pidfd::{ProcessEnd, process_end};
pub use pty::{Pty, open_pty};
pub use signals::Signals;
pub use tap::{TapError, check_tap, open_tap};
pub use time_slice::{Hurry, take_exact_timers, take_short_slices, take_usual_slices};
