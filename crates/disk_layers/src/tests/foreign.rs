//! Images made by QEMU.

use std::fs::{File, OpenOptions};
use std::path::Path;

use tempfile::TempDir;

use super::qemu::{assert_clean, guest_bytes, qemu_img};
use crate::error::{LayerError, OpenDiskError};
use crate::layer::{DiskFormat, LayerFile};
use crate::stack::{DiskStack, StackOptions};
use crate::{check_refcounts, inspect};

const SIZE: usize = 3 << 20;

/// Compressible content with holes.
fn content() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SIZE).map(|at| (at / 100).to_le_bytes()[0]).collect();
    bytes[1 << 20..(1 << 20) + 300_000].fill(0);
    bytes
}

fn rw(dir: &Path, name: &str) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options.open(dir.join(name)).expect("open")
}

fn layer(dir: &Path, name: &str, format: DiskFormat) -> LayerFile {
    LayerFile {
        file: rw(dir, name),
        format,
    }
}

fn open(dir: &Path, name: &str, read_only: bool) -> Result<DiskStack, OpenDiskError> {
    let options = StackOptions {
        read_only,
        ..StackOptions::default()
    };
    DiskStack::open(layer(dir, name, DiskFormat::Qcow2), Vec::new(), options)
}

fn read_all(stack: &mut DiskStack) -> Vec<u8> {
    let mut seen = vec![9; SIZE];
    // Odd pieces, so that clusters are entered in the middle.
    for (at, piece) in seen.chunks_mut(10_007).enumerate() {
        stack.read_at(at as u64 * 10_007, piece).expect("read");
    }
    seen
}

/// Converts [`content`] with the given options and checks that it reads the same.
fn check_reads(convert: &[&str], writable: bool) {
    let dir = TempDir::new().expect("temp dir");
    std::fs::write(dir.path().join("raw"), content()).expect("raw");
    let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
    args.extend(convert);
    args.extend(["raw", "image"]);
    qemu_img(&args, dir.path());
    let mut stack = open(dir.path(), "image", true).expect("open");
    assert!(read_all(&mut stack) == content(), "{convert:?}");
    drop(stack);
    if !writable {
        let err = open(dir.path(), "image", false).expect_err("not writable");
        let OpenDiskError::Layer { source, .. } = err else {
            panic!("{err:?}");
        };
        assert!(
            matches!(source, LayerError::NotWritable { .. }),
            "{source:?}"
        );
        return;
    }
    let mut expected = content();
    let mut stack = open(dir.path(), "image", false).expect("open");
    for (at, length) in [(100usize, 70_000usize), (1 << 20, 5000), (2 << 20, 200_000)] {
        stack
            .write_at(at as u64, &vec![0xa5; length])
            .expect("write");
        expected[at..at + length].fill(0xa5);
    }
    stack.discard(1 << 19, 1 << 18).expect("discard");
    if stack.discard_granularity() <= 1 << 18 {
        expected[1 << 19..(1 << 19) + (1 << 18)].fill(0);
    }
    stack.sync().expect("sync");
    assert!(read_all(&mut stack) == expected, "{convert:?}");
    drop(stack);
    assert_clean(dir.path(), "image");
    assert!(guest_bytes(dir.path(), "image") == expected, "{convert:?}");
    let report = check_refcounts(&rw(dir.path(), "image")).expect("check");
    assert!(report.is_clean(), "{convert:?}: {report:?}");
}

#[test]
fn plain_images_are_read_and_written() {
    check_reads(&[], true);
    check_reads(&["-o", "cluster_size=4k"], true);
    check_reads(&["-o", "cluster_size=512"], true);
    check_reads(&["-o", "cluster_size=2M"], true);
    check_reads(&["-o", "preallocation=metadata"], true);
}

#[test]
fn compressed_images_are_read_and_written() {
    check_reads(&["-c"], true);
    check_reads(&["-c", "-o", "cluster_size=4k"], true);
    check_reads(&["-c", "-o", "compression_type=zstd"], true);
}

#[test]
fn old_and_odd_images_are_read_only() {
    check_reads(&["-o", "compat=0.10"], false);
    check_reads(&["-o", "refcount_bits=1"], false);
    check_reads(&["-o", "refcount_bits=64"], false);
}

#[test]
fn images_with_snapshots_are_read_only() {
    let dir = TempDir::new().expect("temp dir");
    std::fs::write(dir.path().join("raw"), content()).expect("raw");
    qemu_img(
        &["convert", "-f", "raw", "-O", "qcow2", "raw", "image"],
        dir.path(),
    );
    qemu_img(&["snapshot", "-c", "s", "image"], dir.path());
    assert!(read_all(&mut open(dir.path(), "image", true).expect("open")) == content());
    assert!(open(dir.path(), "image", false).is_err());
}

#[test]
fn features_that_are_not_understood_are_refused_by_name() {
    let dir = TempDir::new().expect("temp dir");
    let refused = |name: &str, args: &[&str], expect: &str| {
        let mut all = vec!["create", "-q", "-f", "qcow2"];
        all.extend(args);
        all.extend([name, "1M"]);
        qemu_img(&all, dir.path());
        let err = inspect(&rw(dir.path(), name)).expect_err("refused");
        assert!(err.to_string().contains(expect), "{err}");
    };
    refused("ext", &["-o", "extended_l2=on"], "subclusters");
    refused("data", &["-o", "data_file=data.raw"], "external data files");
    for (format, name) in [("vmdk", "VMDK"), ("vdi", "VDI"), ("vhdx", "VHDX")] {
        qemu_img(&["create", "-q", "-f", format, format, "1M"], dir.path());
        let err = inspect(&rw(dir.path(), format)).expect_err("refused");
        assert!(err.to_string().starts_with(name), "{err}");
    }
}

#[test]
fn overlays_made_by_qemu_work_also_when_larger_than_their_base() {
    let dir = TempDir::new().expect("temp dir");
    std::fs::write(dir.path().join("raw"), content()).expect("raw");
    let bigger = (SIZE + (1 << 20)).to_string();
    qemu_img(
        &[
            "create", "-q", "-f", "qcow2", "-b", "raw", "-F", "raw", "top", &bigger,
        ],
        dir.path(),
    );
    let top = layer(dir.path(), "top", DiskFormat::Qcow2);
    let base = layer(dir.path(), "raw", DiskFormat::Raw);
    let mut stack = DiskStack::open(top, vec![base], StackOptions::default()).expect("open");
    let mut expected = content();
    expected.resize(SIZE + (1 << 20), 0);
    stack.write_at(SIZE as u64 - 5, &[4; 10]).expect("write");
    expected[SIZE - 5..SIZE + 5].fill(4);
    stack.sync().expect("sync");
    let mut seen = vec![0; expected.len()];
    stack.read_at(0, &mut seen).expect("read");
    assert!(seen == expected);
    assert_clean(dir.path(), "top");
    assert!(guest_bytes(dir.path(), "top") == expected);
}

#[test]
fn qemu_follows_the_names_of_our_overlays() {
    let dir = TempDir::new().expect("temp dir");
    let create_new = |name: &str| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        options.open(dir.path().join(name)).expect("create")
    };
    crate::create_full(&create_new("base"), SIZE as u64).expect("base");
    let overlay = |name, below| {
        crate::create_overlay(&create_new(name), SIZE as u64, below, DiskFormat::Qcow2)
            .expect("overlay");
    };
    overlay("middle", "base");
    overlay("top", "middle");
    let chain = qemu_img(
        &["info", "--backing-chain", "--output=json", "top"],
        dir.path(),
    );
    let chain: serde_json::Value = serde_json::from_str(&chain).expect("json");
    let names: Vec<_> = (0..3)
        .map(|at| chain[at]["backing-filename"].as_str())
        .collect();
    assert_eq!(names, [Some("middle"), Some("base"), None]);
    assert_eq!(chain[0]["backing-filename-format"], "qcow2");
    assert_eq!(chain[0]["virtual-size"], SIZE);
    for name in ["top", "middle", "base"] {
        assert_clean(dir.path(), name);
    }
}

#[test]
fn an_image_that_is_cut_in_its_data_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("cut.qcow2");
    let file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .expect("file");
    crate::create_full(&file, 8 << 20).expect("create");
    let top = crate::LayerFile {
        file: file.try_clone().expect("dup"),
        format: crate::DiskFormat::Qcow2,
    };
    let mut stack =
        crate::DiskStack::open(top, vec![], crate::StackOptions::default()).expect("open");
    stack.write_at(0, &vec![7; 4 << 20]).expect("write");
    stack.sync().expect("sync");
    crate::check_whole(&file).expect("whole");
    file.set_len(file.metadata().expect("size").len() / 2)
        .expect("cut");
    let error = crate::check_whole(&file).expect_err("cut");
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    assert!(cause.is_some_and(|cause| cause.contains("truncated")));
}
