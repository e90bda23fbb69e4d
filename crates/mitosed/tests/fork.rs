//! Forks: generations, identities, failures at each step, layers that live as long as needed.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::collections::HashSet;

use api_types::{ErrorKind, ForkRequest, NetRequest};
use bed::{Bed, clones};

#[test]
fn clones_are_vms_of_their_own() {
    let bed = Bed::new();
    let mut request = bed.with_disk(bed.request("a", ""));
    request.nets = vec![NetRequest::default()];
    bed.client.run(&request).unwrap();
    let cloned = bed.client.fork("a", &clones(&["b", "c", "d"])).unwrap();
    assert_eq!(
        (cloned.memory.as_str(), cloned.stun_us, cloned.io_held_us),
        ("layer", 5, 7)
    );
    assert!(
        cloned
            .clones
            .iter()
            .all(|c| c.first_run_us.is_some() && c.error.is_none())
    );
    let all: Vec<_> = ["a", "b", "c", "d"].map(|name| bed.detail(name)).into();
    let distinct = |of: &dyn Fn(&api_types::VmDetail) -> String| {
        all.iter().map(of).collect::<HashSet<_>>().len()
    };
    assert_eq!(distinct(&|d| d.uuid.clone()), 4);
    assert_eq!(distinct(&|d| d.machine_id.clone()), 4);
    assert_eq!(distinct(&|d| d.nics[0].mac.to_string()), 4);
    assert_eq!(distinct(&|d| d.uid.unwrap().to_string()), 4);
    assert_eq!(distinct(&|d| d.disks[0].layers[0].clone()), 4);
    assert_eq!(distinct(&|d| d.disks[0].layers[1].clone()), 1);
    assert_eq!(
        (all[1].vm.generation, all[1].vm.source.as_deref()),
        (1, Some("a"))
    );
    assert_eq!(all[0].stuns.len(), 1);
    bed.assert_only(&["a", "b", "c", "d"]);
}

#[test]
fn clones_of_clones_and_repeated_forks_outlive_their_sources() {
    let bed = Bed::new();
    bed.run("a", "");
    bed.client.fork("a", &clones(&["b"])).unwrap();
    let second = bed.client.fork("b", &clones(&["c", "c2"])).unwrap();
    assert_eq!(second.memory, "fork");
    bed.client.fork("c", &clones(&["d"])).unwrap();
    for n in 0..5 {
        bed.client.fork("a", &clones(&[&format!("e{n}")])).unwrap();
    }
    assert_eq!(bed.detail("d").vm.generation, 3);
    assert_eq!(bed.detail("d").disks[0].layers.len(), 5);
    for name in ["a", "b", "c"] {
        bed.client.remove(name, true).unwrap();
    }
    assert_eq!(bed.state("d"), "running");
    bed.assert_only(&["c2", "d", "e0", "e1", "e2", "e3", "e4"]);
    for name in bed.names() {
        bed.client.remove(&name, true).unwrap();
    }
    bed.assert_only(&[]);
    assert!(bed.list("datastore1/layers").is_empty());
}

#[test]
fn a_failure_at_any_step_leaves_the_source_running_and_nothing_behind() {
    let bed = Bed::new();
    bed.run("a", "");
    bed.run("g", "");
    bed.client.fork("g", &clones(&["g1"])).unwrap();
    for source in ["a", "g1"] {
        for step in [
            "host_record",
            "host_deltas",
            "host_processes",
            "prepare_tops",
            "drain",
            "stop",
            "save",
            "swap_disks",
            "swap_memory",
            "publish",
        ] {
            let request = ForkRequest {
                fail_at: Some(step.to_owned()),
                ..clones(&["x", "y"])
            };
            let error = bed.client.fork(source, &request).unwrap_err();
            assert!(
                error.to_string().contains("made to fail"),
                "{step}: {error}"
            );
            assert_eq!(bed.state(source), "running", "{step}");
            bed.assert_only(&["a", "g", "g1"]);
        }
        for step in ["host_sync", "host_restore"] {
            let request = ForkRequest {
                fail_at: Some(step.to_owned()),
                ..clones(&["x"])
            };
            let cloned = bed.client.fork(source, &request).unwrap();
            assert!(cloned.clones[0].error.is_some(), "{step}");
            bed.assert_only(&["a", "g", "g1"]);
        }
    }
    bed.client.fork("a", &clones(&["x", "y"])).unwrap();
    bed.assert_only(&["a", "g", "g1", "x", "y"]);
}

#[test]
fn one_clone_that_fails_does_not_take_the_others_along() {
    let bed = Bed::new();
    bed.run("a", "");
    let request = ForkRequest {
        fail_at: Some("host_restore".to_owned()),
        ..clones(&["b", "c"])
    };
    let cloned = bed.client.fork("a", &request).unwrap();
    assert!(cloned.clones[0].error.is_some());
    assert!(cloned.clones[1].error.is_none());
    let tasks = bed.client.tasks().unwrap();
    let task = tasks.iter().find(|task| task.kind == "vm.fork").unwrap();
    assert_eq!(task.state, api_types::TaskState::Failed);
    let told = task.error.clone().unwrap();
    assert!(told.starts_with("1 of 2 failed; the first, b: "), "{told}");
    assert!(
        task.result.is_some() && task.percent == Some(50),
        "{task:?}"
    );
    bed.assert_only(&["a", "c"]);
}

#[test]
fn clones_whose_process_dies_or_refuses_are_removed_with_a_reason() {
    for (word, wanted) in [
        ("die=restore", "ended before"),
        ("fail=restore", "made to fail"),
    ] {
        let bed = Bed::new();
        bed.run("a", word);
        let cloned = bed.client.fork("a", &clones(&["b", "c"])).unwrap();
        for clone in &cloned.clones {
            let error = clone.error.as_ref().unwrap();
            assert!(error.contains(wanted), "{error}");
        }
        bed.assert_only(&["a"]);
    }
}

#[test]
fn forks_that_make_no_sense_are_refused() {
    let bed = Bed::new();
    bed.run("a", "");
    let kind = |source: &str, request: &ForkRequest| {
        bed.client
            .fork(source, request)
            .unwrap_err()
            .kind()
            .unwrap()
    };
    assert_eq!(kind("none", &clones(&["b"])), ErrorKind::NotFound);
    assert_eq!(kind("a", &clones(&["a"])), ErrorKind::Conflict);
    assert_eq!(kind("a", &clones(&[])), ErrorKind::Invalid);
    assert_eq!(kind("a", &clones(&["b", "b"])), ErrorKind::Invalid);
    assert_eq!(kind("a", &clones(&["b/c"])), ErrorKind::Invalid);
    let bad_step = ForkRequest {
        fail_at: Some("nowhere".into()),
        ..clones(&["b"])
    };
    assert_eq!(kind("a", &bad_step), ErrorKind::Invalid);
    bed.client
        .stop("a", &api_types::StopRequest::default())
        .unwrap();
    assert_eq!(kind("a", &clones(&["b"])), ErrorKind::Conflict);
    bed.assert_only(&["a"]);
}

#[test]
fn many_clones_in_one_call() {
    let bed = Bed::new();
    bed.run("a", "");
    let names: Vec<String> = (0..60).map(|n| format!("c{n:02}")).collect();
    let request = ForkRequest {
        names: names.clone(),
        ..ForkRequest::default()
    };
    let cloned = bed.client.fork("a", &request).unwrap();
    assert!(
        cloned.clones.iter().all(|c| c.error.is_none()),
        "{cloned:?}"
    );
    // A second generation goes through the other path.
    let request = ForkRequest {
        names: (0..60).map(|n| format!("d{n:02}")).collect(),
        ..ForkRequest::default()
    };
    let cloned = bed.client.fork("c00", &request).unwrap();
    assert_eq!(cloned.memory, "fork");
    assert!(
        cloned.clones.iter().all(|c| c.error.is_none()),
        "{cloned:?}"
    );
    assert_eq!(bed.names().len(), 121);
}

#[test]
fn a_fork_that_is_too_large_to_be_asked_for_changes_nothing() {
    let bed = Bed::new();
    let mut request = bed.request("a", "");
    for _ in 0..9 {
        request = bed.with_disk(request);
    }
    bed.client.run(&request).unwrap();
    // From here on clones are born of the source, which is given a socket for each.
    bed.client.fork("a", &clones(&["b"])).unwrap();
    let layers = |bed: &Bed| {
        let disks = bed.detail("a").disks.into_iter();
        disks.map(|disk| disk.layers).collect::<Vec<_>>()
    };
    let before = layers(&bed);
    let names: Vec<_> = (0..240).map(|n| format!("c{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let refused = bed.client.fork("a", &clones(&names)).unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Invalid), "{refused}");
    let told = refused.to_string();
    assert!(told.contains("count: 240 clones"), "{told}");
    assert!(told.contains("make several calls"), "{told}");
    assert_eq!(layers(&bed), before);
    bed.client.fork("a", &clones(&["d"])).unwrap();
    bed.assert_only(&["a", "b", "d"]);
}
