//! A bare-metal guest on the machine's own KVM: timings that mean something.

use anyhow::Context;
use harness::Cli;
use serde_json::Value;

use crate::report::Native;

const CLONES: &str = "10";
const MEMORY_MIB: u64 = 512;
const TOUCHED_MIB: u64 = 400;

/// Forks a guest that has touched its RAM, twice.
pub(crate) fn fork_bare_metal(cli: &Cli) -> anyhow::Result<Native> {
    let kernel = cli.home().join("bare-guest.elf");
    std::fs::write(&kernel, bare_guests::guest_elf())?;
    let kernel = kernel
        .to_str()
        .context("the home folder's name is not UTF-8")?;
    let (cmdline, memory) = (
        format!("mode=counter touch={TOUCHED_MIB}"),
        format!("{MEMORY_MIB}M"),
    );
    let run = [
        "run",
        "bare",
        "--kernel",
        kernel,
        "--cmdline",
        &cmdline,
        "--memory",
        &memory,
    ];
    let vm = cli.json(&[&run[..], &["--engine", "kvm"]].concat())?;
    wait_log(cli, "bare", "c=")?;
    let first = cli.json(&["clone", "bare", "--count", CLONES, "--prefix", "n"])?;
    let names: Vec<_> = clones(&first)
        .filter_map(|clone| clone["name"].as_str())
        .collect();
    let mut private = vec![];
    let mut shared = vec![];
    for name in &names {
        let info = cli.json(&["info", name])?;
        private.push(number(&info["memory"]["private_kib"])?);
        shared.push(number(&info["memory"]["shared_kib"])?);
    }
    // Clones of this guest spin: they make room before the next measurement.
    for name in &names {
        cli.run(&["rm", name, "--force"])?;
    }
    let again = cli.json(&["clone", "bare", "--count", CLONES, "--prefix", "m"])?;
    let first_run = first_runs(&first)?;
    Ok(Native {
        engine: vm["engine"].as_str().unwrap_or("kvm").to_owned(),
        memory_mib: MEMORY_MIB,
        touched_mib: TOUCHED_MIB,
        clones: first_run.len() as u64,
        source_stun_us: number(&first["stun_us"])?,
        first_run_us_min: first_run[0],
        first_run_us_median: median(&first_run),
        first_run_us_max: first_run[first_run.len() - 1],
        repeat_stun_us: number(&again["stun_us"])?,
        repeat_first_run_us_median: median(&first_runs(&again)?),
        private_kib_median: median(&sorted(private)),
        shared_kib_median: median(&sorted(shared)),
    })
}

fn clones(reply: &Value) -> impl Iterator<Item = &Value> {
    reply["clones"].as_array().into_iter().flatten()
}

fn first_runs(reply: &Value) -> anyhow::Result<Vec<u64>> {
    let runs = clones(reply).map(|clone| number(&clone["first_run_us"]));
    let runs = sorted(runs.collect::<anyhow::Result<_>>()?);
    anyhow::ensure!(!runs.is_empty(), "no clone was made: {reply}");
    Ok(runs)
}

fn sorted(mut values: Vec<u64>) -> Vec<u64> {
    values.sort_unstable();
    values
}

fn median(sorted: &[u64]) -> u64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

fn number(value: &Value) -> anyhow::Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("{value} is no number"))
}

/// Waits until VM `name` printed `text`.
fn wait_log(cli: &Cli, name: &str, text: &str) -> anyhow::Result<()> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !cli.run(&["logs", name])?.contains(text) {
        anyhow::ensure!(
            std::time::Instant::now() < deadline,
            "{name} did not print {text}"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(())
}
