//! The kernel's own file systems and the console.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use crate::log;

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static str,
}

/// Mounts what every program expects, where it is not mounted yet.
pub(super) fn mount_kernel_filesystems() {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV;
    let strict = quiet | MountFlags::NOEXEC;
    let mounts = [
        Mount {
            kind: "proc",
            target: "/proc",
            flags: strict,
            options: "",
        },
        Mount {
            kind: "sysfs",
            target: "/sys",
            flags: strict,
            options: "",
        },
        Mount {
            kind: "devtmpfs",
            target: "/dev",
            flags: MountFlags::NOSUID,
            options: "mode=0755",
        },
        Mount {
            kind: "devpts",
            target: "/dev/pts",
            flags: MountFlags::NOSUID | MountFlags::NOEXEC,
            options: "gid=5,mode=0620,ptmxmode=0666",
        },
        Mount {
            kind: "tmpfs",
            target: "/dev/shm",
            flags: quiet,
            options: "mode=1777",
        },
        Mount {
            kind: "tmpfs",
            target: "/run",
            flags: quiet,
            options: "mode=0755",
        },
        Mount {
            kind: "cgroup2",
            target: "/sys/fs/cgroup",
            flags: strict,
            options: "",
        },
    ];
    for entry in &mounts {
        if let Err(error) = mount_one(entry) {
            log(&format!("cannot mount {}: {error}", entry.target));
        }
    }
    for (dir, mode) in [
        ("/tmp", 0o1777),
        ("/var/tmp", 0o1777),
        ("/run/lock", 0o1777),
    ] {
        if !Path::new(dir).exists() && fs::create_dir_all(dir).is_ok() {
            let _ = fs::set_permissions(dir, Permissions::from_mode(mode));
        }
    }
    link_standard_streams();
}

fn mount_one(entry: &Mount) -> std::io::Result<()> {
    let target = Path::new(entry.target);
    if !target.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(target)?;
    }
    if is_mounted(target) {
        return Ok(());
    }
    let options = std::ffi::CString::new(entry.options)?;
    mount(
        entry.kind,
        target,
        entry.kind,
        entry.flags,
        Some(options.as_c_str()),
    )?;
    Ok(())
}

/// Whether something is mounted on a directory: its device differs from its parent's.
pub(super) fn is_mounted(dir: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev());
    match (device(dir), device(&dir.join(".."))) {
        (Ok(own), Ok(parent)) => own != parent,
        _ => false,
    }
}

/// devtmpfs lacks these; shells and scripts use them.
fn link_standard_streams() {
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ] {
        if !Path::new(link).exists() {
            let _ = std::os::unix::fs::symlink(to, link);
        }
    }
}

/// Takes /dev/console as standard streams: the kernel could not give it when its own /dev was
/// empty.
pub(super) fn open_console() {
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open("/dev/console");
    let Ok(console) = console else { return };
    let _ = rustix::stdio::dup2_stdin(&console);
    let _ = rustix::stdio::dup2_stdout(&console);
    let _ = rustix::stdio::dup2_stderr(&console);
}
