//! Applies an identity: everything that makes this guest a different one from its siblings.
//!
//! The order matters: randomness first, because later steps may draw some; addresses before names,
//! because the link rises with the right MAC; scripts last, because they see the result.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_protocol::control::is_machine_id;
use agent_protocol::{Identity, IdentityKind, NicIdentity, Ready};
use anyhow::{Context, Result};
use rustix::time::{ClockId, Timespec, clock_settime};

use super::{entropy, hooks, journal, nics, ssh};
use crate::Root;

/// Clock differences below this are left to the guest's own time keeping.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(10);
/// The same where it is not known how long the host's word took.
const CLOCK_TOLERANCE_UNASKED: Duration = Duration::from_millis(500);

/// When an identity came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    at: Instant,
    /// How long ago it had been asked for then: its time is of an instant in between.
    within: Option<Duration>,
}

impl Heard {
    /// One came just now that had been asked for then.
    pub(super) fn now(asked: Option<Instant>) -> Self {
        Self {
            at: Instant::now(),
            within: asked.map(|asked| asked.elapsed()),
        }
    }
}

/// Applies everything, going on after a failure; the answer names what failed.
pub(super) fn apply(root: &Root, identity: &Identity, heard: Heard) -> Ready {
    let nics = nics::with_guestinfo(identity);
    let mut errors = Vec::new();
    let mut step = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            errors.push(format!("{what}: {error:#}"));
        }
    };
    if root.is_live() {
        let bytes = identity.entropy_bytes().unwrap_or_default();
        step("entropy", entropy::mix_in(&bytes));
        step("clock", set_clock(identity.wall_clock_unix_ns, heard));
        for nic in &nics {
            step(
                &format!("network interface {}", nic.index),
                nics::set_mac(nic),
            );
        }
    }
    if !identity.hostname.is_empty() {
        step("host name", set_hostname(root, &identity.hostname));
    }
    if !identity.machine_id.is_empty() {
        let former = fs::read_to_string(root.path("/etc/machine-id")).unwrap_or_default();
        step("machine-id", set_machine_id(root, &identity.machine_id));
        journal::follow(root, &former, &identity.machine_id);
    }
    step("SSH host keys", install_ssh_keys(root, identity));
    if root.is_live() {
        step("network addresses", nics::set_addresses(&nics));
    }
    step("name servers", set_name_servers(root, &nics));
    if identity.kind == IdentityKind::Clone {
        errors.extend(hooks::run_all(root, identity, hooks::LIMIT));
    }
    let mut ready = describe(root);
    errors.iter().for_each(|error| ready.push_error(error));
    ready
}

/// Says what is in force.
pub(super) fn describe(root: &Root) -> Ready {
    let machine_id = fs::read_to_string(root.path("/etc/machine-id")).unwrap_or_default();
    Ready {
        hostname: hostname(root),
        machine_id: Some(machine_id.trim())
            .filter(|id| is_machine_id(id))
            .unwrap_or("")
            .into(),
        macs: if root.is_live() {
            nics::macs()
        } else {
            Vec::new()
        },
        errors: Vec::new(),
    }
}

/// Returns the host name in force.
pub(super) fn hostname(root: &Root) -> String {
    let name = if root.is_live() {
        rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned()
    } else {
        fs::read_to_string(root.path("/etc/hostname")).unwrap_or_default()
    };
    name.trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(64)
        .collect()
}

fn set_hostname(root: &Root, name: &str) -> Result<()> {
    if root.is_live() {
        rustix::system::sethostname(name.as_bytes()).context("cannot set it in the kernel")?;
    }
    write_if_changed(&root.path("/etc/hostname"), &format!("{name}\n"))?;
    let hosts = root.path("/etc/hosts");
    let text = fs::read_to_string(&hosts).unwrap_or_default();
    write_if_changed(&hosts, &hosts_with(&text, name))
}

/// Returns the hosts file with the line of 127.0.1.1, which names the host itself, replaced.
fn hosts_with(text: &str, name: &str) -> String {
    let short = name.split('.').next().unwrap_or(name);
    let own = if short == name {
        format!("127.0.1.1\t{name}")
    } else {
        format!("127.0.1.1\t{name} {short}")
    };
    let mut lines: Vec<&str> = Vec::new();
    let mut placed = false;
    for line in text.lines() {
        let address = line.split_whitespace().next();
        if address != Some("127.0.1.1") {
            lines.push(line);
        } else if !placed {
            lines.push(&own);
            placed = true;
        }
    }
    if lines.is_empty() {
        lines.extend([
            "127.0.0.1\tlocalhost",
            "::1\tlocalhost ip6-localhost ip6-loopback",
        ]);
    }
    if !placed {
        lines.push(&own);
    }
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

fn set_machine_id(root: &Root, id: &str) -> Result<()> {
    let line = format!("{id}\n");
    write_if_changed(&root.path("/etc/machine-id"), &line)?;
    let dbus = root.path("/var/lib/dbus/machine-id");
    // Usually a link to the file above.
    if fs::symlink_metadata(&dbus).is_ok_and(|m| m.is_file()) {
        write_if_changed(&dbus, &line)?;
    }
    Ok(())
}

fn install_ssh_keys(root: &Root, identity: &Identity) -> Result<()> {
    if identity.ssh_host_keys.is_empty() || !ssh::is_installed(root) {
        return Ok(());
    }
    if identity.kind == IdentityKind::Boot && !ssh::host_key_kinds(root).is_empty() {
        return Ok(());
    }
    ssh::install(root, &identity.ssh_host_keys).context("cannot write the key files")?;
    if root.is_live() {
        ssh::reload_server();
    }
    Ok(())
}

fn set_clock(unix_ns: u64, heard: Heard) -> Result<()> {
    if unix_ns == 0 {
        return Ok(());
    }
    let present = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let told = Duration::from_nanos(unix_ns) + heard.at.elapsed();
    let Some(wanted) = corrected(present, told, heard.within) else {
        return Ok(());
    };
    let time = Timespec {
        tv_sec: i64::try_from(wanted.as_secs()).context("time is out of range")?,
        tv_nsec: wanted.subsec_nanos().into(),
    };
    clock_settime(ClockId::Realtime, time).context("cannot set it")
}

/// The time that a clock is to be set to, or none where it may be right: the host told a time up to
/// `within` ago.
fn corrected(present: Duration, told: Duration, within: Option<Duration>) -> Option<Duration> {
    let half = within.unwrap_or_default() / 2;
    let tolerance = within.map_or(CLOCK_TOLERANCE_UNASKED, |_| half.max(CLOCK_TOLERANCE));
    let wanted = told + half;
    (wanted.abs_diff(present) > tolerance).then_some(wanted)
}

fn set_name_servers(root: &Root, nics: &[NicIdentity]) -> Result<()> {
    let servers: Vec<IpAddr> = nics
        .iter()
        .flat_map(|nic| &nic.dns)
        .map(|server| {
            let bad = || format!("{server:?} is not an address");
            server.parse().with_context(bad)
        })
        .collect::<Result<_>>()?;
    if servers.is_empty() {
        return Ok(());
    }
    let text: String = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    write_if_changed(&root.path("/etc/resolv.conf"), &text)
}

fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    let mode = fs::metadata(path).map_or(0o644, |m| m.permissions().mode() & 0o7777);
    write_atomic(path, text.as_bytes(), mode)
        // A file that is itself a mount point cannot be replaced, only rewritten.
        .or_else(|_| fs::write(path, text))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces a file as a whole: readers see the old or the new content.
pub(super) fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".mitose-part");
    let _ = fs::remove_file(&partial);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests;
