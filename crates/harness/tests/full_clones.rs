//! Disk pools as a user sees them: full clones out of pools on two datastores take a small part of
//! the time of copies, the one that finds no copy says why, and a refill that is cut leaves no half.
//! The disk is 256 MiB of random bytes; with `MITOSE_TEST_FULL=1` it is that of the `debian` image.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Cli, full};
use serde_json::Value;

/// Longest wait for a pool to be full.
const PATIENCE: Duration = Duration::from_secs(900);
/// Ready copies on each of the two datastores.
const EACH: usize = 4;
/// What a clone out of a pool takes of the time of a copy at most.
const SHARE: f64 = 0.05;
/// Bytes of the disk of the short version.
const DISK_BYTES: usize = 256 << 20;

struct Bench {
    cli: Cli,
    folder: tempfile::TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.cli.clean_up();
    }
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("fc")
            .tempdir_in("/tmp")
            .expect("folder");
        let cli = Cli::new(&folder.path().join("h")).expect("mitose is built");
        let bench = Self { cli, folder };
        let two = bench.at("two");
        std::fs::create_dir(&two).expect("folder");
        bench.run(&["datastore", "add", "two", "--path", &two]);
        bench
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn run(&self, args: &[&str]) -> String {
        self.cli.run(args).expect("it is done")
    }

    fn json(&self, args: &[&str]) -> Value {
        self.cli.json(args).expect("it is done")
    }

    /// Makes a powered-off VM `web`.
    fn make_source(&self) {
        if full() {
            let image = ["image", "build", "debian", "--name", "debian"];
            self.cli.show(&image).expect("the debian image");
            self.run(&["create", "web", "--image", "debian", "--memory", "512M"]);
            return;
        }
        let (kernel, disk) = (self.at("guest.elf"), self.at("disk.raw"));
        std::fs::write(&kernel, bare_guests::guest_elf()).expect("guest");
        let mut content = vec![0_u8; DISK_BYTES];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for word in content.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        std::fs::write(&disk, content).expect("disk");
        self.run(&["create", "web", "--kernel", &kernel, "--disk", &disk]);
    }

    /// Makes full clones; returns them and how long it took.
    fn clone(&self, count: usize, prefix: &str) -> (Vec<Value>, Duration) {
        let count = count.to_string();
        let begun = Instant::now();
        let mut args = vec!["clone", "web", "--mode", "full", "--prefix", prefix];
        args.extend(["--count", &count]);
        let cloned = self.json(&args);
        let took = begun.elapsed();
        (cloned["clones"].as_array().expect("list").clone(), took)
    }

    fn remove(&self, prefix: &str, count: usize) {
        for number in 1..=count {
            self.run(&["rm", &format!("{prefix}{number}")]);
        }
    }

    fn pools(&self) -> Vec<Value> {
        let pools = self.json(&["pool", "ls"]);
        pools.as_array().expect("list").clone()
    }

    fn until_full(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.pools().iter().all(|pool| pool["state"] == "full") {
            assert!(Instant::now() < deadline, "{:#?}", self.pools());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Folders of the pools on both datastores.
    fn pool_dirs(&self) -> Vec<PathBuf> {
        let stores = [self.at("h/datastore1"), self.at("two")];
        let pools = stores.iter().map(|store| Path::new(store).join("pool"));
        pools.flat_map(|dir| entries(&dir)).collect()
    }

    /// Copies that pretend to be whole, and others.
    fn copies(&self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let all = self.pool_dirs().into_iter().flat_map(|dir| entries(&dir));
        all.partition(|copy| copy.extension().is_none())
    }

    /// The disk that all clones are copies of.
    fn base(&self) -> PathBuf {
        let detail = self.json(&["info", "web"]);
        let layers = detail["disks"][0]["layers"].as_array().expect("layers");
        layers[0].as_str().expect("path").into()
    }

    /// Figures as Prometheus reads them.
    fn metric(&self, name: &str) -> u64 {
        let socket = self.at("h/run/mitosed.sock");
        let mut stream = UnixStream::connect(socket).expect("the daemon's socket");
        let request = "GET /metrics HTTP/1.1\r\nHost: mitosed\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answer");
        let of = |line: &str| {
            line.strip_prefix(name)?
                .rsplit(' ')
                .next()?
                .parse::<u64>()
                .ok()
        };
        answer.lines().filter_map(of).sum()
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// A copy stands alone, is clean and shows what `base` does.
fn assert_whole(copy: &Path, base: &Path) {
    let (copy, base) = (copy.display().to_string(), base.display().to_string());
    for args in [
        vec!["check", "-q", &copy],
        vec!["compare", "-q", "-U", &copy, &base],
    ] {
        let done = Command::new("qemu-img").args(&args).output();
        let done = done.expect("qemu-img is installed");
        assert!(done.status.success(), "{args:?}: {done:?}");
    }
    let info = Command::new("qemu-img").args(["info", &copy]).output();
    let info = info.expect("qemu-img is installed").stdout;
    assert!(!String::from_utf8_lossy(&info).contains("backing file"));
}

/// Where each clone's disks came from, and the datastore that they are on.
fn how(clones: &[Value]) -> Vec<(String, String)> {
    let text = |clone: &Value, field: &str| {
        let text = clone["disks"][field].as_str();
        text.unwrap_or_default().to_owned()
    };
    let both = |clone: &Value| (text(clone, "how"), text(clone, "datastore"));
    clones.iter().map(both).collect()
}

#[test]
fn full_clones_out_of_pools_take_no_time_and_a_cut_refill_leaves_no_half() {
    let bench = Bench::new();
    bench.make_source();
    let all = 2 * EACH;

    // What eight copies take where no pool is.
    let (clones, copied) = bench.clone(all, "c");
    let origins = how(&clones);
    for store in ["datastore1", "two"] {
        let here = origins
            .iter()
            .filter(|(how, on)| how == "copy" && on == store);
        assert_eq!(here.count(), EACH, "{origins:?}");
    }
    bench.remove("c", all);

    let each = EACH.to_string();
    for store in ["datastore1", "two"] {
        bench.run(&[
            "pool",
            "create",
            "web",
            "--datastore",
            store,
            "--count",
            &each,
        ]);
    }
    bench.until_full();
    let (clones, taken) = bench.clone(all, "p");
    let (ninth, alone) = bench.clone(1, "n");
    let origins = how(&clones);
    for store in ["datastore1", "two"] {
        let here = origins
            .iter()
            .filter(|(how, on)| how == "pool" && on == store);
        assert_eq!(here.count(), EACH, "{origins:?}");
    }
    let reason = ninth[0]["disks"]["reason"].as_str().unwrap_or_default();
    assert_eq!(how(&ninth)[0].0, "copy", "{ninth:?}");
    assert!(reason.contains("pool web on two is empty"), "{reason}");
    let tasks = client::Client::new(bench.cli.home())
        .tasks()
        .expect("tasks");
    let told = |task: &api_types::Task| {
        let result = task.result.as_ref().map(Value::to_string);
        result.is_some_and(|result| result.contains(reason))
    };
    assert!(tasks.iter().any(told), "{tasks:?}");
    let counted =
        ["hits", "misses"].map(|of| bench.metric(&format!("mitose_disk_pool_{of}_total")));
    assert_eq!(counted, [all as u64, 2]);
    for name in ["p1", "p8", "n1"] {
        let top = bench.json(&["info", name])["disks"][0]["layers"][0].clone();
        assert_whole(Path::new(top.as_str().expect("path")), &bench.base());
    }
    let mut taken = taken;
    for _ in 0..2 {
        if taken.as_secs_f64() < SHARE * copied.as_secs_f64() {
            break;
        }
        // The machine may have stood still meanwhile.
        bench.remove("p", all);
        bench.until_full();
        taken = taken.min(bench.clone(all, "p").1);
    }
    let share = taken.as_secs_f64() / copied.as_secs_f64();
    println!(
        "8 copies {copied:.1?}, 8 out of pools {taken:.1?} ({:.1} %), the ninth {alone:.1?}",
        share * 100.0
    );
    assert!(share < SHARE, "{taken:?} is not below 5 % of {copied:?}");
    bench.remove("p", all);

    // The refill is cut at some moments of its way.
    let mut cut = 0;
    for part in [2, 5] {
        bench.until_full();
        bench.clone(all, "k");
        let deadline = Instant::now() + PATIENCE;
        while bench.copies().1.is_empty() {
            assert!(Instant::now() < deadline, "no refill begins");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(copied / (8 * part));
        let pid = bench.json(&["daemon", "status"])["pid"].to_string();
        let killed = Command::new("kill").args(["-9", &pid]).status();
        assert!(killed.expect("kill").success());
        let (whole, halves) = bench.copies();
        // One that is about to end may be asked once more.
        while bench.cli.run(&["ls"]).is_err() {
            assert!(Instant::now() < deadline, "no daemon answers");
        }
        let (after, _) = bench.copies();
        assert!(whole.iter().all(|copy| after.contains(copy)));
        println!("cut with {} whole and {} half", whole.len(), halves.len());
        cut += halves.len();
        bench.remove("k", all);
    }
    assert!(cut > 0, "no refill was cut");
    bench.until_full();
    let (whole, halves) = bench.copies();
    assert_eq!((whole.len(), halves.len()), (all, 0), "{halves:?}");
    for copy in &whole {
        assert_whole(&copy.join("disk0.qcow2"), &bench.base());
    }
}
