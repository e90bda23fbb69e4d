//! Datastores: where disks lie, what is refused, and directories that come and go.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::path::Path;
use std::process::Command;

use api_types::{
    CloneMode, DatastoreAddRequest, DatastoreChangeRequest, DatastoreState, ErrorKind, ForkRequest,
    PointForkRequest, PrepareRequest, SnapshotRequest, StopRequest,
};
use bed::stores::Mount;
use bed::{Bed, clones};

fn linked(names: &[&str], datastore: Option<&str>) -> ForkRequest {
    ForkRequest {
        mode: CloneMode::Linked,
        datastore: datastore.map(str::to_owned),
        ..clones(names)
    }
}

fn snapshot(bed: &Bed, vm: &str) -> Result<(), client::ClientError> {
    let request = SnapshotRequest {
        name: "s".into(),
        ..SnapshotRequest::default()
    };
    bed.client.create_snapshot(vm, &request, |_| ()).map(drop)
}

#[test]
fn datastores_are_added_changed_and_removed() {
    let bed = Bed::new();
    let first = &bed.client.datastores().unwrap()[0];
    assert_eq!(
        (first.id.as_str(), first.name.as_str()),
        ("datastore-1", "datastore1")
    );
    assert!(first.capacity_bytes > 0 && first.state == DatastoreState::Accessible);
    let added = bed.add_store("two");
    assert_eq!((added.id.as_str(), added.version), ("datastore-2", 2));
    let change = DatastoreChangeRequest {
        name: Some("fast".into()),
        maintenance: Some(true),
        reserve_bytes: Some(1 << 20),
        version: Some(2),
        ..DatastoreChangeRequest::default()
    };
    let changed = bed.client.change_datastore("two", &change).unwrap();
    assert_eq!(changed.state, DatastoreState::Maintenance);
    assert_eq!(
        (changed.name.as_str(), changed.reserve_bytes),
        ("fast", 1 << 20)
    );
    let stale = bed.client.change_datastore("fast", &change).unwrap_err();
    assert_eq!(stale.kind(), Some(ErrorKind::Stale));
    let mut request = bed.with_disk(bed.request("a", ""));
    request.datastore = Some("fast".into());
    let refused = bed.client.run(&request).unwrap_err().to_string();
    assert!(refused.contains("fast is in maintenance"), "{refused}");
    bed.client.remove_datastore("fast").unwrap();
    assert_eq!(bed.client.datastores().unwrap().len(), 1);
    assert!(std::fs::read_dir(bed.file("two")).unwrap().next().is_none());
    let first = bed.client.remove_datastore("datastore1").unwrap_err();
    assert_eq!(first.kind(), Some(ErrorKind::Conflict));
}

#[test]
fn directories_that_cannot_be_datastores_are_refused_by_name() {
    let bed = Bed::new();
    bed.add_store("two");
    for dir in ["taken/layers", "two/inside", "other"] {
        std::fs::create_dir_all(bed.file(dir)).unwrap();
    }
    std::fs::write(bed.file("taken/layers/x"), b"x").unwrap();
    std::fs::create_dir_all(bed.file("used/etc")).unwrap();
    std::fs::write(bed.file("other/.mitose-datastore"), b"abc\n").unwrap();
    for (path, wanted) in [
        (bed.file("none"), "make the directory first"),
        (bed.file("kernel"), "is not a directory"),
        (bed.file("taken"), "has something in"),
        (bed.file("used"), "such as \"etc\""),
        (bed.file("other"), "is a datastore already"),
        (bed.file("two"), "belongs to the datastore two"),
        (bed.file("two/inside"), "belongs to the datastore two"),
        (bed.home(), "contain one another"),
        (bed.home().join("images"), "contain one another"),
        (bed.file(""), "contain one another"),
    ] {
        let request = DatastoreAddRequest {
            name: "x".into(),
            path,
            ..DatastoreAddRequest::default()
        };
        let refused = bed.client.add_datastore(&request).unwrap_err().to_string();
        assert!(refused.contains(wanted), "{refused} for {wanted}");
    }
    assert_eq!(bed.client.datastores().unwrap().len(), 2);
}

#[test]
fn a_vms_files_are_on_its_datastore_and_chains_cross_datastores() {
    let mut bed = Bed::new();
    bed.add_store("two");
    bed.run_on("a", "two");
    assert_eq!(bed.detail("a").datastore, "datastore-2");
    bed.client.fork("a", &clones(&["b"])).unwrap();
    bed.client.stop("a", &StopRequest::default()).unwrap();
    bed.client
        .fork("a", &linked(&["c"], Some("datastore1")))
        .unwrap();
    bed.client.fork("c", &linked(&["d"], Some("two"))).unwrap();
    assert_eq!(bed.client.datastore("two").unwrap().vms, 3);
    bed.restart();
    for (name, store) in [
        ("a", "two"),
        ("b", "two"),
        ("c", "h/datastore1"),
        ("d", "two"),
    ] {
        let detail = bed.detail(name);
        let top = Path::new(&detail.disks[0].layers[0]).to_owned();
        assert!(
            top.starts_with(bed.file(store)),
            "{name}: {}",
            top.display()
        );
        assert!(bed.file(store).join("vms").join(&detail.vm.id).is_dir());
        let link = bed
            .file(store)
            .join("vms")
            .join(&detail.vm.id)
            .join("disk0");
        assert_eq!(std::fs::canonicalize(link).unwrap(), top);
        bed.check_chain(&top);
    }
    let refused = bed.client.remove_datastore("two").unwrap_err().to_string();
    assert!(refused.contains("is used by the VM"), "{refused}");
    bed.client.start("d").unwrap();
    for name in ["a", "b", "c", "d"] {
        bed.client.remove(name, true).unwrap();
    }
    for dir in [
        "two/layers",
        "two/vms",
        "h/datastore1/layers",
        "h/datastore1/vms",
    ] {
        let mut left = std::fs::read_dir(bed.file(dir)).unwrap();
        assert!(left.next().is_none(), "{dir}: {}", bed.log());
    }
    bed.client.remove_datastore("two").unwrap();
}

#[test]
fn a_datastore_may_vanish_and_come_back() {
    let mut bed = Bed::new();
    bed.add_store("two");
    bed.run_on("far", "two");
    bed.run("near", "");
    bed.client.stop("far", &StopRequest::default()).unwrap();
    let (dir, away) = (bed.file("two"), bed.file("away"));
    std::fs::rename(&dir, &away).unwrap();
    // An empty directory in its place, as a mount point has.
    std::fs::create_dir(&dir).unwrap();
    let refused = bed.client.start("far").unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Unavailable));
    assert!(
        refused.to_string().contains("two is inaccessible"),
        "{refused}"
    );
    let refused = bed.client.fork("far", &linked(&["x"], None)).unwrap_err();
    assert!(
        refused.to_string().contains("two is inaccessible"),
        "{refused}"
    );
    let refused = snapshot(&bed, "far").unwrap_err().to_string();
    assert!(refused.contains("two is inaccessible"), "{refused}");
    let mut log = Vec::new();
    let refused = bed
        .client
        .log("far", client::LogOptions::default(), &mut log)
        .unwrap_err();
    assert!(
        refused.to_string().contains("two is inaccessible"),
        "{refused}"
    );
    bed.client.fork("near", &clones(&["near2"])).unwrap();
    bed.until_event("datastore.inaccessible");
    bed.restart();
    let store = bed.client.datastore("two").unwrap();
    assert_eq!(store.state, DatastoreState::Inaccessible);
    assert!(store.reason.unwrap().contains("mounted"));
    assert_eq!(bed.names(), ["far", "near", "near2"]);
    assert!(std::fs::read_dir(&dir).unwrap().next().is_none());
    bed.client.start("far").unwrap_err();
    // What was left there meanwhile goes when it is back; what is in use stays.
    std::fs::write(away.join("layers/vm-99-0-0.qcow2"), b"x").unwrap();
    std::fs::remove_dir(&dir).unwrap();
    std::fs::rename(&away, &dir).unwrap();
    bed.client.start("far").unwrap();
    bed.until_event("datastore.accessible");
    bed.until("the leftover is gone", || {
        !dir.join("layers/vm-99-0-0.qcow2").exists()
    });
    assert_eq!(bed.state("far"), "running");
    bed.check_chain(Path::new(&bed.detail("far").disks[0].layers[0]));
}

#[test]
fn a_full_datastore_takes_no_disks_and_says_so() {
    let bed = Bed::new();
    let Some(mount) = Mount::tmpfs(bed.file("small"), 8 << 20) else {
        eprintln!("skipped: mounting is not permitted");
        return;
    };
    bed.add_store("small");
    let change = DatastoreChangeRequest {
        warn_bytes: Some(2 << 20),
        ..DatastoreChangeRequest::default()
    };
    bed.client.change_datastore("small", &change).unwrap();
    bed.run_on("a", "small");
    // The log of its process, on another file system, is reached through its home all the same.
    let home = mount.path().join("vms").join(bed.detail("a").vm.id);
    assert!(std::fs::metadata(home.join("vmm.log")).unwrap().is_file());
    std::fs::write(mount.path().join("filler"), vec![1; 7 << 20]).unwrap();
    let refused = bed.client.fork("a", &clones(&["b", "c"])).unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Unavailable));
    let text = refused.to_string();
    assert!(
        text.contains("no space on datastore small: 1.5 MiB needed"),
        "{text}"
    );
    // Whatever little was left goes.
    let _ = std::fs::write(mount.path().join("rest"), vec![1; 2 << 20]);
    for refused in [
        snapshot(&bed, "a").unwrap_err(),
        bed.client
            .prepare("a", &PrepareRequest::default(), |_| ())
            .map(drop)
            .unwrap_err(),
    ] {
        assert_eq!(refused.kind(), Some(ErrorKind::Unavailable));
        assert!(refused.to_string().contains("make space"), "{refused}");
    }
    std::fs::remove_file(mount.path().join("rest")).unwrap();
    bed.until_event("datastore.low_space");
    assert_eq!(bed.names(), ["a"]);
    std::fs::remove_file(mount.path().join("filler")).unwrap();
    bed.client.fork("a", &clones(&["b", "c"])).unwrap();
    bed.until_event("datastore.space");
    for name in bed.names() {
        bed.client.remove(&name, true).unwrap();
    }
    assert!(
        std::fs::read_dir(mount.path().join("layers"))
            .unwrap()
            .next()
            .is_none()
    );
    assert!(
        bed.list("logs")
            .iter()
            .all(|name| !name.ends_with(".vmm.log"))
    );
}

#[test]
fn an_addition_that_was_cut_is_taken_back() {
    let mut bed = Bed::new();
    for ms in [0, 1, 2, 4, 8] {
        let dir = bed.file(&format!("s{ms}"));
        std::fs::create_dir(&dir).unwrap();
        let request = DatastoreAddRequest {
            name: format!("s{ms}"),
            path: dir.clone(),
            ..DatastoreAddRequest::default()
        };
        let client = bed.client.clone();
        let adding = std::thread::spawn(move || client.add_datastore(&request));
        std::thread::sleep(std::time::Duration::from_millis(ms));
        bed.kill();
        let _ = adding.join().unwrap();
        bed.start();
        let there = bed.client.datastore(&format!("s{ms}")).is_ok();
        assert_eq!(
            there,
            dir.join(".mitose-datastore").exists(),
            "after {ms} ms"
        );
        if there {
            assert_eq!(
                bed.client.datastore(&format!("s{ms}")).unwrap().state,
                DatastoreState::Accessible
            );
        } else {
            bed.add_store(&format!("s{ms}"));
        }
    }
    let listed = Command::new("ls").arg(bed.file("s0")).output().unwrap();
    assert!(listed.status.success());
}

#[test]
fn a_tried_batch_of_full_clones_is_told_their_space_together() {
    let bed = Bed::new();
    let Some(_mount) = Mount::tmpfs(bed.file("small"), 6 << 20) else {
        eprintln!("skipped: cannot mount");
        return;
    };
    bed.add_store("small");
    bed.run("a", "");
    bed.client.stop("a", &StopRequest::default()).unwrap();
    let names: Vec<String> = (0..6).map(|n| format!("f{n}")).collect();
    let full = |count: usize| ForkRequest {
        mode: CloneMode::Full,
        names: names[..count].to_vec(),
        datastore: Some("small".into()),
        ..ForkRequest::default()
    };
    let tried = bed.client.check_fork("a", &full(6)).unwrap();
    assert_eq!(tried.problems.len(), 1, "{tried:?}");
    let told = &tried.problems[0].detail;
    assert!(
        told.contains("of 6 clones") && told.contains("small"),
        "{told}"
    );
    let tried = bed.client.check_fork("a", &full(2)).unwrap();
    assert!(tried.problems.is_empty(), "{tried:?}");
    bed.client.fork("a", &full(2)).unwrap();
}

#[test]
fn children_whose_memory_is_on_a_vanished_datastore_are_told_so() {
    let mut bed = Bed::new();
    bed.add_store("two");
    bed.run("p", "");
    let request = PrepareRequest {
        durable: true,
        datastore: Some("two".into()),
        ..PrepareRequest::default()
    };
    bed.client.prepare("p", &request, |_| ()).unwrap();
    std::fs::rename(bed.file("two"), bed.file("away")).unwrap();
    bed.restart();
    let one = PointForkRequest {
        count: 1,
        ..PointForkRequest::default()
    };
    let refused = bed.client.fork_children("p", &one, |_| ()).unwrap_err();
    assert_eq!(refused.kind(), Some(ErrorKind::Unavailable));
    assert!(
        refused.to_string().contains("two is inaccessible"),
        "{refused}"
    );
}
