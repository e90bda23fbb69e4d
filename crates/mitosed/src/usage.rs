//! Host memory of a VM process, from `/proc` (proc(5): smaps).

use std::fs;
use std::os::unix::fs::MetadataExt;

use api_types::MemoryUse;
use vmm_protocol::RamView;

/// Name that guest RAM and its layers have in `/proc/<pid>/smaps`.
const MEMORY_FILE: &str = "/memfd:mitose-ram";

/// Figures of one mapping, KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mapping {
    range: String,
    ram: bool,
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
        // The file behind the mapping has all pages of the layer, not only those seen here.
        fs::metadata(format!("/proc/{pid}/map_files/{}", mapping.range))
            .map(|file| (file.ino(), file.blocks() / 2))
            .ok()
    };
    sum(&mappings, ram, layer_kib)
}

/// Adds the figures up. A page of guest RAM is private when it was written since the fork point:
/// anonymous on a private view, every page of the file where the RAM was never forked. Of the VM
/// process itself, what is not a file's page is private.
fn sum(
    mappings: &[Mapping],
    ram: Option<RamView>,
    layer_kib: impl Fn(&Mapping) -> Option<(u64, u64)>,
) -> MemoryUse {
    let mut total = MemoryUse::default();
    let mut layers = std::collections::BTreeMap::new();
    for mapping in mappings {
        total.pss_kib += mapping.pss;
        if !mapping.ram {
            total.private_kib += mapping.anonymous;
            continue;
        }
        let Some((file, kib)) = layer_kib(mapping) else {
            continue;
        };
        match ram {
            Some(RamView::Private) => {
                // A page that this process shares with others since a fork() is anonymous too,
                // but belongs to the fork point.
                total.private_kib += mapping.anonymous.min(mapping.private_dirty);
                total.shared_kib += mapping.anonymous.saturating_sub(mapping.private_dirty);
                layers.insert(file, kib);
            }
            _ => {
                total.private_kib += mapping.anonymous;
                layers.insert(file, kib);
            }
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
                ram: line.contains(MEMORY_FILE),
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

    fn check(ram: RamView) -> (u64, u64, u64) {
        let used = sum(&parse(SMAPS), Some(ram), |_| Some((99, 5000)));
        (used.private_kib, used.shared_kib, used.pss_kib)
    }

    #[test]
    fn a_private_view_counts_written_pages_and_shares_its_layer() {
        assert_eq!(check(RamView::Private), (300 + 80, 5000 + 50, 780));
    }

    #[test]
    fn ram_that_was_never_forked_is_private() {
        assert_eq!(check(RamView::Shared), (350 + 80 + 5000, 0, 780));
    }

    #[test]
    fn own_process_has_private_memory() {
        let used = memory_of(std::process::id() as i32, None);
        assert!(used.private_kib > 0 && used.pss_kib > 0);
    }
}
