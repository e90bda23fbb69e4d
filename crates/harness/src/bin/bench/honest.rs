//! Whether the figures are true: the guest's own clock against the stun that is reported, the
//! clone's first byte against the time at which it is said to run.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use crate::host::{Host, POOL};
use crate::source::Source;
use crate::watch::FirstBytes;
use crate::{Bench, Limit};

const MIB: u64 = 128;
/// TSC ticks between two reports of the guest that tells the clock's rate, and their number.
const REPORT_TICKS: u64 = 1 << 26;
const REPORTS: u32 = 30;

/// Measures both.
pub(crate) fn run(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    bench.host.restart(POOL)?;
    let ticks_per_us = ticks_per_us(&bench.host)?;
    let mut gaps = vec![];
    for _ in 0..bench.samples(15) {
        if limit.reached() {
            break;
        }
        let mut source = Source::boot(&bench.host, MIB, "mode=dirty")?;
        bench.host.settle()?;
        source.gap_ticks()?;
        let fork = source.fork(1)?;
        let gap_us = source.gap_ticks()? as f64 / ticks_per_us;
        gaps.push(gap_us - fork.cloned.stun_us as f64);
    }
    bench.report.add(
        "honest.gap_minus_stun_us",
        "us",
        &gaps,
        "longest time between two steps of the source's guest, less stun_us; first fork of 128 MiB",
    );
    let bytes = FirstBytes::watch(&bench.host.vm_homes())?;
    let mut late = vec![];
    for _ in 0..bench.samples(10) {
        if limit.reached() {
            break;
        }
        late.extend(first_byte(bench, &bytes)?);
    }
    bench.report.add(
        "honest.first_byte_minus_first_run_us",
        "us",
        &late,
        "first byte on the clone's COM1, seen from outside, less first_run_us; first fork of 128 MiB",
    );
    Ok(())
}

/// The clone's guest prints all the time.
fn first_byte(bench: &Bench, bytes: &FirstBytes) -> anyhow::Result<Option<f64>> {
    let mut source = Source::boot(&bench.host, MIB, "mode=counter every=1")?;
    bench.host.settle()?;
    let fork = source.fork(1)?;
    let Some(first_run) = fork.first_runs()?.first().copied() else {
        return Ok(None);
    };
    let name = source.clones().first().context("no clone")?;
    let log = bench
        .host
        .client
        .vm(name)?
        .serial
        .context("no serial log")?;
    let seen_us = bytes.wait(Path::new(&log))?.saturating_sub(fork.sent_ns) as f64 / 1000.0;
    Ok(Some(seen_us - first_run))
}

/// Returns the rate of the guests' time-stamp counter.
pub(crate) fn ticks_per_us(host: &Host) -> anyhow::Result<f64> {
    let words = format!("mode=counter ticks={REPORT_TICKS}");
    let mut guest = Source::boot(host, 64, &words)?;
    guest.wait_line("c=")?;
    guest.wait_line("c=")?;
    let began = Instant::now();
    for _ in 0..REPORTS {
        guest.wait_line("c=")?;
    }
    let ticks = REPORT_TICKS as f64 * f64::from(REPORTS);
    Ok(ticks / began.elapsed().as_micros() as f64)
}
