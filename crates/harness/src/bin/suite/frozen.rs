//! Frozen sources: a guest that asks to stand still, clones that go on from its call with names,
//! values and addresses of their own, and what a killed daemon does to it.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::guest::{Place, Tap, wait_for};

/// Does work, asks to be frozen, and tells where it went on.
const WORK: &str = "\
for n in 1 2 3; do echo work $n >> /run/out; done
mitose-guest freeze > /run/thawed
echo on $(hostname) job $(mitose-guest guestinfo get guestinfo.job) >> /run/out";

/// Runs in each clone before it is ready.
const HOOK: &str = "\
#!/bin/sh
(echo hook $MITOSE_VM_NAME; mitose-guest guestinfo get guestinfo.job) > /run/hook 2>&1";

/// A guest freezes itself; source and clones go on from there.
pub(crate) fn frozen(place: &Place) -> anyhow::Result<()> {
    let tap = Tap::add()?;
    let gateway = tap.address(1);
    let own = format!("0={}/24,gw={gateway}", tap.address(2));
    let net = format!("tap={}", tap.name());
    let run = [
        "--memory",
        "128M",
        "--net",
        &net,
        "--net-ip",
        &own,
        "--guestinfo",
        "job=source",
        "--guestinfo",
        "kept={name}",
    ];
    place.run("z0", &run)?;
    ensure!(
        place
            .sh("z0", "ip -4 addr show eth0; ip route")?
            .contains(&format!("via {gateway}")),
        "the source has no route"
    );
    place.write("z0", "/etc/mitose/clone.d/10-tell", HOOK)?;
    place.write("z0", "/run/work", WORK)?;
    place.in_background("z0", "sh /run/work")?;
    place
        .cli
        .run(&["wait", "z0", "--for", "frozen", "--timeout", "120"])?;

    let refused = place.cli.output(&["exec", "z0", "--", "true"])?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && why.contains("frozen"), "{why}");

    let first = format!("0={}/24,gw={gateway}", tap.address(11));
    clone_and_check(place, 5, "za", &["--net-ip", &first], "layer")?;
    for index in 1..=5 {
        let address = place.sh(&format!("za{index}"), "ip -4 addr show eth0")?;
        let wanted = format!("inet {}/24 ", tap.address(10 + index));
        ensure!(address.contains(&wanted), "{wanted}: {address}");
    }
    place.kill_daemon()?;
    check_state(place, "z0", "frozen")?;
    clone_and_check(place, 2, "zb", &[], "fork")?;
    check_state(place, "z0", "frozen")?;

    place.cli.run(&["resume", "z0"])?;
    place.check_went_on("z0", "source", r#"{"clone":false,"name":"z0"}"#)?;
    asked_without_a_daemon(place)?;
    values_both_ways(place)
}

/// Clones the frozen VM; every clone goes on once from the call, with what it was told.
fn clone_and_check(
    place: &Place,
    count: u32,
    prefix: &str,
    more: &[&str],
    memory: &str,
) -> anyhow::Result<()> {
    let number = count.to_string();
    let clone = [
        "clone",
        "z0",
        "--count",
        &number,
        "--prefix",
        prefix,
        "--wait",
        "240",
        "--guestinfo",
        "job={index} of {name}",
    ];
    let reply = place.cli.json(&[&clone[..], more].concat())?;
    ensure!(
        reply["stun_us"] == 0,
        "a frozen source is not stunned: {reply}"
    );
    ensure!(reply["memory"] == memory, "{reply}");
    for index in 1..=count {
        let name = format!("{prefix}{index}");
        ensure!(
            place.sh(&name, "hostname")? == name,
            "{name} has another name"
        );
        let job = format!("{index} of {name}");
        place.check_went_on(&name, &job, &format!(r#"{{"clone":true,"name":"{name}"}}"#))?;
        let hook = place.sh(&name, "cat /run/hook")?;
        ensure!(hook == format!("hook {name}\n{job}"), "{hook}");
        let kept = place.cli.run(&["guestinfo", &name, "get", "kept"])?;
        ensure!(
            kept.trim() == "z0",
            "a clone inherits what it is not given: {kept}"
        );
    }
    Ok(())
}

/// The guest asks while no daemon is there: the next one hears it.
fn asked_without_a_daemon(place: &Place) -> anyhow::Result<()> {
    place.in_background("z0", "sleep 1; mitose-guest freeze --word > /run/word")?;
    place.kill_daemon()?;
    // Long enough for the guest to ask in vain; the command line starts a new daemon then.
    std::thread::sleep(Duration::from_secs(4));
    place
        .cli
        .run(&["wait", "z0", "--for", "frozen", "--timeout", "120"])?;
    place.cli.run(&["resume", "z0"])?;
    wait_for("the thawed source", Duration::from_secs(60), || {
        Ok(place.sh("z0", "cat /run/word")? == "source")
    })
}

fn values_both_ways(place: &Place) -> anyhow::Result<()> {
    place
        .cli
        .run(&["guestinfo", "z0", "set", "from-host", "1 2"])?;
    let seen = place.sh("z0", "mitose-guest guestinfo get guestinfo.from-host")?;
    ensure!(seen == "1 2", "the guest sees {seen:?}");
    place.sh(
        "z0",
        "mitose-guest guestinfo set guestinfo.from-guest '3 4'",
    )?;
    wait_for("the guest's value", Duration::from_secs(30), || {
        let got = place
            .cli
            .output(&["guestinfo", "z0", "get", "from-guest"])?;
        Ok(got.stdout == b"3 4\n")
    })?;
    place.cli.run(&["guestinfo", "z0", "rm", "from-guest"])?;
    let gone = place.sh("z0", "mitose-guest guestinfo ls")?;
    ensure!(!gone.contains("from-guest"), "{gone}");
    Ok(())
}

fn check_state(place: &Place, name: &str, wanted: &str) -> anyhow::Result<()> {
    let info = place.cli.json(&["info", name])?;
    let state = info["state"].as_str().context("state")?;
    ensure!(state == wanted, "{name} is {state}");
    Ok(())
}

impl Place {
    /// Writes an executable file in a guest.
    fn write(&self, name: &str, path: &str, text: &str) -> anyhow::Result<()> {
        let local = self.cli.home().join("to-write");
        std::fs::write(&local, text)?;
        let local = local.to_str().context("path")?;
        self.sh(name, &format!("mkdir -p $(dirname {path})"))?;
        self.cli.run(&["cp", local, &format!("{name}:{path}")])?;
        self.sh(name, &format!("chmod +x {path}")).map(drop)
    }

    /// Starts a command in a guest that outlives the call.
    fn in_background(&self, name: &str, command: &str) -> anyhow::Result<()> {
        let script = format!("setsid sh -c '{command}' < /dev/null > /run/err 2>&1 &");
        self.sh(name, &script).map(drop)
    }

    /// Waits until the worker has gone on, and checks that it did so once.
    fn check_went_on(&self, name: &str, job: &str, thawed: &str) -> anyhow::Result<()> {
        let wanted = format!("work 1\nwork 2\nwork 3\non {name} job {job}");
        let seen = || self.sh(name, "cat /run/out");
        wait_for("the worker", Duration::from_secs(60), || {
            Ok(seen()?.contains("\non "))
        })?;
        let out = seen()?;
        ensure!(out == wanted, "{name} did {out:?}, not {wanted:?}");
        let said = self.sh(name, "cat /run/thawed; cat /run/err")?;
        ensure!(said == thawed, "{name} was told {said}");
        Ok(())
    }
}
