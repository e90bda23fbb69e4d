//! The page map of another process, for that process to read.

use std::fs::File;
use std::io;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Opens `/proc/PID/pagemap` (proc(5)) so that it can be handed to process `pid`: it tells which
/// pages are present, and not where in the host's memory they are, which is told to those who were
/// administrators when they opened it.
pub fn open_pagemap(pid: i32) -> io::Result<File> {
    let open = move || {
        let mut own = capabilities(None)?;
        own.effective.remove(CapabilitySet::SYS_ADMIN);
        set_capabilities(None, own)?;
        File::open(format!("/proc/{pid}/pagemap"))
    };
    // Capabilities are a thread's own, so that no other one loses it meanwhile.
    let opened = std::thread::Builder::new().spawn(open)?.join();
    opened.unwrap_or_else(|_| Err(io::Error::other("the thread that opens it ended")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn pages_are_told_and_their_places_are_not() {
        let written = [1u8; 1 << 16];
        let written = std::hint::black_box(&written);
        let page = written.as_ptr() as u64 / 4096 + 1;
        let entry = |map: &File| {
            let mut bytes = [0; 8];
            map.read_exact_at(&mut bytes, page * 8).expect("read");
            u64::from_ne_bytes(bytes)
        };
        let place = |map: &File| entry(map) & ((1 << 55) - 1);
        let map = open_pagemap(std::process::id() as i32).expect("page map");
        assert_ne!(entry(&map) & 1 << 63, 0, "the page is present");
        assert_eq!(place(&map), 0, "its place is not told");
        let own = capabilities(None).expect("capabilities");
        let file = File::open("/proc/self/pagemap").expect("page map");
        let admin = own.effective.contains(CapabilitySet::SYS_ADMIN);
        assert_eq!(
            place(&file) != 0,
            admin,
            "this thread keeps its capabilities"
        );
    }
}
