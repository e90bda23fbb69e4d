//! Behaviour of the store, one thing at a time.

use std::collections::HashSet;
use std::error::Error;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::process::Command;

use disk_layers::{DiskFormat, DiskStack, LayerFile, PreparedTop, StackOptions};
use tempfile::TempDir;

use crate::{Access, LayerId, LayerStore, StoreError};

const SIZE: u64 = 1 << 20;

fn store() -> (TempDir, LayerStore) {
    let dir = TempDir::new().expect("temp dir");
    let store = LayerStore::open(&dir.path().join("store")).expect("store");
    (dir, store)
}

fn base(store: &LayerStore) -> LayerId {
    let id = LayerId::random();
    store.create_empty(id, SIZE).expect("base");
    id
}

fn delta(store: &LayerStore, below: LayerId) -> LayerId {
    let id = LayerId::random();
    store.create_delta(id, below).expect("delta");
    id
}

/// A disk on the chain of a layer.
fn disk(store: &LayerStore, id: LayerId) -> DiskStack {
    let mut chain = store
        .open_chain(id, Access::ReadWrite)
        .expect("chain")
        .into_iter()
        .map(|found| found.layer);
    let top = chain.next().expect("a top");
    DiskStack::open(top, chain.collect(), StackOptions::default()).expect("disk")
}

fn chain_text(err: &dyn Error) -> String {
    match err.source() {
        Some(cause) => format!("{err}: {}", chain_text(cause)),
        None => err.to_string(),
    }
}

#[test]
fn fork_through_the_store_separates_source_and_clones() {
    let (_dir, store) = store();
    let base = base(&store);
    store.seal(base).expect("seal");
    let top = delta(&store, base);
    let mut source = disk(&store, top);
    source.write_at(0, &[1; 9000]).expect("write");

    let ids: Vec<_> = (0..3).map(|_| LayerId::random()).collect();
    let mut deltas = store.create_deltas(&ids, top).expect("deltas");
    source.flush().expect("flush");
    let next = deltas.remove(0);
    let next_top = LayerFile {
        file: next.file,
        format: DiskFormat::Qcow2,
    };
    source
        .push_top(PreparedTop::open(next_top).expect("top"))
        .expect("push");
    store.seal(top).expect("seal");
    drop(deltas);
    let mut clone = disk(&store, ids[1]);
    source.write_at(0, &[2]).expect("write");
    clone.write_at(1, &[3]).expect("write");
    let mut seen = [0; 3];
    source.read_at(0, &mut seen).expect("read");
    assert_eq!(seen, [2, 1, 1]);
    clone.read_at(0, &mut seen).expect("read");
    assert_eq!(seen, [1, 3, 1]);
    source.sync().expect("sync");
    clone.sync().expect("sync");
    assert_eq!(store.parents(ids[1]).expect("parents"), [top, base]);

    let info = Command::new("qemu-img")
        .args(["info", "-U", "--backing-chain"])
        .arg(store.layer_path(ids[0]))
        .output()
        .expect("qemu-img must be installed (Debian package qemu-utils)");
    assert!(info.status.success(), "{info:?}");
    for id in [base, top, ids[0], ids[1], ids[2]] {
        let check = Command::new("qemu-img")
            .args(["check", "-U", "-f", "qcow2"])
            .arg(store.layer_path(id))
            .output()
            .expect("qemu-img");
        assert!(check.status.success(), "{check:?}");
    }
}

#[test]
fn a_layer_has_one_writer_until_its_descriptor_is_closed() {
    let (_dir, store) = store();
    let base = base(&store);
    let id = LayerId::random();
    let made = store.create_delta(id, base).expect("delta");
    let passed_on = made.file.try_clone().expect("dup");
    drop(made);
    let err = store.open_chain(id, Access::ReadWrite).expect_err("locked");
    assert!(matches!(err, StoreError::InUse { .. }), "{err}");
    store.open_chain(id, Access::ReadOnly).expect("readers");
    drop(passed_on);
    store.open_chain(id, Access::ReadWrite).expect("free");
}

#[test]
fn sealed_layers_are_never_opened_for_writing() {
    let (_dir, store) = store();
    let base = base(&store);
    store.seal(base).expect("seal");
    let err = store
        .open_chain(base, Access::ReadWrite)
        .expect_err("sealed");
    assert!(matches!(err, StoreError::Sealed { .. }), "{err}");
    store.open_chain(base, Access::ReadOnly).expect("readers");
}

#[test]
fn names_are_never_used_twice() {
    let (_dir, store) = store();
    let base = base(&store);
    let top = delta(&store, base);
    let again = store.create_delta(top, base).expect_err("exists");
    assert!(matches!(again, StoreError::Exists { .. }), "{again}");
    let again = store.create_empty(base, SIZE).expect_err("exists");
    assert!(matches!(again, StoreError::Exists { .. }), "{again}");
    assert_eq!(store.list().expect("list").len(), 2);
}

#[test]
fn a_batch_is_made_whole_or_not_at_all() {
    let (_dir, store) = store();
    let base = base(&store);
    let taken = delta(&store, base);
    let ids = [LayerId::random(), LayerId::random(), taken];
    store.create_deltas(&ids, base).expect_err("one exists");
    let mut left = store.list().expect("list");
    left.sort();
    let mut expected = vec![base, taken];
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn unknown_layers_are_named() {
    let (_dir, store) = store();
    let id = LayerId::random();
    for err in [
        store.open_chain(id, Access::ReadOnly).map(|_| ()),
        store.parents(id).map(|_| ()),
        store.create_delta(LayerId::random(), id).map(|_| ()),
        store.seal(id),
        store.header(id).map(|_| ()),
        store.allocated_bytes(id).map(|_| ()),
    ] {
        let err = err.expect_err("unknown");
        assert!(matches!(err, StoreError::UnknownLayer { .. }), "{err}");
        assert!(err.to_string().contains(&id.to_string()));
    }
}

#[test]
fn import_is_sealed_exact_and_leaves_nothing_when_it_fails() {
    let (dir, store) = store();
    let path = dir.path().join("raw");
    fs::write(&path, vec![5u8; 70_000]).expect("raw");
    let chain = || {
        let file = File::open(&path).expect("open");
        vec![LayerFile {
            file,
            format: DiskFormat::Raw,
        }]
    };
    let id = LayerId::random();
    store
        .import(id, chain(), &mut |_| ControlFlow::Continue(()))
        .expect("import");
    let err = store.open_chain(id, Access::ReadWrite).expect_err("sealed");
    assert!(matches!(err, StoreError::Sealed { .. }), "{err}");
    let top = delta(&store, id);
    let mut seen = [0; 5];
    disk(&store, top).read_at(69_996, &mut seen).expect("read");
    assert_eq!(seen, [5, 5, 5, 5, 0]);

    let before = store.file_names().expect("names").len();
    store
        .import(LayerId::random(), chain(), &mut |_| ControlFlow::Break(()))
        .expect_err("cancelled");
    assert_eq!(store.file_names().expect("names").len(), before);
}

#[test]
fn full_copy_stands_alone_and_can_be_written() {
    let (_dir, store) = store();
    let base = base(&store);
    let top = delta(&store, base);
    let mut source = disk(&store, top);
    source.write_at(500_000, &[7; 10]).expect("write");
    source.sync().expect("sync");
    drop(source);
    for from in [top, base] {
        let copy = LayerId::random();
        store
            .full_copy(copy, from, &mut |_| ControlFlow::Continue(()))
            .expect("copy");
        assert_eq!(store.parents(copy).expect("parents"), []);
        let mut byte = [9];
        let mut copied = disk(&store, copy);
        copied.read_at(500_005, &mut byte).expect("read");
        assert_eq!(byte[0], if from == top { 7 } else { 0 });
        copied.write_at(0, &[1]).expect("write");
    }
}

#[test]
fn dead_imports_are_removed_and_live_ones_kept() {
    let (_dir, store) = store();
    let path = |id: LayerId| store.layers_path().join(id.temporary_name());
    let (dead, live) = (path(LayerId::random()), LayerId::random());
    fs::write(&dead, "half").expect("write");
    let writer = store.create_file(&path(live), live).expect("import");
    LayerStore::open(store.root()).expect("opened again");
    assert!(!dead.exists());
    assert!(path(live).exists());
    drop(writer);
    LayerStore::open(store.root()).expect("opened again");
    assert!(!path(live).exists());
}

#[test]
fn collect_removes_nothing_when_a_live_chain_is_broken() {
    let (_dir, store) = store();
    let base = base(&store);
    let middle = delta(&store, base);
    let top = delta(&store, middle);
    let other = delta(&store, base);
    fs::remove_file(store.layer_path(middle)).expect("remove");
    let survey = store.survey().expect("survey");
    let err = store
        .collect(survey, &HashSet::from([top]))
        .expect_err("broken");
    assert!(chain_text(&err).contains("missing"), "{}", chain_text(&err));
    assert!(store.layer_path(base).exists());
    assert!(store.layer_path(other).exists());
    let survey = store.survey().expect("survey");
    let done = store.collect(survey, &HashSet::new()).expect("collect");
    assert_eq!(done.removed.len(), 3);
    assert_eq!(store.list().expect("list"), []);
}

#[test]
fn layers_made_after_the_survey_are_kept() {
    let (_dir, store) = store();
    let base = base(&store);
    let survey = store.survey().expect("survey");
    let late = delta(&store, base);
    store.collect(survey, &HashSet::new()).expect("collect");
    assert_eq!(store.list().expect("list"), [late]);
}

#[test]
fn pending_tops_are_recognised() {
    let (_dir, store) = store();
    let (base, other) = (base(&store), base(&store));
    let top = delta(&store, base);
    let cut = LayerId::random();
    fs::write(store.layer_path(cut), "QFI").expect("half made");
    assert!(store.is_overlay_of(top, base).expect("top"));
    assert!(!store.is_overlay_of(top, other).expect("top"));
    assert!(!store.is_overlay_of(cut, base).expect("cut"));
    assert!(!store.is_overlay_of(LayerId::random(), base).expect("none"));
}

#[test]
fn layers_that_lead_out_of_the_store_are_refused() {
    let (dir, store) = store();
    let secret = dir.path().join("secret");
    fs::write(&secret, vec![1; 1024]).expect("secret");
    for name in ["../../secret", "/etc/passwd", "x/../../../secret"] {
        let id = LayerId::random();
        let file = store.create_file(&store.layer_path(id), id).expect("file");
        disk_layers::create_overlay(&file, 1024, name, DiskFormat::Raw).expect("overlay");
        let err = store.open_chain(id, Access::ReadOnly).expect_err(name);
        assert!(matches!(err, StoreError::Chain { .. }), "{err}");
        let err = store
            .collect(store.survey().expect("survey"), &HashSet::from([id]))
            .expect_err(name);
        assert!(matches!(err, StoreError::ForeignFile { .. }), "{err}");
    }
}

#[test]
fn space_is_promised_once() {
    let (_dir, store) = store();
    let free = store.space().expect("space").free_bytes;
    let most = store.reserve(free / 2).expect("half");
    assert_eq!(store.space().expect("space").reserved_bytes, free / 2);
    let err = store.reserve(free / 3 * 2).expect_err("too much");
    assert!(matches!(err, StoreError::NoSpace { .. }), "{err}");
    assert_eq!(store.space().expect("space").reserved_bytes, free / 2);
    assert!(matches!(
        store.reserve(u64::MAX),
        Err(StoreError::NoSpace { .. })
    ));
    drop(most);
    assert_eq!(store.space().expect("space").reserved_bytes, 0);
}

#[test]
fn homes_hold_links_and_bad_names_are_refused() {
    let (_dir, store) = store();
    let base = base(&store);
    let top = delta(&store, base);
    let home = store.create_home("web1").expect("home");
    store.create_home("web1").expect("again");
    store.link_layer("web1", "disk0.qcow2", base).expect("link");
    store.link_layer("web1", "disk0.qcow2", top).expect("link");
    store.sync_home("web1").expect("sync");
    let target = home.join("disk0.qcow2").canonicalize().expect("target");
    assert_eq!(target, store.layer_path(top));
    assert_eq!(store.homes().expect("homes"), ["web1"]);
    store.remove_home("web1").expect("remove");
    store.remove_home("web1").expect("remove again");
    assert!(store.layer_path(top).exists());
    let long = "a".repeat(129);
    for name in [
        "",
        ".",
        "..",
        "a/b",
        ".hidden",
        "a b",
        "ä",
        "-rf",
        long.as_str(),
    ] {
        let err = store.create_home(name).expect_err(name);
        assert!(matches!(err, StoreError::BadName { .. }), "{err}");
        store.link_layer("web1", name, top).expect_err(name);
    }
}

#[test]
fn ids_round_trip_and_reject_other_text() {
    for _ in 0..100 {
        let id = LayerId::random();
        assert_eq!(id.to_string().parse::<LayerId>(), Ok(id));
        assert_eq!(LayerId::from_file_name(&id.file_name()), Some(id));
    }
    let upper = "A".repeat(32);
    let long = "0".repeat(33);
    for text in ["", "0", "+0000000000000000000000000000000", &upper, &long] {
        text.parse::<LayerId>().expect_err(text);
    }
}
