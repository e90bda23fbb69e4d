//! Finding the root file system of a disk, by what it holds.

use std::fs::File;
use std::io;

use super::ext::{self, Ext};
use super::partitions::{self, Partition, SECTOR};
use super::read_at;

/// Where the root file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootPlace {
    /// On the disk itself.
    WholeDisk,
    /// In a partition, by the number that Linux gives it.
    Partition(u32),
    /// There is none that the kernel of an image can mount, or it cannot be told which.
    Nowhere(String),
}

/// Files of which a root file system has one, without symbolic links in their paths.
const SYSTEM_FILES: [&str; 4] = ["etc/os-release", "etc/fstab", "etc/passwd", "etc/NIXOS"];
const INITS: [&str; 6] = [
    "sbin/init",
    "usr/sbin/init",
    "usr/lib/systemd/systemd",
    "lib/systemd/systemd",
    "usr/bin/init",
    "init",
];

/// How much a file system looks like a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Content {
    Other,
    /// It has the settings of a system, and its first process may be elsewhere.
    Settings,
    System,
}

/// Finds the root file system of a raw disk: the whole disk, the partition that `wanted` names, or
/// the one partition that holds a system.
pub(crate) fn find_root(disk: &File, wanted: Option<u32>) -> io::Result<RootPlace> {
    let nowhere = |problem: String| Ok(RootPlace::Nowhere(problem));
    let len = disk.metadata()?.len();
    if let Some(name) = file_system(disk, 0)? {
        return match (name, wanted) {
            ("ext", None) => Ok(match cut_short(disk, 0, len)? {
                Some(problem) => RootPlace::Nowhere(problem),
                None => RootPlace::WholeDisk,
            }),
            ("ext", Some(_)) => nowhere(
                "it has no partitions: the file system is on the whole disk, so no root \
                 partition is to be named"
                    .into(),
            ),
            (name, _) => nowhere(format!(
                "it has a {name} file system: an ext4 root file system is needed"
            )),
        };
    }
    let partitions = partitions::read(disk)?;
    if partitions.is_empty() {
        return nowhere(
            "it has neither a file system nor partitions: an ext4 root file system is needed"
                .into(),
        );
    }
    match wanted {
        Some(number) => named(disk, &partitions, number),
        None => chosen(disk, &partitions),
    }
}

/// Takes the partition that the user names, whatever it holds, if it can be mounted.
fn named(disk: &File, partitions: &[Partition], number: u32) -> io::Result<RootPlace> {
    let Some(partition) = partitions.iter().find(|p| p.number == number) else {
        return Ok(RootPlace::Nowhere(format!(
            "it has no partition {number}; it has {}",
            list(disk, partitions)?
        )));
    };
    if file_system(disk, partition.start.saturating_mul(SECTOR))? != Some("ext") {
        return Ok(RootPlace::Nowhere(format!(
            "partition {number} has no ext4 file system; the disk has {}",
            list(disk, partitions)?
        )));
    }
    Ok(match partition_cut_short(disk, partition)? {
        Some(problem) => RootPlace::Nowhere(problem),
        None => RootPlace::Partition(number),
    })
}

fn chosen(disk: &File, partitions: &[Partition]) -> io::Result<RootPlace> {
    let mut candidates = Vec::new();
    for partition in partitions {
        let start = partition.start.saturating_mul(SECTOR);
        if file_system(disk, start)? == Some("ext") {
            candidates.push((content(disk, start)?, partition));
        }
    }
    if candidates.is_empty() {
        return Ok(RootPlace::Nowhere(format!(
            "no partition has an ext4 file system, which the root file system must be; it has {}",
            list(disk, partitions)?
        )));
    }
    let best = candidates.iter().map(|(c, _)| *c).max();
    candidates.retain(|(content, _)| Some(*content) == best);
    if candidates.len() > 1 && candidates.iter().any(|(_, p)| p.is_root) {
        candidates.retain(|(_, p)| p.is_root);
    }
    match candidates.as_slice() {
        [(content, partition)] if *content > Content::Other || partition.is_root => {
            named(disk, partitions, partition.number)
        }
        several => {
            let problem = if several.iter().any(|(c, _)| *c > Content::Other) {
                "more than one partition may be the root"
            } else {
                "no partition holds a Linux system that is known as such"
            };
            Ok(RootPlace::Nowhere(format!(
                "{problem}: say which with --root-partition NUMBER; it has {}",
                list(disk, partitions)?
            )))
        }
    }
}

fn content(disk: &File, start: u64) -> io::Result<Content> {
    let any = |paths: &[&str]| -> io::Result<bool> {
        let mut system = Ext::open(disk, start)?;
        for path in paths {
            if system.has(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    Ok(match (any(&SYSTEM_FILES)?, any(&INITS)?) {
        (true, true) => Content::System,
        (true, false) => Content::Settings,
        (false, _) => Content::Other,
    })
}

/// Says what the partitions hold.
fn list(disk: &File, partitions: &[Partition]) -> io::Result<String> {
    let mut texts = Vec::new();
    for partition in partitions {
        let start = partition.start.saturating_mul(SECTOR);
        let holds = match file_system(disk, start)? {
            Some("ext") => match content(disk, start)? {
                Content::System => "ext4 with a system",
                Content::Settings => "ext4 with /etc and no init",
                Content::Other => "ext4",
            },
            Some(name) => name,
            None => "nothing known",
        };
        let mib = partition.sectors.saturating_mul(SECTOR) >> 20;
        texts.push(format!("{}: {holds}, {mib} MiB", partition.number));
    }
    Ok(texts.join("; "))
}

fn partition_cut_short(disk: &File, partition: &Partition) -> io::Result<Option<String>> {
    let start = partition.start.saturating_mul(SECTOR);
    let rest = disk.metadata()?.len().saturating_sub(start);
    let len = partition.sectors.saturating_mul(SECTOR).min(rest);
    let problem = cut_short(disk, start, len)?;
    Ok(problem.map(|p| format!("partition {}: {p}", partition.number)))
}

/// Says so when an ext file system is larger than the place that it is in.
fn cut_short(disk: &File, start: u64, len: u64) -> io::Result<Option<String>> {
    let bytes = Ext::open(disk, start)?.bytes();
    Ok((bytes > len).then(|| {
        format!("it is cut short: its ext4 file system has {bytes} bytes, and {len} are there")
    }))
}

fn file_system(disk: &File, start: u64) -> io::Result<Option<&'static str>> {
    let magic = |at: u64, wanted: &[u8]| -> io::Result<bool> {
        let mut bytes = [0u8; 8];
        let bytes = &mut bytes[..wanted.len()];
        Ok(read_at(disk, bytes, start.saturating_add(at))? == wanted.len() && bytes == wanted)
    };
    Ok(if ext::is_here(disk, start)? {
        Some("ext")
    } else if magic(0, b"XFSB")? {
        Some("xfs")
    } else if magic(0x10040, b"_BHRfS_M")? {
        Some("btrfs")
    } else if magic(0, b"LUKS\xba\xbe")? {
        Some("LUKS (encrypted)")
    } else if magic(512, b"LABELONE")? {
        Some("LVM")
    } else {
        None
    })
}
