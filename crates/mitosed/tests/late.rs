//! VM processes that answer after their request was given up.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use bed::Bed;
use rustix::process::{Pid, Signal, kill_process};

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
    let events = bed.client.events(Some(0)).unwrap();
    let told = events.iter().find(|event| event.kind == "vm.paused");
    assert_eq!(told.unwrap().message, "paused: its process answered late");
    bed.client.resume("a").unwrap();
    assert_eq!(bed.state("a"), "running");
    bed.assert_only(&["a"]);
}
