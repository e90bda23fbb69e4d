//! Linux guests, forked idle and busy: the program `suite` on this machine's KVM where it runs stock
//! kernels, on the software engine elsewhere. With `MITOSE_TEST_LAB=1` (`make test-kvm`) it runs on
//! real KVM in the lab instead.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::{Cli, program};
use lab::{KvmProbe, Lab, RunSpec, probe_kvm};

const IMAGE: &str = "tiny";
/// Where things lie in the lab.
const FOLDER: &str = "/mitose";

/// Whether an image was made after a program that decides what is in it.
fn is_newer(image: &Path, program: &Path) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|found| found.modified());
    match (changed(image), changed(program)) {
        (Ok(image), Ok(program)) => image > program,
        _ => false,
    }
}

/// The home in which the tests' image is made once; a lock keeps two test programs apart.
fn home_with_image() -> PathBuf {
    let programs = program("mitose").expect("mitose is built");
    let home = programs.with_file_name("test-home");
    std::fs::create_dir_all(&home).expect("home");
    let lock = std::fs::File::create(home.join("lock")).expect("lock file");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("lock");
    let image = home.join("images").join(IMAGE);
    // The agent, and the daemon, which knows the recipe.
    let is_fresh = ["mitose-guest.static", "mitosed"]
        .iter()
        .all(|name| is_newer(&image, &program(name).expect("it is built")));
    if !is_fresh {
        let _ = std::fs::remove_dir_all(&image);
        let cli = Cli::new(&home).expect("cli");
        let built = cli.run(&["image", "build", "tiny", "--name", IMAGE]);
        cli.clean_up();
        built.expect("the tiny image");
    }
    home
}

fn run_here(home: &Path, engine: &str, scenarios: &[&str]) -> (i32, String) {
    let own = tempfile::tempdir().expect("folder");
    std::os::unix::fs::symlink(home.join("images"), own.path().join("images")).expect("images");
    let output = Command::new(program("suite").expect("suite is built"))
        .arg(own.path())
        .args([IMAGE, engine])
        .args(scenarios)
        .output()
        .expect("suite");
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

fn run_in_lab(home: &Path, scenarios: &[&str]) -> (i32, String) {
    let lab = Lab::ensure().expect("the lab");
    let (suite, lab_home) = (format!("{FOLDER}/suite"), format!("{FOLDER}/home"));
    let command = [&suite, &lab_home, IMAGE, "kvm"]
        .into_iter()
        .chain(scenarios.iter().copied());
    let mut run = RunSpec::new(command)
        .copy_in(
            home.join("images").join(IMAGE),
            format!("{lab_home}/images/{IMAGE}"),
        )
        .timeout(Duration::from_secs(if harness::full() {
            3000
        } else {
            900
        }))
        .capture();
    for name in ["suite", "mitose", "mitosed", "mitose-vmm"] {
        run = run.copy_in(program(name).expect("built"), format!("{FOLDER}/{name}"));
    }
    let outcome = lab.run(&run).expect("the lab runs");
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let errors = String::from_utf8_lossy(&outcome.stderr).into_owned();
    (
        outcome.exit_code,
        if outcome.exit_code == 0 {
            text
        } else {
            text + &errors
        },
    )
}

fn check(scenarios: &[&str]) {
    let home = home_with_image();
    let in_lab = std::env::var_os("MITOSE_TEST_LAB").is_some_and(|value| value == "1");
    let (code, text) = if in_lab {
        run_in_lab(&home, scenarios)
    } else if matches!(probe_kvm(), KvmProbe::Usable { .. }) {
        run_here(&home, "kvm", scenarios)
    } else {
        run_here(&home, "soft", scenarios)
    };
    println!("{text}");
    assert_eq!(code, 0, "{text}");
    for name in scenarios {
        assert!(
            text.contains(&format!("ok {name}")),
            "{name} did not run: {text}"
        );
    }
}

#[test]
fn idle_guests_fork_over_generations_power_cycles_and_failures() {
    check(&["generations", "power_cycle", "failures", "daemon_killed"]);
}

#[test]
fn a_guest_reads_its_own_uuid_and_exchanges_files() {
    check(&["machine_uuid", "copies"]);
}

#[test]
fn a_frozen_guest_goes_on_in_its_clones_and_in_itself() {
    check(&["frozen"]);
}

#[test]
fn a_busy_guest_is_forked_fifty_times() {
    if !harness::full() {
        eprintln!("skipped: MITOSE_TEST_FULL is not set");
        return;
    }
    check(&["repeated_long"]);
}

#[test]
fn busy_guests_fork_on_one_and_four_cpus_and_twenty_times() {
    check(&["busy", "busy_smp", "repeated"]);
}
