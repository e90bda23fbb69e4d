//! Suspending to disk and going on from there.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use api_types::{ErrorKind, PrepareRequest, SnapshotRequest, StopRequest};
use bed::stores::Mount;
use bed::{Bed, clones};

const OFF: StopRequest = StopRequest {
    force: true,
    timeout_s: None,
};

fn memory_files(bed: &Bed) -> usize {
    let dir = bed.home().join("datastore1/memory");
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

fn serial(bed: &Bed, name: &str) -> String {
    std::fs::read_to_string(bed.detail(name).serial.unwrap()).unwrap()
}

#[test]
fn a_suspended_vm_has_no_process_and_goes_on() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let mut log = "boot\n".to_owned();
    // At first its RAM is a layer in memory, then a view that a process has to write.
    for round in 0..2 {
        let vm = bed.client.suspend("a", |_| ()).unwrap();
        assert_eq!(vm.state, "suspended");
        assert_eq!(bed.detail("a").pid, None);
        assert_eq!(memory_files(&bed), 2);
        assert_eq!(bed.client.suspend("a", |_| ()).unwrap().state, "suspended");
        bed.restart();
        assert_eq!(bed.state("a"), "suspended");
        let vm = match round {
            0 => bed.client.start("a").unwrap(),
            _ => bed.client.resume("a").unwrap(),
        };
        assert_eq!(vm.state, "running");
        // The same generation: its instant has gone on nowhere else.
        log.push_str("resume\n");
        assert_eq!(serial(&bed, "a"), log);
        assert_eq!(memory_files(&bed), 0);
    }
    bed.restart();
    assert_eq!(bed.state("a"), "running");
    bed.client.fork("a", &clones(&["b"])).unwrap();
    bed.client.remove("a", true).unwrap();
    bed.assert_only(&["b"]);
}

#[test]
fn a_suspended_vm_is_removed_or_powered_off_with_its_memory() {
    let bed = Bed::new();
    for name in ["a", "b"] {
        bed.run(name, "");
        bed.client.suspend(name, |_| ()).unwrap();
    }
    let error = bed.client.pause("a").unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Conflict));
    assert!(error.to_string().contains("mitose resume a"), "{error}");
    let stop = bed.client.stop("a", &StopRequest::default()).unwrap_err();
    assert!(stop.to_string().contains("suspended"), "{stop}");
    assert_eq!(bed.client.stop("a", &OFF).unwrap().state, "poweredOff");
    bed.client.remove("b", false).unwrap();
    assert_eq!(memory_files(&bed), 0);
    bed.client.start("a").unwrap();
    assert_eq!(serial(&bed, "a"), "boot\nboot\n");
    bed.assert_only(&["a"]);
}

#[test]
fn a_vm_that_cannot_go_on_stays_suspended() {
    let mut bed = Bed::new();
    bed.run("a", "fail=restore");
    bed.run("b", "die=restore");
    for name in ["a", "b"] {
        bed.client.suspend(name, |_| ()).unwrap();
        let layers = bed.detail(name).disks[0].layers.clone();
        bed.client.start(name).unwrap_err();
        assert_eq!(bed.state(name), "suspended");
        // The top that may have been written to is another one.
        let after = bed.detail(name).disks[0].layers.clone();
        assert_eq!(after[1..], layers[1..]);
        assert_ne!(after[0], layers[0]);
    }
    bed.restart();
    assert_eq!(
        (bed.state("a"), bed.state("b")),
        ("suspended".into(), "suspended".into())
    );
    assert_eq!(memory_files(&bed), 4);
    bed.assert_only(&["a", "b"]);
}

#[test]
fn a_vm_runs_on_when_its_memory_cannot_be_written() {
    let bed = Bed::new();
    bed.run("a", "fail=dump");
    bed.client.fork("a", &clones(&["b"])).unwrap();
    let error = bed.client.suspend("a", |_| ()).unwrap_err();
    assert!(error.to_string().contains("made to fail"), "{error}");
    assert_eq!(bed.state("a"), "running");
    assert_eq!(memory_files(&bed), 0);
    bed.assert_only(&["a", "b"]);
}

#[test]
fn a_vm_runs_on_when_the_daemon_ends_while_it_is_suspended() {
    let mut bed = Bed::new();
    bed.run("a", "dump_ms=60000");
    bed.client.fork("a", &clones(&["b"])).unwrap();
    let client = bed.client.clone();
    let suspender = std::thread::spawn(move || client.suspend("a", |_| ()));
    bed.until("memory is being written", || memory_files(&bed) == 2);
    bed.restart();
    suspender.join().unwrap().unwrap_err();
    assert_eq!(bed.state("a"), "running");
    assert_eq!(memory_files(&bed), 0);
    bed.assert_only(&["a", "b"]);
}

#[test]
fn a_suspended_vm_is_cloned_from_its_memory_and_stays_suspended() {
    let bed = Bed::new();
    bed.run("a", "");
    bed.client.suspend("a", |_| ()).unwrap();
    let cloned = bed.client.fork("a", &clones(&["b", "c"])).unwrap();
    assert_eq!(cloned.memory, "files");
    assert!(cloned.clones.iter().all(|clone| clone.error.is_none()));
    assert_eq!(bed.state("a"), "suspended");
    bed.client.remove("a", false).unwrap();
    assert_eq!(memory_files(&bed), 0);
    assert_eq!(serial(&bed, "b"), "restore\n");
    bed.assert_only(&["b", "c"]);
}

#[test]
fn what_has_no_process_is_not_suspended() {
    let bed = Bed::new();
    bed.run("a", "");
    bed.client.stop("a", &OFF).unwrap();
    let error = bed.client.suspend("a", |_| ()).unwrap_err();
    assert!(error.to_string().contains("powered off"), "{error}");
    bed.client.start("a").unwrap();
    bed.client.pause("a").unwrap();
    assert_eq!(bed.client.suspend("a", |_| ()).unwrap().state, "suspended");
}

#[test]
fn memory_goes_to_the_datastore_of_its_vm_or_to_the_one_that_is_named() {
    let mut bed = Bed::new();
    for name in ["two", "three"] {
        bed.add_store(name);
    }
    bed.run_on("a", "two");
    let files = |bed: &Bed, store: &str| {
        let dir = bed.file(store).join("memory");
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    };
    let snapshot = SnapshotRequest {
        name: "s".into(),
        memory: true,
        ..SnapshotRequest::default()
    };
    bed.client.create_snapshot("a", &snapshot, |_| ()).unwrap();
    assert_eq!(files(&bed, "two"), 2);
    let prepare = |datastore: Option<&str>, durable| PrepareRequest {
        durable,
        datastore: datastore.map(str::to_owned),
        ..PrepareRequest::default()
    };
    let refused = bed
        .client
        .prepare("a", &prepare(Some("three"), false), |_| ());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("datastore: "), "{refused}");
    let durable = prepare(Some("three"), true);
    bed.client.prepare("a", &durable, |_| ()).unwrap();
    assert_eq!((files(&bed, "two"), files(&bed, "three")), (2, 2));
    bed.client.suspend("a", |_| ()).unwrap();
    assert_eq!((files(&bed, "two"), memory_files(&bed)), (4, 0));
    for store in ["two", "three"] {
        std::fs::write(bed.file(store).join("memory/vm-9-x.ram.part"), b"left").unwrap();
    }
    bed.restart();
    assert_eq!((files(&bed, "two"), files(&bed, "three")), (4, 2));
    let refused = bed.client.remove_datastore("three").unwrap_err();
    assert!(
        refused.to_string().contains("the fork point a"),
        "{refused}"
    );
    bed.client.start("a").unwrap();
    assert_eq!(files(&bed, "two"), 2);
    bed.client.unprepare("a", true).unwrap();
    assert_eq!(files(&bed, "three"), 0);
    bed.client.remove_datastore("three").unwrap();
    bed.client.remove("a", true).unwrap();
    assert_eq!(files(&bed, "two"), 0);
}

#[test]
fn memory_that_finds_no_space_is_refused_before_the_vm_stands_still() {
    let bed = Bed::new();
    let Some(mount) = Mount::tmpfs(bed.file("small"), 3 << 20) else {
        eprintln!("skipped: mounting is not permitted");
        return;
    };
    bed.add_store("small");
    bed.run_on("a", "small");
    std::fs::write(mount.path().join("filler"), vec![1; 9 << 18]).unwrap();
    let error = bed.client.suspend("a", |_| ()).unwrap_err().to_string();
    assert!(error.contains("no space on datastore small"), "{error}");
    let snapshot = SnapshotRequest {
        name: "s".into(),
        memory: true,
        ..SnapshotRequest::default()
    };
    let refused = bed.client.create_snapshot("a", &snapshot, |_| ());
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("no space on datastore small"), "{refused}");
    assert_eq!(
        (bed.state("a"), bed.detail("a").stuns.len()),
        ("running".into(), 0)
    );
    assert!(bed.client.snapshots("a").unwrap().is_empty());
}
