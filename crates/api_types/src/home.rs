//! Where a daemon and its clients meet.

use std::path::{Path, PathBuf};

/// Name of the daemon's socket in `run/` of its data directory.
pub const SOCKET_NAME: &str = "mitosed.sock";

/// Returns the data directory of a user who gave none, or `None` when it cannot be told.
pub fn default_home() -> Option<PathBuf> {
    if is_root() {
        return Some(PathBuf::from("/var/lib/mitose"));
    }
    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share/mitose"))
}

/// Returns the daemon's socket in a data directory.
pub fn socket_of(home: &Path) -> PathBuf {
    home.join("run").join(SOCKET_NAME)
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    // The owner of /proc/self is the effective user.
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}
