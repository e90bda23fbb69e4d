//! `bench`: what a fork costs, on the machine's own KVM with bare-metal guests, and how fast the
//! software engine is, beside QEMU's.
//!
//! Every VM has a qcow2 disk and a TAP and has touched its RAM. Forks go through the daemon, as
//! users' forks do; the lab serves only for the ratio of boot and fork of a Linux guest. The report
//! has each row in any case: with figures, or with the reason why there are none.

#![forbid(unsafe_code)]

mod api;
mod batch;
mod busy;
mod copies;
mod first;
mod honest;
mod host;
mod linux;
mod memory;
mod merging;
mod prepared;
mod repeat;
mod report;
mod snapshot;
mod soft;
mod soft_guest;
mod soft_linux;
mod soft_qemu;
mod source;
mod watch;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::host::{Host, POOL};
use crate::report::{Expected, Report, Target};

const USAGE: &str = "usage: bench [--quick] [--no-build] [--only SECTION] [--report FILE]
sections: first, honest, brownout, repeat, flatten, busy, batch, prepared, snapshot, api, pool, merge, linux,
  soft";

/// Rows that every report has. Targets are medians on a two-core machine.
const EXPECTED: &[Expected] = &[
    row("fork.first.stun_us.128MiB", "us", Target::AtMost(600.0)),
    row("fork.first.stun_us.512MiB", "us", Target::AtMost(1000.0)),
    row("fork.first.stun_us.2048MiB", "us", Target::AtMost(2000.0)),
    row(
        "fork.first.stun_us.2048MiB.huge_pages",
        "us",
        Target::AtMost(1000.0),
    ),
    row("fork.first.brownout_ms", "ms", Target::None),
    row(
        "fork.repeat.stun_us.2048MiB.dirty1pct",
        "us",
        Target::AtMost(3000.0),
    ),
    row(
        "fork.repeat.stun_us.2048MiB.dirty10pct",
        "us",
        Target::AtMost(6000.0),
    ),
    row("host.fork_us.2024MiB.dirty1pct", "us", Target::None),
    row("host.fork_us.2024MiB.dirty10pct", "us", Target::None),
    row(
        "fork.repeat.stun_over_host_fork.dirty1pct",
        "ratio",
        Target::None,
    ),
    row(
        "fork.repeat.stun_over_host_fork.dirty10pct",
        "ratio",
        Target::None,
    ),
    row("flatten.piece.stun_us", "us", Target::AtMost(1000.0)),
    row("flatten.wall_ms.512MiB", "ms", Target::None),
    row("fork.busy_disk.stun_us", "us", Target::None),
    row("fork.busy_disk.io_held_us", "us", Target::None),
    row(
        "fork.busy_disk.stun_p99_over_idle",
        "ratio",
        Target::AtMost(3.0),
    ),
    row("clone.first_run_us.1.pool", "us", Target::AtMost(3000.0)),
    row(
        "clone.first_run_us.1.pool.idle_source",
        "us",
        Target::AtMost(3000.0),
    ),
    row(
        "clone.first_run_us.1.empty_pool",
        "us",
        Target::AtMost(3000.0),
    ),
    row(
        "clone.repeat.first_run_us.dirty10pct",
        "us",
        Target::AtMost(12_000.0),
    ),
    row("clone.batch100.wall_us", "us", Target::AtMost(150_000.0)),
    row(
        "clone.batch100.wall_us.empty_pool",
        "us",
        Target::AtMost(150_000.0),
    ),
    row(
        "clone.repeat.batch100.wall_us",
        "us",
        Target::AtMost(600_000.0),
    ),
    row("clone.idle.private_kib", "KiB", Target::AtMost(563.0)),
    row("clone.idle.kernel_kib", "KiB", Target::AtMost(614.0)),
    row("cow.ns_per_page", "ns", Target::None),
    row("destroy.ms", "ms", Target::None),
    row("fork.prepare.stun_us", "us", Target::None),
    row("fork.batch1.wall_us", "us", Target::AtMost(3000.0)),
    row("fork.batch10.wall_us", "us", Target::None),
    row("fork.batch100.wall_us", "us", Target::AtMost(150_000.0)),
    row("fork.batch1000.wall_us", "us", Target::None),
    row(
        "fork.batch1000.child_over_batch100",
        "ratio",
        Target::AtMost(2.0),
    ),
    row("fork.batch1000.host_kib_per_child", "KiB", Target::None),
    row(
        "snapshot.first.stun_us.512MiB",
        "us",
        Target::AtMost(1000.0),
    ),
    row(
        "snapshot.repeat.stun_us.512MiB.dirty10pct",
        "us",
        Target::AtMost(6000.0),
    ),
    row("snapshot.io_held_us", "us", Target::None),
    row("snapshot.write_mib_per_s", "MiB/s", Target::None),
    row("api.list_ms.10", "ms", Target::AtMost(50.0)),
    row("api.list_ms.1000", "ms", Target::AtMost(50.0)),
    row("api.list_ms.1000_running", "ms", Target::AtMost(50.0)),
    row("cli.ls_ms.10", "ms", Target::AtMost(50.0)),
    row("cli.ls_ms.1000", "ms", Target::AtMost(50.0)),
    row("cli.ls_ms.1000_running", "ms", Target::AtMost(50.0)),
    row("api.clone_ms.instant.10", "ms", Target::None),
    row("api.clone_ms.instant.1000", "ms", Target::None),
    row("api.clone_ms.linked.10", "ms", Target::None),
    row("api.clone_ms.linked.1000", "ms", Target::None),
    row("pool.hit.wall_ms", "ms", Target::None),
    row("pool.copy.wall_ms", "ms", Target::None),
    row("pool.copy.mib_per_s", "MiB/s", Target::None),
    row("pool.hit_over_copy", "ratio", Target::AtMost(0.05)),
    row("merge.mib_per_s", "MiB/s", Target::None),
    row("merge.held_us", "us", Target::AtMost(1000.0)),
    row("merge.guest_write_us.quiet", "us", Target::None),
    row("merge.guest_write_over_quiet", "ratio", Target::None),
    row("merge.guest_write_max_ms", "ms", Target::None),
    row("clone.vs_boot.ratio", "ratio", Target::AtLeast(10.0)),
    row("honest.gap_minus_stun_us", "us", Target::MaxAtMost(300.0)),
    row(
        "honest.first_byte_minus_first_run_us",
        "us",
        Target::MaxAtMost(2000.0),
    ),
    row("soft.mips.int", "M/s", Target::AtLeast(500.0)),
    row("soft.mips.mem", "M/s", Target::None),
    row("soft.mips.branch", "M/s", Target::None),
    row("soft.mips.call", "M/s", Target::None),
    row("soft.mips.kernel_boot", "M/s", Target::AtLeast(150.0)),
    row("soft.mips.awk", "M/s", Target::None),
    row("soft.mips.sh", "M/s", Target::None),
    row("soft.mips.python", "M/s", Target::None),
    row("tcg.mips.int", "M/s", Target::None),
    row("tcg.mips.mem", "M/s", Target::None),
    row("tcg.mips.branch", "M/s", Target::None),
    row("tcg.mips.call", "M/s", Target::None),
    row("tcg.mips.kernel_boot", "M/s", Target::None),
    row("tcg.mips.awk", "M/s", Target::None),
    row("tcg.mips.sh", "M/s", Target::None),
    row("tcg.mips.python", "M/s", Target::None),
    row("soft.over_tcg.awk", "ratio", Target::AtLeast(0.4)),
    row("soft.over_tcg.sh", "ratio", Target::AtLeast(0.4)),
    row("soft.over_tcg.python", "ratio", Target::AtLeast(0.4)),
    row("boot.ready_ms.tiny", "ms", Target::AtMost(4000.0)),
    row("boot.ready_ms.debian", "ms", Target::AtMost(8000.0)),
    row(
        "boot.ready_ms.debian_systemd",
        "ms",
        Target::AtMost(20_000.0),
    ),
    row("soft.fork.first.stun_us", "us", Target::AtMost(1000.0)),
    row("soft.clone.first_run_us.1", "us", Target::AtMost(3000.0)),
    row("soft.clone.ready_ms", "ms", Target::None),
];

const fn row(name: &'static str, unit: &'static str, target: Target) -> Expected {
    Expected { name, unit, target }
}

/// What a section works with.
pub(crate) struct Bench {
    pub(crate) host: Host,
    pub(crate) report: Report,
    pub(crate) quick: bool,
}

impl Bench {
    /// Number of samples: `full`, or about a fifth of it.
    pub(crate) fn samples(&self, full: usize) -> usize {
        if self.quick { full.div_ceil(5) } else { full }
    }
}

/// Ends a section that takes too long.
#[derive(Clone, Copy)]
pub(crate) struct Limit(Instant);

impl Limit {
    pub(crate) fn reached(self) -> bool {
        Instant::now() > self.0
    }

    /// The same, later by the time since `from`, which was spent on what is made once.
    pub(crate) fn put_off_since(self, from: Instant) -> Self {
        Self(self.0 + from.elapsed())
    }
}

type Section = fn(&mut Bench, Limit) -> anyhow::Result<()>;

/// Sections with their share of the time, seconds, and the beginnings of their rows' names.
const SECTIONS: &[(&str, Section, u64, &[&str])] = &[
    (
        "first",
        first::forks,
        110,
        &["fork.first.stun", "clone.first_run", "cow"],
    ),
    ("honest", honest::run, 30, &["honest"]),
    ("brownout", first::brownout, 30, &["fork.first.brownout"]),
    (
        "repeat",
        repeat::run,
        120,
        &[
            "fork.repeat.stun_us.2048MiB",
            "fork.repeat.stun_over",
            "clone.repeat.first_run",
            "host.fork",
        ],
    ),
    ("flatten", repeat::flattened, 60, &["flatten"]),
    ("busy", busy::run, 40, &["fork.busy_disk"]),
    (
        "batch",
        batch::run,
        110,
        &[
            "clone.batch100",
            "clone.repeat.batch100",
            "clone.idle",
            "destroy",
        ],
    ),
    (
        "prepared",
        prepared::run,
        90,
        &[
            "fork.prepare",
            "fork.batch",
            "api.list_ms.1000_running",
            "cli.ls_ms.1000_running",
        ],
    ),
    ("snapshot", snapshot::run, 40, &["snapshot"]),
    ("api", api::run, 60, &["api", "cli"]),
    ("pool", copies::run, 120, &["pool"]),
    ("merge", merging::run, 90, &["merge"]),
    ("linux", linux::run, 200, &["clone.vs_boot"]),
];

/// The section that needs no KVM.
const SOFT_SECONDS: u64 = 130;
const SOFT_ROWS: &[&str] = &["soft.", "tcg.", "boot."];
const NOT_WANTED: &str = "not asked for";

struct Options {
    quick: bool,
    build: bool,
    only: Option<String>,
    report: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [inside, home, answer] = args.as_slice()
        && inside == "--inside"
    {
        return linux::inside(Path::new(home), Path::new(answer));
    }
    let options = parse(&args)?;
    if options.build {
        build_programs()?;
    }
    let mut report = Report::new(options.quick, EXPECTED);
    if harness::kvm_present() {
        report = kvm_sections(report, &options)?;
    } else {
        let reason = "this machine has no /dev/kvm that can be opened";
        let rows: Vec<&str> = SECTIONS
            .iter()
            .flat_map(|section| section.3)
            .copied()
            .collect();
        report.skip_all(&rows, reason);
    }
    let reason = in_section(&options, "soft", SOFT_SECONDS, |limit| {
        soft::run(&mut report, options.quick, limit)
    });
    if let Some(reason) = reason {
        report.skip_all(SOFT_ROWS, &reason);
    }
    report.finish(&options.report)
}

fn kvm_sections(mut report: Report, options: &Options) -> anyhow::Result<Report> {
    if options.only.as_deref() == Some("soft") {
        for (_, _, _, rows) in SECTIONS {
            report.skip_all(rows, NOT_WANTED);
        }
        return Ok(report);
    }
    let mut bench = Bench {
        host: Host::start(POOL)?,
        report,
        quick: options.quick,
    };
    for (name, section, seconds, rows) in SECTIONS {
        let reason = in_section(options, name, *seconds, |limit| section(&mut bench, limit));
        if let Some(reason) = reason {
            bench.report.skip_all(rows, &reason);
        }
    }
    for warning in bench.host.warnings() {
        eprintln!("daemon: {warning}");
    }
    Ok(bench.report)
}

/// Runs a section where it is wanted; returns why it has not told all its rows.
fn in_section(
    options: &Options,
    name: &str,
    seconds: u64,
    section: impl FnOnce(Limit) -> anyhow::Result<()>,
) -> Option<String> {
    if options.only.as_deref().is_some_and(|only| only != name) {
        return Some(NOT_WANTED.to_owned());
    }
    eprintln!("==> {name}");
    let limit = Limit(Instant::now() + Duration::from_secs(seconds));
    let error = section(limit).err()?;
    let reason = format!("{error:#}");
    eprintln!("    ended early: {reason}");
    Some(reason)
}

fn parse(args: &[String]) -> anyhow::Result<Options> {
    let mut options = Options {
        quick: false,
        build: true,
        only: None,
        report: "bench-report.json".into(),
    };
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        match arg {
            "--quick" => options.quick = true,
            "--no-build" => options.build = false,
            "--only" => {
                let only = args.next().context(USAGE)?;
                if only != "soft" && SECTIONS.iter().all(|(name, ..)| *name != only) {
                    bail!("there is no section {only}\n{USAGE}");
                }
                options.only = Some(only.to_owned());
            }
            "--report" => options.report = args.next().context(USAGE)?.into(),
            _ => bail!("{USAGE}"),
        }
    }
    Ok(options)
}

/// Builds the programs that are measured, with the profile of this one, where cargo started it.
fn build_programs() -> anyhow::Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else {
        return Ok(());
    };
    let mut command = Command::new(cargo);
    command.args(["build", "-p", "mitose", "-p", "mitosed", "-p", "mitose-vmm"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let status = command.status().context("cannot run cargo")?;
    anyhow::ensure!(status.success(), "the programs could not be built");
    Ok(())
}
