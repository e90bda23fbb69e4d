//! Export and import: what comes out is what went in, or nothing.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::path::PathBuf;
use std::process::Command;

use api_types::{
    ErrorKind, ExportRequest, Exported, ImportAs, ImportRequest, Imported, PrepareRequest,
    SnapshotRequest, StopRequest,
};
use bed::Bed;
use client::ClientError;

const OFF: StopRequest = StopRequest {
    force: true,
    timeout_s: None,
};

fn request(bed: &Bed, file: &str) -> ExportRequest {
    ExportRequest {
        path: bed.file(file),
        snapshot: None,
        since: None,
        without_base: false,
    }
}

fn export(bed: &Bed, vm: &str, file: &str) -> Exported {
    let exported = bed.client.export(vm, &request(bed, file), |_| ());
    exported.unwrap_or_else(|error| panic!("{error}\n{}", bed.log()))
}

fn import(to: &Bed, path: PathBuf, name: Option<&str>, new: bool) -> Result<Imported, ClientError> {
    let request = ImportRequest {
        path,
        import_as: None,
        earlier: Vec::new(),
        name: name.map(str::to_owned),
        datastore: None,
        new_identity: new,
        replace: false,
    };
    to.client.import(&request, |_| ())
}

fn write(bed: &Bed, vm: &str, pattern: u8, at: &str) {
    let top = bed.detail(vm).disks[0].layers[0].clone();
    let wrote = Command::new("qemu-io")
        .args([
            "-f",
            "qcow2",
            "-c",
            &format!("write -P {pattern} {at} 64k"),
            &top,
        ])
        .output()
        .unwrap();
    assert!(wrote.status.success(), "{wrote:?}");
}

/// The guest's view of a powered-off VM's disk; its chain is checked on the way.
fn content(bed: &Bed, vm: &str) -> Vec<u8> {
    let layers = bed.detail(vm).disks[0].layers.clone();
    for layer in layers.iter().filter(|layer| layer.ends_with("qcow2")) {
        let check = Command::new("qemu-img").args(["check", layer]).output();
        let check = check.unwrap();
        assert!(check.status.success(), "{layer}: {check:?}");
    }
    let told = Command::new("qemu-img")
        .args(["info", "--backing-chain", &layers[0]])
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
    let out = bed.file("content.raw");
    let converted = Command::new("qemu-img")
        .args(["convert", "-O", "raw", &layers[0]])
        .arg(&out)
        .status()
        .unwrap();
    assert!(converted.success());
    std::fs::read(out).unwrap()
}

/// What is in the datastore.
fn everything(bed: &Bed) -> Vec<String> {
    let dirs = ["layers", "vms", "memory", "boot"];
    let names = dirs.iter().flat_map(|dir| {
        let dir = format!("datastore1/{dir}");
        match bed.home().join(&dir).exists() {
            true => bed.list(&dir),
            false => Vec::new(),
        }
    });
    names.collect()
}

fn refused(result: Result<Imported, ClientError>, words: &str) {
    let error = result.unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
}

#[test]
fn a_powered_off_vm_moves_to_another_host() {
    let (from, to) = (Bed::new(), Bed::new());
    from.run("a", "");
    from.client.stop("a", &OFF).unwrap();
    write(&from, "a", 9, "128k");
    let before = content(&from, "a");
    let exported = export(&from, "a", "a.tar");
    assert_eq!((exported.kind.as_str(), exported.memory), ("vm", false));
    assert_eq!((exported.layers, exported.layers_left_out), (2, 0));
    let imported = import(&to, from.file("a.tar"), None, false).unwrap();
    assert_eq!((&*imported.name, &*imported.state), ("a", "poweredOff"));
    assert_eq!(content(&to, "a"), before);
    let (here, there) = (from.detail("a"), to.detail("a"));
    assert_eq!((here.uuid, here.machine_id), (there.uuid, there.machine_id));
    drop(from);
    to.client.start("a").unwrap();
    assert_eq!(to.state("a"), "running");
    to.client.stop("a", &OFF).unwrap();
    to.client.remove("a", false).unwrap();
    assert_eq!(everything(&to), Vec::<String>::new());
}

#[test]
fn a_running_vm_is_exported_at_an_instant_and_goes_on_elsewhere() {
    let (from, mut to) = (Bed::new(), Bed::new());
    from.run("a", "");
    // First a layer in memory, then one that a process writes.
    for (file, name) in [("1.tar", "one"), ("2.tar", "two")] {
        let exported = export(&from, "a", file);
        assert!(exported.memory && exported.stun_us == 5);
        assert_eq!(from.state("a"), "running");
        let memory = from.home().join("datastore1/memory");
        assert_eq!(std::fs::read_dir(memory).unwrap().count(), 0);
        let imported = import(&to, from.file(file), Some(name), true).unwrap();
        assert_eq!(imported.state, "suspended");
    }
    from.assert_only_processes();
    to.restart();
    for name in ["one", "two"] {
        to.client.start(name).unwrap();
        assert_eq!(to.state(name), "running");
        let serial = std::fs::read_to_string(to.detail(name).serial.unwrap()).unwrap();
        assert_eq!(serial, "restore\n");
        assert_ne!(to.detail(name).uuid, from.detail("a").uuid);
        to.client.remove(name, true).unwrap();
    }
    to.assert_only(&[]);
    assert_eq!(everything(&to), Vec::<String>::new());
}

#[test]
fn snapshots_and_fork_points_are_exported_too() {
    let (from, to) = (Bed::new(), Bed::new());
    from.run("a", "");
    let snapshot = SnapshotRequest {
        name: "s".into(),
        memory: true,
        ..SnapshotRequest::default()
    };
    from.client.create_snapshot("a", &snapshot, |_| ()).unwrap();
    let of = ExportRequest {
        snapshot: Some("s".into()),
        ..request(&from, "s.tar")
    };
    let exported = from.client.export("a", &of, |_| ()).unwrap();
    assert_eq!(
        (exported.kind.as_str(), exported.memory),
        ("snapshot", true)
    );
    let prepare = PrepareRequest::default();
    let prepared = from.client.prepare("a", &prepare, |_| ());
    // A parent's memory is kept where its VM was never forked.
    let point = prepared.unwrap().fork_point;
    let of = request(&from, "p.tar");
    let exported = from.client.export_fork_point(&point.id, &of, |_| ());
    let exported = exported.unwrap();
    assert_eq!(
        (exported.kind.as_str(), exported.memory),
        ("forkpoint", true)
    );
    for (file, name) in [("s.tar", "s"), ("p.tar", "p")] {
        let as_vm = ImportRequest {
            path: from.file(file),
            import_as: Some(ImportAs::Vm),
            earlier: Vec::new(),
            name: Some(name.to_owned()),
            datastore: None,
            new_identity: true,
            replace: false,
        };
        let imported = to.client.import(&as_vm, |_| ()).unwrap();
        assert_eq!(
            (imported.kind, &*imported.state),
            (ImportAs::Vm, "suspended")
        );
        to.client.start(name).unwrap();
    }
    to.assert_only(&["p", "s"]);
}

#[test]
fn only_what_changed_is_exported_since_an_earlier_export() {
    let (from, to) = (Bed::new(), Bed::new());
    from.run("a", "");
    from.client.stop("a", &OFF).unwrap();
    write(&from, "a", 1, "0");
    let first = export(&from, "a", "1.tar");
    write(&from, "a", 2, "256k");
    let since = ExportRequest {
        since: Some(first.id.clone()),
        ..request(&from, "2.tar")
    };
    let second = from.client.export("a", &since, |_| ()).unwrap();
    assert_eq!((second.layers, second.layers_left_out), (1, 2));
    assert!(second.archive_bytes < first.archive_bytes);
    refused(
        import(&to, from.file("2.tar"), None, false),
        &format!("import the export {} first", first.id),
    );
    assert_eq!(everything(&to), Vec::<String>::new());
    import(&to, from.file("1.tar"), Some("old"), true).unwrap();
    let imported = import(&to, from.file("2.tar"), Some("new"), true).unwrap();
    assert_eq!((imported.layers, imported.layers_found), (1, 2));
    assert_eq!(content(&to, "new"), content(&from, "a"));
    to.client.remove("old", false).unwrap();
    assert_eq!(content(&to, "new"), content(&from, "a"));
    let never = ExportRequest {
        since: Some("0".repeat(32)),
        ..request(&from, "3.tar")
    };
    let error = from.client.export("a", &never, |_| ()).unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::NotFound));
}

#[test]
fn a_base_is_left_out_where_the_other_host_has_it() {
    let (from, to, poor) = (Bed::new(), Bed::new(), Bed::new());
    from.run("a", "");
    to.run("b", "");
    from.client.stop("a", &OFF).unwrap();
    write(&from, "a", 5, "0");
    let of = ExportRequest {
        without_base: true,
        ..request(&from, "a.tar")
    };
    let exported = from.client.export("a", &of, |_| ()).unwrap();
    assert_eq!((exported.layers, exported.layers_left_out), (1, 1));
    import(&to, from.file("a.tar"), None, false).unwrap();
    assert_eq!(content(&to, "a"), content(&from, "a"));
    refused(
        import(&poor, from.file("a.tar"), None, false),
        "give this host the same image",
    );
    poor.assert_only(&[]);
}

#[test]
fn damaged_and_doubtful_archives_leave_nothing() {
    let (from, to) = (Bed::new(), Bed::new());
    from.run("a", "");
    export(&from, "a", "a.tar");
    let bytes = std::fs::read(from.file("a.tar")).unwrap();
    let bad = from.file("bad.tar");
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 4;
    std::fs::write(&bad, &flipped).unwrap();
    refused(import(&to, bad.clone(), None, false), "is damaged");
    std::fs::write(&bad, &bytes[..bytes.len() / 2]).unwrap();
    refused(import(&to, bad.clone(), None, false), "cut off");
    std::fs::write(&bad, b"no archive at all").unwrap();
    import(&to, bad.clone(), None, false).unwrap_err();
    refused(
        import(&to, from.file("nowhere.tar"), None, false),
        "cannot open",
    );
    refused(import(&to, from.home(), None, false), "is not a file");
    refused(
        import(&to, from.file("a.tar"), Some("b/../c"), false),
        "name",
    );
    assert_eq!(everything(&to), Vec::<String>::new());
    to.assert_only(&[]);
    // The same machine is not twice on one host, and names are taken once.
    import(&to, from.file("a.tar"), None, false).unwrap();
    let twin = import(&to, from.file("a.tar"), Some("twin"), false);
    refused(twin, "--new-identity");
    refused(import(&to, from.file("a.tar"), None, true), "already");
    assert_eq!(to.names(), ["a"]);
}

#[test]
fn targets_that_cannot_be_are_refused_before_anything_stands_still() {
    let bed = Bed::new();
    bed.run("a", "");
    let layers = bed.detail("a").disks[0].layers.clone();
    std::fs::write(bed.file("there.tar"), b"mine").unwrap();
    for (file, words) in [("there.tar", "already"), ("no/where.tar", "no folder")] {
        let error = bed.client.export("a", &request(&bed, file), |_| ());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(std::fs::read(bed.file("there.tar")).unwrap(), b"mine");
    assert_eq!(bed.detail("a").disks[0].layers, layers);
}

#[test]
fn a_daemon_that_ends_in_an_export_or_import_leaves_no_halves() {
    let (mut from, mut to) = (Bed::new(), Bed::new());
    from.run("a", "dump_ms=300");
    export(&from, "a", "whole.tar");
    for round in 0..6_u64 {
        let (client, of) = (from.client.clone(), request(&from, &format!("{round}.tar")));
        let exporter = std::thread::spawn(move || client.export("a", &of, |_| ()));
        let (client, path) = (to.client.clone(), from.file("whole.tar"));
        let importer = std::thread::spawn(move || {
            let request = ImportRequest {
                path,
                import_as: None,
                earlier: Vec::new(),
                name: Some(format!("r{round}")),
                datastore: None,
                new_identity: true,
                replace: false,
            };
            client.import(&request, |_| ())
        });
        std::thread::sleep(std::time::Duration::from_millis(5 + round * 12));
        to.restart();
        std::thread::sleep(std::time::Duration::from_millis(round * 70));
        from.restart();
        let exported = exporter.join().unwrap().is_ok();
        let imported = importer.join().unwrap().is_ok();
        assert_eq!(from.half_written(), [] as [String; 0]);
        assert!(!exported || from.file(&format!("{round}.tar")).exists());
        assert_eq!(from.state("a"), "running");
        let name = format!("r{round}");
        assert!(!imported || to.names().contains(&name));
        if to.names().contains(&name) {
            to.client.start(&name).unwrap();
            to.client.remove(&name, true).unwrap();
        }
        assert_eq!(everything(&to), Vec::<String>::new(), "{}", to.log());
    }
    from.assert_only(&["a"]);
    to.assert_only(&[]);
}
