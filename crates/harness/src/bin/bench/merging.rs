//! Merges of disk layers: how fast they are, and what a guest notices that flushes each write.
//!
//! Stacks are made deep by a daemon that merges nothing, and shallow by the one that follows it.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use api_types::{CloneMode, ForkRequest, RunRequest, Task, TaskState};
use disk_layers::{DiskFormat, DiskStack, LayerFile, StackOptions};

use crate::honest::ticks_per_us;
use crate::host::{Host, POOL};
use crate::source::{Source, request};
use crate::{Bench, Limit};

const MIB: u64 = 64;
const LAYERS: u64 = 12;
const LAYER_BYTES: u64 = 64 << 20;
/// Each layer hides a quarter of the one below.
const LAYER_STEP: u64 = 48 << 20;
const WRITE_BYTES: usize = 1 << 20;
/// What the guest writes lies before all of that.
const FIRST_BYTE: u64 = 16 << 20;
/// How long the guest is watched while nothing is merged.
const QUIET: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(100);

const NO_MERGES: &[&str] = &["--disk-layers", "60"];
const AT_FULL_SPEED: &[&str] = &["--merge-rate", "0"];

/// One merge of a powered-off VM's disk and one under a running guest, a few times.
pub(crate) fn run(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    let outcome = samples(bench, limit);
    bench.host.restart(POOL)?;
    outcome
}

fn samples(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    bench.host.restart(POOL)?;
    let ticks_per_us = ticks_per_us(&bench.host)?;
    let (mut rates, mut held) = (vec![], vec![]);
    let (mut ratios, mut quiet_us, mut longest) = (vec![], vec![], vec![]);
    for _ in 0..bench.samples(4) {
        if limit.reached() {
            break;
        }
        rates.push(at_full_speed(bench, limit)?);
        let under = under_a_guest(bench, limit)?;
        held.push(under.held_us);
        quiet_us.push(under.quiet.mean() / ticks_per_us);
        ratios.push(under.merging.mean() / under.quiet.mean());
        longest.push(under.merging.max_ticks as f64 / ticks_per_us / 1000.0);
    }
    let report = &mut bench.report;
    let stack = format!(
        "{LAYERS} layers of {} MiB, each hides a quarter of the one below",
        LAYER_BYTES >> 20
    );
    report.add(
        "merge.mib_per_s",
        "MiB/s",
        &rates,
        &format!("{stack}; powered-off VM, no limit of the rate; what was copied"),
    );
    let guest =
        format!("{stack}, merged at the shipped rate; the guest flushes after each write of 4 KiB");
    report.add("merge.held_us", "us", &held, &guest);
    report.add("merge.guest_write_us.quiet", "us", &quiet_us, &guest);
    report.add("merge.guest_write_over_quiet", "ratio", &ratios, &guest);
    report.add("merge.guest_write_max_ms", "ms", &longest, &guest);
    Ok(())
}

/// MiB per second of a merge without limit.
fn at_full_speed(bench: &mut Bench, limit: Limit) -> anyhow::Result<f64> {
    let vm = deep(bench, "")?;
    bench.host.restart_with(POOL, AT_FULL_SPEED)?;
    let task = merged(&bench.host, &vm, limit, || Ok(()));
    bench.host.client.remove(&vm, true)?;
    let result = task?.result.unwrap_or_default();
    let copied = result["copied_bytes"].as_f64().context("no copied_bytes")?;
    let ms = result["elapsed_ms"].as_f64().context("no elapsed_ms")?;
    Ok(copied / f64::from(1u32 << 20) / (ms / 1000.0))
}

struct Under {
    held_us: f64,
    quiet: Latency,
    merging: Latency,
}

/// What a guest notices of a merge at the shipped rate.
fn under_a_guest(bench: &mut Bench, limit: Limit) -> anyhow::Result<Under> {
    let vm = deep(bench, "mode=disk blocks=64 flush=1")?;
    let quiet = {
        bench.host.client.start(&vm)?;
        let mut source = Source::attach(&bench.host, &vm)?;
        source.wait_line("d=")?;
        latency(&mut source)?;
        std::thread::sleep(QUIET);
        let quiet = latency(&mut source)?;
        source.keep();
        quiet
    };
    bench.host.restart(POOL)?;
    let mut source = Source::attach(&bench.host, &vm)?;
    latency(&mut source)?;
    let mut merging = Latency::default();
    let task = merged(&bench.host, &vm, limit, || {
        merging.add(latency(&mut source)?);
        Ok(())
    })?;
    let result = task.result.unwrap_or_default();
    ensure!(
        quiet.count > 0 && merging.count > 0,
        "the guest wrote nothing"
    );
    Ok(Under {
        held_us: result["held_us"].as_f64().context("no held_us")?,
        quiet,
        merging,
    })
}

/// Makes a powered-off VM with a deep stack, with a daemon that leaves it so.
fn deep(bench: &mut Bench, words: &str) -> anyhow::Result<String> {
    bench.host.restart_with(POOL, NO_MERGES)?;
    let host = &bench.host;
    let name = host.new_name("deep");
    let off = RunRequest {
        powered_off: true,
        ..request(host, &name, MIB, words)
    };
    host.client.run(&off)?;
    let made = (0..LAYERS).try_for_each(|number| add_layer(host, &name, number));
    if made.is_err() {
        let _ = host.client.remove(&name, true);
    }
    made.map(|()| name)
}

/// Writes into the top of a powered-off VM's disk and seals it by a linked clone.
fn add_layer(host: &Host, vm: &str, number: u64) -> anyhow::Result<()> {
    let disk = host.client.vm(vm)?.disks.into_iter().next();
    let chain = disk.context("the VM has no disk")?.layers;
    let mut files = chain.iter().enumerate().map(|(at, path)| {
        let file = File::options().read(true).write(at == 0).open(path)?;
        anyhow::Ok(LayerFile {
            file,
            format: format_of(Path::new(path)),
        })
    });
    let top = files.next().context("the disk has no top")??;
    let below = files.collect::<anyhow::Result<_>>()?;
    let mut stack = DiskStack::open(top, below, StackOptions::default())?;
    let bytes: Vec<u8> = (0..WRITE_BYTES).map(|at| (at % 251) as u8 | 1).collect();
    let start = FIRST_BYTE + number * LAYER_STEP;
    for at in (start..start + LAYER_BYTES).step_by(WRITE_BYTES) {
        stack.write_at(at, &bytes)?;
    }
    stack.sync()?;
    drop(stack);
    let clone = host.new_name("l");
    let request = ForkRequest {
        names: vec![clone.clone()],
        mode: CloneMode::Linked,
        ..ForkRequest::default()
    };
    host.client.fork(vm, &request)?;
    Ok(host.client.remove(&clone, true)?)
}

fn format_of(path: &Path) -> DiskFormat {
    match path.extension().and_then(|end| end.to_str()) {
        Some("qcow2") => DiskFormat::Qcow2,
        _ => DiskFormat::Raw,
    }
}

/// Waits until a merge of a VM's disk has been done, and looks at the guest meanwhile.
fn merged(
    host: &Host,
    vm: &str,
    limit: Limit,
    mut look: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Task> {
    loop {
        look()?;
        let tasks = host.client.tasks()?.into_iter();
        let of = |task: &Task| task.kind == "disk.merge" && task.subject == vm;
        if let Some(task) = tasks.into_iter().find(of) {
            match task.state {
                TaskState::Success => return Ok(task),
                TaskState::Running => {}
                _ => anyhow::bail!("a merge failed: {}", task.error.unwrap_or_default()),
            }
        }
        ensure!(!limit.reached(), "no merge ended in time");
        std::thread::sleep(LOOK);
    }
}

/// What the guest says of its writes since the last question.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Latency {
    count: u64,
    ticks: u64,
    max_ticks: u64,
}

impl Latency {
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.trim().split(',').map(|word| word.parse().ok());
        Some(Self {
            count: numbers.next()??,
            ticks: numbers.next()??,
            max_ticks: numbers.next()??,
        })
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.ticks += other.ticks;
        self.max_ticks = self.max_ticks.max(other.max_ticks);
    }

    fn mean(&self) -> f64 {
        self.ticks as f64 / self.count as f64
    }
}

fn latency(source: &mut Source<'_>) -> anyhow::Result<Latency> {
    let (line, _) = source.command(b'l', "l=")?;
    Latency::parse(&line).with_context(|| format!("the guest says l={line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_words_are_added_up() {
        let mut sum = Latency::parse("2,10,7").expect("three numbers");
        sum.add(Latency::parse(" 1,2,2\r").expect("three numbers"));
        let wanted = Latency {
            count: 3,
            ticks: 12,
            max_ticks: 7,
        };
        assert_eq!(sum, wanted);
        assert_eq!(sum.mean(), 4.0);
        assert_eq!(Latency::parse("1,2"), None);
    }
}
