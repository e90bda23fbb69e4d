//! Fork points that move to another host: what was one is one again.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::collections::HashSet;

use api_types::{
    ExportRequest, ImportAs, ImportRequest, PointForkRequest, PrepareRequest, RunRequest,
    StopRequest,
};
use bed::Bed;

const OFF: StopRequest = StopRequest {
    force: true,
    timeout_s: None,
};

fn children(count: u32) -> PointForkRequest {
    PointForkRequest {
        count,
        ..PointForkRequest::default()
    }
}

fn to_file(bed: &Bed, file: &str) -> ExportRequest {
    ExportRequest {
        path: bed.file(file),
        snapshot: None,
        since: None,
        without_base: false,
    }
}

fn wanted(bed: &Bed, file: &str, name: Option<&str>, what: Option<ImportAs>) -> ImportRequest {
    ImportRequest {
        path: bed.file(file),
        import_as: what,
        earlier: Vec::new(),
        name: name.map(str::to_owned),
        datastore: None,
        new_identity: false,
        replace: false,
    }
}

/// A host with the archive `p.tar` of the fork point `parent` of the VM `a`, which stood still.
fn with_archive(cmdline: &str) -> Bed {
    let bed = Bed::new();
    bed.run("a", cmdline);
    let prepare = PrepareRequest {
        name: Some("parent".into()),
        quiesce: true,
        ..PrepareRequest::default()
    };
    bed.client.prepare("a", &prepare, |_| ()).unwrap();
    let exported = bed
        .client
        .export_fork_point("parent", &to_file(&bed, "p.tar"), |_| ())
        .unwrap();
    assert_eq!(exported.kind, "forkpoint");
    bed
}

fn everything(bed: &Bed) -> Vec<String> {
    let dirs = ["layers", "vms", "memory", "boot"];
    let dirs = dirs.iter().map(|dir| format!("datastore1/{dir}"));
    let present = dirs.filter(|dir| bed.home().join(dir).exists());
    present.flat_map(|dir| bed.list(&dir)).collect()
}

#[test]
fn a_fork_point_is_one_again_on_another_host() {
    let (from, mut to) = (with_archive(""), Bed::new());
    let here = from.client.fork_point("parent").unwrap();
    let parent = from.detail("a");
    let tried = to
        .client
        .check_import(&wanted(&from, "p.tar", None, None))
        .unwrap();
    assert!(tried.problems.is_empty(), "{:?}", tried.problems);
    let imported = to
        .client
        .import(&wanted(&from, "p.tar", None, None), |_| ())
        .unwrap();
    assert_eq!(imported.kind, ImportAs::Forkpoint);
    assert_eq!((&*imported.name, &*imported.state), ("parent", "kept"));
    assert_eq!(imported.vm_id, None);
    drop(from);
    assert!(to.names().is_empty());
    to.restart();
    let points = to.client.fork_points().unwrap();
    assert_eq!(points.len(), 1);
    let point = &points[0];
    assert_eq!(Some(&point.id), imported.fork_point_id.as_ref());
    assert_eq!((&*point.memory, &*point.parent), ("files", "a"));
    assert_eq!(point.quiesced, here.quiesced);
    assert_eq!(point.memory_bytes, here.memory_bytes);
    // By its name, and by that of its parent.
    to.client
        .fork_children("parent", &children(2), |_| ())
        .unwrap();
    let persistent = PointForkRequest {
        persistent: Some(true),
        ..children(1)
    };
    to.client.fork_children("a", &persistent, |_| ()).unwrap();
    to.assert_only(&["parent-1", "parent-2", "parent-3"]);
    let mut uuids = HashSet::from([parent.uuid.clone()]);
    let mut machines = HashSet::from([parent.machine_id.clone()]);
    for name in to.names() {
        let child = to.detail(&name);
        assert_eq!(child.vm.state, "running");
        let serial = std::fs::read_to_string(child.serial.unwrap()).unwrap();
        assert!(serial.starts_with("restore\n"), "{serial}");
        assert!(uuids.insert(child.uuid) && machines.insert(child.machine_id));
    }
    // One that is not persistent returns to it.
    to.client.stop("parent-1", &OFF).unwrap();
    to.client.start("parent-1").unwrap();
    // It is exported as any other.
    let again = to
        .client
        .export_fork_point("parent", &to_file(&to, "again.tar"), |_| ())
        .unwrap();
    assert_eq!(again.kind, "forkpoint");
    let second = wanted(&to, "again.tar", Some("second"), None);
    to.client.import(&second, |_| ()).unwrap();
    to.client
        .fork_children("second", &children(1), |_| ())
        .unwrap();
    to.client.unprepare("parent", true).unwrap();
    to.client.unprepare("second", true).unwrap();
    to.restart();
    for name in ["parent-1", "parent-2", "parent-3", "second-1"] {
        assert_eq!(to.state(name), "running");
        to.client.remove(name, true).unwrap();
    }
    assert_eq!(everything(&to), Vec::<String>::new());
    to.assert_only(&[]);
}

#[test]
fn an_import_without_children_leaves_nothing_when_it_is_ended() {
    let (from, to) = (with_archive(""), Bed::new());
    let import = |name: &str, what| {
        let request = wanted(&from, "p.tar", Some(name), what);
        to.client.import(&request, |_| ())
    };
    import("p", None).unwrap();
    let taken = import("p", None).unwrap_err().to_string();
    assert!(taken.contains("already"), "{taken}");
    let tried = wanted(&from, "p.tar", Some("p"), None);
    assert_eq!(to.client.check_import(&tried).unwrap().problems.len(), 1);
    to.client.unprepare("p", false).unwrap();
    assert_eq!(everything(&to), Vec::<String>::new());
    import("p", Some(ImportAs::Vm)).unwrap();
    assert_eq!(to.state("p"), "suspended");
    to.client.start("p").unwrap();
    to.client.remove("p", true).unwrap();
    assert_eq!(everything(&to), Vec::<String>::new());
}

#[test]
fn any_instant_with_memory_becomes_a_fork_point_where_that_is_wanted() {
    let (from, to) = (Bed::new(), Bed::new());
    from.run("a", "");
    from.client
        .export("a", &to_file(&from, "on.tar"), |_| ())
        .unwrap();
    from.client.stop("a", &OFF).unwrap();
    from.client
        .export("a", &to_file(&from, "off.tar"), |_| ())
        .unwrap();
    let point = Some(ImportAs::Forkpoint);
    to.client
        .import(&wanted(&from, "on.tar", None, point), |_| ())
        .unwrap();
    let point_here = to.client.fork_point("a").unwrap();
    assert!(!point_here.quiesced);
    to.client.fork_children("a", &children(1), |_| ()).unwrap();
    let off = wanted(&from, "off.tar", Some("b"), point);
    let refused = to.client.import(&off, |_| ()).unwrap_err().to_string();
    assert!(
        refused.contains("as: the archive has no memory"),
        "{refused}"
    );
    to.client.unprepare("a", true).unwrap();
    to.assert_only(&["a-1"]);
}

#[test]
fn a_fork_point_that_is_not_finished_leaves_nothing() {
    let (from, mut to) = (with_archive(""), Bed::new());
    let bytes = std::fs::read(from.file("p.tar")).unwrap();
    std::fs::write(from.file("cut.tar"), &bytes[..bytes.len() / 2]).unwrap();
    let cut = wanted(&from, "cut.tar", None, None);
    let refused = to.client.import(&cut, |_| ()).unwrap_err().to_string();
    assert!(refused.contains("cut off"), "{refused}");
    assert!(to.client.fork_points().unwrap().is_empty());
    assert_eq!(everything(&to), Vec::<String>::new());
    for round in 0..8_u64 {
        let (client, name) = (to.client.clone(), format!("r{round}"));
        let request = wanted(&from, "p.tar", Some(&name), None);
        let importer = std::thread::spawn(move || client.import(&request, |_| ()).is_ok());
        std::thread::sleep(std::time::Duration::from_millis(round * 12));
        to.restart();
        let told = importer.join().unwrap();
        let points = to.client.fork_points().unwrap();
        assert!(!told || points.len() == 1);
        for point in points {
            assert_eq!(point.memory, "files");
            to.client
                .fork_children(&point.id, &children(1), |_| ())
                .unwrap();
            to.client.unprepare(&point.id, true).unwrap();
            to.client.remove(&format!("{name}-1"), true).unwrap();
        }
        assert_eq!(everything(&to), Vec::<String>::new(), "{}", to.log());
    }
    to.assert_only(&[]);
}

#[test]
fn what_is_cancelled_leaves_nothing() {
    let (from, to) = (Bed::new(), Bed::new());
    // Reading a GiB of zeros takes a while.
    let request = RunRequest {
        memory_bytes: 1 << 30,
        ..from.with_disk(from.request("a", ""))
    };
    from.client.run(&request).unwrap();
    from.client
        .export("a", &to_file(&from, "a.tar"), |_| ())
        .unwrap();
    let tables = from.list("exports");
    let client = from.client.clone();
    let stopped = from.client.export("a", &to_file(&from, "cut.tar"), |task| {
        let _ = client.cancel_task(task.id);
    });
    let told = stopped.unwrap_err().to_string();
    assert!(told.contains("cancelled"), "{told}");
    assert_eq!(from.list("exports"), tables);
    assert!(!from.file("cut.tar").exists());
    assert_eq!(from.half_written(), [] as [String; 0]);
    for what in [ImportAs::Vm, ImportAs::Forkpoint] {
        let client = to.client.clone();
        let request = wanted(&from, "a.tar", None, Some(what));
        let stopped = to.client.import(&request, |task| {
            let _ = client.cancel_task(task.id);
        });
        let told = stopped.unwrap_err().to_string();
        assert!(told.contains("cancelled"), "{told}");
        assert!(to.client.fork_points().unwrap().is_empty());
        assert_eq!(everything(&to), Vec::<String>::new());
        to.assert_only(&[]);
    }
}
