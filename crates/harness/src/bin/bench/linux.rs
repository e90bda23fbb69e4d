//! Boot against fork of a Linux guest: time to the agent's word, in the lab where this machine's
//! KVM cannot run a stock kernel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::Cli;
use lab::{KvmProbe, Lab, Output, RunSpec, probe_kvm};
use serde::{Deserialize, Serialize};

use crate::{Bench, Limit};

const IMAGE: &str = "tiny";
/// Where things lie in the lab.
const LAB_FOLDER: &str = "/mitose";
const LAB_LIMIT: Duration = Duration::from_secs(180);
const FORKS: usize = 3;

/// Times to ready, microseconds.
#[derive(Debug, Serialize, Deserialize)]
struct Times {
    boot_us: f64,
    fork_us: Vec<f64>,
}

/// Reports the ratio.
pub(crate) fn run(bench: &mut Bench, _: Limit) -> anyhow::Result<()> {
    let name = "clone.vs_boot.ratio";
    if bench.quick {
        bench
            .report
            .skip(name, "takes minutes; not part of a quick run");
        return Ok(());
    }
    let home = image_home()?;
    let cli = Cli::new(&home)?;
    if !home.join("images").join(IMAGE).exists() {
        let built = cli.show(&["image", "build", IMAGE, "--name", IMAGE]);
        let _ = cli.output(&["daemon", "stop"]);
        built.context("the image tiny could not be made")?;
    }
    let (times, place) = if matches!(probe_kvm(), KvmProbe::Usable { .. }) {
        let times = boot_and_fork(&cli);
        cli.clean_up();
        (times?, "on this machine's KVM")
    } else {
        (in_lab(&home)?, "in the lab")
    };
    let ratios: Vec<f64> = times.fork_us.iter().map(|us| times.boot_us / us).collect();
    let conditions = format!(
        "image tiny, 1 vCPU, {place}: boot to ready {:.0} ms, fork to ready {:.0} ms at best",
        times.boot_us / 1000.0,
        times.fork_us.iter().copied().fold(f64::MAX, f64::min) / 1000.0
    );
    bench.report.add(name, "ratio", &ratios, &conditions);
    Ok(())
}

/// What runs in the lab: writes the times to `answer`.
pub(crate) fn inside(home: &Path, answer: &Path) -> anyhow::Result<()> {
    let cli = Cli::new(home)?;
    let times = boot_and_fork(&cli);
    cli.clean_up();
    Ok(std::fs::write(answer, serde_json::to_vec(&times?)?)?)
}

fn boot_and_fork(cli: &Cli) -> anyhow::Result<Times> {
    let run = [
        "run", "src", "--image", IMAGE, "--memory", "256M", "--wait", "120",
    ];
    let vm = cli.json(&run)?;
    let boot_us = vm["ready_us"]
        .as_f64()
        .context("the guest was not ready in time")?;
    let mut fork_us = vec![];
    for number in 0..FORKS {
        let name = format!("clone-{number}");
        let reply = cli.json(&["clone", "src", "--name", &name, "--wait", "60"])?;
        let ready = reply["clones"][0]["ready_us"].as_f64();
        fork_us.push(ready.context("a clone was not ready in time")?);
    }
    Ok(Times { boot_us, fork_us })
}

fn in_lab(home: &Path) -> anyhow::Result<Times> {
    let lab = Lab::ensure().context("the lab could not be made")?;
    let answer = tempfile::NamedTempFile::new()?;
    let lab_home = format!("{LAB_FOLDER}/home");
    let lab_answer = format!("{LAB_FOLDER}/times.json");
    let bench = format!("{LAB_FOLDER}/bench");
    let mut run = RunSpec::new([bench.as_str(), "--inside", &lab_home, &lab_answer])
        .copy_in(std::env::current_exe()?, &bench)
        .copy_in(
            home.join("images").join(IMAGE),
            format!("{lab_home}/images/{IMAGE}"),
        )
        .copy_out(&lab_answer, answer.path())
        .timeout(LAB_LIMIT);
    run.output = Output::Capture;
    for name in ["mitose", "mitosed", "mitose-vmm"] {
        run = run.copy_in(harness::program(name)?, format!("{LAB_FOLDER}/{name}"));
    }
    let outcome = lab.run(&run)?;
    ensure!(
        outcome.exit_code == 0,
        "the lab's bench gave {}: {}",
        outcome.exit_code,
        last_line(&outcome)
    );
    Ok(serde_json::from_slice(&std::fs::read(answer.path())?)?)
}

fn last_line(outcome: &lab::Outcome) -> String {
    let text = String::from_utf8_lossy(&outcome.stderr).into_owned();
    text.lines().last().unwrap_or_default().to_owned()
}

/// A data folder beside the programs, so that the image is made once.
pub(crate) fn image_home() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program
        .parent()
        .and_then(Path::parent)
        .context("the bench has no folder")?;
    let home = folder.join("bench-home");
    std::fs::create_dir_all(&home)?;
    Ok(home)
}
