//! What VMs take of the host's memory: bare-metal guests, driven as a user drives them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use client::Client;
use harness::{Cli, kvm_present};
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything that is to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A home with a daemon; its VMs end with it.
struct Bed {
    folder: TempDir,
    cli: Cli,
    client: Client,
}

impl Bed {
    /// None where there is no KVM.
    fn new() -> Option<Self> {
        if !kvm_present() {
            eprintln!("skipped: no /dev/kvm here");
            return None;
        }
        // Short, for sockets below it.
        let folder = tempfile::Builder::new()
            .prefix("mm")
            .tempdir_in("/tmp")
            .expect("folder");
        let home = folder.path().join("h");
        std::fs::write(folder.path().join("guest.elf"), bare_guests::guest_elf()).expect("guest");
        Some(Self {
            cli: Cli::new(&home).expect("mitose is built"),
            client: Client::new(&home),
            folder,
        })
    }

    /// Runs a guest that touches `touch` MiB and then waits for commands.
    fn run(&self, name: &str, touch: u32, more: &[&str]) {
        self.run_sized(name, "128M", &format!("touch={touch}"), more);
    }

    /// Runs a guest with `memory` that does what `words` say and then waits for commands.
    fn run_sized(&self, name: &str, memory: &str, words: &str, more: &[&str]) {
        let kernel = self.folder.path().join("guest.elf");
        let kernel = kernel.to_str().expect("path");
        let words = format!("mode=dirty idle=1 {words}");
        let mut args = vec!["run", name, "--kernel", kernel, "--cmdline", &words];
        args.extend(["--memory", memory, "--engine", "kvm"]);
        args.extend(more);
        self.cli.run(&args).expect("run");
        self.until_says(name, "M");
    }

    fn info(&self, name: &str) -> Value {
        self.cli.json(&["info", name]).expect("info")
    }

    fn private_kib(&self, name: &str) -> u64 {
        self.info(name)["memory"]["private_kib"]
            .as_u64()
            .expect("private_kib")
    }

    /// Lines of the guest's output that are `word`.
    fn count(&self, name: &str, word: &str) -> usize {
        let text = self.cli.run(&["logs", name]).unwrap_or_default();
        text.lines().filter(|line| line.trim_end() == word).count()
    }

    fn until_says(&self, name: &str, word: &str) {
        self.until(&format!("{name} says {word}"), || {
            self.count(name, word) > 0
        });
    }

    fn until_state(&self, name: &str, state: &str) {
        self.until(&format!("{name} is {state}"), || {
            self.info(name)["state"] == state
        });
    }

    /// The memory cgroup of a VM's process.
    fn group_of(&self, name: &str) -> Option<PathBuf> {
        let pid = self.info(name)["pid"].as_i64()?;
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path_in = |start: &str, controller: &str| {
            let line = text.lines().find(|line| line.contains(controller))?;
            let path = line.rsplit_once(":/")?.1;
            path.contains("/home-").then(|| Path::new(start).join(path))
        };
        path_in("/sys/fs/cgroup/memory", ":memory:").or_else(|| path_in("/sys/fs/cgroup", "0::"))
    }

    /// Waits until a VM's process has been given its limit, which happens when nobody waits.
    fn until_limited(&self, name: &str) {
        let wanted = self.info(name)["memory"]["limit_kib"].as_u64();
        self.until(&format!("{name} has its limit"), || {
            let found = self.limit_of(name);
            found.is_some() && found.map(|bytes| bytes >> 10) == wanted
        });
    }

    /// The limit of the group that a VM's process is in, bytes.
    fn limit_of(&self, name: &str) -> Option<u64> {
        let group = self.group_of(name)?;
        let read = |file| std::fs::read_to_string(group.join(file)).ok();
        let text = read("memory.limit_in_bytes").or_else(|| read("memory.max"))?;
        text.trim().parse().ok()
    }

    /// The directory of this home's cgroups.
    fn groups(&self) -> PathBuf {
        let vms = self.cli.json(&["ls"]).expect("ls");
        let vms = vms.as_array().expect("a list");
        let names = vms.iter().filter_map(|vm| vm["name"].as_str());
        let mut found = names.filter_map(|name| self.group_of(name));
        let group = found.next().expect("a VM with a cgroup");
        group.parent().expect("a parent").to_owned()
    }

    /// Types one byte to the guest, which is a command to it.
    fn tell(&self, name: &str, byte: u8) {
        let mut input = self.client.console(name).expect("console");
        input.write_all(&[byte]).expect("console takes a byte");
    }

    fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.cli.clean_up();
    }
}

/// An idle guest's timer and the VM's own threads may write a few pages.
const FEW_KIB: u64 = 64;

#[test]
fn private_memory_of_an_idle_clone_stays_when_its_family_ends() {
    let Some(bed) = Bed::new() else { return };
    bed.run("s", 64, &[]);
    bed.cli.run(&["clone", "s", "--name", "a"]).expect("clone");
    // Written before the next fork points: pages of those, not of the clones.
    bed.tell("a", b'A');
    bed.until_says("a", "D");
    assert!(bed.private_kib("a") > 60 << 10, "a wrote all its pages");
    bed.cli
        .run(&["clone", "a", "--count", "3", "--prefix", "b"])
        .expect("clone");
    bed.cli
        .run(&["clone", "b2", "--count", "2", "--prefix", "c"])
        .expect("clone");
    let names = ["b1", "c1"];
    let before = names.map(|name| bed.private_kib(name));
    let shared = bed.info("b1")["memory"]["shared_kib"].as_u64();
    assert!(before.iter().all(|kib| *kib < 2048), "{before:?}");
    let family = ["s", "a", "b2", "b3", "c2"];
    let args: Vec<&str> = ["rm", "--force"].into_iter().chain(family).collect();
    bed.cli.run(&args).expect("rm");
    let after = names.map(|name| bed.private_kib(name));
    println!("private KiB {before:?} with the family, {after:?} without");
    for (before, after) in before.iter().zip(&after) {
        assert!(after.abs_diff(*before) <= FEW_KIB, "{before} {after}");
    }
    assert_eq!(bed.info("b1")["memory"]["shared_kib"].as_u64(), shared);
    // What it writes now is its own, although nobody else is left who shares those pages.
    bed.tell("b1", b'T');
    bed.until_says("b1", "D");
    let wrote = bed.private_kib("b1") - before[0];
    assert!(
        (6 << 10..8 << 10).contains(&wrote),
        "10 % of 64 MiB: {wrote} KiB"
    );
}

#[test]
fn a_clone_at_its_limit_is_powered_off_and_the_others_run_on() {
    let Some(bed) = Bed::new() else { return };
    bed.run("s", 96, &[]);
    if bed.info("s")["memory"]["limit_kib"].is_null() {
        eprintln!("skipped: no memory controller here");
        return;
    }
    let clone = |source: &str, prefix: &str| {
        let args = ["clone", source, "--count", "2", "--prefix", prefix];
        let limited = [&args[..], &["--memory-limit", "32M"]].concat();
        bed.cli.run(&limited).expect("clone");
    };
    // The first generation in shells, later ones born by fork().
    clone("s", "a");
    clone("a1", "b");
    for (victim, others) in [("a2", ["s", "a1", "b1"]), ("b2", ["s", "b1", "a1"])] {
        bed.until_limited(victim);
        bed.tell(victim, b'A');
        bed.until_state(victim, "out of memory");
        let reason = bed.info(victim)["reason"].to_string();
        assert!(reason.contains("its limit of 32 MiB"), "{reason}");
        let events = bed.cli.json(&["events"]).expect("events").to_string();
        assert!(events.contains("vm.out_of_memory"), "{events}");
        for other in others {
            assert_eq!(bed.info(other)["state"], "running", "{other}");
            bed.tell(other, b'g');
        }
    }
    // A source has its whole budget again after each fork, beside the layers it was charged for.
    for _ in 0..2 {
        bed.tell("s", b'A');
    }
    bed.until("s wrote all twice", || bed.count("s", "D") == 2);
    bed.cli.run(&["clone", "s", "--name", "c"]).expect("clone");
    bed.tell("s", b'A');
    bed.until("s wrote all again", || bed.count("s", "D") == 3);
    assert_eq!(bed.info("s")["state"], "running");
    // It starts anew as any powered-off VM.
    bed.cli.run(&["start", "b2"]).expect("start");
    bed.until_state("b2", "out of memory");
    let groups = bed.groups();
    assert!(groups.exists());
    bed.cli.clean_up();
    bed.until("no group is left", || !groups.exists());
}

/// A page that is touched for the first time after a fork is charged twice: in the layer, and as the
/// private copy.
#[test]
fn memory_that_is_first_touched_after_a_fork_is_within_the_default_limit() {
    let Some(bed) = Bed::new() else { return };
    // In a clone, in its source, in a clone born by fork() and in a source that was forked twice.
    for (clones, toucher) in [(1, "c1"), (1, "s"), (2, "c2"), (2, "s")] {
        bed.run_sized("s", "512M", "touch=490 late=1", &[]);
        if bed.info("s")["memory"]["limit_kib"].is_null() {
            eprintln!("skipped: no memory controller here");
            return;
        }
        for clone in 1..=clones {
            let args = ["clone", "s", "--name", &format!("c{clone}")];
            bed.cli.run(&args).expect("clone");
        }
        bed.until("nobody lodges", || {
            bed.group_of("s") != bed.group_of(&format!("c{clones}"))
        });
        bed.tell(toucher, b'A');
        bed.until(&format!("{toucher} touched its memory"), || {
            assert_eq!(bed.info(toucher)["state"], "running", "{clones}, {toucher}");
            bed.count(toucher, "D") == 1
        });
        let mut args = vec!["rm", "--force", "s", "c1", "c2"];
        args.truncate(3 + clones);
        bed.cli.run(&args).expect("rm");
    }
}

#[test]
fn a_clone_of_the_pool_has_its_limit_when_it_runs() {
    let Some(bed) = Bed::new() else { return };
    bed.run("s", 16, &[]);
    if bed.info("s")["memory"]["limit_kib"].is_null() {
        eprintln!("skipped: no memory controller here");
        return;
    }
    let ready = || bed.client.status().expect("status").shells_ready;
    bed.until("the pool has shells", || ready() > 4);
    let args = ["clone", "s", "--name", "a", "--memory-limit", "32M"];
    bed.cli.run(&args).expect("clone");
    assert_eq!(bed.limit_of("a"), Some(32 << 20));
}

/// Clones of a VM that was forked before are born of it: the daemon is not their parent.
#[test]
fn the_signal_that_ended_a_born_clone_is_told() {
    let Some(bed) = Bed::new() else { return };
    bed.run("s", 16, &[]);
    bed.cli.run(&["clone", "s", "--name", "a"]).expect("clone");
    bed.cli.run(&["clone", "s", "--name", "b"]).expect("clone");
    let pid = bed.info("b")["pid"].as_i64().expect("pid");
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::ABORT).expect("kill");
    bed.until_state("b", "poweredOff");
    let version = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("version");
    let mut numbers = version.split('.').map(|word| word.parse().unwrap_or(0));
    if (numbers.next(), numbers.next()) < (Some(6), Some(15)) {
        eprintln!("skipped: kernel {version} does not tell");
        return;
    }
    let reason = bed.info("b")["reason"].to_string();
    assert!(reason.contains("killed by signal 6"), "{reason}");
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let Some(bed) = Bed::new() else { return };
    let kernel = bed.folder.path().join("guest.elf");
    let kernel = kernel.to_str().expect("path");
    for (limit, wanted) in [
        ("0", "is not between"),
        ("4K", "less than a VM process needs"),
        ("1000T", "more than the host's"),
        ("lots", "--memory-limit"),
    ] {
        let args = ["run", "x", "--kernel", kernel, "--memory-limit", limit];
        let output = bed.cli.output(&args).expect("mitose");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(
            error.replace('_', "-").contains("memory-limit") && error.contains(wanted),
            "{error}"
        );
    }
    assert_eq!(bed.cli.json(&["ls"]).expect("ls"), serde_json::json!([]));
}

#[test]
fn limits_and_groups_survive_the_daemon() {
    let Some(bed) = Bed::new() else { return };
    bed.run("s", 64, &[]);
    if bed.info("s")["memory"]["limit_kib"].is_null() {
        eprintln!("skipped: no memory controller here");
        return;
    }
    let args = ["clone", "s", "--name", "a", "--memory-limit", "24M"];
    bed.cli.run(&args).expect("clone");
    let args = ["clone", "a", "--name", "b"];
    bed.cli.run(&args).expect("clone");
    let groups = bed.groups();
    let stray = groups.join("sh-left-over");
    std::fs::create_dir(&stray).expect("a group of nobody");
    let daemon = bed.client.status().expect("status").pid;
    let daemon = rustix::process::Pid::from_raw(daemon.cast_signed()).expect("pid");
    rustix::process::kill_process(daemon, rustix::process::Signal::KILL).expect("kill");
    bed.until("another daemon answers", || bed.cli.run(&["ls"]).is_ok());
    bed.until("the stray group is swept", || !stray.exists());
    bed.until_limited("b");
    bed.tell("b", b'A');
    bed.until_state("b", "out of memory");
    assert_eq!(bed.info("s")["state"], "running");
    assert_eq!(bed.info("a")["state"], "running");
}

#[test]
fn the_newest_vm_goes_first_when_the_host_runs_short() {
    let Some(bed) = Bed::new() else { return };
    bed.run("s", 16, &[]);
    bed.cli.run(&["clone", "s", "--name", "a"]).expect("clone");
    bed.cli.run(&["clone", "a", "--name", "b"]).expect("clone");
    let score = |name: &str| {
        let pid = bed.info(name)["pid"].as_i64().expect("pid");
        let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
        text.expect("score").trim().parse::<i32>().expect("number")
    };
    if may_protect() {
        let daemon = bed.client.status().expect("status").pid;
        let daemon = std::fs::read_to_string(format!("/proc/{daemon}/oom_score_adj"));
        assert_eq!(daemon.expect("score").trim(), "-900");
    }
    bed.until("VMs are ranked", || {
        let scores = ["s", "a", "b"].map(score);
        scores.is_sorted_by(|older, newer| older < newer) && scores[2] == 1000
    });
}

/// Whether this process may lower OOM scores: `CAP_SYS_RESOURCE`, which some containers take away.
fn may_protect() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let mut lines = status.lines();
    let held = lines.find_map(|line| line.strip_prefix("CapEff:"));
    u64::from_str_radix(held.expect("capabilities").trim(), 16)
        .is_ok_and(|set| (set >> 24) & 1 == 1)
}
