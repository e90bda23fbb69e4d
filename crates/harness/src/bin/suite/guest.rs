//! What scenarios share: guests, their logs, what must be gone at the end.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use harness::Cli;
use harness::guest_log::{READ_KERNEL_LOG, check_console, check_kernel_log};
use serde_json::Value;

/// Where a scenario plays.
pub(crate) struct Place {
    pub(crate) cli: Cli,
    pub(crate) image: String,
    /// Engine that its guests run on.
    pub(crate) engine: String,
}

impl Place {
    /// Boots a guest and waits for its agent.
    pub(crate) fn run(&self, name: &str, more: &[&str]) -> anyhow::Result<()> {
        let run = [
            "run",
            name,
            "--image",
            &self.image,
            "--wait",
            "240",
            "--engine",
            &self.engine,
        ];
        self.cli.json(&[&run[..], more].concat())?;
        Ok(())
    }

    /// Clones `source` and returns the answer, in which every clone is ready.
    pub(crate) fn clone(&self, source: &str, count: u32, prefix: &str) -> anyhow::Result<Value> {
        let count = count.to_string();
        let clone = [
            "clone", source, "--count", &count, "--prefix", prefix, "--wait", "240",
        ];
        let reply = self.cli.json(&clone)?;
        for clone in reply["clones"].as_array().context("clones")? {
            ensure!(clone["error"].is_null(), "{clone}");
            ensure!(clone["ready_us"].is_u64(), "a clone is not ready: {clone}");
        }
        Ok(reply)
    }

    /// Runs a script in a guest.
    pub(crate) fn sh(&self, name: &str, script: &str) -> anyhow::Result<String> {
        self.cli.shell(name, script)
    }

    /// Makes an empty disk file for a guest.
    pub(crate) fn scratch_disk(&self, name: &str, mib: u64) -> anyhow::Result<PathBuf> {
        let path = self.cli.home().join(name);
        std::fs::File::create(&path)?.set_len(mib << 20)?;
        Ok(path)
    }

    pub(crate) fn vms(&self) -> anyhow::Result<Vec<Value>> {
        match self.cli.json(&["ls"])? {
            Value::Array(vms) => Ok(vms),
            other => bail!("ls gave {other}"),
        }
    }

    /// Looks through kernel and serial logs of all running guests.
    pub(crate) fn check_logs(&self) -> anyhow::Result<()> {
        for vm in self.vms()? {
            let name = vm["name"].as_str().context("name")?;
            check_console(&self.cli.run(&["logs", name])?).context(name.to_owned())?;
            if vm["state"] == "running" {
                check_kernel_log(&self.sh(name, READ_KERNEL_LOG)?).context(name.to_owned())?;
            }
        }
        Ok(())
    }

    pub(crate) fn daemon_log(&self) -> String {
        let path = self.cli.home().join("logs").join("mitosed.log");
        let log = std::fs::read_to_string(path).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(25).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// After the end no process, socket or layer may stay.
    pub(crate) fn check_nothing_left(&self) -> anyhow::Result<()> {
        let home = self.cli.home();
        wait_for("processes to end", Duration::from_secs(20), || {
            Ok(processes_of(home.to_str().context("home")?)?.is_empty())
        })?;
        for folder in ["datastore1/layers", "datastore1/vms"] {
            let path = home.join(folder);
            let left: Vec<_> = std::fs::read_dir(&path)
                .with_context(|| format!("{}", path.display()))?
                .filter_map(|entry| entry.ok().map(|entry| entry.file_name()))
                .collect();
            ensure!(left.is_empty(), "{folder} still holds {left:?}");
        }
        Ok(())
    }
}

/// Process ids whose command line or environment-free arguments name `home`.
fn processes_of(home: &str) -> anyhow::Result<Vec<u32>> {
    let mut found = vec![];
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        if text.contains("mitose") && text.contains(home) && !text.contains("suite") {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Waits until `done` says so.
pub(crate) fn wait_for(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !done()? {
        ensure!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A TAP interface with an address of its own, so that tests run beside each other; it goes when it
/// is dropped.
pub(crate) struct Tap(u32);

impl Tap {
    pub(crate) fn add() -> anyhow::Result<Self> {
        let tap = Self(std::process::id());
        let name = tap.name();
        ip(&["tuntap", "add", "dev", &name, "mode", "tap"])?;
        ip(&[
            "addr",
            "add",
            &format!("{}/24", tap.address(1)),
            "dev",
            &name,
        ])?;
        ip(&["link", "set", &name, "up"])?;
        Ok(tap)
    }

    pub(crate) fn name(&self) -> String {
        format!("mt{}", self.0)
    }

    /// Address of host number `host` in its network.
    pub(crate) fn address(&self, host: u8) -> String {
        format!("10.{}.{}.{host}", 128 + self.0 / 250 % 100, self.0 % 250)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Nothing more can be done about it here; the checks of the next scenario would show it.
        let _ = ip(&["link", "delete", &self.name()]);
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("ip")
        .args(args)
        .status()
        .context("cannot run ip")?;
    ensure!(status.success(), "ip {} gave {status}", args.join(" "));
    Ok(())
}
