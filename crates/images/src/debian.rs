//! The `debian` image: a Debian system on a disk, with any packages.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use agent_protocol::guest_paths;

use crate::builder::Outcome;
use crate::kernel::Suite;
use crate::manifest::DISK_FILE;
use crate::mirror::KEYRING;
use crate::tool::Tool;
use crate::{Builder, Image, ImageError, ImageKind, ext4};

/// Least memory that the image boots with, in bytes.
const MIN_MEMORY: u64 = 192 << 20;

/// Packages of every image: what a person at its shell expects, a DHCP client, and what loads
/// kernel modules when programs ask for them.
const BASE_PACKAGES: [&str; 6] = [
    "ca-certificates",
    "iproute2",
    "kmod",
    "netbase",
    "procps",
    "udhcpc",
];

/// What a system with systemd needs besides.
const SYSTEMD_PACKAGES: [&str; 3] = ["dbus", "systemd-sysv", "udev"];

/// What systemd looks for and complains of when it is missing; the name differs between kernels.
pub(crate) const SYSTEMD_MODULES: [&str; 3] = ["autofs", "autofs4", "binfmt_misc"];

/// Has systemd take the machine id of the VM before anything starts: what has read another one, as
/// the journal does, keeps it. The daemon fills it in at boot.
pub(crate) const SYSTEMD_MACHINE_ID: &str = "systemd.machine_id={machine_id}";

/// Documentation stays out: a third of a small system.
const LEFT_OUT: [&str; 5] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/locale/*/LC_MESSAGES/*",
];

/// Which program is process 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InitSystem {
    /// The agent itself; services are started by whoever needs them.
    #[default]
    Agent,
    /// systemd, with the agent as a service.
    Systemd,
}

impl std::str::FromStr for InitSystem {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        match text {
            "agent" => Ok(Self::Agent),
            "systemd" => Ok(Self::Systemd),
            _ => Err(ImageError::BadParameter {
                field: "init",
                problem: format!("{text:?} is not supported: use agent or systemd"),
            }),
        }
    }
}

/// Parameters of a `debian` image.
#[derive(Debug, Clone)]
pub struct DebianRecipe {
    /// Name of the image.
    pub name: String,
    /// Debian release.
    pub suite: Suite,
    /// Packages besides the minimal system.
    pub include: Vec<String>,
    /// Process 1.
    pub init: InitSystem,
    /// Size of the disk in bytes; at least 4 GiB and 1 GiB more than the content when absent.
    pub disk_bytes: Option<u64>,
}

impl Default for DebianRecipe {
    fn default() -> Self {
        Self {
            name: "debian".into(),
            suite: Suite::default(),
            include: Vec::new(),
            init: InitSystem::default(),
            disk_bytes: None,
        }
    }
}

impl Builder {
    /// Builds a `debian` image. Needs root, as mmdebstrap does.
    pub fn debian(&self, recipe: &DebianRecipe) -> Result<Image, ImageError> {
        self.store().check_free(&recipe.name)?;
        let packages = package_list(recipe)?;
        ext4::check_size(recipe.disk_bytes)?;
        require_root()?;
        let parts = self.parts(recipe.suite, &[])?;
        let staging = self.store().staging()?;
        let modules: &[&str] = if recipe.init == InitSystem::Systemd {
            &SYSTEMD_MODULES
        } else {
            &[]
        };
        self.place_boot_files(&parts, &staging, modules)?;
        let root = tempfile::tempdir_in(staging.path())
            .map_err(ImageError::file("make a directory in", staging.path()))?;
        // The temporary directory is private; the root of the image is not.
        let set = fs::set_permissions(root.path(), Permissions::from_mode(0o755));
        set.map_err(ImageError::file("open up", root.path()))?;
        self.bootstrap(recipe, &packages, root.path())?;
        self.watch.stage("set the system up", 0.8)?;
        parts.kernel.install_modules(root.path(), &self.watch)?;
        set_up(root.path(), recipe, &parts.agent)
            .map_err(ImageError::file("set up", root.path()))?;
        let bytes = ext4::disk_size(root.path(), recipe.disk_bytes)?;
        self.watch.stage("write the disk", 0.85)?;
        ext4::make(
            root.path(),
            &staging.path().join(DISK_FILE),
            bytes,
            &self.watch,
        )?;
        root.close()
            .map_err(ImageError::file("remove", staging.path()))?;
        let outcome = Outcome {
            name: &recipe.name,
            kind: ImageKind::Debian,
            cmdline: command_line(recipe.init),
            disk_bytes: Some(bytes),
            min_memory: MIN_MEMORY,
            agent: true,
            inputs: vec![
                format!("debian {:?} {}", recipe.init, packages.join(",")),
                bytes.to_string(),
            ],
        };
        self.publish(staging, &parts, &outcome)
    }

    /// Installs the packages into an empty directory. It runs in a mount namespace of its own, so
    /// that no mount of a killed run is left below the directory, and ends with this process.
    fn bootstrap(
        &self,
        recipe: &DebianRecipe,
        packages: &[String],
        root: &Path,
    ) -> Result<(), ImageError> {
        let suite = recipe.suite;
        let log = format!("{}.log", recipe.name);
        let options = LEFT_OUT.iter().chain(&["force-unsafe-io"]);
        let tool = Tool::new("setpriv", "util-linux")
            .log(self.cache().join("logs").join(log))
            .args([
                "--pdeathsig=KILL",
                "unshare",
                "--mount",
                "--propagation=private",
            ])
            .args(["--fork", "--kill-child=TERM", "--", "mmdebstrap"])
            .args([
                "--mode=root",
                "--variant=minbase",
                "--format=directory",
                "--architectures=amd64",
            ])
            .arg(format!("--keyring={KEYRING}"))
            .args([
                "--aptopt=Apt::Install-Recommends \"false\"",
                "--aptopt=Acquire::Languages \"none\"",
            ])
            .args(options.map(|option| format!("--dpkgopt={option}")))
            .arg(format!("--include={}", packages.join(",")))
            .arg(suite.name())
            .arg(root)
            .args(self.mirror()?.source_lines(suite));
        let watch = &self.watch;
        let steps = std::sync::atomic::AtomicU8::new(0);
        let report = |line: &str| {
            if let Some(text) = line.strip_prefix("I: ") {
                let step = steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                // mmdebstrap reports about ten steps.
                let fraction = 0.15 + 0.6 * (f32::from(step) / 10.0).min(1.0);
                let _ = watch.stage(text, fraction);
            }
        };
        tool.run(watch, report).map(drop).map_err(name_bootstrap)
    }
}

/// `setpriv` and `unshare` only stand before the program that can fail.
fn name_bootstrap(error: ImageError) -> ImageError {
    match error {
        ImageError::ToolFailed { output, .. }
            if output.contains("failed to execute mmdebstrap") =>
        {
            ImageError::ToolMissing {
                program: "mmdebstrap",
                package: "mmdebstrap",
            }
        }
        ImageError::ToolFailed { status, output, .. } => ImageError::ToolFailed {
            program: "mmdebstrap",
            status,
            output,
        },
        other => other,
    }
}

/// Refuses to go on as anybody but root, who alone can keep the owners of files.
pub(crate) fn require_root() -> Result<(), ImageError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(ImageError::BadParameter {
        field: "user",
        problem: "building a disk image needs root: file owners must be kept".into(),
    })
}

fn package_list(recipe: &DebianRecipe) -> Result<Vec<String>, ImageError> {
    let mut packages: Vec<String> = BASE_PACKAGES.map(str::to_owned).to_vec();
    if recipe.init == InitSystem::Systemd {
        packages.extend(SYSTEMD_PACKAGES.map(str::to_owned));
    }
    for package in &recipe.include {
        // Debian Policy 5.6.1, with apt's suffixes for architecture and version left out.
        let plain = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.');
        let first = package
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        if !first || package.len() < 2 || !package.bytes().all(plain) {
            return Err(ImageError::BadParameter {
                field: "include",
                problem: format!("{package:?} is not the name of a Debian package"),
            });
        }
        packages.push(package.clone());
    }
    packages.sort();
    packages.dedup();
    Ok(packages)
}

fn command_line(init: InitSystem) -> String {
    let root = "root=/dev/vda rw rootflags=noatime";
    match init {
        InitSystem::Agent => format!("{root} init={}", guest_paths::AGENT),
        // Waiting for devices that do not exist is most of a minimal system's start.
        InitSystem::Systemd => {
            format!("{root} systemd.show_status=0 net.ifnames=0 {SYSTEMD_MACHINE_ID}")
        }
    }
}

/// Makes the installed packages a system of its own: agent in, leftovers of the build out.
fn set_up(root: &Path, recipe: &DebianRecipe, agent: &[u8]) -> io::Result<()> {
    install_agent(root, agent)?;
    write(root, "etc/hostname", &format!("{}\n", recipe.name))?;
    write(
        root,
        "etc/hosts",
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    )?;
    write(root, "etc/resolv.conf", "")?;
    write(root, "etc/fstab", "/dev/vda / ext4 rw,noatime 0 0\n")?;
    // Empty: whoever starts first fills it, and no two images are born with the same.
    write(root, "etc/machine-id", "")?;
    remove(root, "var/lib/dbus/machine-id")?;
    for entry in fs::read_dir(root.join("etc/ssh"))
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(entry.path())?;
        }
    }
    if recipe.init == InitSystem::Systemd {
        set_up_systemd(root)?;
    }
    Ok(())
}

/// Installs the agent, its directories, and the names that power the system off where nothing
/// else does.
pub(crate) fn install_agent(root: &Path, agent: &[u8]) -> io::Result<()> {
    let program = root.join(guest_paths::AGENT.trim_start_matches('/'));
    if let Some(dir) = program.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&program, agent)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    for dir in [guest_paths::START_SCRIPTS, guest_paths::CLONE_SCRIPTS] {
        fs::create_dir_all(root.join(dir.trim_start_matches('/')))?;
    }
    if root.join("usr/sbin").is_dir() {
        for name in ["poweroff", "reboot", "halt", "shutdown", "init"] {
            let link = root.join("usr/sbin").join(name);
            if fs::symlink_metadata(&link).is_err() {
                symlink(guest_paths::AGENT, link)?;
            }
        }
    }
    Ok(())
}

fn set_up_systemd(root: &Path) -> io::Result<()> {
    write(
        root,
        "etc/systemd/system/mitose-guest.service",
        guest_paths::SYSTEMD_UNIT,
    )?;
    let enable = |wants: &str, unit: &str, target: &str| {
        let dir = root.join("etc/systemd/system").join(wants);
        fs::create_dir_all(&dir)?;
        symlink(target, dir.join(unit))
    };
    enable(
        "sysinit.target.wants",
        "mitose-guest.service",
        "../mitose-guest.service",
    )?;
    // The package scripts have done what a first start after an update does.
    for stamp in ["etc/.updated", "var/.updated"] {
        write(root, stamp, "")?;
    }
    // A login prompt on the serial port would wait for a device that udev announces late, and
    // nobody has a password; waiting for a network would wait for one that may not be there.
    for unit in [
        "serial-getty@ttyS0.service",
        "systemd-networkd-wait-online.service",
    ] {
        let link = root.join("etc/systemd/system").join(unit);
        if fs::symlink_metadata(&link).is_err() {
            symlink("/dev/null", link)?;
        }
    }
    symlink(
        "/lib/systemd/system/multi-user.target",
        root.join("etc/systemd/system/default.target"),
    )
    .or_else(|e| {
        if e.kind() == io::ErrorKind::AlreadyExists {
            Ok(())
        } else {
            Err(e)
        }
    })
}

fn write(root: &Path, path: &str, text: &str) -> io::Result<()> {
    let path = root.join(path);
    // A link may point at something outside of the image.
    if fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink()) {
        fs::remove_file(&path)?;
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, text)
}

fn remove(root: &Path, path: &str) -> io::Result<()> {
    match fs::remove_file(root.join(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_checked_and_merged() {
        let mut recipe = DebianRecipe {
            include: vec!["redis-server".into(), "procps".into(), "g++".into()],
            ..DebianRecipe::default()
        };
        let list = package_list(&recipe).unwrap();
        assert_eq!(list.iter().filter(|p| *p == "procps").count(), 1);
        assert!(list.contains(&"redis-server".to_owned()) && !list.contains(&"udev".to_owned()));
        recipe.init = InitSystem::Systemd;
        assert!(
            package_list(&recipe)
                .unwrap()
                .contains(&"systemd-sysv".to_owned())
        );
        for bad in ["", "a", "--mode=x", "a b", "a,b", "A", "../x", "x/sid"] {
            recipe.include = vec![bad.into()];
            assert!(package_list(&recipe).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_system_is_set_up_without_its_builders_traces() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for sub in ["etc/ssh", "usr/sbin", "var/lib/dbus"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        fs::write(root.join("etc/machine-id"), "abc").unwrap();
        fs::write(root.join("var/lib/dbus/machine-id"), "abc").unwrap();
        fs::write(root.join("etc/ssh/ssh_host_rsa_key"), "secret").unwrap();
        fs::write(root.join("etc/ssh/sshd_config"), "config").unwrap();
        fs::write(root.join("usr/sbin/init"), "another").unwrap();
        let outside = dir.path().join("outside");
        symlink(&outside, root.join("etc/resolv.conf")).unwrap();
        let recipe = DebianRecipe {
            init: InitSystem::Systemd,
            ..DebianRecipe::default()
        };
        set_up(root, &recipe, b"agent").unwrap();
        assert_eq!(fs::read(root.join("etc/machine-id")).unwrap(), b"");
        assert!(!root.join("var/lib/dbus/machine-id").exists());
        assert!(!root.join("etc/ssh/ssh_host_rsa_key").exists());
        assert!(root.join("etc/ssh/sshd_config").exists());
        assert!(!outside.exists());
        assert_eq!(
            fs::read(root.join("usr/local/sbin/mitose-guest")).unwrap(),
            b"agent"
        );
        assert_eq!(fs::read(root.join("usr/sbin/init")).unwrap(), b"another");
        let link = fs::read_link(root.join("usr/sbin/poweroff")).unwrap();
        assert_eq!(link, Path::new(guest_paths::AGENT));
        let wants = root.join("etc/systemd/system/sysinit.target.wants/mitose-guest.service");
        assert!(
            fs::read_to_string(wants)
                .unwrap()
                .contains(guest_paths::AGENT)
        );
    }
}
