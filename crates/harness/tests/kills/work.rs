//! The random workload: whatever a user may ask of the daemon.

use api_types::{
    CloneMode, DatastoreAddRequest, DiskPoolChangeRequest, DiskPoolRequest, ExportRequest,
    ExtraDiskRequest, ForkRequest, ImportRequest, PointForkRequest, PrepareRequest,
    ReconfigureRequest, StopRequest, Vm,
};

use super::{Bench, MAX_VMS, Random, TEMPLATE, WRITER};

/// Archives that are kept for imports at most.
const MAX_ARCHIVES: usize = 6;
/// Disk pools at most, beside those that are always there.
const MAX_POOLS: usize = 6;
/// Datastores that are there all the time.
pub const STORES: [&str; 3] = ["datastore1", "two", "three"];
/// Datastores that come and go.
pub const PASSING: [&str; 2] = ["four", "five"];

/// What the workload may be done to at the moment.
struct Sight {
    running: Vec<String>,
    off: Vec<String>,
    suspended: Vec<String>,
    all: Vec<String>,
    crowded: bool,
}

impl Sight {
    fn new(vms: &[Vm]) -> Self {
        let fixed = |vm: &&Vm| [TEMPLATE, WRITER].contains(&vm.name.as_str());
        let of = |state: &str| -> Vec<String> {
            let fits = vms.iter().filter(|vm| vm.state == state && !fixed(vm));
            fits.map(|vm| vm.name.clone()).collect()
        };
        let (running, off, suspended) = (of("running"), of("poweredOff"), of("suspended"));
        Self {
            all: [running.clone(), off.clone(), suspended.clone()].concat(),
            running,
            off,
            suspended,
            crowded: vms.len() >= MAX_VMS,
        }
    }
}

impl Bench {
    /// One random operation; what it answers does not matter, since the daemon may be gone.
    pub fn act(&self, random: &mut Random, number: u32) {
        let vms = self.client.vms().unwrap_or_default();
        let sight = Sight::new(&vms);
        let Some(name) = random.pick(&sight.running).or(random.pick(&sight.off)) else {
            self.run_vm(random, number);
            return;
        };
        match random.next(30) {
            0 if !sight.crowded => self.run_vm(random, number),
            1..=3 if !sight.crowded => self.fork(random, name, number),
            4 => self.prepare(random, name, number),
            5..=6 if !sight.crowded => self.fork_children(random, number),
            7 => self.unprepare(random),
            8 => self.stop(name),
            9 => self.start(random.pick(&sight.off)),
            10 => {
                self.touch(name);
                let _ = self.client.reset(name);
            }
            11..=13 => {
                if let Some(name) = random.pick(&sight.all) {
                    self.touch(name);
                    let _ = self.client.remove(name, true);
                }
            }
            14..=16 if !sight.crowded => self.copy(random, &sight, number),
            17 => {
                self.touch(name);
                let _ = self.client.suspend(name, |_| ());
            }
            18 => self.start(random.pick(&sight.suspended)),
            19 => {
                let Some(child) = random.pick(&sight.all) else {
                    return;
                };
                self.touch(child);
                let _ = self.client.set_persistence(child, random.next(2) == 0);
            }
            20..=21 => self.pools(random, &sight, number),
            22 => self.stores(random),
            23 => self.export(random, &sight, number),
            24 if !sight.crowded => self.import(random, number),
            25 => self.insert(random, name),
            26 => self.writer(random, &vms),
            _ => self.snapshots(random, name, number),
        }
    }

    fn run_vm(&self, random: &mut Random, number: u32) {
        let (kernel, disk) = (self.path("guest.elf"), self.path("disk.raw"));
        let name = format!("v{number}");
        let mut args = vec!["run", &name, "--kernel", &kernel, "--memory", "32M"];
        args.extend(["--cmdline", "mode=dirty touch=8 idle=1"]);
        args.extend(["--engine", "kvm", "--disk", &disk]);
        args.extend(["--datastore", self.store(random)]);
        args.extend([
            "--spare-disks",
            random.pick(&["0", "1", "2"]).expect("some"),
        ]);
        let _ = self.cli.output(&args);
    }

    /// Disks for spare slots, mostly none; there may be too few slots for them.
    fn extra_disks(&self, random: &mut Random) -> Vec<ExtraDiskRequest> {
        let blank = ExtraDiskRequest {
            size_bytes: Some(4 << 20),
            ..ExtraDiskRequest::default()
        };
        let data = ExtraDiskRequest {
            path: Some(self.path("disk.raw").into()),
            ..ExtraDiskRequest::default()
        };
        match random.next(6) {
            0..=1 => vec![blank],
            2 => vec![data],
            3 => vec![blank, data],
            _ => Vec::new(),
        }
    }

    /// A datastore, mostly one that is there.
    fn store(&self, random: &mut Random) -> &'static str {
        match random.next(8) {
            0 => random.pick(&PASSING).expect("some"),
            _ => random.pick(&STORES).expect("some"),
        }
    }

    /// A datastore, or none.
    fn some_store(&self, random: &mut Random) -> Option<String> {
        (random.next(2) == 0).then(|| self.store(random).to_owned())
    }

    fn fork(&self, random: &mut Random, name: &str, number: u32) {
        let names = (0..=random.next(3)).map(|n| format!("c{number}-{n}"));
        let request = ForkRequest {
            names: names.collect(),
            datastore: self.some_store(random),
            extra_disks: self.extra_disks(random),
            ..ForkRequest::default()
        };
        let _ = self.client.fork(name, &request);
    }

    fn prepare(&self, random: &mut Random, name: &str, number: u32) {
        let durable = random.next(3) == 0;
        let request = PrepareRequest {
            name: Some(format!("p{number}")),
            children: random.next(4) as u32,
            prefix: Some(format!("r{number}-")),
            durable,
            datastore: durable.then(|| self.some_store(random)).flatten(),
            quiesce: random.next(4) == 0,
            ..PrepareRequest::default()
        };
        if request.quiesce {
            self.touch(name);
        }
        let _ = self.client.prepare(name, &request, |_| ());
    }

    fn fork_children(&self, random: &mut Random, number: u32) {
        let points = self.client.fork_points().unwrap_or_default();
        if let Some(point) = random.pick(&points) {
            // Those that were made ahead are started, and those that cannot be go.
            self.touch_all(|name| name.starts_with('r'));
            let request = PointForkRequest {
                count: 1 + random.next(4) as u32,
                prefix: Some(format!("k{number}-")),
                extra_disks: self.extra_disks(random),
                ..PointForkRequest::default()
            };
            let _ = self.client.fork_children(&point.id, &request, |_| ());
        }
    }

    /// Puts a disk into an empty slot, if there is one.
    fn insert(&self, random: &mut Random, name: &str) {
        let change = ReconfigureRequest {
            insert_disks: self.extra_disks(random),
            ..ReconfigureRequest::default()
        };
        let _ = self.client.reconfigure(name, None, &change);
    }

    fn unprepare(&self, random: &mut Random) {
        let points = self.client.fork_points().unwrap_or_default();
        if let Some(point) = random.pick(&points) {
            self.touch_all(|name| name.starts_with(['r', 'k']));
            let _ = self.client.unprepare(&point.id, true);
        }
    }

    fn stop(&self, name: &str) {
        self.touch(name);
        let stop = StopRequest {
            force: true,
            timeout_s: None,
        };
        let _ = self.client.stop(name, &stop);
    }

    fn start(&self, name: Option<&String>) {
        if let Some(name) = name {
            self.touch(name);
            let _ = self.client.start(name);
        }
    }

    /// Full and linked clones, also of machines that run or are suspended, and out of pools.
    fn copy(&self, random: &mut Random, sight: &Sight, number: u32) {
        let fixed = [TEMPLATE.to_owned(), WRITER.to_owned()];
        let from: &[String] = match random.next(4) {
            0 => &sight.all,
            1 => &sight.running,
            _ => &fixed,
        };
        let Some(source) = random.pick(from) else {
            return;
        };
        let names = (0..=random.next(3)).map(|n| format!("f{number}-{n}"));
        let request = ForkRequest {
            names: names.collect(),
            mode: match random.next(4) {
                0 => CloneMode::Linked,
                _ => CloneMode::Full,
            },
            datastore: self.some_store(random),
            // Slow enough to be cut in the middle.
            rate_bytes_per_s: (random.next(2) == 0).then_some(16 << 20),
            ..ForkRequest::default()
        };
        let _ = self.client.fork(source, &request);
    }

    fn pools(&self, random: &mut Random, sight: &Sight, number: u32) {
        let pools = self.client.disk_pools().unwrap_or_default();
        let own: Vec<_> = pools.iter().filter(|pool| pool.name != TEMPLATE).collect();
        match random.next(4) {
            0..=1 if own.len() < MAX_POOLS => {
                let from = [sight.off.clone(), vec![WRITER.to_owned()]].concat();
                let _ = self.client.make_disk_pool(&DiskPoolRequest {
                    source: random.pick(&from).expect("the writer").clone(),
                    datastore: self.store(random).to_owned(),
                    count: 1 + random.next(3) as u64,
                    name: Some(format!("pool{number}")),
                    rate_bytes_per_s: (random.next(2) == 0).then_some(8 << 20),
                });
            }
            0..=2 => {
                if let Some(pool) = random.pick(&pools) {
                    let request = DiskPoolChangeRequest {
                        count: Some(random.next(4) as u64),
                        rate_bytes_per_s: Some(4 << (20 + random.next(4))),
                        version: None,
                    };
                    let _ = self.client.change_disk_pool(&pool.id, &request);
                }
            }
            _ => {
                if let Some(pool) = random.pick(&own) {
                    let _ = self.client.remove_disk_pool(&pool.id);
                }
            }
        }
    }

    fn stores(&self, random: &mut Random) {
        let name = *random.pick(&PASSING).expect("some");
        if self.client.datastore(name).is_ok() {
            let _ = self.client.remove_datastore(name);
        } else {
            let _ = self.client.add_datastore(&DatastoreAddRequest {
                name: name.to_owned(),
                path: self.folder.join(name),
                ..DatastoreAddRequest::default()
            });
        }
    }

    /// Archives that have their final name.
    pub fn archives(&self) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(self.folder.join("archives"));
        let paths = entries.into_iter().flatten().flatten().map(|e| e.path());
        let mut whole: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|end| end == "tar"))
            .collect();
        whole.sort();
        whole
    }

    fn export(&self, random: &mut Random, sight: &Sight, number: u32) {
        let archives = self.archives();
        if archives.len() >= MAX_ARCHIVES
            && let Some(path) = random.pick(&archives)
        {
            let _ = std::fs::remove_file(path);
        }
        let request = ExportRequest {
            path: self.folder.join(format!("archives/{number}.tar")),
            snapshot: None,
            since: match random.next(2) {
                0 => random.pick(&self.exports.lock().expect("lock")).cloned(),
                _ => None,
            },
            without_base: random.next(3) == 0,
        };
        let points = self.client.fork_points().unwrap_or_default();
        let exported = match random.next(4) {
            0 => random.pick(&points).and_then(|point| {
                let exported = self.client.export_fork_point(&point.id, &request, |_| ());
                exported.ok()
            }),
            _ => random.pick(&sight.all).and_then(|name| {
                let exported = self.client.export(name, &request, |_| ());
                exported.ok()
            }),
        };
        if let Some(exported) = exported {
            self.exports.lock().expect("lock").push(exported.id);
        }
    }

    fn import(&self, random: &mut Random, number: u32) {
        if let Some(path) = random.pick(&self.archives()) {
            let replace = random.next(3) == 0;
            let request = ImportRequest {
                path: path.clone(),
                import_as: None,
                earlier: match random.next(2) {
                    0 => self.archives(),
                    _ => Vec::new(),
                },
                name: (!replace).then(|| format!("i{number}")),
                datastore: self.some_store(random),
                new_identity: !replace,
                replace,
            };
            let _ = self.client.import(&request, |_| ());
        }
    }

    /// A machine that writes to its disk: while it runs its layers are sealed and merged, and when
    /// it is off its pools are drained and filled again.
    fn writer(&self, random: &mut Random, vms: &[Vm]) {
        let runs = vms
            .iter()
            .any(|vm| vm.name == WRITER && vm.state == "running");
        self.touch(WRITER);
        match (runs, random.next(4)) {
            (false, _) => {
                let _ = self.client.start(WRITER);
            }
            (true, 0) => self.stop(WRITER),
            (true, _) => self.snapshots(random, WRITER, 0),
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
}
