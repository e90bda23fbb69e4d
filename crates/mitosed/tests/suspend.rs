//! Suspending to disk and going on from there.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use api_types::{ErrorKind, StopRequest};
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
        log.push_str("restore\n");
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
