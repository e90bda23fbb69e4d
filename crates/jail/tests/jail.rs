//! Code that runs in a jailed process reaches no file, no socket and no other process, and can do
//! what a VM needs. The hostile code is the example `escape`; both run as root.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

const ATTACKER_UID: u32 = 0x6e00_2000;

fn escape() -> PathBuf {
    let test = std::env::current_exe().expect("own path");
    let profile = test.ancestors().nth(2).expect("target folder");
    let program = profile.join("examples/escape");
    assert!(
        program.exists(),
        "{} is missing: `cargo build -p jail --examples` builds it",
        program.display()
    );
    program
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let root = status.lines().any(|line| line.starts_with("Uid:\t0\t0"));
    if !root {
        eprintln!("skipped: only root can jail a process");
    }
    root
}

/// A jailed process that ends when its standard input does.
struct Jailed {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Jailed {
    fn start(mode: &str, uid: u32, args: &[&str]) -> Self {
        let mut child = Command::new(escape())
            .arg(mode)
            .args(["--uid", &uid.to_string()])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the example");
        let output = BufReader::new(child.stdout.take().expect("stdout"));
        let mut jailed = Self { child, output };
        let first = jailed.line();
        assert!(first["jailed"].is_string(), "{first}");
        jailed
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn rest(&mut self) -> Vec<Value> {
        let mut text = String::new();
        self.output.read_to_string(&mut text).expect("output");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn named<'a>(lines: &'a [Value], key: &str) -> Vec<&'a str> {
    lines.iter().filter_map(|line| line[key].as_str()).collect()
}

#[test]
fn jailed_code_reaches_nothing_and_can_run_a_vm() {
    if is_root() {
        attack(0x6e00_1000, 0x6e00_1100, &[]);
    }
}

#[test]
fn the_same_holds_without_landlock() {
    if is_root() {
        attack(0x6e00_3000, 0x6e00_3100, &["--empty-mounts"]);
    }
}

/// Lets a hostile process loose beside another one.
fn attack(victim_uid: u32, attacker_uid: u32, options: &[&str]) {
    let folder = tempfile::tempdir().expect("folder");
    let disk = folder.path().join("disk.qcow2");
    std::fs::write(&disk, "another VM's content").expect("disk");
    let mut victim = Jailed::start("wait", victim_uid, options);
    let pid = victim.child.id().to_string();
    let uid = victim_uid.to_string();
    let path = disk.to_str().expect("path");
    let target = ["--disk", path, "--victim", &pid, "--victim-uid", &uid];
    let mut attacker = Jailed::start("try", attacker_uid, &[&target, options].concat());
    let lines = attacker.rest();
    let status = attacker.child.wait().expect("status");

    assert_eq!(named(&lines, "broken"), Vec::<&str>::new());
    assert_eq!(named(&lines, "works").len(), 9, "{lines:?}");
    let reached: Vec<&Value> = lines.iter().filter(|l| l["reached"].is_string()).collect();
    assert!(reached.is_empty(), "{reached:#?}");
    assert!(status.success(), "{status}");
    let denied: BTreeSet<&str> = named(&lines, "denied").into_iter().collect();
    assert!(denied.len() > 400, "{} attempts", denied.len());
    for name in [
        "openat of other disk",
        "socket inet stream",
        "kill victim",
        "with capabilities: kill victim",
        "under the victim's id: abort victim",
        "own clone, under its id: abort victim",
    ] {
        assert!(denied.contains(name), "{name} was not tried");
    }
    assert_eq!(lines.last().expect("lines")["clone_alive"], true);

    drop(victim.child.stdin.take());
    assert_eq!(victim.line()["alive"], true, "the victim was hurt");
    assert!(victim.child.wait().expect("status").success());
    let content = std::fs::read_to_string(&disk).expect("disk");
    assert_eq!(content, "another VM's content");
    assert!(!PathBuf::from("/tmp/mitose-escaped").exists());
}

#[test]
fn the_32_bit_entry_ends_the_process() {
    if !is_root() {
        return;
    }
    let mut jailed = Jailed::start("int80", ATTACKER_UID + 1, &[]);
    let status = jailed.child.wait().expect("status");
    // SIGSYS, from the filter; SIGSEGV where the kernel has no such entry.
    assert!(matches!(status.signal(), Some(31 | 11)), "{status}");
}

#[test]
fn an_id_outside_the_range_is_refused() {
    if !is_root() {
        return;
    }
    let output = Command::new(escape())
        .args(["wait", "--uid", "1000"])
        .stdin(Stdio::null())
        .output()
        .expect("start the example");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("Uid { uid: 1000"), "{text}");
}
