//! Exports of what changed since an earlier one, and imports that put it together again.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bed;

use std::path::PathBuf;
use std::process::Command;

use api_types::{
    CloneMode, ExportRequest, Exported, ForkRequest, ImportAs, ImportRequest, Imported,
    PrepareRequest, SnapshotRequest, StopRequest,
};
use bed::stores::Mount;
use bed::{Bed, clones};
use client::ClientError;

const OFF: StopRequest = StopRequest {
    force: true,
    timeout_s: None,
};
const PAGE: usize = 4096;

fn request(bed: &Bed, file: &str, since: Option<&Exported>) -> ExportRequest {
    ExportRequest {
        path: bed.file(file),
        snapshot: None,
        since: since.map(|earlier| earlier.id.clone()),
        without_base: false,
    }
}

fn export(bed: &Bed, vm: &str, file: &str, since: Option<&Exported>) -> Exported {
    let exported = bed.client.export(vm, &request(bed, file, since), |_| ());
    exported.unwrap_or_else(|error| panic!("{error}\n{}", bed.log()))
}

fn wanted(path: PathBuf, name: &str, earlier: Vec<PathBuf>) -> ImportRequest {
    ImportRequest {
        path,
        import_as: None,
        earlier,
        name: Some(name.to_owned()),
        datastore: None,
        new_identity: true,
        replace: false,
    }
}

fn import(
    to: &Bed,
    from: &Bed,
    file: &str,
    name: &str,
    earlier: &[&str],
) -> Result<Imported, ClientError> {
    let earlier = earlier.iter().map(|file| from.file(file)).collect();
    to.client
        .import(&wanted(from.file(file), name, earlier), |_| ())
}

fn refused(result: Result<Imported, ClientError>, words: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(words), "{error:?} has no {words:?}");
    assert!(!error.contains('\n'), "{error}");
}

/// RAM of the stand-in when it was forked for the `fork`th time.
fn ram_of_fork(fork: u8) -> Vec<u8> {
    let mut ram = vec![0; 16 << 20];
    ram[..3].copy_from_slice(b"ram");
    ram[256 * PAGE..320 * PAGE].fill(7);
    ram[320 * PAGE..321 * PAGE].fill(fork);
    let last = (1000 + usize::from(fork)) * PAGE;
    ram[last..last + PAGE].fill(9);
    ram
}

/// Memory of the only thing in a datastore that has some.
fn only_ram(bed: &Bed) -> Vec<u8> {
    let files = bed.list("datastore1/memory");
    let rams: Vec<_> = files.iter().filter(|name| name.ends_with(".ram")).collect();
    assert_eq!(rams.len(), 1, "{files:?}");
    std::fs::read(bed.home().join("datastore1/memory").join(rams[0])).unwrap()
}

fn everything(bed: &Bed) -> Vec<String> {
    let dirs = ["layers", "vms", "memory", "boot"];
    let dirs = dirs.iter().map(|dir| format!("datastore1/{dir}"));
    let present = dirs.filter(|dir| bed.home().join(dir).exists());
    present.flat_map(|dir| bed.list(&dir)).collect()
}

/// Four exports of a VM that runs on, the last three since the one before.
fn four_exports(from: &Bed) -> [Exported; 4] {
    from.run("a", "writes");
    let first = export(from, "a", "1.tar", None);
    let second = export(from, "a", "2.tar", Some(&first));
    let third = export(from, "a", "3.tar", Some(&second));
    let fourth = export(from, "a", "4.tar", Some(&third));
    [first, second, third, fourth]
}

#[test]
fn memory_goes_and_comes_as_what_changed() {
    let (from, to) = (Bed::new(), Bed::new());
    let exports = four_exports(&from);
    let figures = exports.each_ref().map(|exported| {
        let whole = exported.memory_whole_because.as_deref();
        (
            exported.memory_bytes / PAGE as u64,
            exported.memory_left_out_bytes / PAGE as u64,
            whole,
        )
    });
    // All that is not zeros is new in the second, so that it stands by itself.
    assert_eq!(
        figures,
        [
            (0, 0, None),
            (67, 0, Some("all of it has changed")),
            (2, 65, None),
            (2, 65, None),
        ]
    );
    assert!(exports[2].archive_bytes < exports[1].archive_bytes);
    assert_eq!(from.list("exports").len(), 4);
    assert!(from.list("datastore1/memory").is_empty());
    // Nothing of it is on the other host.
    let missing = |earlier: &[&str], export: &Exported| {
        let words = format!("import the export {} first, or give its archive", export.id);
        refused(import(&to, &from, "4.tar", "x", earlier), &words);
        let earlier = earlier.iter().map(|file| from.file(file)).collect();
        let tried = wanted(from.file("4.tar"), "x", earlier);
        let tried = to.client.check_import(&tried).unwrap();
        let told = tried.problems.iter();
        let told: Vec<_> = told
            .map(|p| format!("{} {:?}", p.detail, p.remedy))
            .collect();
        assert!(told.iter().any(|told| told.contains(&words)), "{told:?}");
        assert_eq!(everything(&to), Vec::<String>::new());
    };
    missing(&[], &exports[2]);
    missing(&["3.tar"], &exports[1]);
    missing(&["2.tar"], &exports[2]);
    let imported = import(&to, &from, "4.tar", "x", &["3.tar", "1.tar", "2.tar"]).unwrap();
    assert_eq!(imported.state, "suspended");
    assert_eq!((imported.layers, imported.layers_found), (5, 0));
    assert!(only_ram(&to) == ram_of_fork(3));
    to.client.start("x").unwrap();
    to.client.remove("x", true).unwrap();
    assert_eq!(everything(&to), Vec::<String>::new());
}

#[test]
fn what_was_imported_before_is_what_changes_start_from() {
    let (from, mut to) = (Bed::new(), Bed::new());
    four_exports(&from);
    from.client.remove("a", true).unwrap();
    assert!(from.list("exports").is_empty());
    import(&to, &from, "1.tar", "one", &[]).unwrap();
    import(&to, &from, "2.tar", "two", &[]).unwrap();
    to.client.remove("one", false).unwrap();
    to.restart();
    let imported = import(&to, &from, "3.tar", "three", &[]).unwrap();
    assert_eq!((imported.layers, imported.layers_found), (1, 3));
    to.client.remove("two", false).unwrap();
    assert!(only_ram(&to) == ram_of_fork(2));
    // The instant is here, what it started from is not any more.
    import(&to, &from, "3.tar", "again", &[]).unwrap();
    to.client.remove("again", false).unwrap();
    let twin = ImportRequest {
        new_identity: false,
        ..wanted(from.file("4.tar"), "y", Vec::new())
    };
    let same = ImportRequest {
        new_identity: false,
        ..wanted(from.file("3.tar"), "same", Vec::new())
    };
    to.client.import(&same, |_| ()).unwrap();
    refused(
        to.client.import(&twin, |_| ()),
        "remove that VM and give the earlier archives with --earlier",
    );
    to.client.remove("same", false).unwrap();
    // It was damaged here: the archive has it too.
    let memory = to.home().join("datastore1/memory");
    let path = to.list("datastore1/memory").into_iter();
    let path = path.map(|name| memory.join(name));
    let mut path = path.filter(|path| path.extension().is_some_and(|e| e == "ram"));
    let path = path.next_back().unwrap();
    let mut damaged = std::fs::read(&path).unwrap();
    damaged[300 * PAGE] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, damaged).unwrap();
    refused(import(&to, &from, "4.tar", "four", &[]), "with --earlier");
    import(&to, &from, "4.tar", "four", &["3.tar", "2.tar"]).unwrap();
    to.client.remove("three", false).unwrap();
    assert!(only_ram(&to) == ram_of_fork(3));
    // A clone of what was imported runs at once; it stays as it is.
    let request = ForkRequest {
        mode: CloneMode::Instant,
        ..clones(&["c1", "c2"])
    };
    let cloned = to.client.fork("four", &request).unwrap();
    assert!(cloned.clones.iter().all(|clone| clone.error.is_none()));
    assert_eq!(to.state("c1"), "running");
    assert_eq!(to.state("four"), "suspended");
    for name in ["c1", "c2", "four"] {
        to.client.remove(name, true).unwrap();
    }
    assert_eq!(everything(&to), Vec::<String>::new());
}

#[test]
fn suspended_vms_snapshots_and_fork_points_go_as_what_changed_too() {
    let (from, to) = (Bed::new(), Bed::new());
    from.run("a", "writes");
    export(&from, "a", "0.tar", None);
    let snapshot = SnapshotRequest {
        name: "s".into(),
        memory: true,
        ..SnapshotRequest::default()
    };
    from.client.create_snapshot("a", &snapshot, |_| ()).unwrap();
    let of = ExportRequest {
        snapshot: Some("s".into()),
        ..request(&from, "1.tar", None)
    };
    let first = from.client.export("a", &of, |_| ()).unwrap();
    let durable = PrepareRequest {
        durable: true,
        ..PrepareRequest::default()
    };
    from.client.prepare("a", &durable, |_| ()).unwrap();
    let of = request(&from, "2.tar", Some(&first));
    let second = from.client.export_fork_point("a", &of, |_| ()).unwrap();
    from.client.suspend("a", |_| ()).unwrap();
    let third = export(&from, "a", "3.tar", Some(&second));
    let same = export(&from, "a", "4.tar", Some(&third));
    for (exported, pages) in [(&second, 2), (&third, 2), (&same, 0)] {
        assert_eq!(exported.memory_bytes, pages * PAGE as u64, "{exported:?}");
        assert_eq!(exported.memory_whole_because, None);
    }
    import(&to, &from, "4.tar", "x", &["3.tar", "2.tar", "1.tar"]).unwrap();
    assert!(only_ram(&to) == ram_of_fork(3));
    // Where it came from has the memory in files: nothing else is needed.
    import(&from, &from, "4.tar", "x", &[]).unwrap();
    from.client.remove("a", true).unwrap();
    assert_eq!(from.list("exports").len(), 5, "the fork point is there");
    from.client.unprepare("a", true).unwrap();
    assert!(from.list("exports").is_empty());
    assert!(only_ram(&from) == ram_of_fork(3));
}

#[test]
fn memory_goes_whole_where_there_is_nothing_to_compare() {
    let mut bed = Bed::new();
    bed.run("a", "writes");
    bed.client.suspend("a", |_| ()).unwrap();
    let first = export(&bed, "a", "1.tar", None);
    let again = |bed: &Bed, file: &str| {
        let exported = export(bed, "a", file, Some(&first));
        exported.memory_whole_because
    };
    assert_eq!(again(&bed, "2.tar"), None);
    // What was damaged or lost is no reason to fail.
    let table = bed.home().join("exports");
    let table = table.join(format!("{}.{}.pages", bed.detail("a").vm.id, first.id));
    let mut bytes = std::fs::read(&table).unwrap();
    assert_eq!(bytes.len(), (16 << 20) / 256);
    bytes[4] ^= 1;
    std::fs::write(&table, bytes).unwrap();
    let why = again(&bed, "3.tar").unwrap();
    assert!(why.contains("not kept"), "{why}");
    assert!(!table.exists());
    assert!(again(&bed, "4.tar").is_some());
    // Others belong to nobody.
    std::fs::write(bed.home().join("exports/vm-99.x.pages"), b"x").unwrap();
    std::fs::write(bed.home().join("exports/what"), b"x").unwrap();
    bed.restart();
    assert_eq!(bed.list("exports").len(), 3);
    for number in 0..32 {
        export(&bed, "a", &format!("more-{number}.tar"), None);
    }
    assert_eq!(bed.list("exports").len(), 32);
    let off = {
        bed.run("off", "");
        bed.client.stop("off", &OFF).unwrap();
        export(&bed, "off", "off.tar", None)
    };
    assert_eq!(off.memory_bytes, 0);
    bed.client.start("off").unwrap();
    let on = export(&bed, "off", "on.tar", Some(&off));
    let why = on.memory_whole_because.unwrap();
    assert!(why.contains("no memory"), "{why}");
}

#[test]
fn an_export_that_fails_or_is_cut_leaves_no_page_digests() {
    let mut bed = Bed::new();
    bed.run("a", "writes");
    export(&bed, "a", "1.tar", None);
    bed.client.suspend("a", |_| ()).unwrap();
    for round in 0..6_u64 {
        let (client, of) = (
            bed.client.clone(),
            request(&bed, &format!("cut-{round}.tar"), None),
        );
        let exporter = std::thread::spawn(move || client.export("a", &of, |_| ()).is_ok());
        std::thread::sleep(std::time::Duration::from_millis(round * 15));
        bed.restart();
        exporter.join().unwrap();
        let whole = (0..=round).filter(|n| bed.file(&format!("cut-{n}.tar")).exists());
        // One more may be whole whose record was not finished.
        let kept = bed.list("exports").len();
        assert!(kept <= 1 + whole.count(), "{kept} {}", bed.log());
        assert_eq!(bed.half_written(), [] as [String; 0]);
    }
    let before = bed.list("exports").len();
    let Some(full) = Mount::tmpfs(bed.file("full"), 64 << 10) else {
        return;
    };
    let request = request(&bed, "full/x.tar", None);
    let error = bed.client.export("a", &request, |_| ()).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("no space for the archive in"), "{told}");
    assert_eq!(bed.list("exports").len(), before);
    assert_eq!(std::fs::read_dir(full.path()).unwrap().count(), 0);
}

#[test]
fn an_import_that_finds_no_space_names_the_datastore() {
    let (from, to) = (Bed::new(), Bed::new());
    from.client.run(&from.request("a", "writes")).unwrap();
    export(&from, "a", "1.tar", None);
    let second = export(&from, "a", "2.tar", None);
    export(&from, "a", "3.tar", Some(&second));
    let Some(small) = Mount::tmpfs(to.file("small"), 200 << 10) else {
        return;
    };
    to.add_store("small");
    let import = |file: &str, what| {
        let request = ImportRequest {
            import_as: what,
            datastore: Some("small".into()),
            ..wanted(from.file(file), "x", vec![from.file("2.tar")])
        };
        to.client.import(&request, |_| ())
    };
    for what in [ImportAs::Vm, ImportAs::Forkpoint] {
        for file in ["2.tar", "3.tar"] {
            refused(import(file, Some(what)), "no space on datastore small");
            let left = std::fs::read_dir(small.path().join("memory")).unwrap();
            assert_eq!(left.count(), 0);
        }
    }
    assert!(to.names().is_empty() && to.client.fork_points().unwrap().is_empty());
    assert_eq!(everything(&to), Vec::<String>::new());
}

/// What the guest of a powered-off VM would see of its disk; its chain is checked on the way.
fn content(bed: &Bed, vm: &str) -> Vec<u8> {
    let layers = bed.detail(vm).disks[0].layers.clone();
    for layer in layers.iter().filter(|layer| layer.ends_with("qcow2")) {
        bed::qemu_check(layer);
    }
    let out = bed.file("content.raw");
    let converted = Command::new("qemu-img")
        .args(["convert", "-O", "raw", &layers[0]])
        .arg(&out)
        .status()
        .unwrap();
    assert!(converted.success());
    std::fs::read(out).unwrap()
}

#[test]
fn a_layer_that_is_here_on_another_disk_is_another_layer() {
    let (one, other, to) = (Bed::new(), Bed::new(), Bed::new());
    std::fs::write(other.file("disk.raw"), vec![8; 1 << 20]).unwrap();
    for from in [&one, &other] {
        // Nothing is written, so that the layers of both have the same bytes but for the first.
        from.client
            .run(&from.with_disk(from.request("a", "")))
            .unwrap();
        from.client.stop("a", &OFF).unwrap();
        let first = export(from, "a", "1.tar", None);
        let second = export(from, "a", "2.tar", Some(&first));
        export(from, "a", "3.tar", Some(&second));
    }
    assert_ne!(content(&one, "a"), content(&other, "a"));
    import(&to, &one, "1.tar", "one1", &[]).unwrap();
    import(&to, &one, "2.tar", "one2", &[]).unwrap();
    refused(import(&to, &other, "3.tar", "x", &[]), "leaves the layer");
    let imported = import(&to, &other, "3.tar", "x", &["2.tar", "1.tar"]).unwrap();
    assert_eq!(imported.layers_found, 0);
    assert_eq!(content(&to, "x"), content(&other, "a"));
    // Now both are here.
    let again = import(&to, &other, "3.tar", "y", &[]).unwrap();
    assert_eq!(content(&to, "y"), content(&other, "a"));
    assert!(again.layers_found > 1);
    import(&to, &one, "3.tar", "z", &[]).unwrap();
    assert_eq!(content(&to, "z"), content(&one, "a"));
}

#[test]
fn earlier_archives_have_the_disk_layers_that_are_left_out() {
    let (from, to) = (Bed::new(), Bed::new());
    from.run("a", "");
    from.client.stop("a", &OFF).unwrap();
    let write = |pattern: u8, at: &str| {
        let top = from.detail("a").disks[0].layers[0].clone();
        let order = format!("write -P {pattern} {at} 64k");
        let wrote = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", &order, &top])
            .output()
            .unwrap();
        assert!(wrote.status.success(), "{wrote:?}");
    };
    write(1, "0");
    let first = export(&from, "a", "1.tar", None);
    write(2, "256k");
    let second = export(&from, "a", "2.tar", Some(&first));
    write(3, "512k");
    let third = export(&from, "a", "3.tar", Some(&second));
    assert_eq!((third.layers, third.layers_left_out), (1, 3));
    let words = format!("import the export {} first", first.id);
    refused(import(&to, &from, "3.tar", "x", &["2.tar"]), &words);
    let imported = import(&to, &from, "3.tar", "x", &["2.tar", "1.tar"]).unwrap();
    assert_eq!((imported.layers, imported.layers_found), (4, 0));
    assert_eq!(content(&to, "x"), content(&from, "a"));
    // They are layers as any other: a later import finds them.
    let again = import(&to, &from, "2.tar", "y", &[]).unwrap();
    assert_eq!((again.layers, again.layers_found), (1, 2));
    refused(
        import(&to, &from, "3.tar", "z", &["nowhere.tar"]),
        "earlier: cannot open",
    );
    std::fs::write(from.file("bad.tar"), b"no archive").unwrap();
    refused(
        import(&to, &from, "3.tar", "z", &["bad.tar"]),
        "the file is no archive",
    );
    to.client.remove("x", false).unwrap();
    to.client.remove("y", false).unwrap();
    assert_eq!(everything(&to), Vec::<String>::new());
}

#[test]
fn equal_layers_of_two_disks_are_two_again() {
    let (from, to) = (Bed::new(), Bed::new());
    let request = from.with_disk(from.with_disk(from.request("a", "")));
    from.client.run(&request).unwrap();
    let first = export(&from, "a", "1.tar", None);
    export(&from, "a", "2.tar", Some(&first));
    let layers = |bed: &Bed, vm: &str| {
        let disks = bed.detail(vm).disks.into_iter();
        disks.map(|disk| disk.layers.len()).collect::<Vec<_>>()
    };
    import(&to, &from, "2.tar", "x", &["1.tar"]).unwrap();
    let wanted = layers(&from, "a");
    assert_eq!((layers(&to, "x"), wanted.len()), (wanted, 2));
    to.client.start("x").unwrap();
    to.client.remove("x", true).unwrap();
    assert_eq!(everything(&to), Vec::<String>::new());
}

#[test]
fn boot_files_are_left_out_too() {
    let (from, to) = (Bed::new(), Bed::new());
    let kernel = vec![5; 3 << 20];
    std::fs::write(from.file("kernel"), &kernel).unwrap();
    from.run("a", "writes");
    from.client.stop("a", &OFF).unwrap();
    let first = export(&from, "a", "1.tar", None);
    let second = export(&from, "a", "2.tar", Some(&first));
    assert!(first.archive_bytes > 3 << 20);
    assert!(second.archive_bytes < 64 << 10, "{second:?}");
    let words = format!(
        "leaves the kernel out.*import the export {} first",
        first.id
    );
    let error = import(&to, &from, "2.tar", "x", &[]).unwrap_err();
    let told = error.to_string();
    let (what, remedy) = words.split_once(".*").unwrap();
    assert!(told.contains(what) && told.contains(remedy), "{told}");
    let kernels = || {
        let names = to.list("datastore1/boot").into_iter();
        let paths = names.map(|name| to.home().join("datastore1/boot").join(name));
        paths
            .map(|path| std::fs::read(path).unwrap() == kernel)
            .collect::<Vec<_>>()
    };
    import(&to, &from, "2.tar", "x", &["1.tar"]).unwrap();
    import(&to, &from, "2.tar", "y", &[]).unwrap();
    to.client.remove("x", false).unwrap();
    import(&to, &from, "2.tar", "z", &[]).unwrap();
    assert_eq!(kernels(), [true, true]);
    // Another kernel goes whole.
    std::fs::write(from.file("kernel"), b"another").unwrap();
    let third = export(&from, "a", "3.tar", Some(&second));
    let other = std::fs::read(from.file("3.tar")).unwrap();
    assert!(
        other.windows(7).any(|bytes| bytes == b"another"),
        "{third:?}"
    );
    to.client.remove("y", false).unwrap();
    to.client.remove("z", false).unwrap();
    assert_eq!(everything(&to), Vec::<String>::new());
}

#[test]
fn damaged_earlier_archives_leave_nothing() {
    let (from, to) = (Bed::new(), Bed::new());
    four_exports(&from);
    let bytes = std::fs::read(from.file("2.tar")).unwrap();
    // In the pages that stay.
    let place = bytes.windows(PAGE).position(|page| page == [7; PAGE]);
    let mut bad = bytes.clone();
    bad[place.unwrap() + 9] ^= 1;
    std::fs::write(from.file("bad.tar"), &bad).unwrap();
    refused(
        import(&to, &from, "4.tar", "x", &["3.tar", "bad.tar", "1.tar"]),
        "memory/ram is damaged",
    );
    std::fs::write(from.file("bad.tar"), &bytes[..bytes.len() / 2]).unwrap();
    refused(
        import(&to, &from, "4.tar", "x", &["3.tar", "bad.tar", "1.tar"]),
        "cut off",
    );
    assert_eq!(everything(&to), Vec::<String>::new());
    to.assert_only(&[]);
    import(&to, &from, "4.tar", "x", &["3.tar", "2.tar", "1.tar"]).unwrap();
}
