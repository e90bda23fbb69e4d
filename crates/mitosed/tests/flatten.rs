//! Sources whose forks have left them much memory of their own are put on new memory layers, in the
//! background. The stand-in has 4 MiB more with each fork.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use api_types::{Event, SnapshotRequest};
use bed::{Bed, clones};

/// A daemon that flattens as soon as it pays.
fn bed() -> Bed {
    Bed::with(&["--flatten-from", "1M"])
}

fn events(bed: &Bed, kind: &str) -> Vec<Event> {
    let all = bed.client.events(None).unwrap();
    all.into_iter().filter(|e| e.kind == kind).collect()
}

/// Forks `count` times, one clone each, which is removed at once.
fn fork(bed: &Bed, count: usize) {
    for _ in 0..count {
        bed.client.fork("a", &clones(&["b"])).unwrap();
        bed.client.remove("b", true).unwrap();
    }
}

#[test]
fn a_source_that_grows_is_flattened_once_it_pays() {
    let bed = bed();
    bed.run("a", "grows");
    // The first makes a layer of its RAM, and what it has then is the measure.
    fork(&bed, 1);
    assert!(events(&bed, "vm.flattened").is_empty());
    bed.until("it is flattened", || {
        fork(&bed, 1);
        !events(&bed, "vm.flattened").is_empty()
    });
    let event = &events(&bed, "vm.flattened")[0];
    assert_eq!(event.subject, "a");
    let figures = event.data.as_ref().unwrap();
    let figure = |name: &str| figures[name].as_u64().unwrap();
    assert_eq!(figure("pieces"), 3);
    assert_eq!(figure("moved_kib"), 3 << 10);
    assert_eq!((figure("stun_us"), figure("stun_us_sum")), (3, 9));
    assert_eq!(bed.state("a"), "running");
    assert_eq!(bed.names(), ["a"]);
    // It pays again when it has grown again, and the daemon has rested.
    bed.until("it is flattened again", || {
        fork(&bed, 1);
        events(&bed, "vm.flattened").len() > 1
    });
    let request = SnapshotRequest {
        name: "s".into(),
        description: String::new(),
        memory: true,
    };
    bed.client.create_snapshot("a", &request, |_| ()).unwrap();
    bed.client.remove("a", true).unwrap();
    bed.assert_only(&[]);
}

#[test]
fn a_source_that_does_not_grow_is_left_alone() {
    let bed = bed();
    bed.run("a", "");
    fork(&bed, 6);
    let never = Bed::with(&["--flatten-from", "0"]);
    never.run("a", "grows");
    fork(&never, 20);
    for bed in [&bed, &never] {
        assert!(events(bed, "vm.flattened").is_empty());
        bed.assert_only_processes();
    }
}

#[test]
fn what_fails_leaves_a_running_source() {
    let bed = bed();
    bed.run("a", "grows fail=flatten");
    fork(&bed, 12);
    assert!(events(&bed, "vm.flattened").is_empty());
    assert_eq!(bed.state("a"), "running");
    bed.client.remove("a", true).unwrap();
    bed.assert_only(&[]);
}

#[test]
fn a_daemon_that_is_killed_meanwhile_leaves_nothing() {
    let mut bed = bed();
    bed.run("a", "grows");
    for _ in 0..3 {
        fork(&bed, 4);
        bed.kill();
        bed.start();
        assert_eq!(bed.state("a"), "running");
        bed.assert_only_processes();
    }
    bed.client.remove("a", true).unwrap();
    bed.assert_only(&[]);
}
