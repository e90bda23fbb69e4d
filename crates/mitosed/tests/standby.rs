//! Imports that take the place of earlier ones, and the identities that only one import has.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::time::Duration;

use api_types::{
    ExportRequest, Exported, ImportAs, ImportRequest, Imported, NetRequest, NicChange,
    PointForkRequest, PrepareRequest, ReconfigureRequest, SnapshotRequest, StopRequest,
};
use bed::{Bed, clones};
use client::ClientError;

const OFF: StopRequest = StopRequest {
    force: true,
    timeout_s: None,
};
const PAGE: usize = 4096;

fn export(bed: &Bed, vm: &str, file: &str, since: Option<&Exported>) -> Exported {
    let request = ExportRequest {
        path: bed.file(file),
        snapshot: None,
        since: since.map(|earlier| earlier.id.clone()),
        without_base: false,
    };
    let exported = bed.client.export(vm, &request, |_| ());
    exported.unwrap_or_else(|error| panic!("{error}\n{}", bed.log()))
}

fn wanted(from: &Bed, file: &str, replace: bool) -> ImportRequest {
    ImportRequest {
        path: from.file(file),
        import_as: None,
        earlier: Vec::new(),
        name: None,
        datastore: None,
        new_identity: false,
        replace,
    }
}

fn replace(to: &Bed, from: &Bed, file: &str) -> Result<Imported, ClientError> {
    to.client.import(&wanted(from, file, true), |_| ())
}

fn refused(result: Result<Imported, ClientError>, words: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(words), "{error:?} has no {words:?}");
    assert!(!error.contains('\n'), "{error}");
}

fn everything(bed: &Bed) -> Vec<String> {
    let dirs = ["layers", "vms", "memory", "boot"];
    let dirs = dirs.iter().map(|dir| format!("datastore1/{dir}"));
    let present = dirs.filter(|dir| bed.home().join(dir).exists());
    present.flat_map(|dir| bed.list(&dir)).collect()
}

/// How often the stand-in was forked when the only memory in the datastore was exported.
fn fork_of_ram(bed: &Bed) -> u8 {
    let files = bed.list("datastore1/memory");
    let rams: Vec<_> = files.iter().filter(|name| name.ends_with(".ram")).collect();
    assert_eq!(rams.len(), 1, "{files:?}");
    let path = bed.home().join("datastore1/memory").join(rams[0]);
    let ram = std::fs::read(path).unwrap();
    assert_eq!(ram.len(), 16 << 20);
    ram[320 * PAGE]
}

/// Three exports of a VM that runs on, the last two since the one before.
fn three_exports() -> Bed {
    let from = Bed::new();
    from.run("a", "writes");
    let first = export(&from, "a", "1.tar", None);
    let second = export(&from, "a", "2.tar", Some(&first));
    export(&from, "a", "3.tar", Some(&second));
    from
}

#[test]
fn a_later_import_takes_the_place_of_the_earlier_one() {
    let (from, mut to) = (three_exports(), Bed::new());
    let first = replace(&to, &from, "1.tar").unwrap();
    assert!(!first.replaced, "there was nothing");
    let words = ReconfigureRequest {
        name: Some("dr".into()),
        annotation: Some("stands by".into()),
        ..ReconfigureRequest::default()
    };
    to.client.reconfigure("a", None, &words).unwrap();
    let tried = wanted(&from, "2.tar", true);
    let tried = to.client.check_import(&tried).unwrap();
    assert!(tried.problems.is_empty(), "{:?}", tried.problems);
    let second = replace(&to, &from, "2.tar").unwrap();
    assert_eq!((second.replaced, &*second.name), (true, "dr"));
    assert_eq!(second.vm_id, first.vm_id);
    assert_eq!((second.layers, second.layers_found), (1, 2));
    to.assert_only(&["dr"]);
    assert_eq!(fork_of_ram(&to), 1);
    to.restart();
    to.assert_only(&["dr"]);
    let detail = to.detail("dr");
    assert_eq!(detail.vm.state, "suspended");
    assert_eq!(detail.vm.annotation, "stands by");
    assert_eq!(detail.uuid, from.detail("a").uuid);
    replace(&to, &from, "3.tar").unwrap();
    assert_eq!(fork_of_ram(&to), 2);
    // The same again, and back.
    replace(&to, &from, "3.tar").unwrap();
    replace(&to, &from, "1.tar").unwrap();
    assert_eq!(fork_of_ram(&to), 0);
    to.assert_only(&["dr"]);
    // A clone tries the standby out and leaves it as it is.
    to.client.fork("dr", &clones(&["try"])).unwrap();
    to.client.remove("try", true).unwrap();
    let whole = ImportRequest {
        earlier: vec![from.file("2.tar"), from.file("1.tar")],
        ..wanted(&from, "3.tar", true)
    };
    to.client.import(&whole, |_| ()).unwrap();
    to.client.start("dr").unwrap();
    to.client.remove("dr", true).unwrap();
    assert_eq!(everything(&to), Vec::<String>::new());
}

#[test]
fn what_has_run_or_was_changed_is_not_replaced() {
    let (from, mut to) = (three_exports(), Bed::new());
    replace(&to, &from, "1.tar").unwrap();
    let no = |to: &Bed, request: ImportRequest, words: &str| {
        let before = (to.detail("a"), everything(to));
        let tried = to.client.check_import(&request).unwrap();
        assert_eq!(tried.problems.len(), 1, "{:?}", tried.problems);
        refused(to.client.import(&request, |_| ()), words);
        assert_eq!((to.detail("a"), everything(to)), before);
    };
    let second = || wanted(&from, "2.tar", true);
    let other = ImportRequest {
        name: Some("b".into()),
        new_identity: true,
        ..second()
    };
    no(&to, other, "leave out one of replace and new_identity");
    let other = ImportRequest {
        name: Some("b".into()),
        ..second()
    };
    no(&to, other, "this machine is here as a");
    let plain = ImportRequest {
        name: Some("b".into()),
        ..wanted(&from, "2.tar", false)
    };
    no(&to, plain, "take its place with --replace");
    to.client.start("a").unwrap();
    no(&to, second(), "a is running, so it cannot be replaced");
    to.client.suspend("a", |_| ()).unwrap();
    no(&to, second(), "a has run, or was changed");
    to.client.stop("a", &OFF).unwrap();
    to.restart();
    no(&to, second(), "a has run, or was changed");
    // Its own original is no standby either.
    refused(replace(&from, &from, "1.tar"), "a is running");
    from.client.stop("a", &OFF).unwrap();
    refused(replace(&from, &from, "1.tar"), "a has run, or was changed");
}

#[test]
fn what_this_host_gives_a_standby_stays() {
    let (from, to) = (Bed::new(), Bed::new());
    let mut machine = from.with_disk(from.request("a", ""));
    machine.nets = vec![NetRequest::default(), NetRequest::default()];
    machine.powered_off = true;
    from.client.run(&machine).unwrap();
    let first = export(&from, "a", "1.tar", None);
    let change = ReconfigureRequest {
        cpus: Some(2),
        remove_nics: vec![0],
        ..ReconfigureRequest::default()
    };
    from.client.reconfigure("a", None, &change).unwrap();
    export(&from, "a", "2.tar", Some(&first));
    replace(&to, &from, "1.tar").unwrap();
    let connect = ReconfigureRequest {
        nics: vec![NicChange {
            nic: 1,
            connected: Some(false),
            network: Some("VM Network".into()),
            tap: None,
        }],
        ..ReconfigureRequest::default()
    };
    to.client.reconfigure("a", None, &connect).unwrap();
    let nic = |bed: &Bed, index: usize| serde_json::to_value(&bed.detail("a").nics[index]).unwrap();
    let before = nic(&to, 1);
    let snapshot = SnapshotRequest {
        name: "s".into(),
        ..SnapshotRequest::default()
    };
    to.client.create_snapshot("a", &snapshot, |_| ()).unwrap();
    refused(replace(&to, &from, "2.tar"), "has the snapshot \"s\"");
    to.client.remove_snapshot("a", "s", false).unwrap();
    replace(&to, &from, "2.tar").unwrap();
    let detail = to.detail("a");
    assert_eq!((detail.vm.cpus, detail.nics.len()), (2, 1));
    assert_eq!(nic(&to, 0), before);
    // A machine that is another one here is changed.
    let change = ReconfigureRequest {
        memory_bytes: Some(32 << 20),
        ..ReconfigureRequest::default()
    };
    to.client.reconfigure("a", None, &change).unwrap();
    refused(replace(&to, &from, "2.tar"), "a has run, or was changed");
}

#[test]
fn a_fork_point_takes_the_place_of_the_earlier_one() {
    let (from, mut to) = (Bed::new(), Bed::new());
    from.run("a", "writes");
    let prepared = |file: &str| {
        let prepare = PrepareRequest {
            name: Some("parent".into()),
            quiesce: true,
            ..PrepareRequest::default()
        };
        from.client.prepare("a", &prepare, |_| ()).unwrap();
        let request = ExportRequest {
            path: from.file(file),
            snapshot: None,
            since: None,
            without_base: false,
        };
        let exported = from.client.export_fork_point("parent", &request, |_| ());
        exported.unwrap();
        from.client.unprepare("parent", true).unwrap();
        from.client.resume("a").unwrap();
    };
    prepared("1.tar");
    prepared("2.tar");
    let first = replace(&to, &from, "1.tar").unwrap();
    assert!(!first.replaced);
    let before = fork_of_ram(&to);
    let children = |persistent| PointForkRequest {
        count: 1,
        persistent: Some(persistent),
        ..PointForkRequest::default()
    };
    to.client
        .fork_children("parent", &children(false), |_| ())
        .unwrap();
    to.client
        .fork_children("parent", &children(true), |_| ())
        .unwrap();
    refused(
        to.client.import(&wanted(&from, "2.tar", false), |_| ()),
        "there is a fork point \"parent\" already",
    );
    refused(
        replace(&to, &from, "2.tar"),
        "parent-1 and 0 more children return to fork point parent",
    );
    to.client.remove("parent-1", true).unwrap();
    let second = replace(&to, &from, "2.tar").unwrap();
    assert_eq!((second.replaced, &*second.name), (true, "parent"));
    assert_eq!(second.kind, ImportAs::Forkpoint);
    assert_eq!(fork_of_ram(&to), before + 1);
    to.restart();
    let points = to.client.fork_points().unwrap();
    assert_eq!(points.len(), 1);
    assert_eq!((&*points[0].name, points[0].children), ("parent", 0));
    to.client
        .fork_children("parent", &children(false), |_| ())
        .unwrap();
    for name in to.names() {
        to.client.remove(&name, true).unwrap();
    }
    to.client.unprepare("parent", true).unwrap();
    assert_eq!(everything(&to), Vec::<String>::new());
    // One that was made here is not replaced.
    let prepare = PrepareRequest {
        name: Some("parent".into()),
        ..PrepareRequest::default()
    };
    from.client.prepare("a", &prepare, |_| ()).unwrap();
    refused(replace(&from, &from, "1.tar"), "was made here");
}

#[test]
fn a_standby_stays_until_the_later_import_is_whole() {
    let (from, mut to) = (three_exports(), Bed::new());
    replace(&to, &from, "1.tar").unwrap();
    let whole = everything(&to).len();
    // Damaged at many places: refused, or another damage than one of content.
    let archive = std::fs::read(from.file("2.tar")).unwrap();
    for round in 0..24 {
        let mut damaged = archive.clone();
        let at = damaged.len() * round / 24;
        damaged[at] ^= 0x55;
        std::fs::write(from.file("x.tar"), damaged).unwrap();
        if replace(&to, &from, "x.tar").is_err() {
            assert_eq!(everything(&to).len(), whole, "{}", to.log());
        }
        to.assert_only(&["a"]);
        replace(&to, &from, "1.tar").unwrap();
    }
    // The daemon may end at any moment.
    for round in 0..8_u64 {
        let (client, request) = (to.client.clone(), wanted(&from, "3.tar", true));
        let request = ImportRequest {
            earlier: vec![from.file("2.tar"), from.file("1.tar")],
            ..request
        };
        let importer = std::thread::spawn(move || client.import(&request, |_| ()).is_ok());
        std::thread::sleep(Duration::from_millis(5 + round * 9));
        to.restart();
        let done = importer.join().unwrap();
        to.assert_only(&["a"]);
        assert_eq!(to.state("a"), "suspended");
        let fork = fork_of_ram(&to);
        assert!(fork == 2 || (fork == 0 && !done), "{fork} {}", to.log());
        replace(&to, &from, "1.tar").unwrap();
        assert_eq!(fork_of_ram(&to), 0);
    }
    // Who starts it meanwhile does not wait, and has one or the other.
    for round in 0..8_u64 {
        let (client, request) = (to.client.clone(), wanted(&from, "2.tar", true));
        let importer = std::thread::spawn(move || client.import(&request, |_| ()));
        std::thread::sleep(Duration::from_millis(round * 4));
        to.client.start("a").unwrap();
        if let Err(error) = importer.join().unwrap() {
            assert!(error.to_string().contains("a is running"), "{error}");
        }
        to.assert_only(&["a"]);
        to.client.remove("a", true).unwrap();
        assert_eq!(everything(&to), Vec::<String>::new());
        replace(&to, &from, "1.tar").unwrap();
    }
}

#[test]
fn of_imports_at_the_same_time_one_has_the_identity() {
    let (from, to) = (Bed::new(), Bed::new());
    let mut machine = from.request("a", "");
    machine.powered_off = true;
    from.client.run(&machine).unwrap();
    export(&from, "a", "1.tar", None);
    // Others make the look at all of them longer.
    machine = to.request("t", "");
    machine.powered_off = true;
    to.client.run(&machine).unwrap();
    let names: Vec<_> = (0..150).map(|number| format!("c{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let request = api_types::ForkRequest {
        mode: api_types::CloneMode::Linked,
        ..clones(&names)
    };
    to.client.fork("t", &request).unwrap();
    for round in 0..12 {
        let imports: Vec<_> = (0..4)
            .map(|number| {
                let request = ImportRequest {
                    name: Some(format!("i{number}")),
                    ..wanted(&from, "1.tar", round % 2 == 0)
                };
                let client = to.client.clone();
                std::thread::spawn(move || client.import(&request, |_| ()).map(|made| made.name))
            })
            .collect();
        let made: Vec<_> = imports.into_iter().map(|i| i.join().unwrap()).collect();
        let names: Vec<_> = made.iter().flatten().collect();
        assert_eq!(names.len(), 1, "{made:?}");
        to.client.remove(names[0], false).unwrap();
    }
}
