//! States of a bare-metal guest with a disk on the machine's own KVM: it returns to the instant of a
//! snapshot, goes on from disk after it was suspended, and goes on in another home after it was
//! exported. The guest itself verifies that memory and disk are of one instant.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Cli, kvm_present};

/// Longest wait for what a guest prints.
const PATIENCE: Duration = Duration::from_secs(120);
/// Rounds that a guest may do between the look at its log and the instant that follows.
const SLACK: u64 = 400;

/// One VM and its console.
struct Guest<'a> {
    cli: &'a Cli,
    name: &'a str,
    /// Length of the log that was looked at.
    seen: usize,
}

impl Guest<'_> {
    fn log(&self) -> String {
        self.cli.run(&["logs", self.name]).expect("logs")
    }

    /// Rounds in what was printed since the last mark; an error that the guest found ends the test.
    fn rounds(&self) -> Vec<u64> {
        let log = self.log();
        let mut lines: Vec<&str> = log[self.seen..].lines().collect();
        if !log.ends_with('\n') {
            lines.pop();
        }
        for line in &lines {
            assert!(!line.starts_with('E'), "the guest found {line:?}");
        }
        // The first line may be the rest of one that an instant cut.
        let rounds = lines.iter().filter_map(|line| line.strip_prefix("d="));
        rounds.filter_map(|round| round.parse().ok()).collect()
    }

    fn mark(&mut self) {
        self.seen = self.log().len();
    }

    /// Waits for `count` rounds since the mark.
    fn wait(&self, count: usize) -> Vec<u64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rounds = self.rounds();
            if rounds.len() >= count {
                return rounds;
            }
            assert!(Instant::now() < deadline, "only {rounds:?}: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn last(&self) -> u64 {
        *self.wait(1).last().expect("a round")
    }

    /// The rounds since the mark go on from about `at`, one after the other.
    fn goes_on_from(&self, at: u64) {
        let rounds = self.wait(6);
        assert!(
            (at..at + SLACK).contains(&rounds[0]),
            "{rounds:?} does not go on from {at}"
        );
        assert!(
            rounds.windows(2).all(|pair| pair[0] < pair[1]),
            "{rounds:?}"
        );
    }
}

/// Checks every qcow2 file of a home's datastore.
fn check_layers(home: &Path) {
    let layers = home.join("datastore1/layers");
    let mut checked = 0;
    for entry in std::fs::read_dir(layers).expect("layers").flatten() {
        if entry
            .path()
            .extension()
            .is_some_and(|ending| ending == "qcow2")
        {
            let check = Command::new("qemu-img")
                .arg("check")
                .arg(entry.path())
                .output();
            let check = check.expect("qemu-img");
            assert!(check.status.success(), "{:?}: {check:?}", entry.path());
            checked += 1;
        }
    }
    assert!(checked > 0, "there is nothing to check");
}

#[test]
fn a_guest_returns_to_its_states() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let folder = tempfile::Builder::new()
        .prefix("st")
        .tempdir_in("/tmp")
        .expect("folder");
    let at = |name: &str| folder.path().join(name);
    let text = |name: &str| at(name).to_str().expect("path").to_owned();
    std::fs::write(at("guest.elf"), bare_guests::guest_elf()).expect("guest");
    std::fs::write(at("disk.raw"), vec![0; 4 << 20]).expect("disk");
    let cli = Cli::new(&at("h")).expect("mitose is built");
    let other = Cli::new(&at("o")).expect("mitose is built");
    let (kernel, disk) = (text("guest.elf"), text("disk.raw"));
    let mut args = vec!["run", "s", "--kernel", &kernel, "--disk", &disk];
    args.extend(["--memory", "64M", "--engine", "kvm"]);
    args.extend(["--cmdline", "mode=disk blocks=64 flush=8"]);
    cli.run(&args).expect("run");
    let mut guest = Guest {
        cli: &cli,
        name: "s",
        seen: 0,
    };

    // The first instant is a layer in memory, the second is written by a process born for it.
    guest.wait(3);
    let mut instants = Vec::new();
    for name in ["one", "two"] {
        let at = guest.last();
        let made = cli.json(&["snapshot", "create", "s", name, "--memory"]);
        let made = made.expect("snapshot");
        println!("stun of {name}: {} us", made["stun_us"]);
        instants.push((name, at));
        guest.mark();
        guest.wait(6);
    }
    for (name, at) in instants {
        cli.run(&["pause", "s"]).expect("pause");
        guest.mark();
        cli.run(&["snapshot", "revert", "s", name]).expect("revert");
        guest.goes_on_from(at);
    }

    cli.run(&["suspend", "s"]).expect("suspend");
    let last = guest.last();
    guest.mark();
    cli.run(&["daemon", "stop"]).expect("stop");
    cli.run(&["start", "s"]).expect("start");
    guest.goes_on_from(last);

    // A clone of a snapshot is there beside the VM.
    let clone = ["clone", "s", "--snapshot", "one", "--name", "c"];
    cli.run(&clone).expect("clone");
    let clone = Guest {
        cli: &cli,
        name: "c",
        seen: 0,
    };
    clone.wait(3);

    let archive = text("s.tar");
    let last = guest.last();
    cli.run(&["export", "s", &archive]).expect("export");
    guest.mark();
    guest.wait(2);
    other
        .run(&["import", &archive, "--name", "t"])
        .expect("import");
    other.run(&["start", "t"]).expect("start");
    let moved = Guest {
        cli: &other,
        name: "t",
        seen: 0,
    };
    moved.goes_on_from(last);

    for cli in [&cli, &other] {
        let vms = cli.json(&["ls"]).expect("ls");
        for vm in vms.as_array().expect("VMs") {
            let name = vm["name"].as_str().expect("name");
            cli.run(&["stop", name, "--force"]).expect("stop");
        }
        check_layers(cli.home());
        cli.clean_up();
    }
}
