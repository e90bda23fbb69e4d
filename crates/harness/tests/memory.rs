//! What VMs take of the host's memory: bare-metal guests, driven as a user drives them.

use std::io::Write;
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
        let kernel = self.folder.path().join("guest.elf");
        let kernel = kernel.to_str().expect("path");
        let words = format!("mode=dirty idle=1 touch={touch}");
        let mut args = vec!["run", name, "--kernel", kernel, "--cmdline", &words];
        args.extend(["--memory", "128M", "--engine", "kvm"]);
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

    fn says(&self, name: &str, word: &str) -> bool {
        let text = self.cli.run(&["logs", name]).unwrap_or_default();
        text.lines().any(|line| line.trim_end() == word)
    }

    fn until_says(&self, name: &str, word: &str) {
        self.until(&format!("{name} says {word}"), || self.says(name, word));
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
