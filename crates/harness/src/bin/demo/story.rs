//! The story: boot Debian with redis, fill it, fork it while a writer works, compare.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::Cli;
use serde_json::Value;

use crate::report::{CloneRow, Story};

const KEYS: u64 = 20_000;
const CLONES: &str = "10";
/// Loads the keys inside the server, which takes no time on the wire.
const LOAD: &str = "redis-cli eval \"for i=1,20000 do redis.call('set','key:'..i,i) end\" 0";
/// A writer that goes on in the source and in each clone, five times a second.
const WRITER: &str =
    "setsid redis-cli -r 100000000 -i 0.2 incr writer >/dev/null 2>&1 </dev/null & echo started";

/// Plays it with VMs of `image` on `engine`.
pub(crate) fn play(cli: &Cli, image: &str, engine: &str) -> anyhow::Result<Story> {
    say("booting a Debian guest");
    let tap = Tap::add("mitosedemo0")?;
    let net = format!("tap={}", tap.0);
    let run = [
        "run", "src", "--image", image, "--memory", "1G", "--cpus", "1", "--net", &net,
    ];
    let vm = cli.json(&[&run[..], &["--engine", engine, "--wait", "300"]].concat())?;
    say("starting redis, loading 20 000 keys, starting a writer");
    cli.shell(
        "src",
        "redis-server --daemonize yes --save '' --dir /tmp >/dev/null; sync",
    )?;
    wait_for("redis", || {
        Ok(cli.shell("src", "redis-cli ping")?.contains("PONG"))
    })?;
    cli.shell("src", LOAD)?;
    cli.shell("src", WRITER)?;
    wait_for("the writer", || Ok(writer(cli, "src")? > 2))?;
    say("forking it 10 times in one call");
    let clone = [
        "clone", "src", "--count", CLONES, "--prefix", "clone-", "--wait", "400",
    ];
    let reply = cli.json(&clone)?;
    let mut rows = vec![];
    for clone in reply["clones"]
        .as_array()
        .context("no clones in the answer")?
    {
        rows.push(row(cli, clone)?);
    }
    say("comparing source and clones");
    let diverged = diverged(cli, &rows)?;
    say("forking a clone");
    let clone_of_clone = clone_of_clone(cli)?;
    say("removing the source");
    cli.run(&["rm", "src", "--force"])?;
    let survives_source = lives_on(cli, &rows)?;
    Ok(Story {
        engine: vm["engine"].as_str().unwrap_or_default().to_owned(),
        boot_ready_us: vm["ready_us"].as_u64(),
        source_stun_us: number(&reply, "stun_us")?,
        io_held_us: number(&reply, "io_held_us")?,
        diverged,
        clone_of_clone,
        survives_source,
        clones: rows,
    })
}

/// A TAP interface that goes when it is dropped.
struct Tap(&'static str);

impl Tap {
    fn add(name: &'static str) -> anyhow::Result<Self> {
        ip(&["tuntap", "add", "dev", name, "mode", "tap"])?;
        let tap = Self(name);
        ip(&["link", "set", name, "up"])?;
        Ok(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Err(error) = ip(&["link", "delete", self.0]) {
            say(&format!("{} stays: {error:#}", self.0));
        }
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

fn say(text: &str) {
    eprintln!("  -> {text}");
}

fn number(value: &Value, field: &str) -> anyhow::Result<u64> {
    value[field]
        .as_u64()
        .with_context(|| format!("{field} is {}", value[field]))
}

fn wait_for(what: &str, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !done().unwrap_or(false) {
        ensure!(Instant::now() < deadline, "{what} did not come up");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn writer(cli: &Cli, name: &str) -> anyhow::Result<u64> {
    Ok(cli
        .shell(name, "redis-cli get writer")?
        .parse()
        .unwrap_or(0))
}

fn row(cli: &Cli, clone: &Value) -> anyhow::Result<CloneRow> {
    let name = clone["name"].as_str().context("a clone has no name")?;
    ensure!(clone["error"].is_null(), "{name}: {}", clone["error"]);
    let told = cli.shell(
        name,
        "hostname; cat /etc/machine-id; cat /sys/class/net/eth0/address 2>/dev/null || echo -; \
         redis-cli --raw eval \"local n=0 for i=1,20000 do n=n+redis.call('exists','key:'..i) \
         end return n\" 0",
    )?;
    let told: Vec<&str> = told.lines().collect();
    let [hostname, machine_id, guest_mac, keys] = told.as_slice() else {
        anyhow::bail!("{name} said {told:?}");
    };
    let info = cli.json(&["info", name])?;
    let mac = info["nics"][0]["mac"].as_str().unwrap_or(guest_mac);
    Ok(CloneRow {
        name: name.to_owned(),
        first_run_us: number(clone, "first_run_us")?,
        ready_us: clone["ready_us"].as_u64(),
        hostname: (*hostname).to_owned(),
        mac: mac.to_owned(),
        machine_id: (*machine_id).to_owned(),
        keys: keys.trim().parse().context("keys")?,
        private_kib: number(&info["memory"], "private_kib")?,
        shared_kib: number(&info["memory"], "shared_kib")?,
        delta_bytes: number(&info["disk"], "delta_bytes")?,
    })
}

/// Each VM sets a key that no other sees, all writers go on, and no identity is met twice.
fn diverged(cli: &Cli, rows: &[CloneRow]) -> anyhow::Result<bool> {
    let first = &rows.first().context("no clone")?.name;
    let second = &rows.get(1).context("one clone only")?.name;
    cli.shell("src", "redis-cli set only-source 1")?;
    cli.shell(first, "redis-cli set only-first 1")?;
    let exists = |name: &str| cli.shell(name, "redis-cli --raw exists only-source only-first");
    let apart = exists("src")? == "1" && exists(first)? == "1" && exists(second)? == "0";
    let mut writing = true;
    let names: Vec<&str> = ["src"]
        .into_iter()
        .chain(rows.iter().map(|row| row.name.as_str()))
        .collect();
    let before = names
        .iter()
        .map(|name| writer(cli, name))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for (name, before) in names.iter().zip(before) {
        let goes_on = wait_for(name, || Ok(writer(cli, name)? > before)).is_ok();
        if !goes_on {
            say(&format!("the writer in {name} stands still"));
        }
        writing &= goes_on;
    }
    let unique = |field: fn(&CloneRow) -> &String| {
        let mut all: Vec<_> = rows.iter().map(field).collect();
        all.sort();
        all.dedup();
        all.len() == rows.len()
    };
    let own = unique(|row| &row.hostname)
        && unique(|row| &row.machine_id)
        && unique(|row| &row.mac)
        && rows
            .iter()
            .all(|row| row.hostname == row.name && row.keys == KEYS);
    if !(apart && own) {
        say(&format!("apart: {apart}, identities: {own}"));
    }
    Ok(apart && writing && own)
}

fn clone_of_clone(cli: &Cli) -> anyhow::Result<bool> {
    cli.json(&["clone", "clone-1", "--name", "grandchild", "--wait", "300"])?;
    let seen = cli.shell(
        "grandchild",
        "hostname; redis-cli --raw exists only-first key:20000",
    )?;
    let before = writer(cli, "grandchild")?;
    wait_for("the grandchild's writer", || {
        Ok(writer(cli, "grandchild")? > before)
    })?;
    Ok(seen == "grandchild\n2")
}

fn lives_on(cli: &Cli, rows: &[CloneRow]) -> anyhow::Result<bool> {
    let gone = !cli.output(&["info", "src"])?.status.success();
    let last = &rows.last().context("no clone")?.name;
    let before = writer(cli, last)?;
    let goes_on = wait_for(last, || Ok(writer(cli, last)? > before)).is_ok();
    let grandchild = cli.shell("grandchild", "redis-cli --raw exists key:1")? == "1";
    Ok(gone && goes_on && grandchild)
}
