//! Finding the host's memory controller.

use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;

use super::Version;

/// Where the groups of VMs are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// In `mitose` at the top of the memory controller's hierarchy.
    #[default]
    Default,
    /// In this directory.
    Below(PathBuf),
    /// Nowhere: VMs have no limit.
    Off,
}

impl FromStr for Choice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "" => Self::Default,
            "none" => Self::Off,
            path => Self::Below(path.into()),
        })
    }
}

/// A mounted memory controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Controller {
    pub version: Version,
    pub mount: PathBuf,
}

/// Finds the memory controller of this host.
pub(super) fn controller() -> anyhow::Result<Controller> {
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let has_memory = |mount: &PathBuf| {
        fs::read_to_string(mount.join("cgroup.controllers"))
            .is_ok_and(|text| text.split_whitespace().any(|name| name == "memory"))
    };
    choose(&mounts, has_memory).context("no memory controller is mounted below /sys/fs/cgroup")
}

/// Chooses among the mounts of proc(5): mountinfo. A controller is in one hierarchy alone, so where
/// v1 has it, v2 does not.
fn choose(mounts: &str, has_memory: impl Fn(&PathBuf) -> bool) -> Option<Controller> {
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mount = PathBuf::from(place.split(' ').nth(4)?);
        let mut words = kind.split(' ');
        let (kind, options) = (words.next()?, words.nth(1)?);
        let version = match kind {
            "cgroup" if options.split(',').any(|o| o == "memory") => Version::V1,
            "cgroup2" if has_memory(&mount) => Version::V2,
            _ => return None,
        };
        Some(Controller { version, mount })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
30 25 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
31 25 0:27 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const V2: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    fn found(mounts: &str, has_memory: bool) -> Option<(Version, String)> {
        let found = choose(mounts, |_| has_memory)?;
        Some((found.version, found.mount.display().to_string()))
    }

    #[test]
    fn the_hierarchy_with_the_controller_is_chosen() {
        let v1 = Some((Version::V1, "/sys/fs/cgroup/memory".to_owned()));
        assert_eq!(found(V1, false), v1);
        let v2 = Some((Version::V2, "/sys/fs/cgroup".to_owned()));
        assert_eq!(found(V2, true), v2);
        assert_eq!(found(V2, false), None);
        assert_eq!(found("nonsense\n1 2 - \n", true), None);
    }

    #[test]
    fn choices_are_read() {
        let read = |text: &str| text.parse::<Choice>();
        assert_eq!(read("none"), Ok(Choice::Off));
        assert_eq!(read("/x/y"), Ok(Choice::Below("/x/y".into())));
    }
}
