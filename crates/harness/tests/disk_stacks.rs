//! Disks that change under a running guest: stacks made shorter, media put into empty slots. The
//! guest checks every block it has written, again and again.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use disk_layers::{DiskFormat, LayerFile, Pace, create_full, create_overlay, merge};
use harness::{Disk, ForkOptions, SpawnOptions, VmProcess, kvm_present};
use vm_spec::{DiskSpec, VmSpec};
use vmm_protocol::{Command, LayerFormat, Outcome};

const DISK_BYTES: u64 = 64 << 20;

fn spec(cmdline: &str, disks: usize) -> VmSpec {
    let disk = DiskSpec {
        serial: "d".into(),
        read_only: false,
    };
    VmSpec {
        cpus: 1,
        memory_bytes: 64 << 20,
        cmdline: cmdline.into(),
        entry: None,
        disks: vec![disk; disks],
        nics: vec![],
        serial_ports: 1,
    }
}

fn create(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    options.open(path).expect("create")
}

fn overlay(path: &Path, below: &Path) -> PathBuf {
    let name = below.file_name().and_then(|name| name.to_str());
    let name = name.expect("a plain name");
    create_overlay(&create(path), DISK_BYTES, name, DiskFormat::Qcow2).expect("overlay");
    path.to_owned()
}

/// The layers of one disk, top first.
struct Stack {
    folder: PathBuf,
    chain: Vec<PathBuf>,
    made: usize,
}

impl Stack {
    fn new(folder: &Path) -> Stack {
        let base = folder.join("base.qcow2");
        create_full(&create(&base), DISK_BYTES).expect("base");
        let mut stack = Stack {
            folder: folder.to_owned(),
            chain: vec![base],
            made: 0,
        };
        stack.next_top();
        stack
    }

    fn path(&mut self) -> PathBuf {
        self.made += 1;
        self.folder.join(format!("l{}.qcow2", self.made))
    }

    /// Makes an overlay on the present top, which is not its top yet.
    fn delta(&mut self) -> PathBuf {
        let path = self.path();
        overlay(&path, &self.chain[0])
    }

    fn next_top(&mut self) -> PathBuf {
        let top = self.delta();
        self.chain.insert(0, top.clone());
        top
    }

    fn disk(&self) -> Disk {
        let layers = self.chain.iter().cloned();
        Disk {
            layers: layers.map(|path| (path, LayerFormat::Qcow2)).collect(),
        }
    }

    /// Merges all between top and base; returns what lies below the top then, and what does no
    /// longer.
    fn merge(&mut self) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let (run, base) = (&self.chain[1..self.chain.len() - 1], self.chain.len() - 1);
        let (run, base) = (run.to_vec(), self.chain[base].clone());
        let files = run.iter().map(|path| LayerFile {
            file: File::open(path).expect("open"),
            format: DiskFormat::Qcow2,
        });
        let merged = self.path();
        let mut go_on = |_| ControlFlow::Continue(());
        merge(
            files.collect(),
            create(&merged),
            "base.qcow2",
            DiskFormat::Qcow2,
            &mut Pace::free(&mut go_on),
        )
        .expect("merge");
        (vec![merged, base], run)
    }
}

fn rebase(vm: &mut VmProcess, below: &[PathBuf]) -> anyhow::Result<()> {
    let name = below[0].file_name().and_then(|name| name.to_str());
    let layers = below
        .iter()
        .map(|path| (path.as_path(), LayerFormat::Qcow2));
    let layers: Vec<_> = layers.collect();
    vm.rebase(0, &layers, name.expect("a plain name"))
}

fn rounds(serial: &str) -> usize {
    serial.lines().filter(|line| line.starts_with("d=")).count()
}

/// Waits until the guest has verified `more` further rounds.
fn wait_rounds(vm: &VmProcess, more: usize) {
    let before = rounds(&vm.serial());
    let text = vm
        .wait_serial(|text| rounds(text) >= before + more || text.contains('E'))
        .expect("rounds");
    assert!(!text.contains('E'), "{text}; {}", vm.process_log());
}

fn check_clean(path: &Path) {
    let output = Process::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(path)
        .output()
        .expect("qemu-img is installed");
    assert!(
        output.status.success(),
        "{}: {}{}",
        path.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn boot(folder: &Path, cmdline: &str, disks: Vec<Disk>) -> VmProcess {
    let kernel = folder.join("guest.elf");
    fs::write(&kernel, bare_guests::guest_elf()).expect("guest file");
    let options = SpawnOptions {
        disks,
        ..SpawnOptions::default()
    };
    let spec = spec(cmdline, options.disks.len());
    VmProcess::boot(folder, "src", spec, &kernel, None, options).expect("boot")
}

#[test]
fn a_forked_guest_runs_on_over_merged_layers() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let mut stack = Stack::new(folder.path());
    let mut source = boot(
        folder.path(),
        "mode=disk blocks=250 flush=50",
        vec![stack.disk()],
    );
    wait_rounds(&source, 1);
    let mut clones = vec![];
    for turn in 0..3 {
        for fork in 0..6 {
            let clone = (fork == 3).then(|| {
                let top = stack.delta();
                let below = stack.chain.iter().cloned();
                let layers = std::iter::once(top).chain(below);
                vec![Disk {
                    layers: layers.map(|path| (path, LayerFormat::Qcow2)).collect(),
                }]
            });
            let next = stack.delta();
            let (_, made) = source
                .fork(ForkOptions {
                    next_tops: vec![next.clone()],
                    clones: usize::from(clone.is_some()),
                    clone_disks: clone.into_iter().collect(),
                    fail_at: None,
                })
                .expect("fork");
            stack.chain.insert(0, next);
            clones.extend(made);
            source.call(Command::ForkDurable).expect("durable");
        }
        wait_rounds(&source, 1);
        let paused = turn == 1;
        if paused {
            source.call(Command::Pause).expect("pause");
        }
        let (below, gone) = stack.merge();
        assert!(gone.len() >= 6);
        rebase(&mut source, &below).expect("rebase");
        stack.chain.splice(1.., below);
        assert_eq!(stack.chain.len(), 3);
        if paused {
            source.call(Command::Resume).expect("resume");
        }
        wait_rounds(&source, 2);
    }
    // Clones keep the layers they have, and their own stacks get shorter too.
    for clone in &clones {
        wait_rounds(&clone.vm, 1);
    }
    let held = source.process_log();
    assert_eq!(held.matches("stack was replaced").count(), 3, "{held}");
    assert!(!held.contains("ERROR"), "{held}");
    drop(clones);
    assert!(matches!(source.call(Command::PowerOff), Ok(Outcome::Done)));
    for path in &stack.chain {
        check_clean(path);
    }
}

#[test]
fn changes_that_do_not_fit_are_refused_by_name() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let stack = Stack::new(folder.path());
    let empty = || Disk { layers: vec![] };
    let mut vm = boot(
        folder.path(),
        "mode=disk blocks=64 flush=8",
        vec![stack.disk(), empty()],
    );
    wait_rounds(&vm, 1);
    let small = folder.path().join("small.qcow2");
    create_full(&create(&small), 1 << 20).expect("small");
    let one = |path: &Path| vec![(path.to_owned(), LayerFormat::Qcow2)];
    let base = folder.path().join("base.qcow2");
    let mut refused = |disk: usize, path: &Path, words: &str| {
        let error = vm.rebase(disk, &[(path, LayerFormat::Qcow2)], "base.qcow2");
        let text = format!("{:#}", error.expect_err(words));
        assert!(text.contains(words), "{text}");
    };
    refused(7, &base, "there is no disk 7");
    refused(1, &base, "disk 1 is an empty slot");
    refused(0, &small, "1048576 bytes");
    refused(0, &stack.chain[0], "names a backing file");
    let error = vm.rebase(0, &[], "base.qcow2").expect_err("no layers");
    assert!(format!("{error:#}").contains("empty"), "{error:#}");
    let error = vm.insert_medium(
        0,
        Disk {
            layers: one(&small),
        },
    );
    let text = format!("{:#}", error.expect_err("occupied"));
    assert!(text.contains("has a medium already"), "{text}");
    let error = vm.insert_medium(
        5,
        Disk {
            layers: one(&small),
        },
    );
    let text = format!("{:#}", error.expect_err("no slot"));
    assert!(text.contains("there is no disk 5"), "{text}");
    let error = vm.insert_medium(1, empty()).expect_err("no layers");
    assert!(
        format!("{error:#}").contains("at least one layer"),
        "{error:#}"
    );
    wait_rounds(&vm, 1);
}

#[test]
fn an_empty_slot_takes_a_medium_and_is_forked_with_it() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let mut stack = Stack::new(folder.path());
    let empty = Disk { layers: vec![] };
    let mut source = boot(
        folder.path(),
        "mode=disk blocks=64 flush=8",
        vec![stack.disk(), empty],
    );
    wait_rounds(&source, 1);

    // Empty: the fork has one next top, and a clone may bring a medium of its own.
    let extra = folder.path().join("extra.qcow2");
    create_full(&create(&extra), DISK_BYTES).expect("extra");
    let medium = |path: &Path| Disk {
        layers: vec![(path.to_owned(), LayerFormat::Qcow2)],
    };
    let clone_disk = |stack: &mut Stack| {
        let mut disk = stack.disk();
        disk.layers.insert(0, (stack.delta(), LayerFormat::Qcow2));
        disk
    };
    let first = vec![clone_disk(&mut stack), medium(&extra)];
    let second = vec![clone_disk(&mut stack), Disk { layers: vec![] }];
    let next = stack.delta();
    let (_, mut clones) = source
        .fork(ForkOptions {
            next_tops: vec![next.clone()],
            clones: 2,
            clone_disks: vec![first, second],
            fail_at: None,
        })
        .expect("fork");
    stack.chain.insert(0, next);
    let error = clones[0].vm.insert_medium(1, medium(&extra));
    let text = format!("{:#}", error.expect_err("it brought one"));
    assert!(text.contains("has a medium already"), "{text}");
    for clone in &clones {
        wait_rounds(&clone.vm, 1);
    }
    let other = folder.path().join("other.qcow2");
    create_full(&create(&other), DISK_BYTES).expect("other");
    clones[1]
        .vm
        .insert_medium(1, medium(&other))
        .expect("the second came without");

    // With a medium: the fork has two next tops.
    let third = folder.path().join("third.qcow2");
    create_full(&create(&third), DISK_BYTES).expect("third");
    source.call(Command::Pause).expect("pause");
    source.insert_medium(1, medium(&third)).expect("insert");
    source.call(Command::Resume).expect("resume");
    wait_rounds(&source, 1);
    let next = stack.delta();
    let one_top = ForkOptions {
        next_tops: vec![next.clone()],
        ..ForkOptions::default()
    };
    let error = source.fork(one_top).expect_err("two disks have media");
    assert!(format!("{error:#}").contains("fork failed"), "{error:#}");
    let both = [next, overlay(&folder.path().join("t2.qcow2"), &third)];
    let forked = source.fork(ForkOptions {
        next_tops: both.to_vec(),
        ..ForkOptions::default()
    });
    forked.expect("fork with both");
    source.call(Command::ForkDurable).expect("durable");
    wait_rounds(&source, 1);
}
