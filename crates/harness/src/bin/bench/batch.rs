//! A hundred clones in one call, and what they cost while they do nothing.

use anyhow::Context;

use crate::first::tell_steps;
use crate::host::POOL;
use crate::memory::{host_memory, own_pages_kib};
use crate::source::Source;
use crate::{Bench, Limit};

const CLONES: usize = 100;
const FIRST_MIB: u64 = 128;
const REPEAT_MIB: u64 = 2048;
/// Clones whose memory is looked at one by one.
const LOOKED_AT: usize = 25;

/// All batches.
pub(crate) fn run(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    bench.host.restart(POOL)?;
    let mut walls = vec![];
    let mut removals = vec![];
    for _ in 0..bench.samples(4) {
        if limit.reached() {
            break;
        }
        let mut source = Source::boot(&bench.host, FIRST_MIB, "mode=dirty idle=1")?;
        bench.host.settle()?;
        let fork = source.fork(CLONES)?;
        tell_steps(&fork.cloned);
        walls.push(fork.last_run()?);
        let times = source.remove_clones()?;
        removals.extend(times.iter().map(|time| time.as_secs_f64() * 1000.0));
    }
    let conditions =
        "first fork of 128 MiB into 100 clones, each with a disk and a NIC; idle guests";
    let pool = format!("{conditions}; pool of {POOL} shells");
    bench
        .report
        .add("clone.batch100.wall_us", "us", &walls, &pool);
    bench.report.add(
        "destroy.ms",
        "ms",
        &removals,
        "request to answer of removing a running clone, one after the other",
    );
    bench.host.restart(0)?;
    empty_pool(bench, conditions, limit)?;
    bench.host.restart(POOL)?;
    repeated(bench, limit)
}

/// Without a pool all that a batch takes from the host belongs to its clones.
fn empty_pool(bench: &mut Bench, conditions: &str, limit: Limit) -> anyhow::Result<()> {
    let (mut walls, mut private) = (vec![], vec![]);
    let (mut fallen, mut counted) = (vec![], vec![]);
    for _ in 0..bench.samples(4) {
        if limit.reached() {
            break;
        }
        let mut source = Source::boot(&bench.host, FIRST_MIB, "mode=dirty idle=1")?;
        let before = host_memory()?;
        let fork = source.fork(CLONES)?;
        tell_steps(&fork.cloned);
        walls.push(fork.last_run()?);
        let after = host_memory()?;
        let mut user_kib = 0;
        for (index, name) in source.clones().iter().enumerate() {
            let detail = bench.host.client.vm(name)?;
            user_kib += own_pages_kib(detail.pid.context("a clone has no process")?)?;
            if index < LOOKED_AT {
                private.push(detail.memory.private_kib as f64);
            }
        }
        let each = |kib: f64| kib / CLONES as f64;
        let fall = before.available as f64 - after.available as f64;
        fallen.push(each(fall - user_kib as f64));
        counted.push(each(after.kernel as f64 - before.kernel as f64));
        source.remove_clones()?;
    }
    let report = &mut bench.report;
    let empty = format!("{conditions}; empty pool");
    report.add("clone.batch100.wall_us.empty_pool", "us", &walls, &empty);
    report.add(
        "clone.idle.private_kib",
        "KiB",
        &private,
        "clones of an idle guest of 128 MiB that write nothing",
    );
    report.add(
        "clone.idle.kernel_kib",
        "KiB",
        &fallen,
        "fall of MemAvailable for 100 clones of 128 MiB, less their own pages; other work on the host counts, and so do 10 bytes for each guest page where KVM shadows page tables",
    );
    report.add(
        "clone.idle.kernel_kib.counted",
        "KiB",
        &counted,
        "growth of slabs, stacks, page tables, vmalloc and per-CPU memory for 100 clones",
    );
    Ok(())
}

fn repeated(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    let mut walls = vec![];
    for _ in 0..bench.samples(4) {
        if limit.reached() {
            break;
        }
        // A new one each time: what earlier rounds wrote would be copied too.
        let mut source = Source::boot(&bench.host, REPEAT_MIB, "mode=dirty idle=1 scatter=1")?;
        source.fork(1)?;
        source.remove_clones()?;
        source.command(b'T', "D")?;
        bench.host.settle()?;
        let fork = source.fork(CLONES)?;
        tell_steps(&fork.cloned);
        walls.push(fork.last_run()?);
        source.remove_clones()?;
    }
    bench.report.add(
        "clone.repeat.batch100.wall_us",
        "us",
        &walls,
        "10 % of 2024 MiB written in scattered pages since the last fork, 100 clones; idle guests",
    );
    Ok(())
}
