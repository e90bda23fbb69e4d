//! Children of a fork point with a real guest: those that are not persistent return to it as fast as
//! they were forked, those that are keep what they flushed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use api_types::{
    CloneMode, Consistency, ForkRequest, PointForkRequest, PrepareRequest, StopRequest,
};
use client::Client;
use harness::{Cli, kvm_present};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);
const DISK_BYTES: u64 = 32 << 20;
const ROUNDS: usize = 7;
/// What other work on the host may add to one call, microseconds.
const NOISE_US: u64 = 20_000;
const OFF: StopRequest = StopRequest {
    force: true,
    timeout_s: None,
};

struct Bed {
    folder: TempDir,
    cli: Cli,
    client: Client,
}

impl Bed {
    fn new() -> Self {
        // Short, for sockets below it.
        let folder = tempfile::Builder::new().prefix("mc").tempdir_in("/tmp");
        let folder = folder.expect("folder");
        let home = folder.path().join("h");
        fs::write(folder.path().join("guest.elf"), bare_guests::guest_elf()).expect("guest");
        let disk = File::create(folder.path().join("disk.raw")).expect("disk");
        disk.set_len(DISK_BYTES).expect("size of the disk");
        Self {
            cli: Cli::new(&home).expect("mitose is built"),
            client: Client::new(&home),
            folder,
        }
    }

    fn run(&self, name: &str) {
        let path = |file: &str| self.folder.path().join(file).display().to_string();
        let (kernel, disk) = (path("guest.elf"), path("disk.raw"));
        let args = ["run", name, "--kernel", &kernel, "--disk", &disk];
        let words = "mode=disk blocks=200 flush=25";
        let more = ["--cmdline", words, "--memory", "64M", "--engine", "kvm"];
        self.cli.run(&[&args[..], &more].concat()).expect("run");
    }

    /// Rounds that a guest says it has written and verified, in the order of its words.
    fn rounds(&self, name: &str) -> Vec<u64> {
        let text = self.cli.run(&["logs", name]).unwrap_or_default();
        let failed = text.lines().find(|line| line.starts_with('E'));
        assert!(failed.is_none(), "{name} says {failed:?}");
        // The last line may be in the making, and a process that was killed may have left the
        // beginning of one.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let rounds = whole
            .lines()
            .filter_map(|line| Some(line.rsplit_once("d=")?.1));
        rounds
            .filter_map(|round| round.trim().parse().ok())
            .collect()
    }

    fn wait_rounds(&self, name: &str, more: usize) {
        let (before, deadline) = (self.rounds(name).len(), Instant::now() + PATIENCE);
        while self.rounds(name).len() < before + more {
            assert!(Instant::now() < deadline, "{name} stays at round {before}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn fork_child(&self, prefix: &str) -> String {
        let request = PointForkRequest {
            count: 1,
            prefix: Some(format!("{prefix}-")),
            ..PointForkRequest::default()
        };
        let forked = self.client.fork_children("src", &request, |_| ());
        let child = forked.expect("fork").cloned.clones.remove(0);
        assert_eq!(child.error, None);
        child.name
    }

    fn layers(&self, name: &str) -> Vec<PathBuf> {
        let detail = self.client.vm(name).expect("detail");
        detail.disks[0].layers.iter().map(PathBuf::from).collect()
    }

    fn check_disk(&self, name: &str) {
        for layer in self.layers(name) {
            if layer.extension().is_some_and(|end| end == "qcow2") {
                qemu_img(&["check", "-q", "-f", "qcow2"], &layer);
            }
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // The process that keeps a fork point outlives its daemon.
        let _ = self.client.unprepare("src", true);
        self.cli.clean_up();
    }
}

fn qemu_img(args: &[&str], path: &Path) {
    let output = Command::new("qemu-img").args(args).arg(path).output();
    let output = output.expect("qemu-img is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", path.display());
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let began = Instant::now();
    let result = work();
    (result, began.elapsed().as_micros() as u64)
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn a_child_returns_to_its_fork_point_as_fast_as_it_was_forked() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let bed = Bed::new();
    bed.run("src");
    bed.wait_rounds("src", 2);
    let request = PrepareRequest {
        quiesce: true,
        ..PrepareRequest::default()
    };
    bed.client
        .prepare("src", &request, |_| ())
        .expect("prepare");
    let at_point = bed.rounds("src").len() as u64;
    let child = bed.fork_child("c");
    let (mut forks, mut resets) = (vec![], vec![]);
    for number in 0..ROUNDS {
        let (other, us) = timed(|| bed.fork_child(&format!("o{number}")));
        forks.push(us);
        bed.client.remove(&other, true).expect("remove");
        bed.wait_rounds(&child, 2);
        let before = (bed.layers(&child), bed.rounds(&child).len());
        let (reset, us) = timed(|| bed.client.reset(&child));
        assert_eq!(reset.expect("reset").state, "running");
        resets.push(us);
        // Its disk is empty again, and its memory counts on from the fork point.
        let layers = bed.layers(&child);
        assert_ne!(layers[0], before.0[0]);
        assert_eq!(layers[1..], before.0[1..]);
        bed.wait_rounds(&child, 1);
        let again = bed.rounds(&child)[before.1..].iter().copied().min();
        let again = again.expect("a round after the reset");
        let first = bed.rounds(&child)[0];
        assert_eq!(again, first, "after {at_point} rounds of the parent");
        let gone = Instant::now() + PATIENCE;
        while before.0[0].exists() {
            assert!(Instant::now() < gone, "the old layer stays");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let (fork_us, reset_us) = (median(forks), median(resets));
    println!("fork {fork_us} us, reset {reset_us} us");
    assert!(
        reset_us <= 2 * fork_us + NOISE_US,
        "a reset took {reset_us} us, a fork {fork_us} us"
    );
    bed.client.stop(&child, &OFF).expect("stop");
    bed.check_disk(&child);
}

#[test]
fn a_persistent_child_keeps_what_it_flushed_over_power_cycles() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let bed = Bed::new();
    bed.run("src");
    bed.wait_rounds("src", 1);
    let request = PrepareRequest {
        quiesce: true,
        persistent: true,
        ..PrepareRequest::default()
    };
    bed.client
        .prepare("src", &request, |_| ())
        .expect("prepare");
    let child = PointForkRequest {
        names: vec!["p".into()],
        persistent: Some(true),
        ..PointForkRequest::default()
    };
    let forked = bed.client.fork_children("src", &child, |_| ());
    assert_eq!(forked.expect("fork").cloned.clones[0].error, None);
    let layers = bed.layers("p");
    let mut size = 0;
    for _ in 0..3 {
        bed.wait_rounds("p", 2);
        bed.client.stop("p", &OFF).expect("stop");
        assert_eq!(bed.layers("p"), layers);
        bed.check_disk("p");
        let bytes = fs::metadata(&layers[0]).expect("top").len();
        assert!(bytes >= size, "{bytes} bytes after {size}");
        size = bytes;
        bed.client.start("p").expect("start");
    }
    assert!(size > 1 << 18, "{size} bytes");
}

#[test]
fn linked_clones_of_a_guest_that_writes_hold_its_disk_and_nothing_else() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let bed = Bed::new();
    bed.run("src");
    let clone = |mode, name: &str| {
        let request = ForkRequest {
            names: vec![name.to_owned()],
            mode,
            ..ForkRequest::default()
        };
        bed.client.fork("src", &request).expect("clone")
    };
    let mut held = vec![];
    for number in 0..ROUNDS {
        bed.wait_rounds("src", 1);
        let cloned = clone(CloneMode::Linked, &format!("l{number}"));
        assert_eq!(
            (cloned.stun_us, cloned.consistency),
            (0, Consistency::Crash)
        );
        held.push(cloned.io_held_us);
    }
    println!("disks held {} us", median(held));
    bed.wait_rounds("src", 2);
    // Its RAM is where it was: the first fork that wants it makes it a layer.
    assert_eq!(clone(CloneMode::Instant, "i").memory, "layer");
    for name in ["l0", &format!("l{}", ROUNDS - 1)] {
        bed.check_disk(name);
        bed.client.start(name).expect("start");
        bed.wait_rounds(name, 2);
    }
    for name in ["src", "i"] {
        bed.client.stop(name, &OFF).expect("stop");
        bed.check_disk(name);
    }
}
