//! Kernel modules: loads the files named in `/etc/mitose/modules`, one path a line, in order.

use std::fs::{self, File};
use std::io;

use agent_protocol::guest_paths::MODULES;

use crate::log;

/// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h`.
const COMPRESSED: i32 = 4;

/// Loads every listed module; a failure is reported and the next one is tried.
pub(super) fn load_listed() {
    let Ok(list) = fs::read_to_string(MODULES) else {
        return;
    };
    for path in list
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        if let Err(error) = load(path) {
            log(&format!("cannot load module {path}: {error}"));
        }
    }
}

fn load(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let flags = if path.ends_with(".ko") { 0 } else { COMPRESSED };
    match rustix::system::finit_module(&file, c"", flags) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}
