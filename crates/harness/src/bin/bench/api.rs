//! What a client of the daemon waits for: lists of few and of many VMs, and one clone.

use std::time::Instant;

use anyhow::ensure;
use api_types::{CloneMode, ForkRequest, RunRequest};
use harness::Cli;

use crate::host::{Host, POOL};
use crate::source::{Source, request};
use crate::{Bench, Limit};

const MIB: u64 = 128;
const FEW: usize = 10;
const MANY: usize = 1000;
/// Linked clones of one call.
const CALL: usize = 200;
const LISTS: usize = 25;
const COMMANDS: usize = 10;

/// Lists and clones with few VMs in the inventory, then with many.
pub(crate) fn run(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    bench.host.restart(POOL)?;
    let stock = Stock::new(&bench.host)?;
    let mut made = 0;
    let mut rows = vec![];
    let outcome = (|| -> anyhow::Result<()> {
        for count in [FEW, MANY] {
            while made < count {
                ensure!(!limit.reached(), "making {count} VMs takes too long here");
                let step = CALL.min(count - made);
                stock.grow(made..made + step)?;
                made += step;
            }
            let (api, command) = list_times(&bench.host, count)?;
            let instant = clone_times(bench, limit)?;
            let linked = stock.clone_times(bench, limit)?;
            rows.push((count, api, command, instant, linked));
        }
        Ok(())
    })();
    drop(stock);
    for (count, api, command, instant, linked) in rows {
        let report = &mut bench.report;
        let words = format!("{count} VMs in the inventory, powered off");
        report.add(&format!("api.list_ms.{count}"), "ms", &api, &words);
        report.add(&format!("cli.ls_ms.{count}"), "ms", &command, &words);
        let words = format!("{words}; request sent to finished task");
        let instant_words = format!("{words}; 1 instant clone of a running VM of 128 MiB");
        report.add(
            &format!("api.clone_ms.instant.{count}"),
            "ms",
            &instant,
            &instant_words,
        );
        let linked_words = format!("{words}; 1 linked clone");
        report.add(
            &format!("api.clone_ms.linked.{count}"),
            "ms",
            &linked,
            &linked_words,
        );
    }
    outcome
}

/// Times of GET /vms and of `mitose ls`, milliseconds, with at least `count` VMs.
pub(crate) fn list_times(host: &Host, count: usize) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let (mut api, mut command) = (vec![], vec![]);
    for _ in 0..LISTS {
        let began = Instant::now();
        let listed = host.client.vms()?.len();
        api.push(began.elapsed().as_secs_f64() * 1000.0);
        ensure!(listed >= count, "{listed} VMs are listed of {count}");
    }
    let cli = Cli::new(host.home())?;
    for _ in 0..COMMANDS {
        let began = Instant::now();
        let lines = cli.run(&["ls"])?.lines().count();
        command.push(began.elapsed().as_secs_f64() * 1000.0);
        ensure!(lines > count, "{lines} lines tell of {count} VMs");
    }
    Ok((api, command))
}

fn clone_times(bench: &Bench, limit: Limit) -> anyhow::Result<Vec<f64>> {
    let mut times = vec![];
    let mut source = Source::boot(&bench.host, MIB, "mode=dirty idle=1")?;
    for _ in 0..bench.samples(10) {
        if limit.reached() {
            break;
        }
        bench.host.settle()?;
        let began = Instant::now();
        source.fork(1)?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        source.remove_clones()?;
    }
    Ok(times)
}

/// Powered-off VMs on one base; they go when it is dropped.
struct Stock<'a> {
    host: &'a Host,
    base: String,
}

impl<'a> Stock<'a> {
    fn new(host: &'a Host) -> anyhow::Result<Self> {
        let base = host.new_name("off");
        let off = RunRequest {
            powered_off: true,
            ..request(host, &base, MIB, "")
        };
        host.client.run(&off)?;
        Ok(Self { host, base })
    }

    fn linked(&self, names: Vec<String>) -> anyhow::Result<()> {
        let request = ForkRequest {
            names,
            mode: CloneMode::Linked,
            ..ForkRequest::default()
        };
        let cloned = self.host.client.fork(&self.base, &request)?;
        let error = cloned.clones.into_iter().find_map(|clone| clone.error);
        error.map_or(Ok(()), |error| Err(anyhow::anyhow!("{error}")))
    }

    fn grow(&self, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
        self.linked(numbers.map(|at| format!("{}-{at}", self.base)).collect())
    }

    fn clone_times(&self, bench: &Bench, limit: Limit) -> anyhow::Result<Vec<f64>> {
        let mut times = vec![];
        for _ in 0..bench.samples(10) {
            if limit.reached() {
                break;
            }
            let name = self.host.new_name("l");
            let began = Instant::now();
            self.linked(vec![name.clone()])?;
            times.push(began.elapsed().as_secs_f64() * 1000.0);
            self.host.client.remove(&name, true)?;
        }
        Ok(times)
    }
}

impl Drop for Stock<'_> {
    fn drop(&mut self) {
        let all = self.host.client.vms().unwrap_or_default();
        let clones = format!("{}-", self.base);
        for vm in all.iter().filter(|vm| vm.name.starts_with(&clones)) {
            let _ = self.host.client.remove(&vm.name, true);
        }
        let _ = self.host.client.remove(&self.base, true);
    }
}
