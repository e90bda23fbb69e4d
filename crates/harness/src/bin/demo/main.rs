//! `demo`: a Debian guest with a real database is forked while it works.
//!
//! Where KVM cannot run a stock kernel, the guest runs on the software engine, and a bare-metal guest
//! is forked on the machine's own KVM beside. `--lab` plays the story on real KVM in the lab.

#![forbid(unsafe_code)]

mod native;
mod report;
mod story;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use harness::Cli;
use lab::{KvmProbe, Lab, RunSpec, probe_kvm};

use crate::report::{Report, Story};

/// Name of the image that the demo makes.
const IMAGE: &str = "demo";
/// The report, in the folder where the demo is started.
const REPORT: &str = "demo-report.json";
/// Where things lie in the lab.
const LAB_FOLDER: &str = "/mitose";
/// Longest run in the lab.
const LAB_LIMIT: Duration = Duration::from_secs(900);

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [] => outside(false),
        ["--lab"] => outside(true),
        // How the demo calls itself in the lab.
        ["--inside", home, report] => {
            let story = play(&Cli::new(Path::new(home))?, "kvm")?;
            Ok(std::fs::write(report, serde_json::to_vec(&story)?)?)
        }
        _ => bail!("usage: demo [--lab]"),
    }
}

fn play(cli: &Cli, engine: &str) -> anyhow::Result<Story> {
    let story = story::play(cli, IMAGE, engine);
    cli.clean_up();
    story
}

fn outside(in_lab: bool) -> anyhow::Result<()> {
    let home = demo_home()?;
    std::fs::create_dir_all(&home)?;
    let cli = Cli::new(&home)?;
    let probe = probe_kvm();
    let usable = matches!(probe, KvmProbe::Usable { .. });
    let engine = if usable { "kvm" } else { "soft" };
    eprintln!("==> KVM on this machine: {probe:?}");
    eprintln!(
        "==> the Debian guest runs {}",
        if in_lab {
            "on real KVM in the lab (QEMU emulating AMD SVM)"
        } else if usable {
            "on this KVM"
        } else {
            "on the software engine, since this KVM cannot run a stock kernel"
        }
    );
    if !home.join("images").join(IMAGE).exists() {
        eprintln!("==> making the image: Debian with redis-server and python3");
        let include = "redis-server,python3";
        let args = [
            "image",
            "build",
            "debian",
            "--include",
            include,
            "--name",
            IMAGE,
        ];
        let built = cli.show(&args);
        let _ = cli.output(&["daemon", "stop"]);
        built?;
    }
    let story = if in_lab {
        play_in_lab(&home)?
    } else {
        play(&cli, engine)?
    };
    let native = if (in_lab || !usable) && harness::kvm_present() {
        eprintln!("==> forking a bare-metal guest on this machine's own KVM");
        let native = native::fork_bare_metal(&cli);
        cli.clean_up();
        Some(native?)
    } else {
        None
    };
    let whole = Report::new(story, in_lab, native);
    whole.print();
    std::fs::write(REPORT, serde_json::to_string_pretty(&whole)? + "\n")?;
    eprintln!("==> {REPORT}");
    whole.check()
}

/// The demo's own data folder, beside the programs, so that an image is made once.
fn demo_home() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let folder = program
        .parent()
        .and_then(Path::parent)
        .context("the demo has no folder")?;
    Ok(folder.join("demo-home"))
}

fn play_in_lab(home: &Path) -> anyhow::Result<Story> {
    eprintln!("==> starting the lab");
    let lab = Lab::ensure()?;
    let report = tempfile::NamedTempFile::new()?;
    let lab_home = format!("{LAB_FOLDER}/home");
    let lab_report = format!("{LAB_FOLDER}/story.json");
    let demo = format!("{LAB_FOLDER}/demo");
    let image = home.join("images").join(IMAGE);
    let mut run = RunSpec::new([demo.as_str(), "--inside", &lab_home, &lab_report])
        .copy_in(std::env::current_exe()?, &demo)
        .copy_in(image, format!("{lab_home}/images/{IMAGE}"))
        .copy_out(&lab_report, report.path())
        .timeout(LAB_LIMIT);
    for name in ["mitose", "mitosed", "mitose-vmm"] {
        run = run.copy_in(harness::program(name)?, format!("{LAB_FOLDER}/{name}"));
    }
    let outcome = lab.run(&run)?;
    anyhow::ensure!(
        outcome.exit_code == 0,
        "the demo in the lab gave {}",
        outcome.exit_code
    );
    Ok(serde_json::from_slice(&std::fs::read(report.path())?)?)
}
