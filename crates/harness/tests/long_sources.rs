//! A source that is forked again and again while its guest writes to its disk and checks it: the
//! stack stays short, the stun stays what it was, and a daemon that is killed in the middle of
//! keeping it so loses nothing. 100 forks; 300 with `MITOSE_TEST_FULL=1`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use api_types::ForkRequest;
use client::Client;
use disk_layers::{DiskFormat, DiskStack, LayerFile, StackOptions};
use harness::{Cli, kvm_present};
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(120);
const DISK_BYTES: u64 = 32 << 20;
/// Layers of a disk that the daemon keeps up.
const LIMIT: usize = 8;
/// Forks whose stuns are taken together.
const WINDOW: usize = 20;

struct Bed {
    folder: TempDir,
    cli: Cli,
    client: Client,
}

impl Bed {
    fn new() -> Self {
        // Short, for sockets below it.
        let folder = tempfile::Builder::new().prefix("ml").tempdir_in("/tmp");
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

    /// Forks once; returns the stun, microseconds.
    fn fork(&self, source: &str, clone: &str) -> u64 {
        let request = ForkRequest {
            names: vec![clone.to_owned()],
            // The guest's own flushes may take long on a busy host.
            drain_ms_max: Some(30_000),
            ..ForkRequest::default()
        };
        let cloned = self.client.fork(source, &request).expect("fork");
        let error = &cloned.clones[0].error;
        assert!(error.is_none(), "{error:?}");
        cloned.stun_us
    }

    fn layers(&self, name: &str) -> Vec<PathBuf> {
        let info = self.cli.json(&["info", name]).expect("info");
        let layers = info["disks"][0]["layers"].as_array().cloned();
        let layers = layers.expect("layers");
        let path = |layer: &Value| PathBuf::from(layer.as_str().expect("path"));
        layers.iter().map(path).collect()
    }

    /// Rounds that a guest has written and verified; an `E` line is a guest that found an error.
    fn rounds(&self, name: &str) -> usize {
        let text = self.cli.run(&["logs", name]).unwrap_or_default();
        assert!(
            !text.lines().any(|line| line.starts_with('E')),
            "{name}: {text}"
        );
        text.lines().filter(|line| line.starts_with("d=")).count()
    }

    fn wait_rounds(&self, name: &str, more: usize) {
        let (before, deadline) = (self.rounds(name), Instant::now() + PATIENCE);
        while self.rounds(name) < before + more {
            assert!(Instant::now() < deadline, "{name} stays at round {before}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn merges(&self) -> usize {
        let (mut after, mut merged) = (0, 0);
        loop {
            let page = self.client.events(Some(after)).expect("events");
            let Some(last) = page.last() else {
                return merged;
            };
            after = last.id;
            merged += page.iter().filter(|e| e.kind == "disk.merged").count();
        }
    }

    /// Ends the daemon by SIGKILL; the next call starts another.
    fn kill_daemon(&self) {
        let pid = self.client.status().expect("status").pid;
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
        let deadline = Instant::now() + PATIENCE;
        // The old one is gone when its last thread is; until then it may still take a call.
        while self
            .client
            .status()
            .is_ok_and(|status| status.pid.cast_signed() == pid.as_raw_nonzero().get())
            || self.cli.json(&["ls"]).is_err()
        {
            assert!(Instant::now() < deadline, "no other daemon comes");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The disk's content by the daemon's record, and as QEMU finds it by the names in the files.
    fn check_disk(&self, name: &str) {
        let chain = self.layers(name);
        let mut files = chain.iter().map(|path| LayerFile {
            file: File::open(path).expect("layer"),
            format: format_of(path),
        });
        let top = files.next().expect("a top");
        let options = StackOptions {
            read_only: true,
            ..StackOptions::default()
        };
        let mut stack = DiskStack::open(top, files.collect(), options).expect("the stack");
        let mut recorded = vec![0; DISK_BYTES as usize];
        stack.read_at(0, &mut recorded).expect("read");
        for layer in chain
            .iter()
            .filter(|path| format_of(path) == DiskFormat::Qcow2)
        {
            qemu_img(&["check", "-q", "-f", "qcow2", layer.to_str().expect("path")]);
        }
        let flat = self.folder.path().join("flat.raw");
        fs::write(&flat, recorded).expect("flat copy");
        let (top, flat) = (chain[0].display().to_string(), flat.display().to_string());
        qemu_img(&["compare", "-q", "-f", "qcow2", "-F", "raw", &top, &flat]);
    }

    /// Waits until no stack is to be made shorter and every file of the datastore belongs to one
    /// of the VMs.
    fn wait_tidy(&self, names: &[String]) {
        let folder = self.cli.home().join("datastore1/layers");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let used: BTreeSet<_> = names.iter().flat_map(|name| self.layers(name)).collect();
            let files = fs::read_dir(&folder).expect("layers").flatten();
            let left: Vec<_> = files
                .filter_map(|entry| entry.path().canonicalize().ok())
                .filter(|path| !used.contains(path))
                .collect();
            let depth = self.layers(&names[0]).len();
            if left.is_empty() && depth < LIMIT - 1 {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{depth} layers, and of nobody: {left:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.cli.clean_up();
    }
}

fn format_of(path: &Path) -> DiskFormat {
    match path.extension().is_some_and(|end| end == "qcow2") {
        true => DiskFormat::Qcow2,
        false => DiskFormat::Raw,
    }
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output();
    let output = output.expect("qemu-img is installed");
    let (out, err) = (&output.stdout, &output.stderr);
    let said = String::from_utf8_lossy(out) + String::from_utf8_lossy(err);
    assert!(output.status.success(), "{args:?}: {said}");
}

/// The shortest: others use the host too, and what grows with a stack grows in all of them.
fn shortest(stuns: &[u64]) -> u64 {
    stuns.iter().copied().min().unwrap_or(0)
}

#[test]
fn a_source_is_forked_hundreds_of_times() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let bed = Bed::new();
    bed.run("src");
    bed.wait_rounds("src", 1);
    let forks = if harness::full() { 300 } else { 100 };
    let (mut stuns, mut kept, mut deepest) = (vec![], vec!["src".to_owned()], 0);
    for number in 1..=forks {
        let clone = format!("c{number}");
        stuns.push(bed.fork("src", &clone));
        let depth = bed.layers("src").len();
        deepest = deepest.max(depth);
        assert!(depth <= LIMIT, "{depth} layers after fork {number}");
        if number % (forks / 4) == 0 {
            // Standing still, it leaves the processors to the source.
            bed.cli.run(&["pause", &clone]).expect("pause");
            kept.push(clone);
        } else {
            bed.cli.run(&["rm", &clone, "--force"]).expect("rm");
        }
        if number % 16 == 0 {
            // Merges come every few forks; the moments differ from one to the next.
            std::thread::sleep(Duration::from_millis(number * 13 % 70));
            bed.kill_daemon();
            let state = bed.cli.json(&["info", "src"]).expect("info")["state"].clone();
            assert_eq!(state, "running", "after fork {number}");
        }
    }
    let merges = bed.merges();
    assert!(merges as u64 >= forks / 8, "{merges} merges");
    let (early, late) = (&stuns[1..=WINDOW], &stuns[stuns.len() - WINDOW..]);
    let (early, late) = (shortest(early), shortest(late));
    println!(
        "{forks} forks, {merges} merges, at most {deepest} layers, stun {early} then {late} us"
    );
    assert!(
        late <= 2 * early + 200,
        "stun rose from {early} to {late} us"
    );

    for name in &kept {
        bed.cli.run(&["resume", name]).expect("resume");
        bed.wait_rounds(name, 1);
    }
    bed.wait_tidy(&kept);
    for name in &kept {
        bed.cli.run(&["stop", name, "--force"]).expect("stop");
        bed.check_disk(name);
    }
}
