//! Import and flattening.

use std::fs::{self, File, OpenOptions};
use std::ops::ControlFlow;
use std::path::Path;

use tempfile::TempDir;

use super::qemu::{assert_clean, guest_bytes, qemu_img};
use crate::layer::{DiskFormat, LayerFile};
use crate::{CopyDiskError, OpenDiskError, create_overlay, flatten, import_disk, inspect};

fn new_file(dir: &Path, name: &str) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    options.open(dir.join(name)).expect("create")
}

fn layer(dir: &Path, name: &str, format: DiskFormat) -> LayerFile {
    LayerFile {
        file: File::open(dir.join(name)).expect("open"),
        format,
    }
}

/// 5 MiB and 3 sectors with data in few places.
fn sparse_content() -> Vec<u8> {
    let mut bytes = vec![0u8; (5 << 20) + 1536];
    bytes[70_000..140_000].fill(1);
    bytes[3 << 20] = 2;
    let end = bytes.len();
    bytes[end - 1] = 3;
    bytes
}

#[test]
fn raw_import_is_exact_and_sparse() {
    let dir = TempDir::new().expect("temp dir");
    fs::write(dir.path().join("raw"), sparse_content()).expect("raw");
    let source = layer(dir.path(), "raw", DiskFormat::Raw);
    let mut last = 0;
    import_disk(source, new_file(dir.path(), "image"), &mut |progress| {
        assert!(progress.done_bytes > last);
        last = progress.done_bytes;
        assert_eq!(progress.total_bytes, sparse_content().len() as u64);
        ControlFlow::Continue(())
    })
    .expect("import");
    assert_eq!(last, sparse_content().len() as u64);
    assert_clean(dir.path(), "image");
    assert!(guest_bytes(dir.path(), "image") == sparse_content());
    let length = fs::metadata(dir.path().join("image")).expect("stat").len();
    assert!(length < 1 << 20, "{length}");
}

#[test]
fn raw_import_pads_to_whole_sectors() {
    let dir = TempDir::new().expect("temp dir");
    fs::write(dir.path().join("raw"), [5; 700]).expect("raw");
    let source = layer(dir.path(), "raw", DiskFormat::Raw);
    import_disk(source, new_file(dir.path(), "image"), &mut |_| {
        ControlFlow::Continue(())
    })
    .expect("import");
    let mut expected = vec![5; 700];
    expected.resize(1024, 0);
    assert!(guest_bytes(dir.path(), "image") == expected);
}

#[test]
fn compressed_qcow2_import_is_exact() {
    let dir = TempDir::new().expect("temp dir");
    fs::write(dir.path().join("raw"), sparse_content()).expect("raw");
    qemu_img(
        &["convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "packed"],
        dir.path(),
    );
    let source = layer(dir.path(), "packed", DiskFormat::Qcow2);
    import_disk(source, new_file(dir.path(), "image"), &mut |_| {
        ControlFlow::Continue(())
    })
    .expect("import");
    assert_clean(dir.path(), "image");
    assert!(guest_bytes(dir.path(), "image") == sparse_content());
}

#[test]
fn import_refuses_backing_files_and_cut_files() {
    let dir = TempDir::new().expect("temp dir");
    let overlay = new_file(dir.path(), "overlay");
    create_overlay(&overlay, 1 << 20, "/etc/passwd", DiskFormat::Raw).expect("overlay");
    let err = import_disk(
        layer(dir.path(), "overlay", DiskFormat::Qcow2),
        new_file(dir.path(), "image"),
        &mut |_| ControlFlow::Continue(()),
    )
    .expect_err("names a backing file");
    assert!(matches!(
        err,
        CopyDiskError::Source(OpenDiskError::BackingMismatch { named: true, .. })
    ));

    fs::write(dir.path().join("raw"), vec![1; 1 << 20]).expect("raw");
    qemu_img(
        &["convert", "-f", "raw", "-O", "qcow2", "raw", "whole"],
        dir.path(),
    );
    let whole = fs::read(dir.path().join("whole")).expect("read");
    fs::write(dir.path().join("cut"), &whole[..whole.len() / 2]).expect("cut");
    let err = import_disk(
        layer(dir.path(), "cut", DiskFormat::Qcow2),
        new_file(dir.path(), "image2"),
        &mut |_| ControlFlow::Continue(()),
    )
    .expect_err("cut");
    let mut text = err.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&err);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    assert!(text.contains("truncated"), "{text}");
}

#[test]
fn flatten_shows_the_whole_chain_and_can_be_cancelled() {
    let dir = TempDir::new().expect("temp dir");
    let content = sparse_content();
    fs::write(dir.path().join("base"), &content).expect("base");
    let top = new_file(dir.path(), "top");
    create_overlay(&top, content.len() as u64, "base", DiskFormat::Raw).expect("overlay");
    let top = LayerFile {
        file: top,
        format: DiskFormat::Qcow2,
    };
    let below = layer(dir.path(), "base", DiskFormat::Raw);
    let mut stack =
        crate::DiskStack::open(top, vec![below], crate::StackOptions::default()).expect("open");
    stack.write_at(100_000, &[9; 100]).expect("write");
    stack.discard(0, 65_536 * 2).expect("discard");
    stack.sync().expect("sync");
    let mut expected = vec![0; content.len()];
    stack.read_at(0, &mut expected).expect("read");
    drop(stack);
    let chain = || {
        vec![
            layer(dir.path(), "top", DiskFormat::Qcow2),
            layer(dir.path(), "base", DiskFormat::Raw),
        ]
    };
    flatten(chain(), new_file(dir.path(), "flat"), &mut |_| {
        ControlFlow::Continue(())
    })
    .expect("flatten");
    assert_clean(dir.path(), "flat");
    let header = inspect(&File::open(dir.path().join("flat")).expect("open")).expect("inspect");
    assert_eq!(header.backing, None);
    assert!(guest_bytes(dir.path(), "flat") == expected);
    let err = flatten(chain(), new_file(dir.path(), "none"), &mut |_| {
        ControlFlow::Break(())
    });
    assert!(matches!(err, Err(CopyDiskError::Cancelled)));
}
