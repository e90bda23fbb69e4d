//! Children of a prepared parent: one, ten, a hundred and a thousand in one call.

use anyhow::{Context, ensure};
use api_types::{PointForkRequest, PointForked, PrepareRequest};

use crate::api::list_times;
use crate::host::{Host, POOL};
use crate::memory::meminfo_kib;
use crate::report::{Report, Stats};
use crate::source::Source;
use crate::{Bench, Limit};

const MIB: u64 = 128;
/// Children of a call, and how often it is made.
const BATCHES: [(u32, usize); 3] = [(1, 10), (10, 6), (100, 4)];
const MANY: u32 = 1000;
/// Host memory that a thousand children need to be tried, KiB: about twice what they take.
const MANY_NEED_KIB: u64 = 5 << 20;
/// Threads that remove children: what a removal waits for is mostly the kernel.
const REMOVERS: usize = 4;

/// All batches.
pub(crate) fn run(bench: &mut Bench, limit: Limit) -> anyhow::Result<()> {
    bench.host.restart(POOL)?;
    let source = Source::boot(&bench.host, MIB, "mode=dirty idle=1")?;
    let name = source.name.clone();
    let mut stuns = vec![];
    let mut each_of_100 = None;
    for (count, samples) in BATCHES {
        let mut walls = vec![];
        for _ in 0..bench.samples(samples) {
            if limit.reached() {
                break;
            }
            let batch = Batch::fork(&bench.host, &name, count)?;
            stuns.push(batch.stun_us as f64);
            walls.push(batch.forked.wall_us as f64);
            batch.end()?;
        }
        each_of_100 = Stats::of(&walls).map(|stats| stats.median / f64::from(count));
        let row = format!("fork.batch{count}.wall_us");
        bench.report.add(&row, "us", &walls, &conditions(count));
    }
    bench.report.add(
        "fork.prepare.stun_us",
        "us",
        &stuns,
        "prepare of a VM of 128 MiB with a disk and a NIC, its guest idle, again and again",
    );
    ensure!(!bench.quick, "takes a minute; not part of a quick run");
    ensure!(!limit.reached(), "no time was left for it");
    let many = many(&bench.host, &name)?;
    let each = each_of_100.context("there is no figure of 100 children")?;
    many.tell(&mut bench.report, each);
    Ok(())
}

fn conditions(count: u32) -> String {
    format!(
        "{count} children of a prepared parent of 128 MiB in one call, registered ahead, each with a disk and a NIC; request to the last one's first instruction; pool of {POOL} shells"
    )
}

/// A thousand at once, and how long lists of them take.
fn many(host: &Host, name: &str) -> anyhow::Result<Many> {
    let available = meminfo_kib("MemAvailable")?;
    ensure!(
        available >= MANY_NEED_KIB,
        "needs {} MiB of host memory, {} are available",
        MANY_NEED_KIB >> 10,
        available >> 10
    );
    let batch = Batch::fork(host, name, MANY)?;
    let wall_us = batch.forked.wall_us as f64;
    let lists = list_times(host, MANY as usize);
    let taken = available.saturating_sub(meminfo_kib("MemAvailable")?);
    batch.end()?;
    Ok(Many {
        wall_us,
        kib: taken as f64,
        lists: lists?,
    })
}

/// Figures of a thousand children.
struct Many {
    wall_us: f64,
    /// What they and the daemon took of the host's memory.
    kib: f64,
    /// Milliseconds that the interface and the command took for a list.
    lists: (Vec<f64>, Vec<f64>),
}

impl Many {
    fn tell(self, report: &mut Report, each_of_100: f64) {
        let children = f64::from(MANY);
        let words = conditions(MANY);
        report.add("fork.batch1000.wall_us", "us", &[self.wall_us], &words);
        report.add(
            "fork.batch1000.child_over_batch100",
            "ratio",
            &[self.wall_us / children / each_of_100],
            "wall time per child of 1000, over that of the median of 100",
        );
        report.add(
            "fork.batch1000.host_kib_per_child",
            "KiB",
            &[self.kib / children],
            "fall of MemAvailable, what the daemon keeps of them included",
        );
        let (api, command) = self.lists;
        let words = "1000 running children";
        report.add("api.list_ms.1000_running", "ms", &api, words);
        report.add("cli.ls_ms.1000_running", "ms", &command, words);
    }
}

/// Children that run, with their parent's fork point. They go when it is dropped.
struct Batch<'a> {
    host: &'a Host,
    point: String,
    stun_us: u64,
    forked: PointForked,
    ended: bool,
}

impl<'a> Batch<'a> {
    /// Prepares `vm` and powers on all children that were made ahead.
    fn fork(host: &'a Host, vm: &str, count: u32) -> anyhow::Result<Self> {
        let point = host.new_name("p");
        let prepare = PrepareRequest {
            name: Some(point.clone()),
            children: count,
            prefix: Some(format!("{point}-")),
            ..PrepareRequest::default()
        };
        let prepared = host.client.prepare(vm, &prepare, |_| {})?;
        host.settle()?;
        let request = PointForkRequest {
            count,
            wait_ready_s: Some(0),
            ..PointForkRequest::default()
        };
        let forked = match host.client.fork_children(&point, &request, |_| {}) {
            Ok(forked) => forked,
            Err(error) => {
                let _ = host.client.unprepare(&point, true);
                return Err(error.into());
            }
        };
        let batch = Self {
            host,
            point,
            stun_us: prepared.fork_point.stun_us,
            forked,
            ended: false,
        };
        let failed = |child: &api_types::ClonedVm| child.error.clone();
        match batch.forked.cloned.clones.iter().find_map(failed) {
            Some(error) => anyhow::bail!("a child failed: {error}"),
            None => Ok(batch),
        }
    }

    /// Removes the children and the fork point.
    fn end(mut self) -> anyhow::Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> anyhow::Result<()> {
        self.ended = true;
        let names: Vec<&str> = self.forked.cloned.clones.iter().map(|c| &*c.name).collect();
        std::thread::scope(|scope| {
            for part in names.chunks(names.len().div_ceil(REMOVERS).max(1)) {
                let client = &self.host.client;
                scope.spawn(move || {
                    for name in part {
                        let _ = client.remove(name, true);
                    }
                });
            }
        });
        Ok(self.host.client.unprepare(&self.point, true)?)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.remove();
        }
    }
}
