//! Memory cgroups of VM processes: a limit for each, and the kernel's word where one was ended for
//! it. Policy is in `host::limits`.
//!
//! Both forms of the kernel's interface are spoken (cgroups(7)):
//!
//! | | v1 | v2 |
//! | --- | --- | --- |
//! | limit | `memory.limit_in_bytes`, `memory.memsw.limit_in_bytes` | `memory.max`, `memory.swap.max` |
//! | use | `memory.usage_in_bytes` | `memory.current` |
//! | processes ended | `oom_kill` in `memory.oom_control` | `oom_kill` in `memory.events` |
//! | limit reached | `memory.max_usage_in_bytes` | `max` in `memory.events` |
//!
//! A group's memory is not swapped out beyond its limit, so reaching it ends the VM instead of
//! making the host's disk busy.

mod find;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

pub use self::find::Choice;
use self::find::Controller;

/// What may be missing to its limit when a group has reached it, bytes.
const NEAR_LIMIT_BYTES: u64 = 2 << 20;

/// Form of the kernel's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The groups of one data directory.
#[derive(Clone, Debug)]
pub struct Groups {
    version: Version,
    root: PathBuf,
}

/// What the kernel says about ended processes of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kills {
    /// Processes that the kernel ended for lack of memory.
    pub processes: u64,
    /// The group's own limit was reached; otherwise the host ran short.
    pub at_limit: bool,
}

impl Groups {
    /// Makes the directory of this data directory's groups, where the host has a memory controller
    /// that may be used.
    pub fn open(choice: &Choice, home: &Path) -> anyhow::Result<Self> {
        let Controller { version, mount } = find::controller()?;
        let parent = match choice {
            Choice::Default => mount.join("mitose"),
            Choice::Below(parent) => parent.clone(),
            Choice::Off => anyhow::bail!("turned off by --cgroup none"),
        };
        let groups = Self {
            version,
            root: parent.join(format!("home-{:016x}", crate::config::hash_of(home))),
        };
        fs::create_dir_all(&groups.root)
            .with_context(|| format!("cannot make {}", groups.root.display()))?;
        if version == Version::V2 {
            delegate(&mount, &groups.root)?;
        }
        groups.check()?;
        Ok(groups)
    }

    /// The directory of the groups.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `v1` or `v2`.
    pub fn version(&self) -> &'static str {
        match self.version {
            Version::V1 => "v1",
            Version::V2 => "v2",
        }
    }

    /// Whether groups made here have a limit.
    fn check(&self) -> anyhow::Result<()> {
        let trial = format!("trial-{}", std::process::id());
        self.make(&trial)?;
        let limited = self.set_limit(&trial, 1 << 30);
        let _ = self.remove(&trial);
        limited.context("the memory controller takes no limit")
    }

    /// Makes a group.
    pub fn make(&self, name: &str) -> io::Result<()> {
        fs::create_dir(self.root.join(name))
    }

    /// Moves a process into a group, with all its threads. Its pages stay where they were charged.
    /// The kernel takes milliseconds for it.
    pub fn enter(&self, name: &str, pid: i32) -> io::Result<()> {
        self.write(name, "cgroup.procs", &pid.to_string())
    }

    /// Makes a group for a process that runs already; returns its name.
    pub fn give(&self, name: &str, pid: i32) -> Option<String> {
        let made = self.make(name).and_then(|()| {
            self.enter(name, pid).inspect_err(|_| {
                let _ = self.remove(name);
            })
        });
        match made {
            Ok(()) => Some(name.to_owned()),
            // The process may just have ended.
            Err(error) => {
                tracing::debug!(%error, name, pid, "no memory cgroup for a VM process");
                None
            }
        }
    }

    /// Limits the memory of a group.
    pub fn set_limit(&self, name: &str, bytes: u64) -> io::Result<()> {
        match self.version {
            Version::V1 => {
                let (limit, with_swap) = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes");
                let bytes = bytes.to_string();
                if !self.root.join(name).join(with_swap).exists() {
                    return self.write(name, limit, &bytes);
                }
                // The limit with swap is never below the one without: which comes first depends on
                // the direction.
                if self.write(name, with_swap, &bytes).is_ok() {
                    return self.write(name, limit, &bytes);
                }
                self.write(name, limit, &bytes)?;
                self.write(name, with_swap, &bytes)
            }
            Version::V2 => {
                // Absent where the host has no swap.
                let _ = self.write(name, "memory.swap.max", "0");
                self.write(name, "memory.max", &bytes.to_string())
            }
        }
    }

    /// Takes a group's limit away.
    pub fn lift_limit(&self, name: &str) -> io::Result<()> {
        match self.version {
            Version::V1 => {
                let _ = self.write(name, "memory.memsw.limit_in_bytes", "-1");
                self.write(name, "memory.limit_in_bytes", "-1")
            }
            Version::V2 => self.write(name, "memory.max", "max"),
        }
    }

    /// Memory that is charged to a group, bytes.
    pub fn used_bytes(&self, name: &str) -> io::Result<u64> {
        let file = match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        };
        let text = self.read(name, file)?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::other(format!("{file} is no number")))
    }

    /// The limit of a group, bytes; the greatest number where it has none.
    pub fn limit(&self, name: &str) -> u64 {
        let file = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let text = self.read(name, file).unwrap_or_default();
        text.trim().parse().unwrap_or(u64::MAX)
    }

    /// What the kernel says about ended processes of a group.
    pub fn kills(&self, name: &str) -> Kills {
        let read = |file| self.read(name, file).unwrap_or_default();
        match self.version {
            Version::V1 => {
                let number = |file| read(file).trim().parse::<u64>().ok();
                let most = number("memory.max_usage_in_bytes").unwrap_or(0);
                let limit = number("memory.limit_in_bytes").unwrap_or(u64::MAX);
                Kills {
                    processes: field(&read("memory.oom_control"), "oom_kill"),
                    // The charge that failed is not in the figure.
                    at_limit: most.saturating_add(NEAR_LIMIT_BYTES) >= limit,
                }
            }
            Version::V2 => {
                let events = read("memory.events");
                Kills {
                    processes: field(&events, "oom_kill"),
                    // "max" would also count each time that the page cache was cut at the limit.
                    at_limit: field(&events, "oom") > 0,
                }
            }
        }
    }

    /// Removes a group without processes.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_dir(self.root.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Names of all groups.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.root) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// Removes the directory of the groups, where none is left.
    pub fn remove_root(&self) {
        let _ = fs::remove_dir(&self.root);
    }

    fn write(&self, name: &str, file: &str, text: &str) -> io::Result<()> {
        let mut open = fs::File::options();
        io::Write::write_all(
            &mut open.write(true).open(self.root.join(name).join(file))?,
            text.as_bytes(),
        )
    }

    fn read(&self, name: &str, file: &str) -> io::Result<String> {
        fs::read_to_string(self.root.join(name).join(file))
    }
}

/// Hands the memory controller down from `mount` to the groups in `root`.
fn delegate(mount: &Path, root: &Path) -> anyhow::Result<()> {
    let mut dirs: Vec<&Path> = root
        .ancestors()
        .take_while(|dir| dir.starts_with(mount))
        .collect();
    dirs.reverse();
    for dir in dirs {
        let path = dir.join("cgroup.subtree_control");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if !text.split_whitespace().any(|name| name == "memory") {
            fs::write(&path, "+memory").with_context(|| {
                format!(
                    "the memory controller is not delegated to {}",
                    dir.display()
                )
            })?;
        }
    }
    Ok(())
}

/// The number behind `name` in a file of names and numbers.
fn field(text: &str, name: &str) -> u64 {
    let value = |line: &str| {
        line.strip_prefix(name)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    };
    text.lines().find_map(value).unwrap_or(0)
}

#[cfg(test)]
mod tests;
