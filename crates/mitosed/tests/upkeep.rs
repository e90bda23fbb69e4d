//! Disk stacks stay short, whatever ends in the middle of it. What a guest would have written is
//! written here, into the top of a stand-in's disk.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use bed::{Bed, clones};
use disk_layers::{DiskFormat, DiskStack, LayerFile, Pace, StackOptions, merge, set_backing};

const DISK_BYTES: usize = 1 << 20;
const BLOCK: usize = 4096;
/// More layers than these never have to be seen.
const LIMIT: usize = 8;

/// Environment of a daemon that merges nothing.
const NO_MERGES: [(&str, &str); 1] = [("MITOSE_DISK_LAYERS", "60")];

fn layers(bed: &Bed, vm: &str) -> Vec<PathBuf> {
    let disk = bed.detail(vm).disks.remove(0);
    disk.layers.into_iter().map(PathBuf::from).collect()
}

fn format_of(path: &Path) -> DiskFormat {
    match path.extension().and_then(|e| e.to_str()) {
        Some("qcow2") => DiskFormat::Qcow2,
        _ => DiskFormat::Raw,
    }
}

/// Opens a stack; none where a file of it is gone.
fn try_open(chain: &[PathBuf], read_only: bool) -> Option<DiskStack> {
    let mut files = Vec::new();
    for (at, path) in chain.iter().enumerate() {
        let writes = at == 0 && !read_only;
        match File::options().read(true).write(writes).open(path) {
            Ok(file) => files.push(LayerFile {
                file,
                format: format_of(path),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
    let top = files.remove(0);
    let options = StackOptions {
        read_only,
        ..StackOptions::default()
    };
    Some(DiskStack::open(top, files, options).unwrap())
}

fn open(chain: &[PathBuf], read_only: bool) -> DiskStack {
    try_open(chain, read_only).unwrap()
}

/// A VM's disk and what is to be on it.
struct Disk {
    vm: &'static str,
    model: Vec<u8>,
    round: usize,
}

impl Disk {
    fn new(vm: &'static str) -> Disk {
        Disk {
            vm,
            model: vec![7; DISK_BYTES],
            round: 0,
        }
    }

    /// Writes a few blocks of the running VM's disk.
    fn write(&mut self, bed: &Bed) {
        // Only the file of the top is written to, so it does not matter what is merged below it;
        // but what was merged may be gone before it is opened.
        let mut stack = loop {
            if let Some(stack) = try_open(&layers(bed, self.vm), false) {
                break stack;
            }
        };
        self.round += 1;
        for step in 0..3 {
            let at = (self.round * 37 + step * 71) % (DISK_BYTES / BLOCK) * BLOCK;
            let byte = (self.round * 3 + step) as u8;
            let block = at..at + BLOCK;
            match step {
                2 => {
                    stack.write_zeroes(at as u64, BLOCK as u64, true).unwrap();
                    self.model[block].fill(0);
                }
                _ => {
                    stack.write_at(at as u64, &[byte; BLOCK]).unwrap();
                    self.model[block].fill(byte);
                }
            }
        }
        stack.sync().unwrap();
    }

    /// Compares the disk with what is to be on it: by the record of the daemon, and by the names in
    /// the files as QEMU follows them.
    fn verify(&self, bed: &Bed) {
        let chain = layers(bed, self.vm);
        let mut seen = vec![1; DISK_BYTES];
        open(&chain, true).read_at(0, &mut seen).unwrap();
        assert!(seen == self.model, "{} differs: {chain:?}", self.vm);
        for layer in chain
            .iter()
            .filter(|path| format_of(path) == DiskFormat::Qcow2)
        {
            qemu_img(&["check", "-f", "qcow2"], layer);
        }
        let raw = bed.file("converted");
        let to = raw.to_str().unwrap();
        let status = Command::new("qemu-img")
            .args(["convert", "-U", "-f", "qcow2", "-O", "raw"])
            .arg(&chain[0])
            .arg(to)
            .status();
        assert!(status.unwrap().success());
        assert!(std::fs::read(&raw).unwrap() == self.model, "{}", self.vm);
    }
}

fn qemu_img(args: &[&str], path: &Path) {
    let mut command = Command::new("qemu-img");
    let output = command.args(args).arg("-U").arg(path).output().unwrap();
    assert!(
        output.status.success(),
        "{args:?} {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn until_short(bed: &Bed, vm: &str) {
    bed.until(&format!("the disk of {vm} is short"), || {
        layers(bed, vm).len() < LIMIT - 1
    });
}

/// Waits until the datastore has the files of these VMs and no others.
fn until_tidy(bed: &Bed, vms: &[&str]) {
    bed.until("nothing but layers in use is left", || {
        let mut used: Vec<_> = vms
            .iter()
            .flat_map(|vm| layers(bed, vm))
            .filter(|path| path.starts_with(bed.home()))
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        used.sort();
        used.dedup();
        used == bed.list("datastore1/layers")
    });
    bed.assert_only(vms);
}

fn merges(bed: &Bed) -> usize {
    let (mut after, mut merged) = (0, 0);
    loop {
        let page = bed.client.events(Some(after)).unwrap();
        let Some(last) = page.last() else {
            return merged;
        };
        after = last.id;
        merged += page.iter().filter(|e| e.kind == "disk.merged").count();
    }
}

#[test]
fn a_source_that_is_forked_again_and_again_stays_short() {
    let bed = Bed::new();
    bed.run("a", "");
    let mut disk = Disk::new("a");
    let mut kept = Vec::new();
    for round in 0..60 {
        disk.write(&bed);
        let name = format!("c{round}");
        bed.client.fork("a", &clones(&[&name])).unwrap();
        let depth = layers(&bed, "a").len();
        assert!(depth <= LIMIT, "{depth} layers after fork {round}");
        if round % 20 == 5 {
            kept.push(Disk {
                vm: ["c5", "c25", "c45"][round / 20],
                model: disk.model.clone(),
                round: 0,
            });
        } else {
            bed.client.remove(&name, true).unwrap();
        }
    }
    until_short(&bed, "a");
    disk.verify(&bed);
    kept.iter().for_each(|clone| clone.verify(&bed));
    assert!(merges(&bed) >= 10, "{}", bed.log());
    until_tidy(&bed, &["a", "c25", "c45", "c5"]);

    // Clones do not need what their source has become.
    bed.client.remove("a", true).unwrap();
    kept.iter().for_each(|clone| clone.verify(&bed));
    for clone in &kept {
        bed.client.remove(clone.vm, true).unwrap();
    }
    until_tidy(&bed, &[]);
}

#[test]
fn powered_off_disks_are_merged_too() {
    let mut bed = Bed::new();
    bed.kill();
    bed.start_with(&NO_MERGES);
    bed.run("a", "");
    let mut disk = Disk::new("a");
    for round in 0..20 {
        disk.write(&bed);
        let name = format!("c{round}");
        bed.client.fork("a", &clones(&[&name])).unwrap();
        bed.client.remove(&name, true).unwrap();
    }
    disk.write(&bed);
    let force = api_types::StopRequest {
        force: true,
        timeout_s: None,
    };
    bed.client.stop("a", &force).unwrap();
    assert_eq!(layers(&bed, "a").len(), 22);
    bed.kill();
    bed.start();
    until_short(&bed, "a");
    disk.verify(&bed);
    until_tidy(&bed, &["a"]);
    bed.client.start("a").unwrap();
    disk.verify(&bed);
}

#[test]
fn a_merge_that_fails_leaves_everything_as_it_was() {
    let bed = Bed::new();
    bed.run("a", "fail=rebase");
    let mut disk = Disk::new("a");
    for round in 0..12 {
        disk.write(&bed);
        let name = format!("c{round}");
        bed.client.fork("a", &clones(&[&name])).unwrap();
        bed.client.remove(&name, true).unwrap();
    }
    bed.until("a merge was tried", || {
        bed.log().contains("a merge was not done")
    });
    assert!(bed.log().contains("made to fail"), "{}", bed.log());
    assert_eq!(merges(&bed), 0);
    assert_eq!(layers(&bed, "a").len(), 14);
    disk.verify(&bed);
    until_tidy(&bed, &["a"]);
}

#[test]
fn killed_at_any_moment_the_daemon_loses_nothing() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let mut disk = Disk::new("a");
    let mut fork = 0;
    for round in 0..12u64 {
        for _ in 0..4 {
            disk.write(&bed);
            let name = format!("c{fork}");
            fork += 1;
            bed.client.fork("a", &clones(&[&name])).unwrap();
            bed.client.remove(&name, true).unwrap();
        }
        // Merges take a few tens of milliseconds here.
        std::thread::sleep(std::time::Duration::from_millis(round * 7 % 60));
        bed.restart();
        until_short(&bed, "a");
        disk.verify(&bed);
        until_tidy(&bed, &["a"]);
    }
    until_short(&bed, "a");
    disk.verify(&bed);
}

#[test]
fn a_top_that_stands_on_a_merged_layer_already_is_recorded_so() {
    for running in [true, false] {
        let mut bed = Bed::new();
        bed.kill();
        bed.start_with(&NO_MERGES);
        bed.run("a", "");
        let mut disk = Disk::new("a");
        for round in 0..10 {
            disk.write(&bed);
            let name = format!("c{round}");
            bed.client.fork("a", &clones(&[&name])).unwrap();
            bed.client.remove(&name, true).unwrap();
        }
        let chain = layers(&bed, "a");
        let id = bed.detail("a").vm.id;
        if !running {
            let force = api_types::StopRequest {
                force: true,
                timeout_s: None,
            };
            bed.client.stop("a", &force).unwrap();
        }
        bed.kill();

        // What a daemon leaves that dies before it could record the merge, and one that died
        // before the top was put on it.
        let (run, base) = (&chain[1..chain.len() - 1], &chain[chain.len() - 1]);
        let mut names = Vec::new();
        for number in [70, 71] {
            let name = format!("{id}-0-m{number}");
            let merged = chain[0].with_file_name(format!("{name}.qcow2"));
            let mut options = File::options();
            let target = options.read(true).write(true).create_new(true);
            let files = run.iter().map(|path| LayerFile {
                file: File::open(path).unwrap(),
                format: DiskFormat::Qcow2,
            });
            let mut go_on = |_| ControlFlow::Continue(());
            merge(
                files.collect(),
                target.open(&merged).unwrap(),
                base.to_str().unwrap(),
                DiskFormat::Raw,
                &mut Pace::free(&mut go_on),
            )
            .unwrap();
            add_row(&bed, &chain[run.len()], &name, &merged);
            names.push(merged);
        }
        let mut options = File::options();
        let top = options.read(true).write(true).open(&chain[0]).unwrap();
        let name = names[1].file_name().unwrap().to_str().unwrap();
        set_backing(&top, name, DiskFormat::Qcow2).unwrap();

        bed.start_with(&NO_MERGES);
        let found = layers(&bed, "a");
        let wanted = [chain[0].clone(), names[1].clone(), base.clone()];
        assert_eq!(found, wanted, "running: {running}");
        assert!(!names[0].exists(), "the other one is of no use");
        disk.verify(&bed);
        until_tidy(&bed, &["a"]);
        assert_eq!(merges(&bed), 1);
    }
}

/// Records a layer as one like that of the file `like`.
fn add_row(bed: &Bed, like: &Path, id: &str, path: &Path) {
    let database = rusqlite::Connection::open(bed.home().join("inventory.db")).unwrap();
    let like = like.file_stem().unwrap().to_str().unwrap();
    let doc: String = database
        .query_row("SELECT doc FROM layers WHERE id = ?1", [like], |row| {
            row.get(0)
        })
        .unwrap();
    let mut doc: serde_json::Value = serde_json::from_str(&doc).unwrap();
    doc["id"] = id.into();
    doc["path"] = path.to_str().unwrap().into();
    database
        .execute(
            "INSERT INTO layers (id, doc) VALUES (?1, ?2)",
            [id, &doc.to_string()],
        )
        .unwrap();
}
