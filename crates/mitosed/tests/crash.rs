//! The daemon's sudden end: what was running goes on, what never lived is gone.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::time::Duration;

use bed::{Bed, clones};

#[test]
fn vms_outlive_the_daemon_and_are_found_again() {
    let mut bed = Bed::new();
    bed.run("a", "agent");
    bed.run("b", "");
    bed.client.pause("b").unwrap();
    bed.client.fork("a", &clones(&["c"])).unwrap();
    bed.client.fork("c", &clones(&["d"])).unwrap();
    let before: Vec<_> = ["a", "b", "c", "d"].map(|name| bed.detail(name)).into();
    bed.restart();
    for vm in &before {
        let mut after = bed.detail(&vm.vm.name);
        after.memory = vm.memory;
        assert_eq!(&after, vm);
    }
    bed.client.resume("b").unwrap();
    let cloned = bed.client.fork("d", &clones(&["e"])).unwrap();
    assert_eq!(cloned.memory, "fork");
    bed.assert_only(&["a", "b", "c", "d", "e"]);
}

#[test]
fn a_vm_that_ended_meanwhile_is_powered_off() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let pid = rustix::process::Pid::from_raw(bed.detail("a").pid.unwrap()).unwrap();
    bed.kill();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    bed.start();
    let detail = bed.detail("a");
    assert_eq!(detail.vm.state, "poweredOff");
    assert!(detail.reason.unwrap().contains("while the daemon was down"));
    bed.client.start("a").unwrap();
    bed.assert_only(&["a"]);
}

/// Kills the daemon at a moment of a fork, and looks at what the next one makes of it.
fn kill_during_fork(source_is_clone: bool, after: Duration) {
    let mut bed = Bed::new();
    bed.run("a", "fork_ms=40");
    let mut source = "a";
    if source_is_clone {
        bed.client.fork("a", &clones(&["s"])).unwrap();
        source = "s";
    }
    let before = bed.names();
    let client = bed.client.clone();
    let forking = {
        let source = source.to_owned();
        std::thread::spawn(move || client.fork(&source, &clones(&["x", "y", "z"])))
    };
    std::thread::sleep(after);
    bed.kill();
    let _ = forking.join().unwrap();
    bed.start();
    assert_eq!(bed.state(source), "running");
    let names = bed.names();
    assert!(before.iter().all(|name| names.contains(name)));
    for name in &names {
        assert_eq!(bed.state(name), "running", "{name} after {after:?}");
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    bed.assert_only(&names);
    // All goes on: the source and each clone can be forked, stopped and started.
    for name in &names {
        let next = format!("{name}-next");
        bed.client.fork(name, &clones(&[&next])).unwrap();
        assert_eq!(bed.state(&next), "running");
    }
    for name in &names {
        bed.client
            .stop(name, &api_types::StopRequest::default())
            .unwrap();
        bed.client.start(name).unwrap();
    }
    for name in bed.names() {
        bed.client.remove(&name, true).unwrap();
    }
    bed.assert_only(&[]);
    assert!(bed.list("datastore1/layers").is_empty(), "{}", bed.log());
}

#[test]
fn a_first_fork_may_be_cut_at_any_moment() {
    for ms in [1, 3, 6, 10, 20, 40, 45, 50, 55, 60, 80] {
        kill_during_fork(false, Duration::from_millis(ms));
    }
}

#[test]
fn a_later_fork_may_be_cut_at_any_moment() {
    for ms in [1, 3, 6, 10, 20, 40, 45, 50, 55, 60, 80] {
        kill_during_fork(true, Duration::from_millis(ms));
    }
}

#[test]
fn a_run_may_be_cut_at_any_moment() {
    for ms in [0, 1, 2, 4, 6, 8, 12, 20] {
        let mut bed = Bed::new();
        let client = bed.client.clone();
        let request = bed.with_disk(bed.request("a", ""));
        let running = std::thread::spawn(move || client.run(&request));
        std::thread::sleep(Duration::from_millis(ms));
        bed.kill();
        let _ = running.join().unwrap();
        bed.start();
        match bed.names().as_slice() {
            [] => bed.assert_only(&[]),
            _ => {
                assert_eq!(bed.state("a"), "running");
                bed.assert_only(&["a"]);
            }
        }
    }
}

#[test]
fn leftovers_that_no_row_names_are_removed() {
    let mut bed = Bed::new();
    bed.run("a", "");
    bed.kill();
    let home = bed.home();
    std::fs::write(home.join("datastore1/layers/ffffffffffff-0-0.qcow2"), b"x").unwrap();
    std::fs::create_dir(home.join("datastore1/vms/ffffffffffff")).unwrap();
    std::fs::write(home.join("run/vm-ffffffffffff.sock"), b"").unwrap();
    bed.start();
    bed.assert_only(&["a"]);
}

#[test]
fn one_daemon_serves_a_data_directory_and_two_serve_two() {
    let bed = Bed::new();
    let second = bed.command().output().unwrap();
    assert!(!second.status.success());
    let words = String::from_utf8(second.stderr).unwrap();
    assert!(words.contains("another mitosed runs"), "{words}");
    let other = Bed::new();
    bed.run("a", "");
    other.run("a", "");
    bed.client.remove("a", true).unwrap();
    other.assert_only(&["a"]);
    bed.assert_only(&[]);
}

#[test]
fn an_orderly_end_leaves_vms_running_and_takes_shells_along() {
    let mut bed = Bed::new();
    bed.run("a", "");
    bed.client.stop_daemon().unwrap();
    bed.until("the daemon ends", || bed.client.status().is_err());
    bed.until("only the VM's process is left", || {
        bed.processes().len() == 1
    });
    bed.kill();
    bed.start();
    assert_eq!(bed.state("a"), "running");
}

/// Makes the image's file a cluster longer and counts that cluster, which nothing uses: what a
/// process leaves that is killed between two writes.
fn leak(path: &std::path::Path) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path);
    let file = file.unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    // In the header: size of a cluster as a power of two, and the offset of the refcount table, which
    // begins with the offset of the first block.
    let (bytes, block) = (1 << (number(16) & 0xff), number(number(48)));
    let cluster = file.metadata().unwrap().len().div_ceil(bytes);
    file.set_len((cluster + 1) * bytes).unwrap();
    file.write_all_at(&1u16.to_be_bytes(), block + cluster * 2)
        .unwrap();
}

#[test]
fn the_disk_of_a_process_that_was_killed_is_put_right() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let top = bed.detail("a").disks[0].layers[0].clone();
    let counts = |found: &str| {
        let file = std::fs::File::open(&top).unwrap();
        let report = disk_layers::check_refcounts(&file).unwrap();
        assert_eq!((report.leaked, report.uncounted), (0, 0), "{found}");
    };
    for down in [false, true] {
        let pid = rustix::process::Pid::from_raw(bed.detail("a").pid.unwrap()).unwrap();
        leak(std::path::Path::new(&top));
        let file = std::fs::File::open(&top).unwrap();
        assert_eq!(disk_layers::check_refcounts(&file).unwrap().leaked, 1);
        if down {
            bed.kill();
        }
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        if down {
            bed.start();
        }
        bed.until_state("a", "poweredOff");
        counts(if down { "while it was down" } else { "at once" });
        bed.client.start("a").unwrap();
    }
    assert!(bed.log().contains("put right"), "{}", bed.log());
    bed.assert_only(&["a"]);
}

#[test]
fn what_ends_a_process_first_is_finished_by_the_next_daemon() {
    let mut bed = Bed::new();
    for round in 0..24_u64 {
        bed.run("a", "");
        let snapshot = serde_json::json!({"name": "one", "memory": true});
        let snapshot = serde_json::from_value(snapshot).unwrap();
        bed.client.create_snapshot("a", &snapshot, |_| ()).unwrap();
        let client = bed.client.clone();
        let operate = std::thread::spawn(move || match round % 3 {
            0 => drop(client.reset("a")),
            1 => drop(client.revert("a", "one", |_| ())),
            _ => drop(client.remove("a", true)),
        });
        std::thread::sleep(Duration::from_micros(1000 * (round / 3)));
        bed.kill();
        operate.join().unwrap();
        bed.start();
        // A removal has not begun, or is done; the others leave a VM that runs.
        let there = bed.client.vm("a").is_ok();
        assert!(there || round % 3 == 2, "round {round}: {}", bed.log());
        if there {
            let detail = bed.detail("a");
            assert_eq!(
                detail.vm.state, "running",
                "round {round}: {:?}",
                detail.reason
            );
            bed.client.remove("a", true).unwrap();
        }
        bed.assert_only(&[]);
    }
}
