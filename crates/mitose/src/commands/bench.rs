//! `mitose bench`.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use api_types::{Cloned, DiskRequest, ForkRequest, RunRequest};
use client::{Client, LogOptions};
use serde::Serialize;
use tempfile::TempDir;
use vm_spec::{EngineChoice, format_size};

use super::Context;
use super::run::{parse_engine, parse_memory};
use crate::output::{self, Format, Table, microseconds};
use crate::progress::Waiting;

/// RAM that the guest leaves untouched: itself, its tables, what lies above.
const UNTOUCHED_MIB: u64 = 24;
/// Least guest memory that leaves something to measure, bytes.
const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// Clones of the call for several.
const BATCH: u32 = 10;
/// Size of the VM's disk, bytes.
const DISK_BYTES: u64 = 64 << 20;
/// Longest wait for a word of the guest.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measure forks on this host
///
/// Boots a small bare-metal guest that writes to all its memory, forks it while it runs, alone and
/// again with a tenth of its memory written since, and removes everything. Each VM has a disk and no
/// network. What else the host does shows in the figures.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mitose bench
  mitose bench --memory 2G --samples 9
  mitose bench --engine kvm -o json")]
pub struct Args {
    /// Guest memory, with an optional unit K, M, G
    #[arg(long, default_value = "512M", value_parser = parse_memory)]
    memory: u64,
    /// VMs to boot, each forked three times
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    samples: u32,
    /// What executes the guest: auto, kvm or soft
    #[arg(long, default_value = "auto", value_parser = parse_engine)]
    engine: EngineChoice,
}

/// All figures.
#[derive(Debug, Serialize)]
struct Report {
    engine: String,
    memory_bytes: u64,
    results: Vec<Row>,
}

/// One figure.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    unit: &'static str,
    median: u64,
    min: u64,
    max: u64,
    p99: u64,
    n: usize,
    engine: String,
}

/// Samples by figure, in the order in which they are told.
#[derive(Debug, Default)]
struct Samples(Vec<(&'static str, &'static str, Vec<u64>)>);

impl Samples {
    fn add(&mut self, name: &'static str, unit: &'static str, value: u64) {
        match self.0.iter_mut().find(|(known, ..)| *known == name) {
            Some((.., values)) => values.push(value),
            None => self.0.push((name, unit, vec![value])),
        }
    }

    fn rows(self, engine: &str) -> Vec<Row> {
        let row = |(name, unit, mut values): (_, _, Vec<u64>)| {
            values.sort_unstable();
            let n = values.len();
            Row {
                name,
                unit,
                median: values[n / 2],
                min: values[0],
                max: values[n - 1],
                p99: values[(n * 99).div_ceil(100) - 1],
                n,
                engine: engine.to_owned(),
            }
        };
        self.0.into_iter().map(row).collect()
    }
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<u8> {
    ensure!(
        args.memory >= MIN_MEMORY_BYTES,
        "--memory: {} leaves nothing to measure; give {} or more",
        format_size(args.memory),
        format_size(MIN_MEMORY_BYTES)
    );
    let client = context.client()?;
    let mut samples = Samples::default();
    let mut engine = String::new();
    let waiting = Waiting::for_("a guest is forked".to_owned());
    for _ in 0..args.samples {
        let mut family = Family::new(&client)?;
        engine = family.measure(args, &mut samples)?;
    }
    drop(waiting);
    let report = Report {
        results: samples.rows(&engine),
        engine,
        memory_bytes: args.memory,
    };
    print(&report, context.format)?;
    Ok(0)
}

fn print(report: &Report, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(report);
    }
    let mut table = Table::new(&["FIGURE", "MEDIAN", "MIN", "MAX", "N"]);
    for row in &report.results {
        let shown = |value: u64| match row.unit {
            "us" => microseconds(value),
            _ => format_size(value << 10),
        };
        table.row(vec![
            row.name.to_owned(),
            shown(row.median),
            shown(row.min),
            shown(row.max),
            row.n.to_string(),
        ]);
    }
    output::text_line(&format!(
        "engine {}, {} of memory all written, one disk",
        report.engine,
        format_size(report.memory_bytes)
    ))?;
    table.print()
}

/// A VM and its clones; they are removed when dropped.
struct Family<'a> {
    client: &'a Client,
    source: String,
    clones: Vec<String>,
    /// Files of the VM, which go after it.
    folder: TempDir,
}

impl<'a> Family<'a> {
    fn new(client: &'a Client) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mitose-bench-").tempdir();
        let folder = folder.context("cannot make a folder for the guest's files")?;
        let name = folder.path().file_name().unwrap_or_default();
        Ok(Self {
            client,
            source: name
                .to_string_lossy()
                .trim_end_matches(['-', '_', '.'])
                .to_owned(),
            clones: Vec::new(),
            folder,
        })
    }

    /// Takes one sample of each figure; returns the engine.
    fn measure(&mut self, args: &Args, samples: &mut Samples) -> anyhow::Result<String> {
        let ran = self.client.run(&self.request(args)?)?;
        samples.add("run.first_run_us", "us", ran.first_run_us.unwrap_or(0));
        self.until_says("M")?;
        let first = self.fork(1)?;
        samples.add("fork.first.stun_us", "us", first.stun_us);
        samples.add("clone.first_run_us", "us", last_run(&first)?);
        let clone = self.client.vm(&first.clones[0].name)?;
        samples.add("clone.private_kib", "KiB", clone.memory.private_kib);
        let mut input = self.client.console(&self.source)?;
        input.write_all(b"d").context("cannot type to the guest")?;
        self.until_says("D")?;
        let repeat = self.fork(1)?;
        samples.add("fork.repeat.stun_us.dirty10pct", "us", repeat.stun_us);
        samples.add(
            "clone.repeat.first_run_us.dirty10pct",
            "us",
            last_run(&repeat)?,
        );
        let batch = self.fork(BATCH)?;
        samples.add("clone.repeat.batch10.wall_us", "us", last_run(&batch)?);
        for name in std::mem::take(&mut self.clones) {
            let began = Instant::now();
            self.client.remove(&name, true)?;
            let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            samples.add("destroy_us", "us", us);
        }
        Ok(ran.vm.engine)
    }

    fn request(&self, args: &Args) -> anyhow::Result<RunRequest> {
        let (guest, disk) = (
            self.folder.path().join("guest.elf"),
            self.folder.path().join("disk"),
        );
        std::fs::write(&guest, bare_guests::guest_elf())
            .and_then(|()| std::fs::File::create(&disk)?.set_len(DISK_BYTES))
            .with_context(|| format!("cannot write to {}", self.folder.path().display()))?;
        let touch = (args.memory >> 20) - UNTOUCHED_MIB;
        Ok(RunRequest {
            kernel: Some(guest),
            cmdline: Some(format!("touch={touch} percent=10 scatter=1")),
            datastore: None,
            disks: vec![DiskRequest {
                path: disk,
                format: Some(api_types::ImageFormat::Raw),
                read_only: false,
            }],
            memory_bytes: args.memory,
            engine: args.engine,
            wait_ready_s: Some(0),
            ..RunRequest::named(&self.source)
        })
    }

    /// Makes clones in one call.
    fn fork(&mut self, count: u32) -> anyhow::Result<Cloned> {
        let from = self.clones.len();
        let names = (0..count as usize).map(|n| format!("{}-c{}", self.source, from + n));
        let request = ForkRequest {
            names: names.collect(),
            wait_ready_s: Some(0),
            ..ForkRequest::default()
        };
        self.clones.extend(request.names.iter().cloned());
        Ok(self.client.fork(&self.source, &request)?)
    }

    /// Waits for a line of the guest.
    fn until_says(&self, word: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut text = Vec::new();
            self.client
                .log(&self.source, LogOptions::default(), &mut text)?;
            let text = String::from_utf8_lossy(&text);
            if let Some(error) = text.lines().find(|line| line.starts_with('E')) {
                bail!("the guest says {error}");
            }
            if text.lines().any(|line| line.trim_end() == word) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the guest did not say {word:?} within {} s",
                PATIENCE.as_secs()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Family<'_> {
    fn drop(&mut self) {
        for name in self.clones.iter().chain([&self.source]) {
            let _ = self.client.remove(name, true);
        }
    }
}

/// Time to the first instruction of a call's last clone, microseconds.
fn last_run(cloned: &Cloned) -> anyhow::Result<u64> {
    let mut last = 0;
    for clone in &cloned.clones {
        let why = clone.error.as_deref().unwrap_or("it did not run");
        let us = clone.first_run_us;
        last = last.max(us.with_context(|| format!("{}: {why}", clone.name))?);
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_become_rows_in_their_order() {
        let mut samples = Samples::default();
        for value in [5, 1, 9] {
            samples.add("b", "us", value);
            samples.add("a", "KiB", value * 2);
        }
        let rows = samples.rows("kvm");
        let told: Vec<_> = rows
            .iter()
            .map(|row| (row.name, row.median, row.min, row.max, row.p99, row.n))
            .collect();
        assert_eq!(told, [("b", 5, 1, 9, 9, 3), ("a", 10, 2, 18, 18, 3)]);
    }
}
