//! SSH host keys: which kinds the guest has, installing new ones, telling sshd.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use agent_protocol::SshHostKey;

use super::identity::write_atomic;
use crate::{Root, linux};

const DIR: &str = "/etc/ssh";

/// Returns the kinds of the host keys in `/etc/ssh`, sorted.
pub(super) fn host_key_kinds(root: &Root) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root.path(DIR)) else {
        return Vec::new();
    };
    let mut kinds: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(
                name.strip_prefix("ssh_host_")?
                    .strip_suffix("_key")?
                    .to_owned(),
            )
        })
        .collect();
    kinds.sort();
    kinds
}

/// Kinds that an SSH server makes for itself when it is installed.
const USUAL_KINDS: [&str; 3] = ["ecdsa", "ed25519", "rsa"];

/// Returns the kinds that the guest is to be given: those that it has, or the usual ones for an
/// SSH server that has none yet.
pub(super) fn wanted_kinds(root: &Root) -> Vec<String> {
    let present = host_key_kinds(root);
    if present.is_empty() && root.path(DIR).join("sshd_config").exists() {
        return USUAL_KINDS.map(str::to_owned).to_vec();
    }
    present
}

/// Whether an SSH server's configuration exists: a guest without one is given no keys.
pub(super) fn is_installed(root: &Root) -> bool {
    root.path(DIR).is_dir()
}

/// Writes the key files. Keys of other kinds that a clone still has are removed: they are its
/// source's.
pub(super) fn install(root: &Root, keys: &[SshHostKey]) -> io::Result<()> {
    for key in keys {
        let private = root.path(&format!("{DIR}/ssh_host_{}_key", key.kind));
        write_atomic(&private, key.private.as_bytes(), 0o600)?;
        write_atomic(&private.with_extension("pub"), key.public.as_bytes(), 0o644)?;
    }
    for kind in host_key_kinds(root) {
        if !keys.iter().any(|key| key.kind == kind) {
            let private = root.path(&format!("{DIR}/ssh_host_{kind}_key"));
            fs::remove_file(&private)?;
            let _ = fs::remove_file(private.with_extension("pub"));
        }
    }
    Ok(())
}

/// Makes a running sshd read its keys again; sessions stay.
pub(super) fn reload_server() {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    let servers: Vec<(i32, i32)> = entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let (name, parent) = name_and_parent(&entry.path())?;
            (name == "sshd").then_some((pid, parent))
        })
        .collect();
    if servers.is_empty() {
        start_failed_server();
    }
    for &(pid, parent) in &servers {
        // A session is a child of the listener and must not be told: it would end.
        if !servers.iter().any(|&(other, _)| other == parent) {
            let _ = linux::kill_process(pid, libc::SIGHUP);
        }
    }
}

/// systemd has given up on a server that had no keys at start; it has them by now.
fn start_failed_server() {
    let unit = "ssh.service";
    let enabled = Path::new("/etc/systemd/system/multi-user.target.wants")
        .join(unit)
        .exists();
    if !enabled || !Path::new("/run/systemd/system").exists() {
        return;
    }
    for args in [&["reset-failed", unit][..], &["--no-block", "start", unit]] {
        let _ = Command::new("systemctl")
            .args(args)
            .stderr(Stdio::null())
            .status();
    }
}

/// Reads a process's name and parent from `/proc/PID/stat`.
fn name_and_parent(dir: &Path) -> Option<(String, i32)> {
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let (front, back) = stat.rsplit_once(')')?;
    let name = front.split_once('(')?.1.to_owned();
    let parent = back.split_whitespace().nth(1)?.parse().ok()?;
    Some((name, parent))
}
