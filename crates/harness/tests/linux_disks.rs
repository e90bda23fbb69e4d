//! Spare disk slots with a Linux guest on the software engine: what clones and children are given there
//! at the fork, their guests see, write and keep, or have again after a reset.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::Cli;
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// Sizes of disks, which tell them from each other, bytes.
const FIRST: u64 = 16 << 20;
const BLANK: u64 = 48 << 20;
const DATA: u64 = 24 << 20;

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
    /// Boots `web` with one disk and two spare slots.
    fn new() -> Self {
        // Short, for sockets below it.
        let folder = tempfile::Builder::new().prefix("ld").tempdir_in("/tmp");
        let folder = folder.expect("folder");
        let cli = Cli::new(&folder.path().join("h")).expect("mitose is built");
        let bed = Self { cli, folder };
        bed.run(&["image", "build", "tiny"]);
        let disk = bed.disk("one.raw", FIRST, b"one");
        let mut args = vec!["run", "web", "--image", "tiny", "--engine", "soft"];
        args.extend(["--memory", "192M", "--net", "disconnected", "--wait", "240"]);
        args.extend(["--disk", &disk, "--spare-disks", "2"]);
        bed.run(&args);
        bed
    }

    fn run(&self, args: &[&str]) -> String {
        self.cli.run(args).expect("it is done")
    }

    fn sh(&self, name: &str, script: &str) -> String {
        self.cli.shell(name, script).expect("the guest does it")
    }

    /// A new disk that begins with `text`.
    fn disk(&self, name: &str, bytes: u64, text: &[u8]) -> String {
        let path = self.folder.path().join(name);
        let mut file = File::create(&path).expect("disk");
        file.write_all(text).expect("text");
        file.set_len(bytes).expect("size");
        format!("{},format=raw", path.display())
    }

    /// Waits until the guest shows sizes of vda, vdb and vdc, bytes.
    fn sees(&self, name: &str, wanted: [u64; 3]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.sh(name, "cat /sys/block/vda/size /sys/block/vd[bc]/size");
            let sizes: Vec<u64> = text.lines().map(|n| n.parse().expect("size")).collect();
            if sizes.iter().map(|size| size * 512).eq(wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "{name} sees {sizes:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Writes to the beginning and the end of a disk, and syncs.
    fn write(&self, name: &str, disk: &str, text: &str, bytes: u64) {
        let last = bytes / 512 - 1;
        let script = format!(
            "for at in 0 {last}; do printf '%s' '{text}' | dd of=/dev/{disk} bs=512 seek=$at \
             conv=notrunc,fsync 2>/dev/null || exit 1; done; sync"
        );
        self.sh(name, &script);
    }

    /// Text at the beginning of a disk.
    fn read(&self, name: &str, disk: &str) -> String {
        let script = format!("dd if=/dev/{disk} bs=64 count=1 2>/dev/null | tr -d '\\000'");
        self.sh(name, &script)
    }

    /// Powers a VM off and has `qemu-img` look at its disks.
    fn stop_and_check(&self, name: &str) {
        self.run(&["stop", name, "--force"]);
        let detail = self.cli.json(&["info", name]).expect("detail");
        let disks = detail["disks"].as_array().expect("disks");
        let layers = disks.iter().flat_map(|disk| disk["layers"].as_array());
        for layer in layers.flatten().filter_map(Value::as_str) {
            let qcow2 = Path::new(layer)
                .extension()
                .is_some_and(|end| end == "qcow2");
            let mut check = Command::new("qemu-img");
            check.args(["check", "-q", layer]);
            assert!(
                !qcow2 || check.status().expect("qemu-img").success(),
                "{layer}"
            );
        }
    }
}

#[test]
fn children_see_the_disks_that_they_are_given() {
    let bed = Bed::new();
    let data = bed.disk("data.raw", DATA, b"data");
    bed.sees("web", [FIRST, 0, 0]);
    bed.run(&["prepare", "web", "--quiesce", "--children", "1"]);
    let mut fork = vec!["fork", "web", "--count", "2", "--wait", "240"];
    fork.extend(["--extra-disk", "size=48M", "--extra-disk", &data]);
    let checked = bed.run(&[&fork[..], &["--check"]].concat());
    assert!(checked.contains("would") || checked.is_empty(), "{checked}");
    bed.run(&fork);
    for name in ["web-1", "web-2"] {
        bed.sees(name, [FIRST, BLANK, DATA]);
        assert_eq!(
            (bed.read(name, "vdb"), bed.read(name, "vdc")),
            ("".into(), "data".into())
        );
        bed.write(name, "vdb", name, BLANK);
        bed.write(name, "vdc", name, DATA);
    }
    assert_eq!(bed.read("web-1", "vdb"), "web-1");
    assert_eq!(bed.read("web-2", "vdc"), "web-2");
    // It returns with the disks as they were.
    bed.run(&["reset", "web-1"]);
    bed.run(&["stop", "web-2", "--force"]);
    bed.run(&["start", "web-2"]);
    for name in ["web-1", "web-2"] {
        bed.sees(name, [FIRST, BLANK, DATA]);
        assert_eq!(
            (bed.read(name, "vdb"), bed.read(name, "vdc")),
            ("".into(), "data".into())
        );
    }
    // One that keeps its disks has what it wrote.
    let keep = [
        "fork",
        "web",
        "--name",
        "keep",
        "--persistent",
        "--wait",
        "240",
    ];
    bed.run(&[&keep[..], &["--extra-disk", "size=48M"]].concat());
    bed.sees("keep", [FIRST, BLANK, 0]);
    for text in ["first", "again"] {
        bed.write("keep", "vdb", text, BLANK);
        bed.stop_and_check("keep");
        bed.run(&["start", "keep"]);
        bed.sees("keep", [FIRST, BLANK, 0]);
        assert_eq!(bed.read("keep", "vdb"), text);
    }
    // Its clones have a delta on it, and the slot that is left.
    bed.run(&[
        "clone",
        "keep",
        "--name",
        "more",
        "--extra-disk",
        &data,
        "--wait",
        "240",
    ]);
    bed.sees("more", [FIRST, BLANK, DATA]);
    assert_eq!(
        (bed.read("more", "vdb"), bed.read("more", "vdc")),
        ("again".into(), "data".into())
    );
    bed.write("more", "vdb", "mine", BLANK);
    assert_eq!(bed.read("keep", "vdb"), "again");
    bed.stop_and_check("more");
}

#[test]
fn clones_of_a_running_guest_see_the_disks_that_they_are_given() {
    let bed = Bed::new();
    let data = bed.disk("data.raw", DATA, b"data");
    let mut clone = vec![
        "clone", "web", "--count", "2", "--prefix", "c", "--wait", "240",
    ];
    clone.extend(["--extra-disk", "size=48M"]);
    bed.run(&clone);
    for name in ["c1", "c2"] {
        bed.sees(name, [FIRST, BLANK, 0]);
        bed.write(name, "vdb", name, BLANK);
    }
    // Born by fork().
    bed.run(&[
        "clone",
        "c1",
        "--name",
        "d",
        "--extra-disk",
        &data,
        "--wait",
        "240",
    ]);
    bed.sees("d", [FIRST, BLANK, DATA]);
    assert_eq!(
        (bed.read("d", "vdb"), bed.read("d", "vdc")),
        ("c1".into(), "data".into())
    );
    bed.write("d", "vdb", "mine", BLANK);
    bed.write("d", "vdc", "mine", DATA);
    assert_eq!(
        (bed.read("c1", "vdb"), bed.read("c2", "vdb")),
        ("c1".into(), "c2".into())
    );
    bed.sees("web", [FIRST, 0, 0]);
    // A slot is filled while the guest runs, which it goes on with; its clones have the disk.
    bed.run(&["set", "web", "--insert-disk", "size=48M"]);
    bed.sees("web", [FIRST, BLANK, 0]);
    bed.write("web", "vdb", "late", BLANK);
    let clone = ["clone", "web", "--name", "e", "--wait", "240"];
    bed.run(&clone);
    assert_eq!(bed.read("e", "vdb"), "late");
    bed.run(&["suspend", "d"]);
    bed.run(&["resume", "d"]);
    assert_eq!(bed.read("d", "vdc"), "mine");
    for name in ["c1", "c2", "d", "e", "web"] {
        bed.stop_and_check(name);
    }
    bed.run(&["start", "d"]);
    bed.sees("d", [FIRST, BLANK, DATA]);
    assert_eq!(
        (bed.read("d", "vdb"), bed.read("d", "vdc")),
        ("mine".into(), "mine".into())
    );
}
