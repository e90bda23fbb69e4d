//! Children of a fork point with a Linux guest on the software engine: each has its own name, addresses
//! and guestinfo, and what it writes to a second disk is its own; also after a reset and power cycles.
//! Linked clones of it while it runs show the disks of one instant. Also how long a command waits for
//! the agent.

use std::fs::File;
use std::time::{Duration, Instant};

use harness::Cli;
use serde_json::Value;
use tempfile::TempDir;

/// Bytes of the second disk, which tell it from the first.
const EXTRA_BYTES: u64 = 48 << 20;
/// Address of a guest's first NIC.
const ADDRESS: &str = "ip -o -4 addr show dev eth0 | awk '{print $4}'";

struct Bed {
    cli: Cli,
    folder: TempDir,
}

impl Drop for Bed {
    fn drop(&mut self) {
        // The process that keeps a fork point outlives its daemon.
        let _ = self.cli.output(&["unprepare", "web", "--force"]);
        self.cli.clean_up();
    }
}

impl Bed {
    fn new() -> Self {
        // Short, for sockets below it.
        let folder = tempfile::Builder::new().prefix("lc").tempdir_in("/tmp");
        let folder = folder.expect("folder");
        let cli = Cli::new(&folder.path().join("h")).expect("mitose is built");
        let bed = Self { cli, folder };
        bed.run(&["image", "build", "tiny"]);
        bed
    }

    fn run(&self, args: &[&str]) -> String {
        self.cli.run(args).expect("it is done")
    }

    fn json(&self, args: &[&str]) -> Value {
        self.cli.json(args).expect("it is done")
    }

    fn sh(&self, name: &str, script: &str) -> String {
        self.cli.shell(name, script).expect("the guest does it")
    }

    /// Path of a new disk.
    fn disk(&self, name: &str, bytes: u64) -> String {
        let path = self.folder.path().join(name);
        let file = File::create(&path).expect("disk");
        file.set_len(bytes).expect("size");
        format!("{},format=raw", path.display())
    }

    /// Boots `web`, without waiting for its agent.
    fn boot(&self) {
        let disks = [
            self.disk("one.raw", 16 << 20),
            self.disk("two.raw", EXTRA_BYTES),
        ];
        let mut args = vec!["run", "web", "--image", "tiny", "--engine", "soft"];
        args.extend(["--memory", "192M", "--net", "disconnected", "--wait", "0"]);
        args.extend(["--disk", &disks[0], "--disk", &disks[1]]);
        self.run(&args);
    }

    /// What a child was told of itself, as its guest shows it.
    fn identity(&self, name: &str) -> [String; 4] {
        let get = "mitose-guest guestinfo get guestinfo.";
        [
            self.sh(name, "hostname"),
            self.sh(name, ADDRESS),
            self.sh(name, &format!("{get}job")),
            self.sh(name, &format!("{get}who")),
        ]
    }

    fn write(&self, name: &str, text: &str) {
        let write = format!("printf '%s' '{text}' | dd of=/dev/vdb conv=notrunc,fsync 2>/dev/null");
        self.sh(name, &write);
    }

    /// Text at the beginning of the second disk.
    fn read(&self, name: &str) -> String {
        self.sh(
            name,
            "dd if=/dev/vdb bs=64 count=1 2>/dev/null | tr -d '\\000'",
        )
    }

    fn fork(&self, more: &[&str]) -> Vec<String> {
        let mut args = vec!["fork", "web", "--wait", "240"];
        args.extend(["--guestinfo", "job={index}", "--guestinfo", "who={name}"]);
        args.extend(["--net-ip", "0=10.9.0.11/24,gw=10.9.0.1"]);
        args.extend(more);
        let forked = self.json(&args);
        let clones = forked["clones"].as_array().expect("children");
        let ready = |clone: &Value| {
            assert!(
                clone["error"].is_null() && clone["ready_us"].is_u64(),
                "{clone}"
            );
            clone["name"].as_str().expect("name").to_owned()
        };
        clones.iter().map(ready).collect()
    }
}

fn identity(name: &str, last: u8, job: u8) -> [String; 4] {
    let address = format!("10.9.0.{last}/24");
    [name.to_owned(), address, job.to_string(), name.to_owned()]
}

#[test]
fn children_are_themselves_on_all_disks_over_resets_and_power_cycles() {
    let bed = Bed::new();
    bed.boot();
    // The command waits for the agent of a guest that is still booting.
    assert_eq!(bed.sh("web", "hostname"), "web");
    let size = bed.sh("web", "cat /sys/block/vdb/size");
    assert_eq!(size, (EXTRA_BYTES / 512).to_string());
    bed.write("web", "parent");
    bed.run(&["prepare", "web", "--quiesce"]);
    assert_eq!(
        bed.fork(&["--count", "2", "--prefix", "w-"]),
        ["w-1", "w-2"]
    );
    assert_eq!(bed.identity("w-1"), identity("w-1", 11, 1));
    assert_eq!(bed.identity("w-2"), identity("w-2", 12, 2));
    bed.write("w-1", "first-");
    assert_eq!(
        (bed.read("w-1"), bed.read("w-2")),
        ("first-".into(), "parent".into())
    );
    bed.run(&["reset", "w-1"]);
    assert_eq!(bed.identity("w-1"), identity("w-1", 11, 1));
    assert_eq!(bed.read("w-1"), "parent");

    assert_eq!(bed.fork(&["--name", "keep", "--persistent"]), ["keep"]);
    let own = identity("keep", 11, 1);
    assert_eq!(bed.identity("keep"), own);
    bed.write("keep", "first-");
    for cycle in ["second", "third-"] {
        let before = bed.read("keep");
        bed.run(&["stop", "keep", "--force"]);
        bed.run(&["start", "keep"]);
        assert_eq!(bed.read("keep"), before);
        assert_eq!(bed.identity("keep"), own);
        bed.write("keep", cycle);
    }
    bed.run(&["resume", "web"]);
    assert_eq!(bed.read("web"), "parent");

    // A linked clone of a guest that runs, with its disks as they are.
    bed.write("keep", "linked");
    let linked = bed.json(&[
        "clone",
        "keep",
        "--name",
        "link",
        "--mode",
        "linked",
        "--quiesce",
    ]);
    assert_eq!(
        (&linked["stun_us"], &linked["consistency"]),
        (&0.into(), &"synced".into())
    );
    bed.write("keep", "later-");
    bed.run(&["start", "link"]);
    assert_eq!(bed.sh("link", "hostname"), "link");
    assert_eq!(
        (bed.read("link"), bed.read("keep")),
        ("linked".into(), "later-".into())
    );
}

#[test]
fn a_command_fails_fast_where_there_is_no_agent_and_says_what_to_do() {
    let bed = Bed::new();
    let kernel = bed.folder.path().join("guest.elf");
    std::fs::write(&kernel, bare_guests::guest_elf()).expect("guest");
    let kernel = kernel.display().to_string();
    bed.run(&[
        "run", "bare", "--kernel", &kernel, "--memory", "32M", "--engine", "soft",
    ]);
    let begun = Instant::now();
    let refused = bed
        .cli
        .output(&["exec", "bare", "--", "true"])
        .expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("bare has no guest agent"), "{said}");
    assert!(
        said.contains("mitose-guest") && said.trim().lines().count() == 1,
        "{said}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    // A guest that has an agent, which does not come.
    bed.boot();
    bed.run(&["pause", "web"]);
    let refused = bed
        .cli
        .output(&["exec", "web", "--wait", "1", "--", "true"]);
    let said = String::from_utf8_lossy(&refused.expect("it runs").stderr).into_owned();
    assert!(said.contains("mitose resume web"), "{said}");
    bed.run(&["resume", "web"]);
    let hasty = bed
        .cli
        .output(&["exec", "web", "--wait", "0", "--", "true"]);
    let said = String::from_utf8_lossy(&hasty.expect("it runs").stderr).into_owned();
    assert!(
        said.contains("not ready within 0 s") && said.contains("--wait"),
        "{said}"
    );
    let text = bed.run(&["exec", "web", "--wait", "240", "--", "echo", "there"]);
    assert_eq!(text, "there\n");
}
