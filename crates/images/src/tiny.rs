//! The `tiny` image: kernel, busybox and agent, all in memory.

use std::fs;
use std::io;
use std::path::Path;

use agent_protocol::guest_paths;

use crate::builder::{Outcome, Parts};
use crate::initramfs::Initramfs;
use crate::kernel::{GUEST_MODULES, Suite};
use crate::manifest::INITRD_FILE;
use crate::tool::Tool;
use crate::{Builder, Image, ImageError, ImageKind, Watch, apt};

/// Least memory that the image boots with, in bytes.
const MIN_MEMORY: u64 = 128 << 20;

/// Parameters of a `tiny` image.
#[derive(Debug, Clone)]
pub struct TinyRecipe {
    /// Name of the image.
    pub name: String,
    /// Suite that kernel and busybox are from.
    pub suite: Suite,
}

impl Default for TinyRecipe {
    fn default() -> Self {
        Self {
            name: "tiny".into(),
            suite: Suite::default(),
        }
    }
}

impl Builder {
    /// Builds a `tiny` image.
    pub fn tiny(&self, recipe: &TinyRecipe) -> Result<Image, ImageError> {
        self.store().check_free(&recipe.name)?;
        let parts = self.parts(recipe.suite, &["busybox-static"])?;
        let staging = self.store().staging()?;
        self.place_kernel(&parts, &staging)?;
        self.watch.stage("write the initramfs", 0.7)?;
        let busybox = read_busybox(&parts, staging.path(), &self.watch)?;
        let modules = parts.kernel.modules(&GUEST_MODULES, &self.watch)?;
        let path = staging.path().join(INITRD_FILE);
        let mut archive = Initramfs::create(&path, &parts.agent, &modules)?;
        fill(&mut archive, &recipe.name, &busybox)
            .and_then(|()| archive.finish())
            .map_err(ImageError::file("write", &path))?;
        let outcome = Outcome {
            name: &recipe.name,
            kind: ImageKind::Tiny,
            cmdline: String::new(),
            disk_bytes: None,
            min_memory: MIN_MEMORY,
            agent: true,
            inputs: vec!["tiny".into(), recipe.name.clone()],
        };
        self.publish(staging, &parts, &outcome)
    }
}

/// busybox and the names that it can be called by.
struct Busybox {
    program: Vec<u8>,
    applets: Vec<String>,
}

fn read_busybox(parts: &Parts, staging: &Path, watch: &Watch) -> Result<Busybox, ImageError> {
    let Some(deb) = parts.debs.first() else {
        return Err(ImageError::Package {
            package: "busybox-static".into(),
            problem: "was not downloaded".into(),
        });
    };
    let dir =
        tempfile::tempdir_in(staging).map_err(ImageError::file("make a directory in", staging))?;
    apt::unpack(deb, dir.path(), watch)?;
    let path = ["usr/bin/busybox", "bin/busybox"]
        .iter()
        .map(|p| dir.path().join(p))
        .find(|p| p.is_file())
        .ok_or_else(|| ImageError::Package {
            package: "busybox-static".into(),
            problem: "has no busybox".into(),
        })?;
    let program = fs::read(&path).map_err(ImageError::file("read", &path))?;
    let list = Tool::new("env", "coreutils")
        .arg(&path)
        .arg("--list-full")
        .output(watch)?;
    let applets = String::from_utf8_lossy(&list)
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.contains(".."))
        .map(|l| format!("/{l}"))
        .collect();
    Ok(Busybox { program, applets })
}

fn fill(archive: &mut Initramfs, name: &str, busybox: &Busybox) -> io::Result<()> {
    for directory in [
        "/etc/mitose/init.d",
        guest_paths::CLONE_SCRIPTS,
        "/var/log",
        "/home",
        "/mnt",
    ] {
        archive.directory(directory, 0o755)?;
    }
    archive.directory("/root", 0o700)?;
    archive.directory("/tmp", 0o1777)?;
    archive.symlink("/var/run", "/run")?;
    archive.symlink(guest_paths::AGENT, "/init")?;
    archive.file("/bin/busybox", 0o755, &busybox.program)?;
    for applet in &busybox.applets {
        if applet != "/bin/busybox" {
            archive.symlink(applet, "/bin/busybox")?;
        }
    }
    for (path, mode, text) in FILES {
        archive.file(path, mode, text.as_bytes())?;
    }
    archive.file("/etc/hostname", 0o644, format!("{name}\n").as_bytes())
}

/// Small files of the system, with their modes.
const FILES: [(&str, u32, &str); 8] = [
    (
        "/etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    (
        "/etc/group",
        0o644,
        "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    ),
    ("/etc/shadow", 0o600, "root:*:::::::\nnobody:*:::::::\n"),
    (
        "/etc/hosts",
        0o644,
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    ),
    ("/etc/resolv.conf", 0o644, ""),
    ("/etc/machine-id", 0o644, ""),
    ("/etc/profile", 0o644, "export PS1='\\h:\\w# '\n"),
    ("/etc/udhcpc/default.script", 0o755, DHCP_SCRIPT),
];

/// What busybox's DHCP client runs to put a lease into force.
const DHCP_SCRIPT: &str = r#"#!/bin/sh
case "$1" in
deconfig)
    ip addr flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    for gateway in $router; do
        ip route replace default via "$gateway" dev "$interface"
        break
    done
    : > /etc/resolv.conf
    for server in $dns; do
        echo "nameserver $server" >> /etc/resolv.conf
    done
    ;;
esac
"#;
