//! Instants that outlive their source: written to files by a newborn, held by a keeper, forked from
//! a VM that stands still. On the software engine, and on the machine's own KVM where it has one.

mod change;
mod dump;
mod flatten;
mod keep;
mod still;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command as Process;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use harness::{
    Disk, ForkOptions, InstantFiles, SpawnOptions, StartOptions, VmProcess, kvm_present,
};
use vm_spec::VmSpec;
use vmm_protocol::{Command, Event, Outcome, VmState};

const MEMORY: u64 = 64 << 20;

/// Counts at equal steps whatever the clock does: what it prints depends on its memory alone. Some
/// machines have a KVM that runs guest code a hundred times slower than the software engine.
fn counter(soft: bool) -> String {
    let every = if soft { 40_000 } else { 400 };
    format!("mode=counter touch=16 write=1 scatter=2 every={every}")
}

/// Calls `test` with a folder for each engine of this machine, and whether it is the software one.
/// One at a time: each has VMs that never rest.
fn on_each_engine(test: impl Fn(&Path, bool)) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for soft in [true, false] {
        if !soft && !kvm_present() {
            eprintln!("skipped: no /dev/kvm here");
            continue;
        }
        println!("engine: {}", if soft { "soft" } else { "kvm" });
        let folder = tempfile::tempdir().expect("folder");
        test(folder.path(), soft);
    }
}

fn spec(cmdline: &str) -> VmSpec {
    VmSpec {
        cpus: 1,
        memory_bytes: MEMORY,
        cmdline: cmdline.into(),
        entry: None,
        disks: vec![],
        nics: vec![],
        serial_ports: 1,
    }
}

fn boot(folder: &Path, soft: bool, cmdline: &str) -> VmProcess {
    boot_with(folder, soft, spec(cmdline), vec![])
}

fn boot_with(folder: &Path, soft: bool, spec: VmSpec, disks: Vec<Disk>) -> VmProcess {
    let kernel = folder.join("guest.elf");
    std::fs::write(&kernel, bare_guests::guest_elf()).expect("guest file");
    let options = SpawnOptions {
        disks,
        soft,
        ..SpawnOptions::default()
    };
    VmProcess::boot(folder, "src", spec, &kernel, None, options).expect("boot")
}

fn lines(text: &str) -> usize {
    text.matches('\n').count()
}

/// Waits until the VM has printed `more` lines more.
fn wait_lines(vm: &VmProcess, more: usize) -> String {
    let least = lines(&vm.serial()) + more;
    vm.wait_serial(|text| lines(text) >= least)
        .unwrap_or_else(|error| panic!("{error:#}; {}", vm.process_log()))
}

/// Both VMs print the same, from their instant on.
fn assert_same_instant(one: &VmProcess, other: &VmProcess) {
    let (one, other) = (wait_lines(one, 4), wait_lines(other, 4));
    let len = one.len().min(other.len());
    assert!(lines(&one[..len]) >= 3, "{one:?} {other:?}");
    assert_eq!(one[..len], other[..len]);
}

fn running() -> StartOptions {
    StartOptions::default()
}

fn paused() -> StartOptions {
    StartOptions {
        paused: true,
        ..StartOptions::default()
    }
}

fn type_bytes(vm: &mut VmProcess, bytes: &[u8]) {
    vm.order(Command::SerialInput(bytes.into())).expect("type");
}

/// The guest's own check of every page that it has touched.
fn verify(vm: &mut VmProcess) {
    type_bytes(vm, b"v");
    let text = vm.wait_serial(|text| text.contains("V\n") || text.contains("E "));
    assert!(!text.as_ref().expect("answer").contains("E "), "{text:?}");
}

fn fork(vm: &mut VmProcess, clones: usize) -> (vmm_protocol::Forked, Vec<VmProcess>) {
    let options = ForkOptions {
        clones,
        ..ForkOptions::default()
    };
    let (forked, clones) = vm.fork(options).expect("fork");
    (forked, clones.into_iter().map(|clone| clone.vm).collect())
}

fn fails(result: anyhow::Result<()>, words: &str) {
    let error = result.expect_err("must be refused");
    assert!(format!("{error:#}").contains(words), "{error:#}");
}
