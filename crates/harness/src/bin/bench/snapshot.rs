//! Snapshots with memory of a running guest: how long it stands still, how fast they are written.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api_types::{SnapshotMemory, SnapshotRequest};

use crate::host::POOL;
use crate::source::{Source, touched_mib};
use crate::{Bench, Limit};

const MIB: u64 = 512;
/// Longest time that the memory of one may take to be written.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// The first one of a VM, and one after a tenth of its pages were written.
pub(crate) fn run(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    bench.host.restart(POOL)?;
    let (mut first, mut again, mut held, mut rates) = (vec![], vec![], vec![], vec![]);
    for _ in 0..bench.samples(7) {
        if limit.reached() {
            break;
        }
        let mut source = Source::boot(&bench.host, MIB, "mode=dirty scatter=1")?;
        bench.host.settle()?;
        let one = take(bench, &source.name, "a")?;
        first.push(one.stun_us);
        held.push(one.io_held_us);
        rates.push(one.mib_per_s);
        source.command(b'T', "D")?;
        bench.host.settle()?;
        let two = take(bench, &source.name, "b")?;
        again.push(two.stun_us);
        held.push(two.io_held_us);
        rates.push(two.mib_per_s);
    }
    let report = &mut bench.report;
    let words = format!(
        "guest runs, {} MiB touched, disk and TAP; snapshot with memory",
        touched_mib(MIB)
    );
    report.add("snapshot.first.stun_us.512MiB", "us", &first, &words);
    let later = format!("{words} after 10 % of the pages were written since the first one");
    report.add(
        "snapshot.repeat.stun_us.512MiB.dirty10pct",
        "us",
        &again,
        &later,
    );
    report.add("snapshot.io_held_us", "us", &held, &words);
    let rate = format!("{words}; its files' size by the time from the request to their end");
    report.add("snapshot.write_mib_per_s", "MiB/s", &rates, &rate);
    Ok(())
}

struct Taken {
    stun_us: f64,
    io_held_us: f64,
    mib_per_s: f64,
}

/// Makes a snapshot and waits until all of it is written.
fn take(bench: &Bench, vm: &str, name: &str) -> anyhow::Result<Taken> {
    let client = &bench.host.client;
    let request = SnapshotRequest {
        name: name.to_owned(),
        memory: true,
        ..SnapshotRequest::default()
    };
    let began = Instant::now();
    let mut snapshot = client.create_snapshot(vm, &request, |_| {})?;
    while snapshot.memory != SnapshotMemory::Files {
        let gone = snapshot.memory == SnapshotMemory::None;
        ensure!(!gone, "the snapshot has no memory");
        ensure!(
            began.elapsed() < WRITTEN_WITHIN,
            "its memory is not written"
        );
        std::thread::sleep(Duration::from_millis(5));
        snapshot = client.snapshot(vm, name)?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let bytes = snapshot.memory_bytes.context("its files have no size")?;
    Ok(Taken {
        stun_us: snapshot.stun_us as f64,
        io_held_us: snapshot.io_held_us as f64,
        mib_per_s: bytes as f64 / f64::from(1u32 << 20) / seconds,
    })
}
