//! Full clones whose copies were made ahead, beside full clones that copy.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api_types::{
    CloneMode, DiskPoolChangeRequest, DiskPoolRequest, DiskPoolState, DiskRequest, ForkRequest,
    RunRequest,
};

use crate::host::{Host, POOL};
use crate::source::request;
use crate::{Bench, Limit};

const CLONES: usize = 8;
const FULL_MIB: u64 = 1024;
/// Where the host's disk is slow, or the run is quick.
const SMALL_MIB: u64 = 256;
/// A host that writes the full size within this time makes the copies in the section's time.
const FULL_SECONDS: f64 = 5.0;
/// Copies that there are at one time at most, the source and room beside.
const ROOM: u64 = 2 * CLONES as u64 + 2;
/// No limit, for what a disk can do.
const UNLIMITED: u64 = 1 << 40;

/// Eight clones each way.
pub(crate) fn run(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    bench.host.restart(POOL)?;
    let host = &bench.host;
    let (image, mib) = image(host, if bench.quick { SMALL_MIB } else { FULL_MIB })?;
    let source = host.new_name("full");
    let off = RunRequest {
        disks: vec![DiskRequest {
            path: image,
            format: None,
            read_only: false,
        }],
        powered_off: true,
        ..request(host, &source, 64, "")
    };
    host.client.run(&off)?;
    let measured = both_ways(host, &source, limit);
    let removed = host.client.remove(&source, true);
    let (hit, copy, how) = measured?;
    removed?;
    let report = &mut bench.report;
    let words = format!("{CLONES} full clones in one call of a disk with {mib} MiB of random data");
    let ahead = format!("{words}; copies made ahead");
    report.add("pool.hit.wall_ms", "ms", &[hit], &ahead);
    let made = format!("{words}; no pool: {how}");
    report.add("pool.copy.wall_ms", "ms", &[copy], &made);
    let rate = (CLONES as u64 * mib) as f64 / copy * 1000.0;
    report.add("pool.copy.mib_per_s", "MiB/s", &[rate], &made);
    report.add("pool.hit_over_copy", "ratio", &[hit / copy], &made);
    Ok(())
}

/// A file of random data; returns its size too.
fn image(host: &Host, wanted_mib: u64) -> anyhow::Result<(std::path::PathBuf, u64)> {
    let path = host.file("random.raw");
    let stat = rustix::fs::statvfs(host.home())?;
    let free_mib = (stat.f_bavail * stat.f_frsize) >> 20;
    let mut mib = wanted_mib;
    if free_mib < mib * ROOM {
        mib = SMALL_MIB;
    }
    ensure!(
        free_mib >= mib * ROOM,
        "needs {} MiB of free space for temporary files, there are {free_mib}",
        mib * ROOM
    );
    let mut file = File::create(&path)?;
    let began = Instant::now();
    let mut random = File::open("/dev/urandom")?.take(mib << 20);
    std::io::copy(&mut random, &mut file)?;
    file.sync_all()?;
    if began.elapsed().as_secs_f64() > FULL_SECONDS && mib > SMALL_MIB {
        mib = SMALL_MIB;
        file.set_len(mib << 20)?;
    }
    Ok((path, mib))
}

/// Times with and without copies, milliseconds, and how those without were made.
fn both_ways(host: &Host, source: &str, limit: Limit) -> anyhow::Result<(f64, f64, String)> {
    let pool = host.client.make_disk_pool(&DiskPoolRequest {
        source: source.to_owned(),
        datastore: "datastore1".to_owned(),
        count: CLONES as u64,
        rate_bytes_per_s: Some(UNLIMITED),
        ..DiskPoolRequest::default()
    })?;
    let hit = filled(host, &pool.id, limit).and_then(|()| clone(host, source, "pool"));
    host.client.remove_disk_pool(&pool.id)?;
    let (hit, _) = hit?;
    ensure!(!limit.reached(), "no time was left to copy");
    let (copy, how) = clone(host, source, "")?;
    Ok((hit, copy, how))
}

/// Waits until all copies are there; none is refilled while they are taken.
fn filled(host: &Host, pool: &str, limit: Limit) -> anyhow::Result<()> {
    loop {
        let now = host.client.disk_pool(pool)?;
        if now.state == DiskPoolState::Full {
            break;
        }
        let reason = now.reason.unwrap_or_default();
        ensure!(now.state != DiskPoolState::Paused, "no copies: {reason}");
        ensure!(!limit.reached(), "{} copies were made in time", now.ready);
        std::thread::sleep(Duration::from_millis(50));
    }
    let slow = DiskPoolChangeRequest {
        rate_bytes_per_s: Some(1),
        ..DiskPoolChangeRequest::default()
    };
    host.client.change_disk_pool(pool, &slow)?;
    Ok(())
}

/// Makes the clones, from where `wanted` says, and removes them; returns the time, milliseconds.
fn clone(host: &Host, source: &str, wanted: &str) -> anyhow::Result<(f64, String)> {
    let names: Vec<String> = (0..CLONES).map(|_| host.new_name("f")).collect();
    let request = ForkRequest {
        names: names.clone(),
        mode: CloneMode::Full,
        ..ForkRequest::default()
    };
    let began = Instant::now();
    let cloned = host.client.fork(source, &request);
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    for name in &names {
        let _ = host.client.remove(name, true);
    }
    let mut how = String::new();
    for clone in cloned?.clones {
        let error = clone.error.unwrap_or_default();
        let origin = clone.disks.with_context(|| format!("no clone: {error}"))?;
        let reason = origin.reason.unwrap_or_default();
        ensure!(
            wanted.is_empty() || origin.how == wanted,
            "a clone was made by {}: {reason}",
            origin.how
        );
        how = origin.how;
    }
    Ok((ms, how))
}
