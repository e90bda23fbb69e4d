//! Repeated forks of a source that wrote scattered pages since the last one.
//!
//! A private view is held by `fork()`, which copies the page-table entries of all pages that the
//! source has written since its *first* fork. The rows named after what was written since the last
//! one therefore come from sources that have little behind them; a row of its own shows how the
//! stun grows.

use std::time::{Duration, Instant};

use anyhow::Context;

use crate::first::tell_steps;
use crate::host::POOL;
use crate::source::{Source, touched_mib};
use crate::{Bench, Limit};

const MIB: u64 = 2048;
/// Longest time until a source is on a new layer.
const FLATTEN_PATIENCE: Duration = Duration::from_secs(30);

/// One repeated fork: command for the guest, what it writes, what the source has behind it.
struct Step {
    command: u8,
    percent: u32,
    suffix: &'static str,
    behind: &'static str,
}

/// In this order on each source.
const STEPS: [Step; 3] = [
    Step {
        command: b'1',
        percent: 1,
        suffix: "dirty1pct",
        behind: "a first fork",
    },
    Step {
        command: b'T',
        percent: 10,
        suffix: "dirty10pct",
        behind: "a first fork and one after 1 %",
    },
    Step {
        command: b'T',
        percent: 10,
        suffix: "dirty10pct.again",
        behind: "a first fork, one after 1 % and one after 10 %",
    },
];

/// What a bare `fork()` is timed with: percent of the pages written, end of the rows' names. In the
/// order of the first steps.
const FLOORS: [(usize, &str); 2] = [(1, "dirty1pct"), (10, "dirty10pct")];

/// Stun and first run after 1 and 10 % of the pages were written.
pub(crate) fn run(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    // What a source has behind it stays behind it here.
    bench.host.restart_with(POOL, &["--flatten-from", "0"])?;
    let mut stuns = STEPS.map(|_| vec![]);
    let mut runs = STEPS.map(|_| vec![]);
    let mut disorder = vec![];
    let mut floors = FLOORS.map(|_| vec![]);
    let mut over_floors = FLOORS.map(|_| vec![]);
    for _ in 0..bench.samples(7) {
        if limit.reached() {
            break;
        }
        disorder.push(in_no_order(bench)?);
        let mut source = Source::boot(&bench.host, MIB, "mode=dirty scatter=1")?;
        source.fork(1)?;
        source.remove_clones()?;
        for (index, step) in STEPS.iter().enumerate() {
            source.command(step.command, "D")?;
            bench.host.settle()?;
            let fork = source.fork(1)?;
            tell_steps(&fork.cloned);
            stuns[index].push(fork.cloned.stun_us as f64);
            runs[index].extend(fork.first_runs()?);
            source.remove_clones()?;
        }
        drop(source);
        for (index, (percent, _)) in FLOORS.iter().enumerate() {
            let every = 100 / percent;
            let took = linux_sys::fork_cost((touched_mib(MIB) << 20) as usize, every)?;
            let floor = took.as_nanos() as f64 / 1000.0;
            floors[index].push(floor);
            over_floors[index].extend(stuns[index].last().map(|stun| stun / floor));
        }
    }
    tell_floors(bench, &floors, &over_floors);
    bench.report.add(
        "fork.repeat.stun_us.2048MiB.dirty10pct.no_order",
        "us",
        &disorder,
        "as dirty10pct, but pages written in no order of addresses: their host pages lie apart, and fork() misses the cache for each",
    );
    for (index, step) in STEPS.iter().enumerate() {
        let conditions = format!(
            "guest runs, wrote {} % of 2024 MiB in scattered pages since the last fork, in the order of addresses, has {} behind it; disk and TAP, 1 clone with a TAP",
            step.percent, step.behind
        );
        let name = format!("fork.repeat.stun_us.2048MiB.{}", step.suffix);
        bench.report.add(&name, "us", &stuns[index], &conditions);
        let name = format!("clone.repeat.first_run_us.{}", step.suffix);
        bench.report.add(&name, "us", &runs[index], &conditions);
    }
    Ok(())
}

/// What it takes to move a source onto a new layer, and its next fork.
pub(crate) fn flattened(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    const MIB: u64 = 512;
    bench.host.restart(POOL)?;
    let (mut stuns, mut times, mut after) = (vec![], vec![], vec![]);
    for _ in 0..bench.samples(3) {
        if limit.reached() {
            break;
        }
        let mut source = Source::boot(&bench.host, MIB, "mode=dirty scatter=1")?;
        source.fork(1)?;
        source.remove_clones()?;
        source.command(b'A', "D")?;
        source.fork(1)?;
        source.remove_clones()?;
        let moved = flattening_of(bench, &source.name)?;
        let figure = |name: &str| moved[name].as_f64().context("an event without its figures");
        stuns.push(figure("stun_us_sum")? / figure("pieces")?.max(1.0));
        times.push(figure("duration_ms")?);
        source.command(b'1', "D")?;
        bench.host.settle()?;
        after.push(source.fork(1)?.cloned.stun_us as f64);
    }
    let what = "guest runs and has written all of its 488 MiB since its first fork";
    let rows = [
        (
            "flatten.piece.stun_us",
            "us",
            &stuns,
            "mean of the pieces of 1 MiB",
        ),
        (
            "flatten.wall_ms.512MiB",
            "ms",
            &times,
            "four fifths of it at rest",
        ),
        (
            "fork.repeat.stun_us.512MiB.dirty1pct.flattened",
            "us",
            &after,
            "the next fork, after 1 % was written",
        ),
    ];
    for (name, unit, samples, more) in rows {
        bench
            .report
            .add(name, unit, samples, &format!("{what}; {more}"));
    }
    Ok(())
}

/// Waits until the VM `name` is on a new layer; returns the figures.
fn flattening_of(bench: &Bench, name: &str) -> anyhow::Result<serde_json::Value> {
    let deadline = Instant::now() + FLATTEN_PATIENCE;
    let mut after = 0;
    while Instant::now() < deadline {
        let page = bench.host.client.events(Some(after))?;
        after = page.last().map_or(after, |event| event.id);
        let found = page
            .into_iter()
            .find(|event| event.kind == "vm.flattened" && event.subject == name);
        if let Some(data) = found.and_then(|event| event.data) {
            return Ok(data);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("{name} was not put on a new layer")
}

/// Tells what `fork()` alone costs here, and how much longer the stuns beside it were.
fn tell_floors(bench: &mut Bench, floors: &[Vec<f64>], over_floors: &[Vec<f64>]) {
    for (index, (percent, suffix)) in FLOORS.iter().enumerate() {
        bench.report.add(
            &format!("host.fork_us.2024MiB.{suffix}"),
            "us",
            &floors[index],
            &format!("fork() of a process without a VM that has a private view of a memory file and wrote {percent} % of its pages: the floor under a repeated fork on this processor"),
        );
        bench.report.add(
            &format!("fork.repeat.stun_over_host_fork.{suffix}"),
            "ratio",
            &over_floors[index],
            "the stun of the same round over that floor",
        );
    }
}

/// The stun after 10 % of the pages were written in no order.
fn in_no_order(bench: &Bench) -> anyhow::Result<f64> {
    let mut source = Source::boot(&bench.host, MIB, "mode=dirty scatter=2")?;
    source.fork(1)?;
    source.remove_clones()?;
    source.command(b'T', "D")?;
    bench.host.settle()?;
    let fork = source.fork(1)?;
    tell_steps(&fork.cloned);
    Ok(fork.cloned.stun_us as f64)
}
