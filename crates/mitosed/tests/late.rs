//! VM processes that answer after their request was given up.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use api_types::{ErrorKind, PointForkRequest, PrepareRequest, StopRequest};
use bed::{Bed, clones};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

#[test]
fn what_a_process_does_late_is_known_when_it_answers() {
    let bed = Bed::new();
    bed.run("a", "");
    let pid = Pid::from_raw(bed.detail("a").pid.unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let late = bed.client.pause("a").unwrap_err();
    assert!(late.to_string().contains("did not answer"), "{late}");
    kill_process(pid, Signal::CONT).unwrap();
    bed.until_state("a", "paused");
    let told = || {
        let events = bed.client.events(Some(0)).unwrap();
        let told = events.into_iter().find(|event| event.kind == "vm.paused");
        told.map(|event| event.message)
    };
    bed.until("it is told", || told().is_some());
    assert_eq!(told().unwrap(), "paused: its process answered late");
    bed.client.resume("a").unwrap();
    assert_eq!(bed.state("a"), "running");
    bed.assert_only(&["a"]);
}

/// A VM whose process has not answered the daemon that took it over.
fn unanswered(bed: &mut Bed) -> Pid {
    bed.run("a", "");
    let pid = Pid::from_raw(bed.detail("a").pid.unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    bed.restart();
    let detail = bed.detail("a");
    assert_eq!(detail.vm.state, "running", "{}", bed.log());
    assert_eq!(detail.pid, Some(pid.as_raw_nonzero().get()));
    assert!(detail.reason.unwrap().contains("has not answered"));
    let told = |error: client::ClientError| {
        assert_eq!(error.kind(), Some(ErrorKind::Unavailable), "{error}");
        assert!(
            error.to_string().contains("mitose stop a --force"),
            "{error}"
        );
    };
    told(bed.client.pause("a").unwrap_err());
    told(bed.client.fork("a", &clones(&["b"])).unwrap_err());
    told(bed.client.reset("a").unwrap_err());
    pid
}

fn told(bed: &Bed, kind: &str) -> usize {
    let events = bed.client.events(Some(0)).unwrap();
    events.iter().filter(|event| event.kind == kind).count()
}

#[test]
fn a_vm_whose_process_does_not_answer_a_new_daemon_is_taken_over_when_it_does() {
    let mut bed = Bed::new();
    let pid = unanswered(&mut bed);
    assert_eq!(told(&bed, "vm.unresponsive"), 1);
    kill_process(pid, Signal::CONT).unwrap();
    bed.until("it answers", || told(&bed, "vm.recovered") == 1);
    let detail = bed.detail("a");
    assert_eq!((detail.vm.state.as_str(), detail.reason), ("running", None));
    bed.client.fork("a", &clones(&["b"])).unwrap();
    bed.client.pause("a").unwrap();
    bed.assert_only(&["a", "b"]);
}

#[test]
fn a_vm_whose_process_does_not_answer_a_new_daemon_can_be_ended() {
    let stop = StopRequest {
        force: true,
        ..StopRequest::default()
    };
    let mut bed = Bed::new();
    unanswered(&mut bed);
    bed.client.stop("a", &stop).unwrap();
    bed.client.start("a").unwrap();
    bed.client.remove("a", true).unwrap();
    let pid = unanswered(&mut bed);
    bed.client.remove("a", true).unwrap();
    bed.assert_only(&[]);
    bed.until("it is gone", || test_kill_process(pid).is_err());
    // Its end is seen also where nobody asked for it.
    let pid = unanswered(&mut bed);
    kill_process(pid, Signal::KILL).unwrap();
    bed.until_state("a", "poweredOff");
    bed.client.start("a").unwrap();
    assert_eq!(bed.detail("a").reason, None);
    bed.assert_only(&["a"]);
}

/// Runs a VM; returns its process.
fn run(bed: &Bed, cmdline: &str) -> Pid {
    bed.run("a", cmdline);
    Pid::from_raw(bed.detail("a").pid.unwrap()).unwrap()
}

/// Whether a process has not ended; whoever has to may still be about to take note of its end.
fn lives(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let state = stat
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(") ")?.1.to_owned()));
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// Asserts that a VM runs on in `pid`, and does what it is told.
fn assert_runs_on(bed: &Bed, pid: Pid) {
    bed.until("it is taken over", || told(bed, "vm.recovered") == 1);
    let detail = bed.detail("a");
    assert_eq!((detail.vm.state.as_str(), detail.reason), ("running", None));
    assert_eq!(detail.pid, Some(pid.as_raw_nonzero().get()));
    assert_eq!(told(bed, "vm.failed"), 0, "{}", bed.log());
    bed.client.pause("a").unwrap();
    bed.client.resume("a").unwrap();
    bed.client.fork("a", &clones(&["b"])).unwrap();
    bed.assert_only(&["a", "b"]);
}

#[test]
fn a_process_that_runs_on_without_its_connection_is_connected_to_again() {
    let bed = Bed::new();
    let pid = run(&bed, "");
    bed.type_line("a", "hang up\n");
    assert_runs_on(&bed, pid);
}

#[test]
fn a_vm_is_off_only_when_its_process_has_ended() {
    let bed = Bed::new();
    let pid = run(&bed, "");
    bed.type_line("a", "leave\n");
    bed.until_state("a", "poweredOff");
    assert!(!lives(pid), "{}", bed.log());
    bed.client.start("a").unwrap();
    bed.assert_only(&["a"]);
}

#[test]
fn a_process_that_closes_the_connection_of_a_new_daemon_is_connected_to_again() {
    let mut bed = Bed::new();
    let pid = run(&bed, "shy");
    bed.restart();
    assert_eq!(bed.state("a"), "running", "{}", bed.log());
    assert_runs_on(&bed, pid);
}

#[test]
fn a_process_that_does_not_tell_a_new_daemon_its_state_runs_on() {
    let mut bed = Bed::new();
    let pid = run(&bed, "fail=status");
    bed.restart();
    let detail = bed.detail("a");
    assert_eq!(detail.vm.state, "running", "{}", bed.log());
    assert_eq!(detail.pid, Some(pid.as_raw_nonzero().get()));
    assert!(detail.reason.unwrap().contains("has not answered"));
    assert!(lives(pid));
    let stop = StopRequest {
        force: true,
        ..StopRequest::default()
    };
    bed.client.stop("a", &stop).unwrap();
    assert!(!lives(pid));
    bed.assert_only(&["a"]);
}

#[test]
fn a_keeper_that_does_not_answer_a_new_daemon_keeps_its_fork_point() {
    let mut bed = Bed::new();
    bed.run("a", "");
    let prepare = PrepareRequest::default();
    bed.client.prepare("a", &prepare, |_| ()).unwrap();
    bed.client.remove("a", true).unwrap();
    bed.kill();
    bed.until("only the keeper is left", || bed.processes().len() == 1);
    let keeper = Pid::from_raw(bed.processes()[0]).unwrap();
    kill_process(keeper, Signal::STOP).unwrap();
    bed.start();
    assert_eq!(bed.client.fork_point("a").unwrap().memory, "memory");
    kill_process(keeper, Signal::CONT).unwrap();
    let child = PointForkRequest {
        names: vec!["b".to_owned()],
        ..PointForkRequest::default()
    };
    bed.client.fork_children("a", &child, |_| ()).unwrap();
    bed.assert_only(&["b"]);
}
