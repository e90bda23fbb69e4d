//! VM processes: connections to them, and the pool of pre-started ones.

mod decode;
mod link;
mod pool;
mod process;
mod reactor;
mod seed;

pub use link::{Link, LinkError, Pending};
pub use pool::{Build, Pool, Shell};
pub use process::{Killed, is_orderly, kill, may_be_of, orphans_of, send_kill, uid_of, wait_gone};
pub use reactor::{Notice, Reactor};
