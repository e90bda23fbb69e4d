//! Memory of the host, from `/proc/meminfo` and `/proc/<pid>/smaps_rollup` (proc(5)).

use std::time::Duration;

use anyhow::Context;

/// Kernel memory that belongs to somebody: what `MemAvailable` loses beside user pages. Stacks are
/// in VmallocUsed.
const KERNEL_FIELDS: &[&str] = &[
    "SUnreclaim",
    "PageTables",
    "SecPageTables",
    "Percpu",
    "VmallocUsed",
];

/// Returns a field of `/proc/meminfo`, KiB.
pub(crate) fn meminfo_kib(field: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    field_kib(&text, field).with_context(|| format!("/proc/meminfo has no {field}"))
}

fn field_kib(text: &str, field: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What the host has left and what its kernel uses, KiB; the middle of several looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostMemory {
    pub(crate) available: u64,
    pub(crate) kernel: u64,
}

/// Looks at the host's memory for a fifth of a second.
pub(crate) fn host_memory() -> anyhow::Result<HostMemory> {
    let (mut available, mut kernel) = (vec![], vec![]);
    for _ in 0..11 {
        available.push(meminfo_kib("MemAvailable")?);
        // Old kernels lack some of the fields.
        kernel.push(
            KERNEL_FIELDS
                .iter()
                .filter_map(|field| meminfo_kib(field).ok())
                .sum(),
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    available.sort_unstable();
    kernel.sort_unstable();
    Ok(HostMemory {
        available: available[5],
        kernel: kernel[5],
    })
}

/// Returns the pages that process `pid` has of its own, KiB.
pub(crate) fn own_pages_kib(pid: i32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name| field_kib(&text, name).unwrap_or(0);
    Ok(field("Private_Dirty") + field("Private_Clean"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "MemTotal:  5 kB\nPageTables:  12 kB\nSecPageTables:  7 kB\n";
        assert_eq!(field_kib(text, "PageTables"), Some(12));
        assert_eq!(field_kib(text, "Page"), None);
    }

    #[test]
    fn this_process_and_this_host_have_memory() {
        let own = own_pages_kib(std::process::id().cast_signed());
        assert!(own.expect("smaps_rollup") > 0);
        assert!(meminfo_kib("MemAvailable").expect("meminfo") > 0);
    }
}
