//! The way from the initramfs to the real root file system.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use agent_protocol::guest_paths::{AGENT, SYSTEMD_UNIT};
use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount, mount_move};

use super::cmdline::Cmdline;
use crate::log;

const NEW_ROOT: &str = "/newroot";

/// Where the agent is put for a root file system that has none.
const CARRIED_AGENT: &str = "/run/mitose/mitose-guest";

/// How long a disk may take to appear after its driver was loaded.
const DEVICE_WAIT: Duration = Duration::from_secs(10);

/// Mounts `root=`, makes it `/` and runs its init; returns only when that failed.
pub(super) fn enter_root(cmdline: &Cmdline) -> anyhow::Error {
    match try_enter_root(cmdline) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_enter_root(cmdline: &Cmdline) -> Result<Infallible> {
    let device = wait_for_device(cmdline.value("root").unwrap_or("/dev/vda"))?;
    mount_root(&device, cmdline)?;
    let carried = carry_agent()?;
    for dir in ["/proc", "/sys", "/dev", "/run"] {
        let target = format!("{NEW_ROOT}{dir}");
        if !Path::new(&target).is_dir() {
            fs::create_dir_all(&target).with_context(|| format!("cannot make {target}"))?;
        }
        mount_move(dir, target.as_str()).with_context(|| format!("cannot move {dir}"))?;
    }
    std::env::set_current_dir(NEW_ROOT).context("cannot enter the new root")?;
    empty_initramfs();
    mount_move(".", "/").context("cannot move the new root to /")?;
    rustix::process::chroot(".").context("cannot chroot to the new root")?;
    std::env::set_current_dir("/").context("cannot enter /")?;
    let program = choose_init(cmdline, carried)?;
    let error = Command::new(&program).exec();
    bail!("cannot run {program}: {error}")
}

/// Waits until the block device exists; `UUID=` and `LABEL=` are resolved for ext file systems.
fn wait_for_device(root: &str) -> Result<PathBuf> {
    let deadline = Instant::now() + DEVICE_WAIT;
    loop {
        if let Some(device) = find_device(root) {
            return Ok(device);
        }
        if Instant::now() > deadline {
            bail!("no such disk after {} s", DEVICE_WAIT.as_secs());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn find_device(root: &str) -> Option<PathBuf> {
    if let Some(uuid) = root.strip_prefix("UUID=") {
        let wanted = uuid.replace('-', "").to_ascii_lowercase();
        return scan_ext(|block| hex(&block[0x68..0x78]) == wanted);
    }
    if let Some(label) = root.strip_prefix("LABEL=") {
        return scan_ext(|block| {
            block[0x78..0x88].split(|&b| b == 0).next() == Some(label.as_bytes())
        });
    }
    let path = PathBuf::from(root);
    path.exists().then_some(path)
}

/// Finds the block device whose ext superblock (1024 bytes at offset 1024) fits.
fn scan_ext(fits: impl Fn(&[u8; 1024]) -> bool) -> Option<PathBuf> {
    use std::os::unix::fs::FileExt;
    let names: BTreeSet<_> = fs::read_dir("/sys/class/block")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect();
    names
        .into_iter()
        .map(|name| Path::new("/dev").join(name))
        .find(|device| {
            let mut block = [0u8; 1024];
            File::open(device)
                .and_then(|file| file.read_exact_at(&mut block, 1024))
                .is_ok()
                && block[0x38..0x3a] == [0x53, 0xef]
                && fits(&block)
        })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn mount_root(device: &Path, cmdline: &Cmdline) -> Result<()> {
    fs::create_dir_all(NEW_ROOT).context("cannot make the mount point")?;
    let (mut flags, options) = mount_options(cmdline.value("rootflags").unwrap_or(""));
    flags.set(MountFlags::RDONLY, cmdline.has("ro"));
    let options = CString::new(options)?;
    let kinds: Vec<String> = match cmdline.value("rootfstype") {
        Some(kind) => vec![kind.to_owned()],
        None => block_filesystems(&fs::read_to_string("/proc/filesystems").unwrap_or_default()),
    };
    let mut failures = Vec::new();
    for kind in &kinds {
        match mount(
            device,
            NEW_ROOT,
            kind.as_str(),
            flags,
            Some(options.as_c_str()),
        ) {
            Ok(()) => return Ok(()),
            Err(error) => failures.push(format!("{kind}: {error}")),
        }
    }
    bail!(
        "cannot mount {} ({})",
        device.display(),
        failures.join("; ")
    )
}

/// Tells the options that every file system has, which are flags, from its own.
fn mount_options(text: &str) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut others = Vec::new();
    for option in text.split(',').filter(|option| !option.is_empty()) {
        match option {
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "lazytime" => flags |= MountFlags::LAZYTIME,
            "nodev" => flags |= MountFlags::NODEV,
            "nosuid" => flags |= MountFlags::NOSUID,
            "noexec" => flags |= MountFlags::NOEXEC,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "defaults" | "rw" => {}
            other => others.push(other),
        }
    }
    (flags, others.join(","))
}

/// File systems that need a device, as /proc/filesystems lists them, ext4 before its elders.
fn block_filesystems(text: &str) -> Vec<String> {
    let mut kinds: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix('\t'))
        .map(str::to_owned)
        .collect();
    kinds.sort_by_key(|kind| kind != "ext4");
    kinds
}

/// Gives the agent to a root file system without one: a copy in /run, and a unit for systemd.
fn carry_agent() -> Result<bool> {
    if Path::new(&format!("{NEW_ROOT}{AGENT}")).exists() {
        return Ok(false);
    }
    fs::create_dir_all("/run/mitose").context("cannot make /run/mitose")?;
    fs::copy("/proc/self/exe", CARRIED_AGENT).context("cannot copy the agent")?;
    fs::set_permissions(CARRIED_AGENT, fs::Permissions::from_mode(0o755))?;
    if has_systemd() {
        let units = Path::new("/run/systemd/system");
        let wants = units.join("sysinit.target.wants");
        fs::create_dir_all(&wants).context("cannot make the unit directory")?;
        let unit = SYSTEMD_UNIT.replace(AGENT, CARRIED_AGENT);
        fs::write(units.join("mitose-guest.service"), unit).context("cannot write the unit")?;
        let link = wants.join("mitose-guest.service");
        if !link.exists() {
            std::os::unix::fs::symlink("../mitose-guest.service", link)?;
        }
    }
    Ok(true)
}

fn has_systemd() -> bool {
    ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"]
        .iter()
        .any(|path| Path::new(&format!("{NEW_ROOT}{path}")).exists())
}

/// Frees the memory of the initramfs. Other file systems mounted below are left alone.
fn empty_initramfs() {
    let Ok(device) = fs::metadata("/").map(|m| m.dev()) else {
        return;
    };
    remove_below(Path::new("/"), device);
}

fn remove_below(dir: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(meta) = fs::symlink_metadata(entry.path()) else {
            continue;
        };
        if meta.dev() != device {
            continue;
        }
        if meta.is_dir() {
            remove_below(&entry.path(), device);
            let _ = fs::remove_dir(entry.path());
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn choose_init(cmdline: &Cmdline, carried: bool) -> Result<String> {
    let mut candidates: Vec<&str> = cmdline.value("init").into_iter().collect();
    candidates.extend(["/sbin/init", "/etc/init"]);
    candidates.push(if carried { CARRIED_AGENT } else { AGENT });
    for program in &candidates {
        let usable = fs::metadata(program).is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0);
        if usable {
            return Ok((*program).to_owned());
        }
        if cmdline.value("init") == Some(*program) {
            log(&format!("init={program} is not there"));
        }
    }
    bail!("none of {} can be run", candidates.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn general_mount_options_become_flags() {
        let (flags, others) = mount_options("noatime,data=ordered,rw,nodev,commit=5");
        assert_eq!(flags, MountFlags::NOATIME | MountFlags::NODEV);
        assert_eq!(others, "data=ordered,commit=5");
        assert_eq!(mount_options(""), (MountFlags::empty(), String::new()));
    }

    #[test]
    fn ext4_is_tried_first_and_virtual_file_systems_never() {
        let text = "nodev\tsysfs\n\text3\n\text2\n\text4\nnodev\ttmpfs\n\tvfat\n";
        assert_eq!(block_filesystems(text), ["ext4", "ext3", "ext2", "vfat"]);
    }
}
