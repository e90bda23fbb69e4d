//! Prepared parents: fork points that outlive VM and daemon, children that return to them.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use api_types::{
    ErrorKind, ObjectRequest, Persistence, PointForkRequest, PrepareRequest, StopRequest, TaskState,
};
use bed::{Bed, clones};

fn children(count: u32) -> PointForkRequest {
    PointForkRequest {
        count,
        ..PointForkRequest::default()
    }
}

const OFF: StopRequest = StopRequest {
    force: true,
    timeout_s: None,
};

#[test]
fn a_fork_point_outlives_its_parent_and_the_daemon() {
    let mut bed = Bed::new();
    bed.client
        .run(&bed.with_disk(bed.request("a", "")))
        .unwrap();
    let prepared = bed
        .client
        .prepare("a", &PrepareRequest::default(), |_| ())
        .unwrap();
    assert_eq!(prepared.fork_point.memory, "memory");
    assert_eq!(prepared.fork_point.stun_us, 5);
    bed.client.remove("a", true).unwrap();
    bed.restart();
    let forked = bed.client.fork_children("a", &children(3), |_| ()).unwrap();
    assert!(forked.cloned.clones.iter().all(|c| c.error.is_none()));
    assert_eq!(forked.cloned.stun_us, 0);
    bed.assert_only(&["a-1", "a-2", "a-3"]);
    let refused = bed.client.unprepare("a", false).unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Conflict));
    assert!(refused.to_string().contains("--force"), "{refused}");
    bed.client.unprepare("a", true).unwrap();
    assert!(bed.client.fork_points().unwrap().is_empty());
    for name in ["a-1", "a-2", "a-3"] {
        assert_eq!(bed.detail(name).vm.state, "running");
        bed.client.remove(name, true).unwrap();
    }
    bed.assert_only(&[]);
}

#[test]
fn children_made_ahead_are_started_first() {
    let bed = Bed::new();
    bed.client
        .run(&bed.with_disk(bed.request("a", "")))
        .unwrap();
    let request = PrepareRequest {
        children: 2,
        prefix: Some("w-".into()),
        ..PrepareRequest::default()
    };
    let prepared = bed.client.prepare("a", &request, |_| ()).unwrap();
    assert_eq!(prepared.children, ["w-1", "w-2"]);
    assert_eq!(bed.detail("w-1").vm.state, "poweredOff");
    assert_eq!(prepared.fork_point.children_registered, 2);
    let mut more = children(3);
    more.prefix = Some("x".into());
    let forked = bed.client.fork_children("a", &more, |_| ()).unwrap();
    let names: Vec<_> = forked.cloned.clones.iter().map(|c| &*c.name).collect();
    assert_eq!(names, ["w-1", "w-2", "x1"]);
    assert_eq!(bed.client.fork_point("a").unwrap().children_running, 3);
    bed.assert_only(&["a", "w-1", "w-2", "x1"]);
}

#[test]
fn a_child_that_is_not_persistent_returns_to_its_fork_point() {
    let bed = Bed::new();
    bed.client
        .run(&bed.with_disk(bed.request("a", "")))
        .unwrap();
    bed.client
        .prepare("a", &PrepareRequest::default(), |_| ())
        .unwrap();
    bed.client.fork_children("a", &children(1), |_| ()).unwrap();
    let refused = bed.client.set_persistence("a-1", true).unwrap_err();
    assert!(refused.to_string().contains("--quiesce"), "{refused}");
    let before = bed.detail("a-1").disks[0].layers.clone();
    bed.client.stop("a-1", &OFF).unwrap();
    bed.until("its changes are gone", || {
        bed.detail("a-1").disks[0].layers[0] != before[0]
            && !std::path::Path::new(&before[0]).exists()
    });
    bed.client.start("a-1").unwrap();
    let again = bed.detail("a-1");
    assert_eq!(again.vm.state, "running");
    assert_eq!(again.disks[0].layers[1..], before[1..]);
    bed.client.reset("a-1").unwrap();
    assert_ne!(
        bed.detail("a-1").disks[0].layers[0],
        again.disks[0].layers[0]
    );
    let told = bed.client.events(None).unwrap();
    let kinds = told.iter().filter(|event| event.subject == "a-1");
    let kinds: Vec<_> = kinds.map(|event| &*event.kind).collect();
    let count = |kind: &str| kinds.iter().filter(|known| **known == kind).count();
    assert_eq!(
        (count("vm.cloned"), count("vm.started")),
        (1, 2),
        "{kinds:?}"
    );
    bed.assert_only(&["a", "a-1"]);
}

#[test]
fn a_child_that_ran_is_never_taken_for_one_made_ahead() {
    let mut bed = Bed::new();
    bed.run("a", "");
    bed.client
        .prepare("a", &PrepareRequest::default(), |_| ())
        .unwrap();
    bed.client.fork_children("a", &children(1), |_| ()).unwrap();
    bed.client.stop("a-1", &OFF).unwrap();
    bed.restart();
    let point = bed.client.fork_point("a").unwrap();
    assert_eq!((point.children, point.children_registered), (1, 0));
    // Another call does not take it over either.
    bed.client.fork_children("a", &children(1), |_| ()).unwrap();
    assert_eq!(bed.state("a-1"), "poweredOff");
    bed.client.remove("a-2", true).unwrap();
    let refused = bed.client.unprepare("a", false).unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Conflict));
    assert!(refused.to_string().contains("a-1"), "{refused}");
    bed.client.unprepare("a", true).unwrap();
    assert_eq!(bed.state("a-1"), "poweredOff");
    bed.client.start("a-1").unwrap();
    bed.assert_only(&["a", "a-1"]);
}

#[test]
fn a_persistent_child_keeps_its_disks_and_needs_a_parent_at_rest() {
    let bed = Bed::new();
    bed.client
        .run(&bed.with_disk(bed.request("a", "")))
        .unwrap();
    let request = PrepareRequest {
        quiesce: true,
        persistent: true,
        children: 1,
        ..PrepareRequest::default()
    };
    bed.client.prepare("a", &request, |_| ()).unwrap();
    assert_eq!(bed.detail("a").vm.state, "paused");
    bed.client.fork_children("a", &children(1), |_| ()).unwrap();
    let before = bed.detail("a-1").disks[0].layers.clone();
    bed.client.stop("a-1", &OFF).unwrap();
    let refused = bed.client.set_persistence("a-1", false).unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Conflict));
    bed.client.start("a-1").unwrap();
    assert_eq!(bed.detail("a-1").disks[0].layers, before);
    bed.client.unprepare("a", false).unwrap();
    bed.assert_only(&["a", "a-1"]);
}

/// A parent at rest with a child for each of the names.
fn family(persistent: bool, names: &[&str]) -> Bed {
    let bed = Bed::new();
    bed.run("a", "");
    let request = PrepareRequest {
        quiesce: true,
        ..PrepareRequest::default()
    };
    bed.client.prepare("a", &request, |_| ()).unwrap();
    let request = PointForkRequest {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        persistent: Some(persistent),
        ..PointForkRequest::default()
    };
    bed.client.fork_children("a", &request, |_| ()).unwrap();
    bed
}

fn assert_settled(bed: &Bed, name: &str, persistent: bool) {
    let refused = bed.client.set_persistence(name, !persistent).unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Conflict));
    let stays = match persistent {
        true => "already, so it stays persistent",
        false => "already, so it stays non-persistent",
    };
    assert!(refused.to_string().contains(stays), "{refused}");
}

#[test]
fn a_persistent_child_stays_so_once_it_kept_its_disks_over_its_process() {
    let mut bed = family(true, &["off", "reset", "killed", "suspended", "free"]);
    let layers = |bed: &Bed, name: &str| bed.detail(name).disks[0].layers.clone();
    let names = ["off", "reset", "killed", "suspended"];
    let before = names.map(|name| layers(&bed, name));
    bed.client.stop("off", &OFF).unwrap();
    bed.client.start("off").unwrap();
    bed.client.reset("reset").unwrap();
    bed.client.suspend("suspended", |_| ()).unwrap();
    bed.client.stop("suspended", &OFF).unwrap();
    bed.client.start("suspended").unwrap();
    let pid = bed.detail("killed").pid.unwrap();
    bed.kill();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    bed.start();
    bed.until_state("killed", "poweredOff");
    bed.client.start("killed").unwrap();
    for _ in 0..2 {
        names
            .iter()
            .for_each(|name| assert_settled(&bed, name, true));
        bed.restart();
    }
    for (name, before) in names.into_iter().zip(before) {
        bed.client.stop(name, &OFF).unwrap();
        // What it wrote before it was suspended is a layer below its top.
        assert!(layers(&bed, name).ends_with(&before));
    }
    // Suspended and back is no power-off.
    bed.client.suspend("free", |_| ()).unwrap();
    bed.client.resume("free").unwrap();
    bed.client.set_persistence("free", false).unwrap();
}

#[test]
fn a_child_that_returned_to_its_fork_point_by_a_power_off_stays_non_persistent() {
    let mut bed = family(false, &["c"]);
    let set = |bed: &Bed, persistent| bed.client.set_persistence("c", persistent);
    // A reset is no power-off where it leads to the fork point.
    bed.client.reset("c").unwrap();
    set(&bed, true).unwrap();
    set(&bed, false).unwrap();
    bed.client.stop("c", &OFF).unwrap();
    for _ in 0..2 {
        assert_settled(&bed, "c", false);
        bed.restart();
    }
    bed.client.start("c").unwrap();
    bed.restart();
    assert_settled(&bed, "c", false);
    let snapshot = serde_json::from_value(serde_json::json!({ "name": "s" })).unwrap();
    let refused = bed.client.create_snapshot("c", &snapshot, |_| ());
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("mitose clone c --mode linked"),
        "{refused}"
    );
}

#[test]
fn a_child_tells_its_fork_point_and_whether_it_is_persistent() {
    let bed = family(false, &["c"]);
    let point = bed.client.fork_point("a").unwrap().id;
    let shown = |name: &str| {
        let vm = bed.detail(name).vm;
        assert!(bed.client.vms().unwrap().contains(&vm));
        let lineage = bed.client.lineage(name).unwrap().vm;
        assert_eq!(lineage.fork_point, vm.fork_point);
        assert_eq!(lineage.persistence, vm.persistence);
        (vm.fork_point, vm.persistence)
    };
    let child = |persistence| (Some(point.clone()), Some(persistence));
    assert_eq!(shown("a"), (None, None));
    assert_eq!(shown("c"), child(Persistence::NonPersistent));
    bed.client.set_persistence("c", true).unwrap();
    assert_eq!(shown("c"), child(Persistence::Persistent));
    bed.client.unprepare("a", true).unwrap();
    assert_eq!(shown("c"), (None, None));
}

#[test]
fn a_child_that_was_never_started_may_become_persistent() {
    let bed = Bed::new();
    bed.run("a", "");
    let request = PrepareRequest {
        quiesce: true,
        children: 1,
        ..PrepareRequest::default()
    };
    bed.client.prepare("a", &request, |_| ()).unwrap();
    bed.client.set_persistence("a-1", true).unwrap();
    bed.client.set_persistence("a-1", false).unwrap();
    bed.client.start("a-1").unwrap();
    bed.client.set_persistence("a-1", true).unwrap();
}

#[test]
fn a_vm_on_a_private_view_is_kept_in_files_and_a_dead_keeper_is_told() {
    let bed = Bed::new();
    bed.client
        .run(&bed.with_disk(bed.request("a", "")))
        .unwrap();
    bed.client.fork("a", &clones(&["b"])).unwrap();
    let prepared = bed
        .client
        .prepare("b", &PrepareRequest::default(), |_| ())
        .unwrap();
    assert_eq!(prepared.fork_point.memory, "files");
    bed.client.fork_children("b", &children(2), |_| ()).unwrap();
    bed.assert_only(&["a", "b", "b-1", "b-2"]);
}

#[test]
fn a_batch_larger_than_a_group_and_one_that_fails_in_part() {
    let bed = Bed::new();
    bed.client
        .run(&bed.with_disk(bed.request("a", "")))
        .unwrap();
    bed.client
        .prepare("a", &PrepareRequest::default(), |_| ())
        .unwrap();
    let forked = bed
        .client
        .fork_children("a", &children(60), |_| ())
        .unwrap();
    assert_eq!(forked.cloned.clones.len(), 60);
    assert!(forked.cloned.clones.iter().all(|c| c.error.is_none()));
    let taken = PointForkRequest {
        names: vec!["n".into(), "a-7".into()],
        ..PointForkRequest::default()
    };
    let refused = bed.client.fork_children("a", &taken, |_| ()).unwrap_err();
    assert!(refused.to_string().contains("a-7"), "{refused}");
    assert!(bed.client.vm("n").is_err());
}

#[test]
fn a_batch_that_is_cancelled_is_no_success_and_tells_what_was_made() {
    let bed = Bed::new();
    // Each group of children takes so long that the cancellation comes in time.
    let request = bed.request("a", "restore_ms=1500");
    bed.client.run(&bed.with_disk(request)).unwrap();
    bed.client
        .prepare("a", &PrepareRequest::default(), |_| ())
        .unwrap();
    let mut id = 0;
    // Children come in groups; the first of the second one is seen long before the last.
    let forked = bed.client.fork_children("a", &children(200), |task| {
        let begun = task.items.iter().any(|i| i.state == TaskState::Success);
        if begun && id == 0 {
            id = task.id;
            bed.client.cancel_task(id).unwrap();
        }
    });
    let made = forked.unwrap().cloned.clones;
    let made = made.iter().filter(|clone| clone.error.is_none()).count();
    assert!((1..200).contains(&made), "{made}");
    let task = bed.client.task(id).unwrap();
    assert_eq!(task.state, TaskState::Cancelled);
    let told = format!("cancelled: {made} of 200 were made");
    assert_eq!(task.error, Some(told));
    assert_eq!(task.percent, Some((made / 2) as u8));
    let done = task.items.iter().filter(|i| i.state == TaskState::Success);
    assert_eq!(done.count(), made);
    assert_eq!(bed.names().len(), made + 1);
}

#[test]
fn one_name_is_given_once_to_whoever_asks_at_the_same_time() {
    let bed = Bed::new();
    let parents = ["a", "b", "c", "d"];
    parents.iter().for_each(|name| bed.run(name, ""));
    for round in 0..3 {
        let request = PrepareRequest {
            name: Some(format!("p{round}")),
            ..PrepareRequest::default()
        };
        let start = std::sync::Barrier::new(parents.len());
        let made = std::thread::scope(|scope| {
            let prepare = |parent: &'static str| {
                let (bed, start, request) = (&bed, &start, &request);
                move || {
                    start.wait();
                    bed.client.prepare(parent, request, |_| ())
                }
            };
            let asked: Vec<_> = parents.map(|parent| scope.spawn(prepare(parent))).into();
            let ended = asked.into_iter().map(|asked| asked.join().unwrap());
            ended.collect::<Vec<_>>()
        });
        let refused: Vec<_> = made.iter().filter_map(|made| made.as_ref().err()).collect();
        assert_eq!(refused.len(), 3, "{made:?}");
        for refused in refused {
            assert_eq!(refused.kind(), Some(ErrorKind::Conflict), "{refused}");
        }
    }
    let points = bed.client.fork_points().unwrap();
    assert_eq!(points.len(), 3);
    // Their keepers are processes beside those of VMs.
    for point in points {
        bed.client.unprepare(&point.name, false).unwrap();
    }
    bed.assert_only(&parents);
}

#[test]
fn calls_without_names_at_the_same_time_all_find_free_ones() {
    const CALLS: usize = 8;
    let bed = Bed::new();
    let request = bed.request("a", "");
    bed.client.run(&request).unwrap();
    let how = PrepareRequest::default();
    bed.client.prepare("a", &how, |_| ()).unwrap();
    let made = std::thread::scope(|scope| {
        let call = || bed.client.fork_children("a", &children(3), |_| ());
        let calls: Vec<_> = (0..CALLS).map(|_| scope.spawn(call)).collect();
        let mut names = Vec::new();
        for call in calls {
            let forked = call.join().unwrap().unwrap();
            for clone in forked.cloned.clones {
                assert_eq!(clone.error, None);
                names.push(clone.name);
            }
        }
        names
    });
    let distinct: std::collections::BTreeSet<_> = made.iter().collect();
    assert_eq!((made.len(), distinct.len()), (3 * CALLS, 3 * CALLS));
}

#[test]
fn a_vm_with_several_fork_points_is_asked_which_is_to_end() {
    let bed = Bed::new();
    bed.run("a", "");
    let named = |name: &str| PrepareRequest {
        name: Some(name.to_owned()),
        ..PrepareRequest::default()
    };
    for name in ["one", "two"] {
        bed.client.prepare("a", &named(name), |_| ()).unwrap();
    }
    let forked = bed.client.fork_children("a", &children(1), |_| ()).unwrap();
    let latest = bed.client.fork_point("two").unwrap().id;
    assert_eq!(forked.fork_point, latest);
    let refused = bed.client.unprepare("a", true).unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Conflict));
    assert!(refused.to_string().contains(&latest), "{refused}");
    bed.client.unprepare("two", true).unwrap();

    let renamed = ObjectRequest {
        name: Some("b".to_owned()),
        ..ObjectRequest::default()
    };
    let id = bed.detail("a").vm.id;
    bed.client.change_object(&id, &renamed).unwrap();
    assert_eq!(bed.client.fork_point("b").unwrap().parent, "b");
    let gone = bed.client.fork_point("a").unwrap_err();
    assert_eq!(gone.kind(), Some(ErrorKind::NotFound));
    bed.client.unprepare("b", false).unwrap();
    assert!(bed.client.fork_points().unwrap().is_empty());
}

#[test]
fn a_vm_that_does_not_run_is_no_parent_and_told_why() {
    let bed = Bed::new();
    bed.client
        .run(&bed.with_disk(bed.request("a", "")))
        .unwrap();
    let refusal = || {
        let refused = bed.client.prepare("a", &PrepareRequest::default(), |_| ());
        refused.unwrap_err().to_string()
    };
    bed.client.suspend("a", |_| ()).unwrap();
    let told = refusal();
    assert!(
        told.contains("suspended to disk, so it cannot be made a parent; 'mitose resume a'"),
        "{told}"
    );
    bed.client.stop("a", &OFF).unwrap();
    let told = refusal();
    assert!(told.contains("'mitose start a'"), "{told}");
}
