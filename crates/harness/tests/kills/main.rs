//! The daemon is ended by SIGKILL at random moments of a random workload. After each restart every
//! VM that ran and was not worked on runs on, every half-made thing is gone or finished, and
//! nothing is left that belongs to nobody.

mod walker;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api_types::{ForkRequest, PointForkRequest, PrepareRequest, StopRequest};
use client::Client;
use harness::{Cli, kvm_present};

/// Rounds of a plain test run, and of a full one.
const ROUNDS: (u32, u32) = (25, 200);
/// Most VMs that the workload lets live.
const MAX_VMS: usize = 24;
/// Time in which a daemon has put everything in order.
const PATIENCE: Duration = Duration::from_secs(30);

/// Numbers that look random (Marsaglia's xorshift): a failure is repeated by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let index = self.next(of.len());
        of.get(index)
    }
}

/// One home under work.
struct Bench {
    cli: Cli,
    client: Client,
    folder: PathBuf,
    /// Names of VMs that an operation is under way for.
    touched: Mutex<HashSet<String>>,
    stop: AtomicBool,
}

impl Bench {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn touch(&self, name: &str) {
        self.touched.lock().expect("lock").insert(name.to_owned());
    }

    /// One random operation; what it answers does not matter, since the daemon may be gone.
    fn act(&self, random: &mut Random, number: u32) {
        let vms = self.client.vms().unwrap_or_default();
        let of = |states: &[&str]| -> Vec<String> {
            let fits = vms.iter().filter(|vm| states.contains(&vm.state.as_str()));
            fits.map(|vm| vm.name.clone()).collect()
        };
        let (running, off) = (of(&["running"]), of(&["poweredOff"]));
        let all: Vec<String> = vms.iter().map(|vm| vm.name.clone()).collect();
        let Some(name) = random.pick(&running).or(random.pick(&off)).cloned() else {
            self.run_vm(number);
            return;
        };
        let crowded = all.len() >= MAX_VMS;
        match random.next(16) {
            0 if !crowded => self.run_vm(number),
            1..=3 if !crowded => {
                let names = (0..=random.next(3)).map(|n| format!("c{number}-{n}"));
                let request = ForkRequest {
                    names: names.collect(),
                    ..ForkRequest::default()
                };
                let _ = self.client.fork(&name, &request);
            }
            4 => {
                let request = PrepareRequest {
                    name: Some(format!("p{number}")),
                    children: random.next(4) as u32,
                    prefix: Some(format!("r{number}")),
                    ..PrepareRequest::default()
                };
                let _ = self.client.prepare(&name, &request, |_| ());
            }
            5..=6 if !crowded => self.fork_children(random, number),
            7 => {
                let points = self.client.fork_points().unwrap_or_default();
                if let Some(point) = random.pick(&points) {
                    let _ = self.client.unprepare(&point.id, true);
                }
            }
            8 => {
                self.touch(&name);
                let stop = StopRequest {
                    force: true,
                    timeout_s: None,
                };
                let _ = self.client.stop(&name, &stop);
            }
            9 => {
                if let Some(name) = random.pick(&off) {
                    let _ = self.client.start(name);
                }
            }
            10 => {
                self.touch(&name);
                let _ = self.client.reset(&name);
            }
            11..=12 => {
                if let Some(name) = random.pick(&all) {
                    self.touch(name);
                    let _ = self.client.remove(name, true);
                }
            }
            13 if !crowded => {
                if let Some(name) = random.pick(&off) {
                    let mode = ["linked", "full"][random.next(2)];
                    let clone = format!("f{number}");
                    let _ = self
                        .cli
                        .output(&["clone", name, "--name", &clone, "--mode", mode]);
                }
            }
            _ => self.snapshots(random, &name, number),
        }
    }

    fn run_vm(&self, number: u32) {
        let (kernel, disk) = (self.path("guest.elf"), self.path("disk.raw"));
        let name = format!("v{number}");
        let mut args = vec!["run", &name, "--kernel", &kernel, "--memory", "32M"];
        args.extend(["--cmdline", "mode=dirty touch=8 idle=1"]);
        args.extend(["--engine", "kvm", "--disk", &disk]);
        let _ = self.cli.output(&args);
    }

    fn fork_children(&self, random: &mut Random, number: u32) {
        let points = self.client.fork_points().unwrap_or_default();
        if let Some(point) = random.pick(&points) {
            let request = PointForkRequest {
                count: 1 + random.next(4) as u32,
                prefix: Some(format!("k{number}")),
                ..PointForkRequest::default()
            };
            let _ = self.client.fork_children(&point.id, &request, |_| ());
        }
    }

    fn snapshots(&self, random: &mut Random, name: &str, number: u32) {
        self.touch(name);
        let snapshot = format!("s{}", number % 3);
        let mut args = match random.next(4) {
            0..=1 => vec!["snapshot", "create", name, &snapshot],
            2 => vec!["snapshot", "revert", name, &snapshot],
            _ => vec!["snapshot", "rm", name, &snapshot],
        };
        if args[1] == "create" && random.next(2) == 0 {
            args.push("--memory");
        }
        let _ = self.cli.output(&args);
    }

    /// Works until it is told to stop.
    fn work(&self, mut random: Random, first: u32) {
        let mut number = first;
        while !self.stop.load(Ordering::Acquire) {
            self.act(&mut random, number);
            number += 2;
        }
    }

    /// VMs that run, with their processes.
    fn running(&self) -> HashMap<String, Option<i32>> {
        let vms = self.client.vms().expect("the daemon answers");
        vms.iter()
            .filter(|vm| vm.state == "running")
            .filter_map(|vm| Some((vm.name.clone(), self.client.vm(&vm.name).ok()?.pid)))
            .collect()
    }

    /// Starts the daemon, where one that is about to end no longer answers.
    fn start_daemon(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = self.cli.output(&["ls"]).expect("mitose is there");
            if done.status.success() {
                return;
            }
            let words = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(Instant::now() < deadline, "{words}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn kill_daemon(&self) {
        let pid = self.client.status().expect("the daemon answers").pid;
        let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
        assert!(killed.expect("kill").success());
    }

    /// Waits until nothing is wrong, and says what is where that does not come about.
    fn settle(&self, round: u32, seed: u64) {
        let deadline = Instant::now() + PATIENCE;
        let shells = self.client.status().expect("status").shells_wanted;
        loop {
            let found = walker::problems(self.cli.home(), shells);
            if found.is_empty() {
                return;
            }
            let log = self.cli.home().join("logs/mitosed.log");
            assert!(
                Instant::now() < deadline,
                "round {round}, seed {seed:#x}: {found:#?}\n{}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn round(&self, round: u32, seed: u64) {
        let mut random = Random(seed ^ (u64::from(round) << 32) | 1);
        let before = self.running();
        self.touched.lock().expect("lock").clear();
        self.stop.store(false, Ordering::Release);
        std::thread::scope(|scope| {
            for worker in 0..2u32 {
                let own = Random(seed.rotate_left(worker * 7 + 1) ^ u64::from(round) | 1);
                let first = round * 10_000 + worker;
                scope.spawn(move || self.work(own, first));
            }
            let delay = Duration::from_micros(random.next(700_000) as u64);
            std::thread::sleep(delay);
            // Set first: the command line starts another daemon where it finds none.
            self.stop.store(true, Ordering::Release);
            self.kill_daemon();
        });
        self.start_daemon();
        self.settle(round, seed);
        let after = self.running();
        let touched = self.touched.lock().expect("lock");
        for (name, pid) in before.iter().filter(|(name, _)| !touched.contains(*name)) {
            let same = after.get(name) == Some(pid);
            assert!(
                same,
                "round {round}, seed {seed:#x}: {name} does not run on"
            );
        }
    }
}

/// Ends what a failed test would leave running.
impl Drop for Bench {
    fn drop(&mut self) {
        self.cli.clean_up();
        for pid in walker::processes(self.cli.home()) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

fn bench(folder: &Path) -> Bench {
    let cli = Cli::new(&folder.join("h")).expect("mitose is built");
    std::fs::write(folder.join("guest.elf"), bare_guests::guest_elf()).expect("guest");
    let disk = std::fs::File::create(folder.join("disk.raw")).expect("disk");
    disk.set_len(8 << 20).expect("disk");
    Bench {
        client: Client::new(cli.home()),
        cli,
        folder: folder.into(),
        touched: Mutex::default(),
        stop: AtomicBool::new(false),
    }
}

#[test]
fn a_killed_daemon_leaves_nothing_half_made_and_ends_no_vm() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let folder = tempfile::Builder::new()
        .prefix("ki")
        .tempdir_in("/tmp")
        .expect("folder");
    let full = std::env::var_os("MITOSE_TEST_FULL").is_some();
    let rounds = if full { ROUNDS.1 } else { ROUNDS.0 };
    let seed = std::env::var("MITOSE_TEST_SEED")
        .ok()
        .and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok())
        .unwrap_or(0x6d69_746f_7365);
    let bench = bench(folder.path());
    bench.start_daemon();
    for round in 0..rounds {
        bench.round(round, seed);
    }
    let off: Vec<String> = bench
        .client
        .vms()
        .expect("list")
        .iter()
        .filter(|vm| vm.state == "running")
        .map(|vm| vm.name.clone())
        .collect();
    for name in off {
        let _ = bench.cli.output(&["stop", "--force", &name]);
    }
    let broken = walker::broken_disks(bench.cli.home());
    assert!(broken.is_empty(), "{broken:#?}");
    for point in bench.client.fork_points().expect("list") {
        let _ = bench.client.unprepare(&point.id, true);
    }
}
