//! Import and flattening.

use std::fs::{self, File, OpenOptions};
use std::ops::ControlFlow;
use std::path::Path;

use tempfile::TempDir;

use super::qemu::{assert_clean, guest_bytes, qemu_img};
use crate::layer::{DiskFormat, LayerFile};
use crate::{
    CopyDiskError, CopyMethod, CopyReport, OpenDiskError, Pace, copy_full, create_full,
    create_overlay, flatten, import_disk, inspect,
};

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

fn full_copy(dir: &Path, chain: &[(&str, DiskFormat)], name: &str) -> (CopyMethod, CopyReport) {
    let chain = chain.iter().map(|(name, format)| layer(dir, name, *format));
    let mut go_on = |_| ControlFlow::Continue(());
    let mut pace = Pace::free(&mut go_on);
    copy_full(chain.collect(), new_file(dir, name), &mut pace).expect("copy")
}

#[test]
fn full_copies_are_standalone_sparse_and_the_same() {
    let dir = TempDir::new().expect("temp dir");
    let dir = dir.path();
    let content = sparse_content();
    fs::write(dir.join("raw"), &content).expect("raw");
    let (qcow2, raw) = (DiskFormat::Qcow2, DiskFormat::Raw);
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "raw", "whole"];
    qemu_img(&convert, dir);
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "packed"];
    qemu_img(&convert, dir);
    create_full(&new_file(dir, "own"), content.len() as u64).expect("own");
    let own = LayerFile {
        file: File::options()
            .read(true)
            .write(true)
            .open(dir.join("own"))
            .expect("open"),
        format: qcow2,
    };
    let mut stack = crate::DiskStack::open(own, vec![], crate::StackOptions::default());
    let stack = stack.as_mut().expect("open");
    stack.write_at(0, &content).expect("write");
    stack.discard(1 << 20, 1 << 20).expect("discard");
    stack.sync().expect("sync");
    let top = new_file(dir, "top");
    create_overlay(&top, content.len() as u64, "raw", raw).expect("overlay");

    let chains: [(&[(&str, DiskFormat)], bool); 5] = [
        (&[("raw", raw)], false),
        (&[("whole", qcow2)], true),
        (&[("packed", qcow2)], true),
        (&[("own", qcow2)], true),
        (&[("top", qcow2), ("raw", raw)], false),
    ];
    for (at, (chain, as_file)) in chains.into_iter().enumerate() {
        let name = format!("copy{at}");
        let (method, report) = full_copy(dir, chain, &name);
        assert_eq!(
            method != CopyMethod::Flatten,
            as_file,
            "{chain:?}: {method:?}"
        );
        let mut expected = content.clone();
        if chain[0].0 == "own" {
            expected[1 << 20..2 << 20].fill(0);
        }
        assert_clean(dir, &name);
        assert!(guest_bytes(dir, &name) == expected, "{chain:?}");
        let info = inspect(&File::open(dir.join(&name)).expect("open")).expect("inspect");
        assert_eq!((info.backing, info.format), (None, qcow2));
        assert!(
            report.copied_bytes <= content.len() as u64 + (1 << 20),
            "{chain:?}: {report:?}"
        );
        let meta = fs::metadata(dir.join(&name)).expect("stat");
        let on_disk = std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
        assert!(on_disk <= content.len() as u64, "{chain:?}: {on_disk}");
        // It can be written to, and the original does not see that.
        let options = File::options().read(true).write(true).open(dir.join(&name));
        let file = LayerFile {
            file: options.expect("open"),
            format: qcow2,
        };
        let mut copy =
            crate::DiskStack::open(file, vec![], crate::StackOptions::default()).expect("writable");
        copy.write_at(0, &[0xaa; 1000]).expect("write");
        copy.sync().expect("sync");
    }
    assert!(guest_bytes(dir, "whole") == content);
}

#[test]
fn a_copy_of_a_file_is_limited_and_cancelled() {
    let dir = TempDir::new().expect("temp dir");
    let dir = dir.path();
    fs::write(dir.join("raw"), vec![7u8; 3 << 20]).expect("raw");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "raw", "whole"];
    qemu_img(&convert, dir);
    let chain = || vec![layer(dir, "whole", DiskFormat::Qcow2)];
    let mut calls = 0;
    let mut stop = |_| {
        calls += 1;
        if calls == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let rate = std::num::NonZeroU64::new(8 << 20).expect("not 0");
    let done = copy_full(
        chain(),
        new_file(dir, "none"),
        &mut Pace::limited(&mut stop, rate),
    );
    let (method, report) = match done {
        Err(error) => {
            assert!(matches!(error, CopyDiskError::Cancelled), "{error:?}");
            let mut go_on = |_| ControlFlow::Continue(());
            let mut pace = Pace::limited(&mut go_on, rate);
            copy_full(chain(), new_file(dir, "slow"), &mut pace).expect("copy")
        }
        Ok(done) => done,
    };
    if method == CopyMethod::File {
        assert!(report.elapsed.as_millis() > 250, "{report:?}");
        assert!(report.copied_bytes >= 3 << 20, "{report:?}");
    }
    assert!(method != CopyMethod::Flatten);
}

#[test]
fn a_full_copy_of_a_damaged_file_is_made_anew() {
    let dir = TempDir::new().expect("temp dir");
    let dir = dir.path();
    let content = sparse_content();
    fs::write(dir.join("raw"), &content).expect("raw");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "raw", "whole"];
    qemu_img(&convert, dir);
    let mut bytes = fs::read(dir.join("whole")).expect("read");
    // The refcount of the file's first cluster: block at the table's first entry.
    let table = u64::from_be_bytes(bytes[48..56].try_into().expect("8 bytes")) as usize;
    let block = u64::from_be_bytes(bytes[table..table + 8].try_into().expect("8 bytes")) as usize;
    bytes[block..block + 2].copy_from_slice(&[0, 7]);
    fs::write(dir.join("leaky"), bytes).expect("write");
    let (method, _) = full_copy(dir, &[("leaky", DiskFormat::Qcow2)], "copy");
    assert_eq!(method, CopyMethod::Flatten);
    assert_clean(dir, "copy");
    assert!(guest_bytes(dir, "copy") == content);

    let overlay = new_file(dir, "overlay");
    create_overlay(&overlay, 1 << 20, "raw", DiskFormat::Raw).expect("overlay");
    let mut go_on = |_| ControlFlow::Continue(());
    let error = copy_full(
        vec![layer(dir, "overlay", DiskFormat::Qcow2)],
        new_file(dir, "refused"),
        &mut Pace::free(&mut go_on),
    );
    assert!(matches!(
        error,
        Err(CopyDiskError::Source(OpenDiskError::BackingMismatch { .. }))
    ));
}
