//! Times the disk operations of a fork and of a guest's small writes; prints medians as JSON.
//!
//! `cargo run --release -p disk_layers --example bench_push [DIRECTORY]`; the directory (by
//! default the temporary one) decides which file system is measured.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use disk_layers::{DiskFormat, DiskStack, LayerFile, PreparedTop, StackOptions};
use serde_json::json;

const SIZE: u64 = 8 << 30;
/// Guest area of the random writes.
const AREA: u64 = 512 << 20;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let parent = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let scratch = tempfile::tempdir_in(parent)?;
    let dir = scratch.path();
    let mut results = Vec::new();
    bench_create(dir, &mut results)?;
    bench_push(dir, &mut results)?;
    bench_memory(dir, &mut results)?;
    bench_writes(dir, &mut results)?;
    println!("{:#}", json!({ "results": results }));
    Ok(())
}

fn report(results: &mut Vec<serde_json::Value>, name: &str, mut ns: Vec<u64>) {
    ns.sort_unstable();
    let at = |percent: usize| ns[(ns.len() - 1) * percent / 100] as f64 / 1000.0;
    results.push(json!({
        "name": name, "unit": "us", "n": ns.len(),
        "median": at(50), "min": at(0), "p99": at(99), "max": at(100),
    }));
}

fn timed<T>(ns: &mut Vec<u64>, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let out = work();
    ns.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    out
}

fn new_file(dir: &Path, name: &str) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    options.open(dir.join(name))
}

fn layer(file: File) -> LayerFile {
    LayerFile {
        file,
        format: DiskFormat::Qcow2,
    }
}

fn bench_create(dir: &Path, results: &mut Vec<serde_json::Value>) -> Outcome<()> {
    let mut ns = Vec::new();
    for at in 0..500 {
        timed(&mut ns, || -> Outcome<()> {
            let file = new_file(dir, &format!("overlay{at}"))?;
            disk_layers::create_overlay(&file, SIZE, "base", DiskFormat::Qcow2)?;
            Ok(())
        })?;
    }
    report(results, "create_overlay", ns);
    let meta = std::fs::metadata(dir.join("overlay0"))?;
    results.push(json!({
        "name": "empty_overlay", "unit": "bytes",
        "length": meta.len(), "allocated": meta.blocks() * 512,
    }));
    Ok(())
}

fn bench_push(dir: &Path, results: &mut Vec<serde_json::Value>) -> Outcome<()> {
    let base = new_file(dir, "base")?;
    disk_layers::create_full(&base, SIZE)?;
    let mut stack = DiskStack::open(layer(base), Vec::new(), StackOptions::default())?;
    let (mut prepare, mut push, mut pop, mut flush) = (vec![], vec![], vec![], vec![]);
    let data = [7u8; 4096];
    let mut random = 1u64;
    for at in 0..300 {
        for _ in 0..64 {
            stack.write_at(next(&mut random) % (AREA / 4096) * 4096, &data)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.join(format!("overlay{at}")))?;
        let top = timed(&mut prepare, || PreparedTop::open(layer(file)))?;
        timed(&mut flush, || stack.flush())?;
        timed(&mut push, || stack.push_top(top))?;
        let top = timed(&mut pop, || stack.pop_top())?;
        drop(top);
    }
    report(results, "prepare_top", prepare);
    report(results, "flush_64_random_writes", flush);
    report(results, "push_top", push);
    report(results, "pop_top", pop);
    Ok(())
}

/// Memory of an open stack of two layers that was not used yet.
fn bench_memory(dir: &Path, results: &mut Vec<serde_json::Value>) -> Outcome<()> {
    let before = resident_kib()?;
    let mut stacks = Vec::new();
    for at in 300..500 {
        let name = dir.join(format!("overlay{at}"));
        let top = OpenOptions::new().read(true).write(true).open(name)?;
        let base = File::open(dir.join("base"))?;
        let options = StackOptions::default();
        stacks.push(DiskStack::open(layer(top), vec![layer(base)], options)?);
    }
    let kib = (resident_kib()? - before) / stacks.len() as f64;
    results.push(json!({ "name": "idle_two_layer_stack", "unit": "KiB", "median": kib }));
    Ok(())
}

fn resident_kib() -> Outcome<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm
        .split(' ')
        .nth(1)
        .ok_or("statm has no resident field")?;
    Ok(pages.parse::<f64>()? * 4.0)
}

fn bench_writes(dir: &Path, results: &mut Vec<serde_json::Value>) -> Outcome<()> {
    let data = [9u8; 4096];
    let base = new_file(dir, "full")?;
    disk_layers::create_full(&base, SIZE)?;
    let mut fill = DiskStack::open(layer(base), Vec::new(), StackOptions::default())?;
    let mebibyte = vec![3u8; 1 << 20];
    for at in 0..AREA >> 20 {
        fill.write_at(at << 20, &mebibyte)?;
    }
    fill.sync()?;
    drop(fill);

    let overlay = new_file(dir, "delta")?;
    disk_layers::create_overlay(&overlay, SIZE, "full", DiskFormat::Qcow2)?;
    let base = File::open(dir.join("full"))?;
    let mut stack = DiskStack::open(layer(overlay), vec![layer(base)], StackOptions::default())?;
    let raw = new_file(dir, "raw")?;
    raw.set_len(AREA)?;
    for (round, name) in [(0, "first"), (1, "again")] {
        let mut ns = Vec::new();
        let mut random = 77u64;
        for _ in 0..4000 {
            let at = next(&mut random) % (AREA / 4096) * 4096;
            timed(&mut ns, || stack.write_at(at, &data))?;
        }
        report(results, &format!("qcow2_random_write_4k_{name}"), ns);
        let mut ns = Vec::new();
        let mut random = 77u64;
        for _ in 0..4000 {
            let at = next(&mut random) % (AREA / 4096) * 4096;
            timed(&mut ns, || raw.write_all_at(&data, at))?;
        }
        report(results, &format!("raw_file_random_write_4k_{name}"), ns);
        if round == 0 {
            stack.flush()?;
            let allocated = std::fs::metadata(dir.join("delta"))?.blocks() * 512;
            results.push(json!({
                "name": "delta_after_4000_random_writes_4k", "unit": "bytes",
                "allocated": allocated,
            }));
        }
    }
    let (mut ns, mut buf, mut random) = (Vec::new(), [0u8; 4096], 77u64);
    for _ in 0..4000 {
        let at = next(&mut random) % (AREA / 4096) * 4096;
        timed(&mut ns, || stack.read_at(at, &mut buf))?;
    }
    report(results, "qcow2_random_read_4k", ns);
    Ok(())
}

/// xorshift64.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
