//! Many forks of one VM and long lines of generations: nothing wears out, nothing is left behind.
//! `MITOSE_TEST_FULL=1` makes them long.

use std::io::Write;
use std::time::{Duration, Instant};

use client::Client;
use harness::{Cli, full, kvm_present};
use tempfile::TempDir;

/// Longest wait for anything that is to happen.
const PATIENCE: Duration = Duration::from_secs(120);
/// Descriptors of the daemon that may come and go: connections, shells of the pool.
const FEW_FILES: usize = 64;

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
            .prefix("ml")
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

    /// Runs a guest that writes pages of its touched memory all the time.
    fn run(&self, name: &str) {
        let kernel = self.folder.path().join("guest.elf");
        let kernel = kernel.to_str().expect("path");
        let args = ["run", name, "--kernel", kernel, "--memory", "64M"];
        let words = ["--engine", "kvm", "--cmdline", "touch=24 write=1 scatter=1"];
        self.cli.run(&[&args[..], &words].concat()).expect("run");
        self.until_says(name, "M", 1);
    }

    fn clone_of(&self, source: &str, name: &str) {
        self.cli
            .run(&["clone", source, "--name", name])
            .expect("clone");
    }

    fn count(&self, name: &str, word: &str) -> usize {
        let text = self.cli.run(&["logs", name]).unwrap_or_default();
        let broken = text.lines().find(|line| line.starts_with('E'));
        assert_eq!(broken, None, "{name}");
        text.lines().filter(|line| line.trim_end() == word).count()
    }

    fn until_says(&self, name: &str, word: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.count(name, word) < times {
            assert!(Instant::now() < deadline, "{name} does not say {word}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Has a guest check each page that it once touched.
    fn verify(&self, name: &str) {
        let before = self.count(name, "V");
        let mut input = self.client.console(name).expect("console");
        input.write_all(b"v").expect("console takes a byte");
        self.until_says(name, "V", before + 1);
    }

    /// Open files of the daemon.
    fn daemon_files(&self) -> usize {
        let pid = self.client.status().expect("status").pid;
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
        files.expect("the daemon's files").count()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.cli.clean_up();
    }
}

#[test]
fn one_source_is_forked_again_and_again() {
    let Some(bed) = Bed::new() else { return };
    let rounds = if full() { 300 } else { 12 };
    bed.run("s");
    let mut files = 0;
    for round in 1..=rounds {
        let name = format!("c{round}");
        bed.clone_of("s", &name);
        if round % 4 == 0 {
            bed.verify(&name);
        }
        bed.cli.run(&["rm", &name, "--force"]).expect("rm");
        if round == 5 {
            files = bed.daemon_files();
        }
    }
    bed.verify("s");
    let now = bed.daemon_files();
    assert!(now <= files + FEW_FILES, "{files} files, then {now}");
}

#[test]
fn each_clone_is_the_source_of_the_next() {
    let Some(bed) = Bed::new() else { return };
    let generations = if full() { 60 } else { 8 };
    bed.run("g0");
    for generation in 1..=generations {
        let (source, name) = (format!("g{}", generation - 1), format!("g{generation}"));
        bed.clone_of(&source, &name);
        // A clone needs nobody who came before it.
        bed.cli.run(&["rm", &source, "--force"]).expect("rm");
        bed.verify(&name);
    }
    let last = bed.client.vm(&format!("g{generations}")).expect("info");
    assert_eq!(last.vm.generation, generations);
    assert_eq!(bed.client.vms().expect("ls").len(), 1);
}
