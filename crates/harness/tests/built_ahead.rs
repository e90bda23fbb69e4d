//! Shells of the pool build ahead what a clone of the VM that was started last needs. Clones of
//! other VMs, of another size or on the other engine, are what they should be all the same.

use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Cli, kvm_present};

const PATIENCE: Duration = Duration::from_secs(60);

/// Names of the threads of a VM process of `home`.
fn threads(process: &Path, home: &str) -> Vec<String> {
    let environ = std::fs::read(process.join("environ")).unwrap_or_default();
    let mark = format!("MITOSE_VM_OF={home}");
    if !environ
        .split(|byte| *byte == 0)
        .any(|v| v == mark.as_bytes())
    {
        return Vec::new();
    }
    let tasks = std::fs::read_dir(process.join("task"))
        .into_iter()
        .flatten();
    let names = tasks.flatten().map(|task| {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.trim().to_owned()
    });
    names.collect()
}

/// Processes that have `cpus` vCPU threads and run no VM: those have threads for their devices too.
fn built(home: &Path, cpus: usize) -> usize {
    let home = home.to_str().expect("path");
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let of_home = processes.map(|process| threads(&process.path(), home));
    let is_built = |names: &Vec<String>| {
        let vcpus = names.iter().filter(|name| name.starts_with("vcpu"));
        vcpus.count() == cpus && !names.iter().any(|name| name == "io")
    };
    of_home.filter(is_built).count()
}

fn wait_built(home: &Path, cpus: usize) {
    let deadline = Instant::now() + PATIENCE;
    while built(home, cpus) == 0 {
        assert!(
            Instant::now() < deadline,
            "no shell builds for {cpus} vCPUs"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn clones_are_right_whatever_was_built_ahead() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let folder = tempfile::Builder::new()
        .prefix("ba")
        .tempdir_in("/tmp")
        .expect("folder");
    let home = folder.path().join("h");
    let kernel = folder.path().join("guest.elf");
    std::fs::write(&kernel, bare_guests::guest_elf()).expect("guest");
    let kernel = kernel.to_str().expect("path");
    let cli = Cli::new(&home).expect("mitose is built");
    let run = |name: &str, memory: &str, cpus: &str, engine: &str| {
        let words = [
            "run", name, "--kernel", kernel, "--memory", memory, "--cpus", cpus,
        ];
        let more = ["--engine", engine, "--cmdline", "mode=counter idle=1"];
        cli.run(&[&words[..], &more].concat()).expect("run");
    };
    run("a", "64M", "1", "kvm");
    wait_built(&home, 1);
    run("b", "96M", "2", "kvm");
    wait_built(&home, 2);
    run("c", "96M", "2", "soft");
    run("d", "64M", "1", "kvm");
    wait_built(&home, 1);
    for source in ["a", "b", "c", "d", "a", "c"] {
        let clone = format!(
            "{source}-{}",
            cli.json(&["ls"])
                .expect("ls")
                .as_array()
                .expect("list")
                .len()
        );
        cli.run(&["clone", source, "--name", &clone])
            .expect("clone");
        let (of, is) = (
            cli.json(&["info", source]).expect("info"),
            cli.json(&["info", &clone]).expect("info"),
        );
        for field in ["engine", "cpus", "memory_bytes"] {
            assert!(!of[field].is_null(), "{field}: {of}");
            assert_eq!(is[field], of[field], "{field} of {clone}");
        }
        assert_eq!(is["state"], "running", "{clone}");
        let text = cli.run(&["logs", &clone]).expect("logs");
        assert!(!text.lines().any(|line| line.starts_with('E')), "{text}");
    }
    cli.clean_up();
}
