//! Forks of bare-metal guests on the machine's own KVM: clones go on from the source's instant,
//! the source runs on, generations follow each other.

use std::path::Path;

use harness::{ForkOptions, SpawnOptions, VmProcess, kvm_present};
use vm_spec::VmSpec;
use vmm_protocol::{Command, ForkStep, Outcome, VmState};

const MEMORY: u64 = 64 << 20;

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

fn boot(folder: &Path, cmdline: &str) -> VmProcess {
    let kernel = folder.join("guest.elf");
    std::fs::write(&kernel, bare_guests::guest_elf()).expect("guest file");
    VmProcess::boot(
        folder,
        "src",
        spec(cmdline),
        &kernel,
        None,
        SpawnOptions::default(),
    )
    .expect("boot")
}

/// The counter values a guest printed, in order.
fn counters(serial: &str) -> Vec<u64> {
    serial
        .lines()
        .filter_map(|line| line.strip_prefix("c="))
        .filter(|hex| hex.len() == 16)
        .map(|hex| u64::from_str_radix(hex, 16).expect("hexadecimal"))
        .collect()
}

fn wait_counter(vm: &VmProcess, least: usize) -> Vec<u64> {
    counters(
        &vm.wait_serial(|text| counters(text).len() >= least)
            .expect("counter"),
    )
}

#[test]
fn clones_go_on_from_the_same_counter() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let mut source = boot(folder.path(), "mode=counter touch=16");
    let before = *wait_counter(&source, 2).last().expect("counter");
    let (forked, clones) = source
        .fork(ForkOptions {
            clones: 3,
            ..ForkOptions::default()
        })
        .expect("fork");
    assert!(
        forked.layer.is_some(),
        "the first fork makes a memory layer"
    );
    let after = wait_counter(&source, counters(&source.serial()).len() + 3);
    for clone in &clones {
        let seen = wait_counter(&clone.vm, 3);
        assert!(
            seen[0] >= before,
            "clone starts at {} after {before}",
            seen[0]
        );
        assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "{seen:?}");
        assert!(after.contains(&seen[0]) || seen[0] <= after[after.len() - 1]);
    }
    println!("stun {} us, steps {:?}", forked.stun_us, forked.steps_us);
}

#[test]
fn generations_of_clones_run_on_their_own() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let mut source = boot(folder.path(), "mode=counter touch=16 write=1");
    wait_counter(&source, 1);
    let mut line = vec![];
    let options = || ForkOptions {
        clones: 2,
        ..ForkOptions::default()
    };
    let (_, mut clones) = source.fork(options()).expect("first fork");
    for generation in 2..5 {
        let mut parent = clones.remove(0).vm;
        let last = *wait_counter(&parent, 2).last().expect("counter");
        let (forked, next) = parent.fork(options()).unwrap_or_else(|error| {
            panic!(
                "generation {generation}: {error:#}; {}",
                parent.process_log()
            )
        });
        assert!(forked.layer.is_none(), "a private view is held by fork()");
        println!(
            "generation {generation}: stun {} us {:?}",
            forked.stun_us, forked.steps_us
        );
        clones = next;
        for clone in &clones {
            assert!(wait_counter(&clone.vm, 2)[0] >= last);
        }
        line.push(parent);
    }
    let (again, more) = source.fork(options()).expect("the source forks again");
    println!(
        "source again: stun {} us {:?}",
        again.stun_us, again.steps_us
    );
    drop(source);
    for vm in line
        .iter()
        .chain(more.iter().map(|c| &c.vm))
        .chain(clones.iter().map(|c| &c.vm))
    {
        let count = counters(&vm.serial()).len();
        wait_counter(vm, count + 2);
    }
}

#[test]
fn a_failure_at_any_step_leaves_the_source_running() {
    if !kvm_present() {
        eprintln!("skipped: no /dev/kvm here");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let mut source = boot(folder.path(), "mode=counter touch=4");
    wait_counter(&source, 1);
    let steps = [
        ForkStep::PrepareTops,
        ForkStep::Drain,
        ForkStep::Stop,
        ForkStep::Save,
        ForkStep::SwapDisks,
        ForkStep::SwapMemory,
    ];
    for round in 0..2 {
        for step in steps {
            let options = ForkOptions {
                clones: 1,
                fail_at: Some(step),
                ..ForkOptions::default()
            };
            let error = source.fork(options).expect_err("must fail");
            assert!(error.to_string().contains("injected"), "{error:#}");
            let count = counters(&source.serial()).len();
            wait_counter(&source, count + 2);
            match source.call(Command::Status).expect("status") {
                Outcome::Status(status) => assert_eq!(status.state, VmState::Running),
                other => panic!("{other:?}"),
            }
        }
        // The second round fails forks of a private view.
        let (forked, _clones) = source
            .fork(ForkOptions {
                clones: 1,
                ..ForkOptions::default()
            })
            .expect("fork");
        assert_eq!(forked.layer.is_some(), round == 0);
    }
}
