//! Process 1: from the first user instruction to power-off.
//!
//! ```text
//! mount /proc /sys /dev … ─► load modules ─┬─ root= and an initramfs ─► switch root, exec init
//!                                          └─ else ─► agent + services, reap, shut down
//! ```
//!
//! Process 1 stays small: it starts the agent as a child, so that a fault there is a restart
//! instead of a kernel panic, and so that reaping orphans never steals the agent's children.

mod cmdline;
mod initramfs;
mod modules;
mod mounts;
mod reap;
pub(crate) mod services;
mod shutdown;
mod supervise;

use agent_protocol::guest_paths;

use crate::log;
use cmdline::Cmdline;

/// Present when process 1 is this program: how others know which signals it takes.
pub(crate) const MARKER: &str = "/run/mitose/pid1";

/// Brings the system up; never returns.
pub(crate) fn main() -> ! {
    mounts::mount_kernel_filesystems();
    mounts::open_console();
    let cmdline = Cmdline::read();
    modules::load_listed();
    if cmdline.value("root").is_some() && std::path::Path::new(guest_paths::INITRAMFS).exists() {
        let error = initramfs::enter_root(&cmdline);
        log(&format!(
            "cannot start from root={}: {error:#}",
            cmdline.value("root").unwrap_or("")
        ));
        shutdown::now(shutdown::How::PowerOff);
    }
    supervise::run(&cmdline)
}
