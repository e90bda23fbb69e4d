//! Spare disk slots, and disks that clones and children are given there at the fork.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;
mod http;

use std::path::{Path, PathBuf};

use api_types::{
    CloneEdit, CloneMode, DiskDetail, ErrorKind, ExportRequest, ExtraDiskRequest, ForkRequest,
    ImportRequest, PointForkRequest, PrepareRequest, ReconfigureRequest, SnapshotRequest,
    StopRequest,
};
use serde_json::{Value, json};

use bed::{Bed, clones, qemu_check};
use client::ClientError;
use http::ask;

const OFF: StopRequest = StopRequest {
    force: true,
    timeout_s: None,
};
const BLANK: u64 = 3 << 20;
const DATA: u64 = 2 << 20;

/// A VM with one disk and spare slots.
fn run(bed: &Bed, name: &str, spare_disks: u32) {
    let mut request = bed.with_disk(bed.request(name, ""));
    request.spare_disks = spare_disks;
    bed.client.run(&request).unwrap();
}

fn blank(size_bytes: u64) -> ExtraDiskRequest {
    ExtraDiskRequest {
        size_bytes: Some(size_bytes),
        ..ExtraDiskRequest::default()
    }
}

fn data(bed: &Bed) -> PathBuf {
    let path = bed.file("data.raw");
    if !path.exists() {
        std::fs::write(&path, vec![9; DATA as usize]).unwrap();
    }
    path
}

fn shows(path: &Path) -> ExtraDiskRequest {
    ExtraDiskRequest {
        path: Some(path.into()),
        ..ExtraDiskRequest::default()
    }
}

fn children(count: u32, extra_disks: Vec<ExtraDiskRequest>) -> PointForkRequest {
    PointForkRequest {
        count,
        extra_disks,
        ..PointForkRequest::default()
    }
}

/// Size and depth of each disk.
fn shape(bed: &Bed, name: &str) -> Vec<(u64, usize)> {
    let of = |disk: &DiskDetail| (disk.size_bytes, disk.layers.len());
    bed.detail(name).disks.iter().map(of).collect()
}

fn top(bed: &Bed, name: &str, disk: usize) -> String {
    bed.detail(name).disks[disk].layers[0].clone()
}

/// Exports a VM and imports it under another name.
fn copy_by_archive(bed: &Bed, from: &str, to: &str) {
    let path = bed.file(&format!("{from}.tar"));
    let export = ExportRequest {
        path: path.clone(),
        snapshot: None,
        since: None,
        without_base: false,
    };
    bed.client.export(from, &export, |_| ()).unwrap();
    let import = ImportRequest {
        import_as: None,
        earlier: Vec::new(),
        path,
        name: Some(to.into()),
        datastore: None,
        new_identity: true,
        replace: false,
    };
    bed.client.import(&import, |_| ()).unwrap();
}

fn check_all(bed: &Bed, name: &str) {
    for disk in bed.detail(name).disks {
        let made = disk.layers.iter().filter(|path| path.ends_with(".qcow2"));
        made.for_each(|path| qemu_check(path));
    }
}

#[test]
fn spare_slots_are_empty_disks_wherever_the_vm_goes() {
    let mut bed = Bed::new();
    run(&bed, "a", 2);
    let empty = [(1 << 20, 2), (0, 0), (0, 0)];
    assert_eq!(shape(&bed, "a"), empty);
    assert_eq!(bed.detail("a").disks[2].serial, "mitose-disk2");
    bed.client.stop("a", &OFF).unwrap();
    bed.client.start("a").unwrap();
    bed.client.suspend("a", |_| ()).unwrap();
    bed.client.resume("a").unwrap();
    let snapshot = SnapshotRequest {
        name: "s".into(),
        memory: true,
        ..serde_json::from_value(json!({ "name": "s" })).unwrap()
    };
    bed.client.create_snapshot("a", &snapshot, |_| ()).unwrap();
    bed.client.revert("a", "s", |_| ()).unwrap();
    bed.restart();
    for (mode, name) in [
        (CloneMode::Instant, "i"),
        (CloneMode::Linked, "l"),
        (CloneMode::Full, "f"),
    ] {
        let request = ForkRequest {
            mode,
            ..clones(&[name])
        };
        bed.client.copy("a", &request, |_| ()).unwrap();
        let sizes: Vec<_> = shape(&bed, name).iter().map(|(size, _)| *size).collect();
        assert_eq!(sizes, [1 << 20, 0, 0], "{name}");
    }
    for name in ["l", "f"] {
        bed.client.start(name).unwrap();
    }
    copy_by_archive(&bed, "a", "b");
    assert_eq!(shape(&bed, "b")[1..], [(0, 0), (0, 0)]);
    // Too many are refused by name, and their number can change while the VM is off.
    let mut many = bed.with_disk(bed.request("m", ""));
    many.spare_disks = 11;
    let refused = bed.client.run(&many).unwrap_err();
    assert!(refused.to_string().contains("devices"), "{refused}");
    let spare = |count| ReconfigureRequest {
        spare_disks: Some(count),
        ..ReconfigureRequest::default()
    };
    bed.client.stop("l", &OFF).unwrap();
    for count in [4, 0, 1] {
        bed.client.reconfigure("l", None, &spare(count)).unwrap();
        assert_eq!(shape(&bed, "l").len(), 1 + count as usize);
        bed.client.start("l").unwrap();
        bed.client.stop("l", &OFF).unwrap();
    }
    for name in bed.names() {
        bed.client.remove(&name, true).unwrap();
    }
    assert!(bed.list("datastore1/layers").is_empty());
}

#[test]
fn children_have_their_disks_again_when_they_return_to_their_fork_point() {
    let mut bed = Bed::new();
    run(&bed, "a", 2);
    let ahead = PrepareRequest {
        children: 3,
        ..PrepareRequest::default()
    };
    bed.client.prepare("a", &ahead, |_| ()).unwrap();
    let request = children(2, vec![blank(BLANK), shows(&data(&bed))]);
    let forked = bed.client.fork_children("a", &request, |_| ()).unwrap();
    assert!(forked.cloned.clones.iter().all(|c| c.error.is_none()));
    let full = [(1 << 20, 3), (BLANK, 1), (DATA, 2)];
    for name in ["a-1", "a-2"] {
        assert_eq!(shape(&bed, name), full, "{name}");
        check_all(&bed, name);
    }
    let home = format!("datastore1/vms/{}", bed.detail("a-1").vm.id);
    assert!(bed.list(&home).contains(&"disk1".to_owned()));
    bed.restart();
    for disk in [1, 2] {
        let before = top(&bed, "a-1", disk);
        bed.client.reset("a-1").unwrap();
        assert_eq!(shape(&bed, "a-1"), full);
        assert!(!Path::new(&before).exists(), "{before} stays");
    }
    let before = top(&bed, "a-2", 1);
    bed.client.stop("a-2", &OFF).unwrap();
    assert!(!Path::new(&before).exists(), "{before} stays");
    assert_eq!(shape(&bed, "a-2"), full);
    bed.client.start("a-2").unwrap();
    assert_eq!(shape(&bed, "a-2"), full);
    // One made ahead is given what the call says; one that ran is not taken for it.
    bed.client.stop("a-2", &OFF).unwrap();
    assert_eq!(bed.client.fork_point("a").unwrap().children_registered, 1);
    let forked = bed
        .client
        .fork_children("a", &children(1, vec![shows(&data(&bed))]), |_| ())
        .unwrap();
    assert_eq!(forked.cloned.clones[0].name, "a-3");
    assert_eq!(shape(&bed, "a-3")[1..], [(DATA, 2), (0, 0)]);
    let home = format!("datastore1/vms/{}", bed.detail("a-3").vm.id);
    assert!(!bed.list(&home).contains(&"disk2".to_owned()));
    bed.assert_only(&["a", "a-1", "a-2", "a-3"]);
    // Its source may vanish, which is told when it is wanted.
    std::fs::remove_file(data(&bed)).unwrap();
    let refused = bed.client.reset("a-3").unwrap_err();
    assert!(refused.to_string().contains("data.raw"), "{refused}");
    data(&bed);
    bed.client.start("a-3").unwrap();
    assert_eq!(shape(&bed, "a-3")[1..], [(DATA, 2), (0, 0)]);
    bed.client.unprepare("a", true).unwrap();
    for name in ["a", "a-1", "a-2", "a-3"] {
        bed.client.remove(name, true).unwrap();
    }
    assert!(bed.list("datastore1/layers").is_empty());
}

#[test]
fn a_persistent_child_keeps_its_disks_like_any_other() {
    let bed = Bed::new();
    run(&bed, "a", 1);
    let request = PrepareRequest {
        quiesce: true,
        ..PrepareRequest::default()
    };
    bed.client.prepare("a", &request, |_| ()).unwrap();
    let request = PointForkRequest {
        persistent: Some(true),
        ..children(2, vec![blank(BLANK)])
    };
    bed.client.fork_children("a", &request, |_| ()).unwrap();
    let before = top(&bed, "a-1", 1);
    bed.client.stop("a-1", &OFF).unwrap();
    bed.client.start("a-1").unwrap();
    assert_eq!(top(&bed, "a-1", 1), before);
    // Snapshots of it have the disk, and clones of it show what it does.
    let snapshot = serde_json::from_value(json!({ "name": "s", "memory": true })).unwrap();
    bed.client
        .create_snapshot("a-1", &snapshot, |_| ())
        .unwrap();
    assert_eq!(shape(&bed, "a-1")[1], (BLANK, 2));
    bed.client.revert("a-1", "s", |_| ()).unwrap();
    let of_snapshot = ForkRequest {
        snapshot: Some("s".into()),
        ..clones(&["c"])
    };
    bed.client.fork("a-1", &of_snapshot).unwrap();
    assert_eq!(shape(&bed, "c")[1], (BLANK, 2));
    bed.client.suspend("a-1", |_| ()).unwrap();
    bed.client.resume("a-1").unwrap();
    bed.client.fork("a-1", &clones(&["d"])).unwrap();
    let source = bed.detail("a-1").disks[1].layers.clone();
    assert_eq!(bed.detail("d").disks[1].layers[1..], source[1..]);
    for name in ["a-1", "c", "d"] {
        bed.client.stop(name, &OFF).unwrap();
        check_all(&bed, name);
        bed.client.start(name).unwrap();
    }
    for name in bed.names() {
        bed.client.remove(&name, true).unwrap();
    }
    bed.client.unprepare("a", true).unwrap();
    assert!(bed.list("datastore1/layers").is_empty());
}

#[test]
fn clones_of_a_running_vm_and_of_clones_get_disks() {
    let bed = Bed::new();
    run(&bed, "a", 2);
    let own = |extra_disks| CloneEdit {
        extra_disks,
        ..CloneEdit::default()
    };
    let request = ForkRequest {
        extra_disks: vec![blank(BLANK)],
        each: vec![own(Vec::new()), own(vec![shows(&data(&bed)), blank(BLANK)])],
        ..clones(&["b", "c"])
    };
    let cloned = bed.client.fork("a", &request).unwrap();
    assert!(cloned.clones.iter().all(|clone| clone.error.is_none()));
    assert_eq!(cloned.memory, "layer");
    assert_eq!(shape(&bed, "a")[1..], [(0, 0), (0, 0)]);
    assert_eq!(shape(&bed, "b")[1..], [(BLANK, 1), (0, 0)]);
    assert_eq!(shape(&bed, "c")[1..], [(DATA, 2), (BLANK, 1)]);
    // A clone of a clone is born by fork().
    let more = ForkRequest {
        extra_disks: vec![shows(&data(&bed))],
        ..clones(&["d"])
    };
    let cloned = bed.client.fork("b", &more).unwrap();
    assert_eq!((&*cloned.memory, &cloned.clones[0].error), ("fork", &None));
    assert_eq!(shape(&bed, "d")[1..], [(BLANK, 2), (DATA, 2)]);
    let below = bed.detail("b").disks[1].layers[1].clone();
    assert_eq!(bed.detail("d").disks[1].layers[1], below);
    let refused = bed.client.fork(
        "d",
        &ForkRequest {
            names: vec!["e".into()],
            ..more
        },
    );
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Invalid));
    assert!(
        refused.to_string().contains("0 spare disk slots"),
        "{refused}"
    );
    bed.assert_only(&["a", "b", "c", "d"]);
    copy_by_archive(&bed, "c", "e");
    assert_eq!(shape(&bed, "e")[1..], [(DATA, 3), (BLANK, 2)]);
    bed.client.resume("e").unwrap();
    for name in ["b", "c", "e"] {
        bed.client.remove(name, true).unwrap();
    }
    bed.client.stop("d", &OFF).unwrap();
    check_all(&bed, "d");
    bed.client.start("d").unwrap();
    assert_eq!(shape(&bed, "d")[1..], [(BLANK, 2), (DATA, 2)]);
    for name in ["a", "d"] {
        bed.client.remove(name, true).unwrap();
    }
    assert!(bed.list("datastore1/layers").is_empty());
}

#[test]
fn a_fork_with_disks_that_fails_leaves_nothing_behind() {
    let bed = Bed::new();
    run(&bed, "a", 2);
    run(&bed, "g", 2);
    bed.client.fork("g", &clones(&["g1"])).unwrap();
    for source in ["a", "g1"] {
        for step in [
            "host_record",
            "host_deltas",
            "host_processes",
            "prepare_tops",
            "swap_disks",
            "publish",
            "host_sync",
            "host_restore",
        ] {
            let request = ForkRequest {
                fail_at: Some(step.to_owned()),
                extra_disks: vec![blank(BLANK), shows(&data(&bed))],
                ..clones(&["x"])
            };
            let failed = match bed.client.fork(source, &request) {
                Ok(cloned) => cloned.clones[0].error.is_some(),
                Err(_) => true,
            };
            assert!(failed, "{step}");
            assert_eq!(bed.state(source), "running", "{step}");
            bed.assert_only(&["a", "g", "g1"]);
        }
    }
}

#[test]
fn children_that_do_not_come_to_life_leave_nothing_behind() {
    let bed = Bed::new();
    let mut request = bed.with_disk(bed.request("a", "fail=restore"));
    request.spare_disks = 1;
    bed.client.run(&request).unwrap();
    let ahead = PrepareRequest {
        children: 1,
        ..PrepareRequest::default()
    };
    bed.client.prepare("a", &ahead, |_| ()).unwrap();
    for _ in 0..3 {
        let forked = bed
            .client
            .fork_children("a", &children(2, vec![blank(BLANK)]), |_| ());
        for clone in forked.unwrap().cloned.clones {
            assert!(clone.error.is_some(), "{clone:?}");
        }
        bed.assert_only(&["a", "a-1"]);
    }
    bed.client.remove("a-1", true).unwrap();
    bed.assert_only(&["a"]);
}

fn problems(bed: &Bed, path: &str, body: &Value) -> Vec<String> {
    let answer = ask(
        bed,
        "POST",
        &format!("{path}?dry_run=true"),
        &[],
        &body.to_string(),
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    let found = answer.json()["problems"].as_array().cloned().unwrap();
    let text = |problem: &Value| {
        assert_eq!(problem["field"], "extra_disks", "{problem}");
        problem["detail"].as_str().unwrap().to_owned()
    };
    found.iter().map(text).collect()
}

#[test]
fn what_is_wrong_with_disks_is_told_at_once() {
    let bed = Bed::new();
    run(&bed, "a", 1);
    bed.client
        .prepare("a", &PrepareRequest::default(), |_| ())
        .unwrap();
    let fork = "/api/v1/vms/a/fork";
    let point = "/api/v1/forkpoints/a/fork";
    for (path, more) in [
        (fork, json!({ "names": ["x"] })),
        (point, json!({ "count": 1 })),
    ] {
        let with = |disks: Value| {
            let mut body = more.clone();
            body["extra_disks"] = disks;
            problems(&bed, path, &body)
        };
        assert!(with(json!([{ "size_bytes": 1 << 20 }])).is_empty());
        let found = with(json!([{ "size_bytes": 1 << 20 }, { "path": "/nowhere" }]));
        assert_eq!(found.len(), 2, "{found:?}");
        let both = with(json!([{ "image": "none" }, { "path": "/nowhere" }]));
        assert_eq!(both.len(), 3, "{both:?}");
        assert!(
            found.iter().any(|text| text.contains("1 spare disk slots")),
            "{found:?}"
        );
        assert!(
            found.iter().any(|text| text.contains("/nowhere")),
            "{found:?}"
        );
        for (disk, wanted) in [
            (json!({}), "one of size, image and path"),
            (
                json!({ "size_bytes": 512, "path": "/x" }),
                "one of size, image and path",
            ),
            (json!({ "image": "none" }), "extra_disks: there is no image"),
            (json!({ "path": bed.home() }), "extra_disks"),
        ] {
            let found = with(json!([disk]));
            assert!(
                found.len() == 1 && found[0].contains(wanted),
                "{disk}: {found:?}"
            );
        }
        for disk in [
            json!({ "size_bytes": 0 }),
            json!({ "size_bytes": 1000 }),
            json!({ "size": 1 }),
        ] {
            let mut body = more.clone();
            body["extra_disks"] = json!([disk]);
            let answer = ask(&bed, "POST", path, &[], &body.to_string());
            assert_eq!(answer.status, 400, "{answer:?}");
        }
    }
    let linked =
        json!({ "names": ["x"], "mode": "linked", "extra_disks": [{ "size_bytes": 512 }] });
    let found = problems(&bed, fork, &linked);
    assert!(
        found.iter().any(|text| text.contains("only instant")),
        "{found:?}"
    );
    bed.assert_only(&["a"]);
}

fn insert(bed: &Bed, name: &str, insert_disks: Vec<ExtraDiskRequest>) -> Result<(), ClientError> {
    let change = ReconfigureRequest {
        insert_disks,
        ..ReconfigureRequest::default()
    };
    bed.client.reconfigure(name, None, &change).map(drop)
}

#[test]
fn a_vm_is_given_disks_while_it_runs_and_while_it_does_not() {
    let mut bed = Bed::new();
    run(&bed, "a", 3);
    insert(&bed, "a", vec![blank(BLANK)]).unwrap();
    assert_eq!(shape(&bed, "a")[1..], [(BLANK, 1), (0, 0), (0, 0)]);
    bed.restart();
    // The process has it: it is forked with one more top.
    bed.client.fork("a", &clones(&["b"])).unwrap();
    assert_eq!(shape(&bed, "a")[1], (BLANK, 2));
    assert_eq!(shape(&bed, "b")[1], (BLANK, 2));
    let snapshot = serde_json::from_value(json!({ "name": "s", "memory": true })).unwrap();
    bed.client.create_snapshot("a", &snapshot, |_| ()).unwrap();
    assert_eq!(shape(&bed, "a")[1], (BLANK, 3));
    bed.client.stop("a", &OFF).unwrap();
    insert(&bed, "a", vec![shows(&data(&bed)), blank(BLANK)]).unwrap();
    bed.client.start("a").unwrap();
    assert_eq!(shape(&bed, "a")[1..], [(BLANK, 3), (DATA, 2), (BLANK, 1)]);
    // A snapshot of before has the slots of before.
    let past = ForkRequest {
        snapshot: Some("s".into()),
        extra_disks: vec![blank(DATA), blank(DATA)],
        ..clones(&["p"])
    };
    let found = bed.client.check_fork("a", &past).unwrap();
    assert!(found.problems.is_empty(), "{found:?}");
    bed.client.fork("a", &past).unwrap();
    assert_eq!(shape(&bed, "p")[1..], [(BLANK, 3), (DATA, 1), (DATA, 1)]);
    bed.client.revert("a", "s", |_| ()).unwrap();
    assert_eq!(shape(&bed, "a")[1..], [(BLANK, 3), (0, 0), (0, 0)]);
    bed.client.remove_snapshot("a", "s", false).unwrap();
    bed.client.remove("p", true).unwrap();
    check_all(&bed, "a");
    insert(&bed, "a", vec![blank(BLANK), shows(&data(&bed))]).unwrap();
    let refused = insert(&bed, "a", vec![blank(BLANK)]).unwrap_err();
    assert!(
        refused.to_string().contains("0 spare disk slots"),
        "{refused}"
    );
    bed.assert_only(&["a", "b"]);
    // One that the process refuses leaves nothing.
    let mut request = bed.with_disk(bed.request("r", "fail=insert"));
    request.spare_disks = 1;
    bed.client.run(&request).unwrap();
    let refused = insert(&bed, "r", vec![blank(BLANK)]).unwrap_err();
    assert!(refused.to_string().contains("made to fail"), "{refused}");
    assert_eq!(shape(&bed, "r")[1], (0, 0));
    bed.assert_only(&["a", "b", "r"]);
    for name in ["a", "b", "r"] {
        bed.client.remove(name, true).unwrap();
    }
    assert!(bed.list("datastore1/layers").is_empty());
}

#[test]
fn a_disk_whose_insertion_was_cut_is_there_afterwards() {
    let mut bed = Bed::new();
    run(&bed, "a", 1);
    insert(&bed, "a", vec![blank(BLANK)]).unwrap();
    run(&bed, "b", 1);
    // As a daemon leaves it that ends before the process has the medium, or before it is recorded.
    bed.kill();
    let database = rusqlite::Connection::open(bed.home().join("inventory.db")).unwrap();
    for (name, file) in [("a", false), ("b", true)] {
        let doc: String = database
            .query_row("SELECT doc FROM objects WHERE name = ?1", [name], |row| {
                row.get(0)
            })
            .unwrap();
        let mut doc: Value = serde_json::from_str(&doc).unwrap();
        let mut id = doc["disks"][1]["top"].take();
        if file {
            let path = bed.home().join("datastore1/layers/cut.qcow2");
            let made = std::process::Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2"])
                .args([path.display().to_string(), BLANK.to_string()])
                .status();
            assert!(made.unwrap().success());
            id = "cut".into();
            let layer = json!({
                "id": "cut", "parent": null, "path": path, "format": "qcow2", "size_bytes": BLANK,
                "owned": true,
            });
            database
                .execute(
                    "INSERT INTO layers (id, doc) VALUES ('cut', ?1)",
                    [layer.to_string()],
                )
                .unwrap();
        }
        doc["disks"][1]["pending"] = id;
        database
            .execute(
                "UPDATE objects SET doc = ?2 WHERE name = ?1",
                [name, &doc.to_string()],
            )
            .unwrap();
    }
    drop(database);
    bed.start();
    for name in ["a", "b"] {
        assert_eq!(bed.state(name), "running");
        assert_eq!(shape(&bed, name)[1], (BLANK, 1), "{name}\n{}", bed.log());
        // Its process has it.
        bed.client
            .fork(name, &clones(&[&format!("{name}1")]))
            .unwrap();
        assert_eq!(shape(&bed, name)[1], (BLANK, 2));
    }
    bed.assert_only(&["a", "a1", "b", "b1"]);
}
