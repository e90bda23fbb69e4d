//! First forks: RAM was shared until now. Each sample needs a VM of its own.

use std::time::Duration;

use crate::host::POOL;
use crate::source::{Source, touched_mib};
use crate::{Bench, Limit};

/// Size of the VM whose clones' start is told, and of the one that is browned out, MiB.
const MIDDLE_MIB: u64 = 512;
const PAGES_PER_MIB: f64 = 256.0;

/// Stun and first run by size, with the pool and without; the price of a first write.
pub(crate) fn forks(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    let huge =
        "guest RAM in huge pages needs shmem_enabled=advise or more on the host; here it is ";
    let now = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let now = now.unwrap_or_default();
    let chosen = now.split(['[', ']']).nth(1).unwrap_or("unknown");
    bench.report.skip(
        "fork.first.stun_us.2048MiB.huge_pages",
        &if ["never", "deny", "unknown"].contains(&chosen) {
            format!("{huge}{chosen}")
        } else {
            "guest RAM asks for 4 KiB pages only".to_owned()
        },
    );
    bench.host.restart(POOL)?;
    for (mib, samples) in [(128, 15), (MIDDLE_MIB, 11), (2048, 7)] {
        let (stuns, runs) = stun_and_run(bench, mib, "mode=dirty", samples, limit)?;
        let name = format!("fork.first.stun_us.{mib}MiB");
        let conditions = format!(
            "guest runs, {} MiB touched in 4 KiB pages, disk and TAP, 1 clone",
            touched_mib(mib)
        );
        bench.report.add(&name, "us", &stuns, &conditions);
        let conditions = format!("{conditions} with a TAP of its own, pool of {POOL} shells");
        if mib == MIDDLE_MIB {
            let name = "clone.first_run_us.1.pool";
            bench.report.add(name, "us", &runs, &conditions);
        } else {
            let name = format!("clone.first_run_us.1.pool.{mib}MiB");
            bench.report.add(&name, "us", &runs, &conditions);
        }
    }
    let (_, runs) = stun_and_run(bench, MIDDLE_MIB, "mode=dirty idle=1", 11, limit)?;
    bench.report.add(
        "clone.first_run_us.1.pool.idle_source",
        "us",
        &runs,
        "512 MiB touched, the guest sleeps: it leaves all processors to its clone",
    );
    cow(bench, limit)?;
    bench.host.restart(0)?;
    let (_, runs) = stun_and_run(bench, MIDDLE_MIB, "mode=dirty", 9, limit)?;
    bench.report.add(
        "clone.first_run_us.1.empty_pool",
        "us",
        &runs,
        "512 MiB, 1 clone with a TAP of its own, its process is started by the request",
    );
    Ok(())
}

fn stun_and_run(
    bench: &Bench,
    mib: u64,
    words: &str,
    samples: usize,
    limit: Limit,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let (mut stuns, mut runs) = (vec![], vec![]);
    for _ in 0..bench.samples(samples) {
        if limit.reached() {
            break;
        }
        let mut source = Source::boot(&bench.host, mib, words)?;
        bench.host.settle()?;
        let fork = source.fork(1)?;
        tell_steps(&fork.cloned);
        stuns.push(fork.cloned.stun_us as f64);
        runs.extend(fork.first_runs()?);
    }
    Ok((stuns, runs))
}

/// Shows where the time of a fork went, where somebody looks for it.
pub(crate) fn tell_steps(cloned: &api_types::Cloned) {
    if std::env::var_os("MITOSE_BENCH_STEPS").is_some() {
        let first: Vec<_> = cloned
            .clones
            .iter()
            .map(|c| c.first_run_us)
            .take(3)
            .collect();
        eprintln!(
            "    stun {} held {} steps {:?} phases {:?} first {first:?}",
            cloned.stun_us, cloned.io_held_us, cloned.steps_us, cloned.phases_us
        );
    }
}

/// What the first write to a page costs after a fork: the time of a guest that writes each page,
/// less the time that it took before.
fn cow(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    let pages = touched_mib(MIDDLE_MIB) as f64 * PAGES_PER_MIB;
    let mut samples = vec![];
    for _ in 0..bench.samples(3) {
        if limit.reached() {
            break;
        }
        let mut source = Source::boot(&bench.host, MIDDLE_MIB, "mode=dirty idle=1")?;
        let write_all = |source: &mut Source<'_>| -> anyhow::Result<Duration> {
            Ok(source.command(b'A', "D")?.1)
        };
        let mut before = Duration::MAX;
        for _ in 0..3 {
            before = before.min(write_all(&mut source)?);
        }
        source.fork(1)?;
        let after = write_all(&mut source)?;
        samples.push(after.saturating_sub(before).as_nanos() as f64 / pages);
    }
    bench.report.add(
        "cow.ns_per_page",
        "ns",
        &samples,
        "first write after a first fork, less a write before it; 488 MiB, the clone is idle",
    );
    Ok(())
}

/// Time until a guest that writes all its pages one after the other, again and again, is back at
/// 90 % of the rate it had.
pub(crate) fn brownout(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    bench.host.restart(POOL)?;
    let ticks_per_us = crate::honest::ticks_per_us(&bench.host)?;
    let mut samples = vec![];
    for _ in 0..bench.samples(3) {
        if limit.reached() {
            break;
        }
        samples.push(one_brownout(bench, ticks_per_us)?);
    }
    bench.report.add(
        "fork.first.brownout_ms",
        "ms",
        &samples,
        "first fork of 512 MiB; the guest writes all its pages in turn: it ends when each was copied once",
    );
    Ok(())
}

/// TSC ticks between two reports of the guest.
const REPORT_TICKS: u64 = 1 << 24;
/// Reports in a row that must be back at the old rate.
const STEADY: usize = 5;

fn one_brownout(bench: &Bench, ticks_per_us: f64) -> anyhow::Result<f64> {
    let words = format!("mode=counter write=1 ticks={REPORT_TICKS}");
    let mut source = Source::boot(&bench.host, MIDDLE_MIB, &words)?;
    let period_ms = REPORT_TICKS as f64 / ticks_per_us / 1000.0;
    // A whole round over the pages, so that the rate is the lasting one.
    std::thread::sleep(Duration::from_millis(2500));
    let before = rates(&source.output()?);
    let _fork = source.fork(1)?;
    source.remove_clones()?;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(500));
        let all = rates(&source.output()?);
        if let Some(reports) = recovery(&before, &all) {
            return Ok(reports as f64 * period_ms);
        }
    }
    anyhow::bail!("the guest's rate did not come back within 10 s")
}

/// Pages written between two reports.
fn rates(output: &str) -> Vec<u64> {
    let count = |line: &str| {
        let hex = line.strip_prefix("c=").filter(|hex| hex.len() == 16)?;
        u64::from_str_radix(hex, 16).ok()
    };
    let counts: Vec<u64> = output.lines().filter_map(count).collect();
    counts.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Number of reports from the fork until the rate is back at 90 % of its median before; `before`
/// holds what was there when the fork was asked for, `all` also what followed.
fn recovery(before: &[u64], all: &[u64]) -> Option<usize> {
    let usual = before.get(before.len() / 2..)?;
    let mut sorted = usual.to_vec();
    sorted.sort_unstable();
    let enough = sorted.get(sorted.len() / 2)? * 9 / 10;
    let after = all.get(before.len()..)?;
    let dip = after.iter().position(|rate| *rate < enough)?;
    let back = after[dip..]
        .windows(STEADY)
        .position(|window| window.iter().all(|rate| *rate >= enough))?;
    Some(back)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_from_whole_lines() {
        let text = "M\nc=0000000000000001\nc=0000000000000005\nc=00000000";
        assert_eq!(rates(text), [4]);
    }

    #[test]
    fn a_dip_ends_where_the_rate_stays() {
        let before = [100; 10];
        let mut all = before.to_vec();
        all.extend([100, 20, 50, 95, 60, 91, 92, 93, 94, 95]);
        assert_eq!(recovery(&before, &all), Some(4));
        assert_eq!(recovery(&before, &all[..15]), None);
    }
}
