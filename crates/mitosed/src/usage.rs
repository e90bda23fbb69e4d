//! Host memory of a VM process, from `/proc` (proc(5): smaps).

mod written;

use std::fs;
use std::os::unix::fs::MetadataExt;

use api_types::MemoryUse;
use vmm_protocol::RamView;

use self::written::WrittenPages;

/// Name that guest RAM and its layers have in `/proc/<pid>/smaps`.
const MEMORY_FILE: &str = "/memfd:mitose-ram";
/// Directory and ending of layers that lie on a datastore, and what is added to the names of those that
/// were removed.
const LAYER_DIRECTORY: &str = "/memory/";
const LAYER_ENDING: &str = ".ram";
const REMOVED: &str = " (deleted)";

/// Figures of one mapping, KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mapping {
    range: String,
    ram: bool,
    /// The layer is a file of a datastore.
    on_disk: bool,
    rss: u64,
    pss: u64,
    anonymous: u64,
    private_dirty: u64,
}

/// Returns the memory use of the VM process `pid`; all zero when it cannot be read.
pub fn memory_of(pid: i32, ram: Option<RamView>) -> MemoryUse {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps")) else {
        return MemoryUse::default();
    };
    let mappings = parse(&text);
    let layer_kib = |mapping: &Mapping| {
        if mapping.on_disk {
            return None;
        }
        // The file behind the mapping has all pages of the layer, not only those seen here.
        fs::metadata(format!("/proc/{pid}/map_files/{}", mapping.range))
            .map(|file| (file.ino(), file.blocks() / 2))
            .ok()
    };
    let pages = WrittenPages::of(pid);
    let written_kib = |mapping: &Mapping| {
        let (from, to) = addresses(&mapping.range)?;
        pages.as_ref()?.kib(from, to)
    };
    sum(&mappings, ram, layer_kib, written_kib)
}

/// Returns how much of its guest's RAM the VM process `pid` wrote since it was last split, bytes; 0
/// where the kernel does not tell. Unlike [`memory_of`] it keeps the process's memory map locked for
/// moments only, so a fork does not wait for it.
pub fn written_bytes(pid: i32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let Some(pages) = WrittenPages::of(pid) else {
        return 0;
    };
    let ram = maps.lines().filter(|line| is_guest_ram(line));
    ram.filter_map(|line| addresses(line.split(' ').next()?))
        .filter_map(|(from, to)| pages.kib(from, to))
        .sum::<u64>()
        << 10
}

/// Whether a line that names a mapping is of guest RAM.
fn is_guest_ram(line: &str) -> bool {
    line.contains(MEMORY_FILE) || is_layer_on_disk(line)
}

fn is_layer_on_disk(line: &str) -> bool {
    let path = line.strip_suffix(REMOVED).unwrap_or(line);
    path.ends_with(LAYER_ENDING) && path.contains(LAYER_DIRECTORY)
}

/// Returns what the process `pid` has of its own, in memory and in swap, KiB: pages that it wrote
/// and those that it inherited. The kernel keeps that number, so asking costs next to nothing.
pub fn anonymous_kib(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some(field("RssAnon:")? + field("VmSwap:").unwrap_or(0))
}

fn addresses(range: &str) -> Option<(u64, u64)> {
    let (from, to) = range.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some((address(from)?, address(to)?))
}

/// Adds the figures up. A page is private when it was written since the fork point: of guest RAM
/// that was never forked every page of the file, otherwise the pages that `written_kib` tells. A
/// page that came by a `fork()` and was not written since belongs to the fork point, also when
/// nobody else is left who maps it.
fn sum(
    mappings: &[Mapping],
    ram: Option<RamView>,
    layer_kib: impl Fn(&Mapping) -> Option<(u64, u64)>,
    written_kib: impl Fn(&Mapping) -> Option<u64>,
) -> MemoryUse {
    let mut total = MemoryUse::default();
    let mut layers = std::collections::BTreeMap::new();
    for mapping in mappings {
        total.pss_kib += mapping.pss;
        // Next best, where the kernel does not tell: what no other process maps at the moment.
        let written = match mapping.anonymous {
            0 => 0,
            anonymous => written_kib(mapping)
                .unwrap_or(mapping.private_dirty)
                .min(anonymous),
        };
        total.private_kib += written;
        if !mapping.ram {
            continue;
        }
        total.shared_kib += mapping.anonymous - written;
        if mapping.on_disk {
            // In memory are the pages that somebody reads, here: that this VM has read.
            total.shared_kib += mapping.rss.saturating_sub(mapping.anonymous);
        }
        if let Some((file, kib)) = layer_kib(mapping) {
            layers.insert(file, kib);
        }
    }
    let layers: u64 = layers.values().sum();
    match ram {
        Some(RamView::Private) => total.shared_kib += layers,
        _ => total.private_kib += layers,
    }
    total
}

fn parse(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        match first.strip_suffix(':') {
            None => mappings.push(Mapping {
                range: first.to_owned(),
                ram: is_guest_ram(line),
                on_disk: is_layer_on_disk(line),
                ..Mapping::default()
            }),
            Some(field) => {
                let value = words.next().and_then(|v| v.parse().ok());
                if let (Some(mapping), Some(value)) = (mappings.last_mut(), value) {
                    match field {
                        "Rss" => mapping.rss = value,
                        "Pss" => mapping.pss = value,
                        "Anonymous" => mapping.anonymous = value,
                        "Private_Dirty" => mapping.private_dirty = value,
                        _ => {}
                    }
                }
            }
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 fe:00 12 /usr/bin/mitose-vmm
Rss:                 400 kB
Pss:                 100 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
7f0000000000-7f0040000000 rw-p 00000000 00:01 99 /memfd:mitose-ram (deleted)
Rss:                1000 kB
Pss:                 600 kB
Private_Dirty:       300 kB
Anonymous:           350 kB
VmFlags: rd wr mr mw me sd
7f1000000000-7f1000100000 rw-p 00000000 00:00 0
Rss:                  80 kB
Pss:                  80 kB
Private_Dirty:        80 kB
Anonymous:            80 kB
";

    fn check(ram: RamView, written: Option<u64>) -> (u64, u64, u64) {
        let written = |mapping: &Mapping| written.filter(|_| mapping.ram);
        let used = sum(&parse(SMAPS), Some(ram), |_| Some((99, 5000)), written);
        (used.private_kib, used.shared_kib, used.pss_kib)
    }

    #[test]
    fn a_private_view_counts_written_pages_and_shares_its_layer() {
        assert_eq!(check(RamView::Private, None), (300 + 80, 5000 + 50, 780));
    }

    #[test]
    fn pages_of_the_fork_point_stay_shared_when_nobody_else_maps_them() {
        let used = check(RamView::Private, Some(12));
        assert_eq!(used, (12 + 80, 5000 + 338, 780));
    }

    #[test]
    fn ram_that_was_never_forked_is_private() {
        assert_eq!(check(RamView::Shared, Some(350)), (350 + 80 + 5000, 0, 780));
    }

    #[test]
    fn a_layer_on_a_datastore_is_shared_as_far_as_it_was_read() {
        for name in ["p-1.ram", "p-1.ram (deleted)"] {
            let text = SMAPS.replace(
                "/memfd:mitose-ram (deleted)",
                &format!("/data/store/memory/{name}"),
            );
            let mappings = parse(&text);
            assert!(mappings[1].ram && mappings[1].on_disk, "{name}");
            let written = |mapping: &Mapping| mapping.ram.then_some(12);
            let used = sum(&mappings, Some(RamView::Private), |_| None, written);
            let wanted = (12 + 80, 338 + (1000 - 350), 780);
            assert_eq!((used.private_kib, used.shared_kib, used.pss_kib), wanted);
        }
        assert!(!is_guest_ram("7f00-7f10 rw-p 0 fe:00 1 /srv/x.ram"));
    }

    #[test]
    fn own_process_has_private_memory() {
        let used = memory_of(std::process::id() as i32, None);
        assert!(used.private_kib > 0 && used.pss_kib > 0);
        assert!(anonymous_kib(std::process::id() as i32).is_some_and(|kib| kib > 0));
        assert_eq!(anonymous_kib(-1), None);
    }
}
