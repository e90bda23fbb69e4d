//! Forks of an idle guest: identity, generations, power cycles, failures, a killed daemon.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::guest::{Place, wait_for};

const IDENTITY: &str = "hostname; cat /etc/machine-id";

/// Three generations, each with an identity of its own; the first goes away and all live on.
pub(crate) fn generations(place: &Place) -> anyhow::Result<()> {
    place.run("g0", &["--memory", "256M"])?;
    place.sh("g0", "echo from-g0 >/tmp/mark")?;
    place.clone("g0", 2, "g1-")?;
    place.sh("g1-1", "echo from-g1 >>/tmp/mark")?;
    place.clone("g1-1", 2, "g2-")?;
    place.clone("g2-2", 1, "g3-")?;
    place.cli.run(&["rm", "g0", "--force"])?;
    let mut machine_ids = BTreeSet::new();
    for name in ["g1-1", "g1-2", "g2-1", "g2-2", "g3-1"] {
        let told = place.sh(name, IDENTITY)?;
        let (hostname, machine_id) = told.split_once('\n').context("two lines")?;
        ensure!(hostname == name, "{name} calls itself {hostname}");
        ensure!(
            machine_ids.insert(machine_id.to_owned()),
            "{name} shares its machine id"
        );
    }
    ensure!(
        place.sh("g3-1", "cat /tmp/mark")? == "from-g0\nfrom-g1",
        "memory of generation 3"
    );
    ensure!(
        place.sh("g1-2", "cat /tmp/mark")? == "from-g0",
        "memory of generation 1"
    );
    Ok(())
}

/// A clone keeps what it wrote to its disk over power-off and power-on, and so does the source.
pub(crate) fn power_cycle(place: &Place) -> anyhow::Result<()> {
    let disk = place.scratch_disk("cycle.raw", 64)?;
    let disk = disk.to_str().context("path")?;
    place.run(
        "p0",
        &["--memory", "256M", "--disk", &format!("{disk},format=raw")],
    )?;
    place.sh(
        "p0",
        "echo source-block | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null",
    )?;
    place.clone("p0", 2, "p")?;
    for name in ["p1", "p2"] {
        let block = format!("echo {name}-block | dd of=/dev/vda bs=512 seek=8 conv=sync,fsync");
        place.sh(name, &format!("{block} 2>/dev/null"))?;
        place.cli.run(&["stop", name])?;
    }
    for name in ["p1", "p2"] {
        place.cli.run(&["start", name])?;
        wait_for("the clone's agent", Duration::from_secs(120), || {
            Ok(place.sh(name, "true").is_ok())
        })?;
        let read = |at: u32| {
            place.sh(
                name,
                &format!("dd if=/dev/vda bs=512 skip={at} count=1 2>/dev/null | head -n1"),
            )
        };
        ensure!(read(0)? == "source-block", "{name} lost the source's block");
        ensure!(
            read(8)? == format!("{name}-block"),
            "{name} lost its own block"
        );
        ensure!(place.sh(name, "hostname")? == name, "{name} lost its name");
    }
    place.check_disks()
}

/// A fork that fails at any step leaves the source as it was and nothing behind.
pub(crate) fn failures_leave_the_source(place: &Place) -> anyhow::Result<()> {
    let disk = place.scratch_disk("fail.raw", 16)?;
    let disk = format!("{},format=raw", disk.to_str().context("path")?);
    place.run("f0", &["--memory", "256M", "--disk", &disk])?;
    let steps = [
        "prepare_tops",
        "drain",
        "stop",
        "save",
        "swap_disks",
        "swap_memory",
    ];
    for round in 0..2 {
        for step in steps {
            let clone = ["clone", "f0", "--name", "never", "--fail-at", step];
            let output = place.cli.output(&clone)?;
            ensure!(output.status.code() == Some(1), "{step}: {output:?}");
            ensure!(place.vms()?.len() == 1 + round, "{step} left a VM behind");
            let wrote = "echo alive | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null && uptime";
            ensure!(
                place.sh("f0", wrote)?.contains("up"),
                "{step} hurt the source"
            );
        }
        // The second round fails forks of a private view.
        place.clone("f0", 1, &format!("ok{round}-"))?;
    }
    place.check_disks()
}

/// The daemon dies in a fork: VMs run on, a new daemon manages them, half-made clones are gone or
/// whole.
pub(crate) fn daemon_killed_in_a_fork(place: &Place) -> anyhow::Result<()> {
    place.run("k0", &["--memory", "256M"])?;
    for (round, wait_ms) in [20, 120, 400].into_iter().enumerate() {
        let prefix = format!("k{round}x");
        let mut fork = Command::new(harness::program("mitose")?)
            .args([
                "clone",
                "k0",
                "--count",
                "3",
                "--prefix",
                &prefix,
                "--no-wait",
            ])
            .env("MITOSE_HOME", place.cli.home())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // The moment is meant to differ from round to round; any moment must do.
        std::thread::sleep(Duration::from_millis(wait_ms));
        place.kill_daemon()?;
        fork.wait()?;
        // The command line starts a new daemon.
        for vm in place.vms()? {
            let (name, state) = (vm["name"].as_str().context("name")?, &vm["state"]);
            ensure!(state == "running", "{name} is {state}");
        }
        wait_for("all agents", Duration::from_secs(120), || {
            for vm in place.vms()? {
                let name = vm["name"].as_str().context("name")?;
                if place.sh(name, "hostname").ok().as_deref() != Some(name) {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
    }
    place.clone("k0", 1, "after")?;
    Ok(())
}

impl Place {
    /// Sends SIGKILL to this home's daemon.
    pub(crate) fn kill_daemon(&self) -> anyhow::Result<()> {
        let status = self.cli.json(&["daemon", "status"])?;
        let pid = status["pid"].as_u64().context("the daemon's pid")?;
        let killed = Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status()?;
        ensure!(killed.success(), "cannot kill {pid}");
        // Until the process is gone its socket still takes connections, which then break off.
        let process = std::path::PathBuf::from(format!("/proc/{pid}"));
        wait_for("the daemon's end", Duration::from_secs(20), || {
            let state = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
            // Its first thread can be gone before the others, which still hold the socket.
            let threads = std::fs::read_dir(process.join("task")).map_or(0, Iterator::count);
            Ok(state.is_empty() || (state.contains(") Z ") && threads <= 1))
        })
    }

    /// `qemu-img check` on the chain of each powered-off VM; the others' files are in use.
    pub(crate) fn check_disks(&self) -> anyhow::Result<()> {
        for vm in self.vms()? {
            let name = vm["name"].as_str().context("name")?;
            if vm["state"] == "running" {
                self.cli.run(&["stop", name, "--force"])?;
            }
            let info = self.cli.json(&["info", name])?;
            for layer in info["disks"].as_array().into_iter().flatten() {
                for file in layer["layers"].as_array().into_iter().flatten() {
                    let file = file.as_str().context("layer")?;
                    let path = self.cli.home().join("datastore1").join(file);
                    let path = if path.exists() { path } else { file.into() };
                    if path
                        .extension()
                        .is_none_or(|extension| extension != "qcow2")
                    {
                        continue;
                    }
                    let output = Command::new("qemu-img").arg("check").arg(&path).output()?;
                    ensure!(output.status.success(), "{}: {output:?}", path.display());
                }
            }
        }
        Ok(())
    }
}
