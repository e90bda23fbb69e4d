//! Forks of a guest that writes its disk and flushes after each write, beside an idle one.

use anyhow::Context;

use crate::first::tell_steps;
use crate::host::POOL;
use crate::report::Stats;
use crate::source::Source;
use crate::{Bench, Limit};

const MIB: u64 = 128;

/// Stun and time in which the disk was held.
pub(crate) fn run(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    bench.host.restart(POOL)?;
    let (idle, _) = repeated(bench, "mode=dirty", None, limit)?;
    let (busy, held) = repeated(bench, "mode=disk blocks=64 flush=1", Some("d="), limit)?;
    let conditions = "repeated forks of 128 MiB, 1 clone each; the guest ";
    let idle_words = format!("{conditions}leaves its disk alone");
    let busy_words = format!("{conditions}flushes after each write of 4 KiB");
    let report = &mut bench.report;
    report.add("fork.idle_disk.stun_us", "us", &idle, &idle_words);
    report.add("fork.busy_disk.stun_us", "us", &busy, &busy_words);
    report.add("fork.busy_disk.io_held_us", "us", &held, &busy_words);
    let idle = Stats::of(&idle).context("no idle sample")?;
    let busy = Stats::of(&busy).context("no busy sample")?;
    report.add(
        "fork.busy_disk.stun_p99_over_idle",
        "ratio",
        &[busy.p99 / idle.median],
        "p99 of the busy stun over the median of the idle one",
    );
    Ok(())
}

fn repeated(
    bench: &Bench,
    words: &str,
    works: Option<&str>,
    limit: Limit,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let mut source = Source::boot(&bench.host, MIB, words)?;
    if let Some(works) = works {
        source.wait_line(works)?;
    }
    source.fork(1)?;
    source.remove_clones()?;
    let (mut stuns, mut held) = (vec![], vec![]);
    for _ in 0..bench.samples(30) {
        if limit.reached() {
            break;
        }
        bench.host.settle()?;
        let fork = source.fork(1)?;
        tell_steps(&fork.cloned);
        stuns.push(fork.cloned.stun_us as f64);
        held.push(fork.cloned.io_held_us as f64);
        source.remove_clones()?;
    }
    if let Some(works) = works {
        source.wait_line(works)?;
    }
    Ok((stuns, held))
}
