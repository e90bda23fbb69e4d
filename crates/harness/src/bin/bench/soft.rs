//! The software engine: instructions per second beside QEMU's, time to ready, forks of a running
//! Debian guest. Needs no KVM.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api_types::{DiskRequest, ImageFormat, RunRequest};
use client::Client;
use harness::Cli;
use vm_spec::EngineChoice;

use crate::Limit;
use crate::report::Report;
use crate::soft_guest::{Guest, Told};
use crate::soft_qemu::{Pace, Qemu};

/// Loops of the speed program, which know their own number of instructions.
const LOOPS: [&str; 4] = ["int", "mem", "branch", "call"];
/// Programs, whose instructions QEMU counts.
const PROGRAMS: [&str; 3] = ["awk", "sh", "python"];
const ROUNDS: usize = 5;
const MEMORY_BYTES: u64 = 512 << 20;
/// Longest wait for the pool of shells.
const POOL_TIMEOUT: Duration = Duration::from_secs(20);

/// The daemon of the bench's own images.
pub(crate) struct Soft<'a> {
    pub(crate) report: &'a mut Report,
    pub(crate) quick: bool,
    pub(crate) cli: Cli,
    client: Client,
}

/// Reports all rows of this engine; a part that fails is the reason of its own rows.
pub(crate) fn run(report: &mut Report, quick: bool, limit: Limit) -> anyhow::Result<()> {
    let home = crate::linux::image_home()?;
    let mut soft = Soft {
        report,
        quick,
        cli: Cli::new(&home)?,
        client: Client::new(&home),
    };
    // What a bench that was killed has left; the next call starts the daemon anew.
    soft.cli.clean_up();
    soft.cli.json(&["ls"])?;
    let told = soft.tell(limit);
    soft.cli.clean_up();
    told
}

impl Soft<'_> {
    fn tell(&mut self, limit: Limit) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.image("tiny", &["tiny"])?;
        let debian = self.image("debian", &["debian", "--include", "python3"]);
        // What cannot be made is told with the rows that need it.
        crate::soft_linux::make_images(self);
        let limit = limit.put_off_since(begun);
        let speed = debian.and_then(|()| self.speed(limit));
        if let Err(error) = speed {
            let reason = format!("{error:#}");
            eprintln!("    ended early: {reason}");
            self.report
                .skip_all(&["soft.mips", "tcg.", "soft.over"], &reason);
        }
        crate::soft_linux::run(self, limit)
    }

    /// Makes an image that is not there; a quick run makes none.
    pub(crate) fn image(&self, name: &str, recipe: &[&str]) -> anyhow::Result<()> {
        if self.cli.home().join("images").join(name).exists() {
            return Ok(());
        }
        ensure!(!self.quick, "a quick run does not make the image {name}");
        eprintln!("    making the image {name}, once");
        let mut args = vec!["image", "build"];
        args.extend(recipe);
        args.extend(["--name", name]);
        let built = self.cli.show(&args);
        built.with_context(|| format!("the image {name} could not be made"))
    }

    /// Waits until the pool of shells is full, so that its making disturbs nothing.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + POOL_TIMEOUT;
        loop {
            let status = self.client.status()?;
            if status.shells_ready >= status.shells_wanted {
                std::thread::sleep(Duration::from_millis(50));
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the pool of shells stays empty");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn speed(&mut self, limit: Limit) -> anyhow::Result<()> {
        let guest = Guest::make(&self.cli.home().join("images"))?;
        let qemu = Qemu::find();
        let rounds = if self.quick { 1 } else { ROUNDS };
        let (mut soft, mut tcg) = (vec![], vec![]);
        for _ in 0..rounds {
            if limit.reached() {
                break;
            }
            soft.push(self.run_guest(&guest)?);
            if let Ok(qemu) = &qemu {
                let told = qemu.run(&guest, Pace::Real, "done")?;
                told.check_clock()?;
                tcg.push(told);
            }
        }
        let qemu = match qemu {
            Ok(qemu) => qemu,
            Err(error) => {
                // The loops count for themselves; all else needs the judge.
                add_speeds(self.report, "soft", &soft, None, "512 MiB, 1 vCPU")?;
                return Err(error);
            }
        };
        let counts = Counts::take(&qemu, &guest)?;
        let beside = format!("512 MiB, 1 vCPU, in turn with QEMU {}", qemu.version);
        add_speeds(self.report, "soft", &soft, Some(&counts), &beside)?;
        let words = format!(
            "QEMU {} -accel tcg,thread=single, microvm, 512 MiB, 1 vCPU",
            qemu.version
        );
        add_speeds(self.report, "tcg", &tcg, Some(&counts), &words)?;
        for name in PROGRAMS {
            let pairs = soft.iter().zip(&tcg);
            let ratios = pairs.map(|(soft, tcg)| {
                anyhow::Ok(tcg.line(name)?.ns as f64 / soft.line(name)?.ns as f64)
            });
            let ratios = ratios.collect::<anyhow::Result<Vec<f64>>>()?;
            let words = format!("time on QEMU {} over time here", qemu.version);
            let row = format!("soft.over_tcg.{name}");
            self.report.add(&row, "ratio", &ratios, &words);
        }
        Ok(())
    }

    /// Runs the speed guest on the software engine.
    fn run_guest(&self, guest: &Guest) -> anyhow::Result<Told> {
        self.settle()?;
        let name = "speed";
        let request = RunRequest {
            kernel: Some(guest.kernel.clone()),
            initrd: Some(guest.initrd()),
            cmdline: Some(guest.cmdline.clone()),
            disks: vec![DiskRequest {
                path: guest.disk.clone(),
                format: Some(ImageFormat::Raw),
                read_only: true,
            }],
            memory_bytes: MEMORY_BYTES,
            engine: EngineChoice::Soft,
            wait_ready_s: Some(0),
            ..RunRequest::named(name)
        };
        let start = Instant::now();
        self.client.run(&request).context("cannot run the guest")?;
        let told = self.follow(name, start);
        self.client.remove(name, true)?;
        let told = told?;
        told.check_clock()?;
        Ok(told)
    }

    fn follow(&self, name: &str, start: Instant) -> anyhow::Result<Told> {
        let serial = self.client.vm(name)?.serial;
        let serial = PathBuf::from(serial.context("the VM has no serial log")?);
        let mut next_look = Instant::now();
        Told::follow(Path::new(&serial), start, "done", || {
            if Instant::now() > next_look {
                next_look = Instant::now() + Duration::from_secs(1);
                let state = self.client.vm(name)?.vm.state;
                ensure!(state == "running", "the guest is {state}");
            }
            Ok(())
        })
    }
}

/// Instructions of what has no count of its own.
struct Counts {
    boot: f64,
    programs: Vec<(&'static str, f64)>,
}

impl Counts {
    /// Counts with QEMU's clock, on which an instruction takes 1 ns, then 2. Loops that wait for a
    /// time are as long in both runs, so that the difference is what the boot executes beside them.
    fn take(qemu: &Qemu, guest: &Guest) -> anyhow::Result<Self> {
        let one = qemu.run(guest, Pace::Counted(0), "done")?;
        let two = qemu.run(guest, Pace::Counted(1), "boot")?;
        for name in LOOPS {
            let line = one.line(name)?;
            let (known, seen) = (line.count as f64, line.tsc as f64);
            ensure!(
                (seen - known).abs() < known * 0.01,
                "the loop {name} has {known} instructions, QEMU counted {seen}"
            );
        }
        let (one_boot, two_boot) = (one.line("boot")?.tsc, two.line("boot")?.tsc);
        let boot = two_boot.checked_sub(one_boot);
        let count = |name| anyhow::Ok((name, one.line(name)?.tsc as f64));
        Ok(Self {
            boot: boot.context("QEMU counted the boot wrongly")? as f64,
            programs: PROGRAMS
                .into_iter()
                .map(count)
                .collect::<anyhow::Result<_>>()?,
        })
    }
}

/// Adds the rows `ENGINE.mips.*` of runs of the speed guest.
fn add_speeds(
    report: &mut Report,
    engine: &str,
    runs: &[Told],
    counts: Option<&Counts>,
    place: &str,
) -> anyhow::Result<()> {
    let millions = |count: f64, ns: f64| count * 1000.0 / ns;
    for name in LOOPS {
        let speed = |told: &Told| {
            let line = told.line(name)?;
            anyhow::Ok(millions(line.count as f64, line.ns as f64))
        };
        let speeds = runs.iter().map(speed).collect::<anyhow::Result<Vec<_>>>()?;
        let words = format!("loop in a Linux program; {place}");
        let row = format!("{engine}.mips.{name}");
        report.add(&row, "M/s", &speeds, &words);
    }
    let Some(counts) = counts else {
        return Ok(());
    };
    let boot = |told: &Told| anyhow::Ok(told.line("boot")?.seen.as_nanos() as f64);
    let times = runs.iter().map(boot).collect::<anyhow::Result<Vec<_>>>()?;
    let speeds: Vec<f64> = times.iter().map(|ns| millions(counts.boot, *ns)).collect();
    let words = format!(
        "{:.0} M instructions with QEMU's firmware, without waiting loops; start of the VM to the first process, seen from outside; {place}",
        counts.boot / 1e6
    );
    report.add(
        &format!("{engine}.mips.kernel_boot"),
        "M/s",
        &speeds,
        &words,
    );
    for (name, count) in &counts.programs {
        let speed = |told: &Told| anyhow::Ok(millions(*count, told.line(name)?.ns as f64));
        let speeds = runs.iter().map(speed).collect::<anyhow::Result<Vec<_>>>()?;
        let words = format!(
            "{:.0} M instructions, counted by QEMU, start and end of the process included; {place}",
            count / 1e6
        );
        let row = format!("{engine}.mips.{name}");
        report.add(&row, "M/s", &speeds, &words);
    }
    Ok(())
}
