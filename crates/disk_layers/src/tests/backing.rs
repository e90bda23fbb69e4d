//! Another backing name in a header: what a crash leaves, and what is refused.

use proptest::prelude::*;
use tempfile::TempDir;

use super::cases;
use super::mem::{MemFile, Op, apply};
use super::qemu::{assert_clean, guest_bytes, qemu_img};
use crate::layer::DiskFormat;
use crate::qcow2::backing::{SetBackingError, rewrite};
use crate::qcow2::create::create;
use crate::qcow2::header::{BackingRef, Header};
use crate::stack::{DiskStack, StackOptions};
use crate::{LayerFile, create_full, create_overlay, set_backing};

const SIZE: u64 = 1 << 20;

fn backing_of(bytes: Vec<u8>) -> BackingRef {
    let header = Header::parse(&MemFile::new(bytes)).expect("a usable header");
    header.backing.expect("a backing file")
}

/// Operations that a host crash can keep or lose on their own: writes by the sector.
fn by_sector(op: &Op) -> Vec<Op> {
    let Op::Write { offset, data } = op else {
        return vec![op.clone()];
    };
    let mut pieces = Vec::new();
    let (mut at, mut rest) = (*offset, data.as_slice());
    while !rest.is_empty() {
        let length = rest.len().min((512 - at % 512) as usize);
        pieces.push(Op::Write {
            offset: at,
            data: rest[..length].to_vec(),
        });
        at += length as u64;
        rest = &rest[length..];
    }
    pieces
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z0-9]{1,40}\\.qcow2",
        2 => "[a-z]{300,420}",
        1 => "[a-z]{1000,1023}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(64), ..ProptestConfig::default() })]

    /// Whatever part of the writes since the last sync reached the disk, the header names the old
    /// file or the new one.
    #[test]
    fn any_crash_leaves_the_old_name_or_the_new(
        bits in prop_oneof![Just(12u32), Just(14), Just(16)],
        names in prop::collection::vec((name(), any::<bool>()), 2..8),
        masks in prop::collection::vec(any::<u64>(), 8),
    ) {
        let format = |raw: bool| if raw { DiskFormat::Raw } else { DiskFormat::Qcow2 };
        let file = MemFile::default();
        let (first, raw) = &names[0];
        create(&file, SIZE, Some((first, format(*raw))), bits).expect("create");
        for (name, raw) in &names[1..] {
            let (before, old) = (file.bytes(), backing_of(file.bytes()));
            let start = file.log().len();
            rewrite(&file, name, format(*raw)).expect("rewrite");
            let new = BackingRef { name: name.clone(), format: Some(format(*raw)) };
            prop_assert_eq!(&backing_of(file.bytes()), &new);

            let log = file.log();
            let mut synced = before;
            let mut open: Vec<Op> = Vec::new();
            for op in &log[start..] {
                match op {
                    Op::Sync => open.drain(..).for_each(|op| apply(&mut synced, &op)),
                    op => open.extend(by_sector(op)),
                }
                for mask in &masks {
                    let mut crashed = synced.clone();
                    for (at, op) in open.iter().enumerate() {
                        if mask >> (at % 64) & 1 == 1 {
                            apply(&mut crashed, op);
                        }
                    }
                    let found = backing_of(crashed);
                    prop_assert!(found == old || found == new, "{found:?}");
                }
            }
        }
    }
}

#[test]
fn qemu_follows_the_new_name() {
    let dir = TempDir::new().expect("temp dir");
    let path = |name: &str| dir.path().join(name);
    let content: Vec<u8> = (0..SIZE).map(|at| (at / 512).to_le_bytes()[0]).collect();
    std::fs::write(path("a.raw"), &content).expect("raw");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "a.raw", "b.qcow2"];
    qemu_img(&convert, dir.path());
    let make = |name: &str| {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).create_new(true);
        options.open(path(name)).expect("create")
    };
    let top = make("top.qcow2");
    create_overlay(&top, SIZE, "a.raw", DiskFormat::Raw).expect("overlay");
    let files = vec![
        (
            Box::new(top.try_clone().expect("dup")) as _,
            DiskFormat::Qcow2,
        ),
        (MemFile::new(content.clone()).boxed(), DiskFormat::Raw),
    ];
    let mut stack = DiskStack::open_storages(files, StackOptions::default()).expect("open");
    stack.write_at(70_000, &[7; 100]).expect("write");
    stack.sync().expect("sync");
    drop(stack);
    std::fs::create_dir(path("sub")).expect("directory");
    let long = format!("{}b.qcow2", "sub/../".repeat(100));
    for (name, format) in [
        ("b.qcow2", DiskFormat::Qcow2),
        (long.as_str(), DiskFormat::Qcow2),
        ("a.raw", DiskFormat::Raw),
    ] {
        set_backing(&top, name, format).expect("set");
        let info = qemu_img(&["info", "--output=json", "top.qcow2"], dir.path());
        let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
        assert_eq!(info["backing-filename"], name);
        assert_eq!(info["backing-filename-format"], format.name());
        assert_clean(dir.path(), "top.qcow2");
        let mut expected = content.clone();
        expected[70_000..70_100].fill(7);
        assert!(guest_bytes(dir.path(), "top.qcow2") == expected, "{name}");
    }
}

#[test]
fn overlays_made_by_qemu_can_be_changed() {
    let dir = TempDir::new().expect("temp dir");
    // With a table of feature names, which alone fills most of a sector.
    let create = [
        "create", "-f", "qcow2", "-b", "x", "-F", "raw", "-u", "top", "1M",
    ];
    qemu_img(&create, dir.path());
    let path = dir.path().join("top");
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).open(&path).expect("open");
    for length in [100, 300, 500, 900, 1023, 10] {
        let name = "y".repeat(length);
        set_backing(&file, &name, DiskFormat::Qcow2).expect("set");
        assert_eq!(backing_of(std::fs::read(&path).expect("read")).name, name);
        let info = qemu_img(&["info", "--output=json", "top"], dir.path());
        assert!(info.contains(&format!("\"{name}\"")), "{info}");
    }
}

#[test]
fn unknown_extensions_stay_as_they_are() {
    let file = MemFile::default();
    create(&file, SIZE, Some(("old", DiskFormat::Raw)), 16).expect("create");
    let mut bytes = file.bytes();
    // After the header of 112 bytes and the format's 16: kind, length, content, end.
    let extension = [
        &0x1234_5678u32.to_be_bytes()[..],
        &[0, 0, 0, 5],
        b"hello\0\0\0",
        &[0; 8],
    ];
    let extension = extension.concat();
    bytes[128..128 + extension.len()].copy_from_slice(&extension);
    let at = 128 + extension.len();
    bytes[8..16].copy_from_slice(&(at as u64).to_be_bytes());
    bytes[at..at + 3].copy_from_slice(b"old");
    let file = MemFile::new(bytes);
    assert_eq!(backing_of(file.bytes()).name, "old");
    rewrite(&file, "new-name", DiskFormat::Qcow2).expect("rewrite");
    assert_eq!(backing_of(file.bytes()).name, "new-name");
    assert_eq!(file.bytes()[128..at], extension);
}

#[test]
fn what_cannot_be_changed_is_refused_unchanged() {
    let make = |bits: u32, backing: Option<(&str, DiskFormat)>| {
        let file = MemFile::default();
        create(&file, SIZE, backing, bits).expect("create");
        file
    };
    let overlay = |bits| make(bits, Some(("old", DiskFormat::Raw)));
    let refused = |file: &MemFile, name: &str| {
        let before = file.bytes();
        let error = rewrite(file, name, DiskFormat::Qcow2).expect_err("refused");
        assert!(file.bytes() == before);
        error
    };
    let standalone = make(16, None);
    let error = refused(&standalone, "new");
    assert!(matches!(error, SetBackingError::NotAnOverlay), "{error:?}");
    for name in ["", "a\0b", &"x".repeat(1024)] {
        let error = refused(&overlay(16), name);
        assert!(matches!(error, SetBackingError::Header(_)), "{error:?}");
    }
    let error = refused(&overlay(9), &"x".repeat(500));
    assert!(
        matches!(error, SetBackingError::NoRoom { bytes: 500 }),
        "{error:?}"
    );
    let error = refused(&MemFile::new(vec![0; 4096]), "new");
    assert!(matches!(error, SetBackingError::Header(_)), "{error:?}");
}

#[test]
fn an_overlay_opens_below_its_new_name() {
    let file = || tempfile::tempfile().expect("temp file");
    let (base, top) = (file(), file());
    create_full(&base, SIZE).expect("base");
    create_overlay(&top, SIZE, "old", DiskFormat::Raw).expect("top");
    set_backing(&top, "new", DiskFormat::Qcow2).expect("set");
    let layer = |file| LayerFile {
        file,
        format: DiskFormat::Qcow2,
    };
    let stack = DiskStack::open(layer(top), vec![layer(base)], StackOptions::default());
    assert_eq!(stack.expect("open").depth(), 2);
}
