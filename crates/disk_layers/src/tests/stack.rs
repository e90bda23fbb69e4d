//! Behaviour of a stack: forks, durability, errors.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::mem::{MemFile, Op};
use crate::error::{DiskError, OpenDiskError, SwapTopError};
use crate::layer::{DiskFormat, LayerFile};
use crate::qcow2::create::create;
use crate::repair::check;
use crate::stack::{DiskStack, PreparedTop, StackOptions};
use crate::{CreateDiskError, create_overlay, inspect};

const SIZE: u64 = 1 << 20;

fn overlay() -> MemFile {
    let file = MemFile::default();
    create(&file, SIZE, Some(("x", DiskFormat::Qcow2)), 16).expect("create");
    file
}

fn standalone() -> MemFile {
    let file = MemFile::default();
    create(&file, SIZE, None, 16).expect("create");
    file
}

fn open(top_first: &[&MemFile]) -> DiskStack {
    let files = top_first
        .iter()
        .map(|file| (file.boxed(), DiskFormat::Qcow2));
    DiskStack::open_storages(files.collect(), StackOptions::default()).expect("open")
}

fn prepared(file: &MemFile) -> PreparedTop {
    PreparedTop::open_storage(file.boxed(), DiskFormat::Qcow2).expect("prepared")
}

fn syncs(file: &MemFile) -> usize {
    let log = file.log();
    log.iter().filter(|op| matches!(op, Op::Sync)).count()
}

fn byte_at(stack: &mut DiskStack, offset: u64) -> u8 {
    let mut byte = [0];
    stack.read_at(offset, &mut byte).expect("read");
    byte[0]
}

#[test]
fn fork_separates_source_and_clone() {
    let (base, top, clone) = (standalone(), overlay(), overlay());
    let mut source = open(&[&base]);
    source.write_at(5000, &[1; 5000]).expect("write");
    source.flush().expect("flush");
    source.push_top(prepared(&top)).expect("push");
    let mut clone = open(&[&clone, &base]);
    source.write_at(5000, &[2]).expect("write");
    clone.write_at(5001, &[3]).expect("write");
    assert_eq!(byte_at(&mut source, 5000), 2);
    assert_eq!(byte_at(&mut source, 5001), 1);
    assert_eq!(byte_at(&mut clone, 5000), 1);
    assert_eq!(byte_at(&mut clone, 5001), 3);
    assert_eq!(byte_at(&mut clone, 4999), 0);
}

#[test]
fn push_needs_a_flush_and_writes_nothing() {
    let (base, top) = (standalone(), overlay());
    let mut stack = open(&[&base]);
    stack.write_at(0, &[1]).expect("write");
    let err = stack.push_top(prepared(&top)).expect_err("dirty");
    assert!(matches!(err, SwapTopError::NotFlushed));
    stack.flush().expect("flush");
    let operations = (base.log().len(), top.log().len());
    stack.push_top(prepared(&top)).expect("push");
    assert_eq!((base.log().len(), top.log().len()), operations);
}

#[test]
fn pop_goes_back_to_the_old_top() {
    let (base, top) = (standalone(), overlay());
    let mut stack = open(&[&base]);
    stack.write_at(0, &[1]).expect("write");
    stack.flush().expect("flush");
    stack.push_top(prepared(&top)).expect("push");
    let again = stack.pop_top().expect("pop");
    stack.write_at(100_000, &[2]).expect("write");
    assert!(matches!(
        stack.push_top(again),
        Err(SwapTopError::NotFlushed)
    ));
    stack.sync().expect("sync");
    assert_eq!(
        (byte_at(&mut stack, 0), byte_at(&mut stack, 100_000)),
        (1, 2)
    );
    assert!(check(&base).expect("check").is_clean());
    assert_eq!(stack.depth(), 1);
}

#[test]
fn pop_is_refused_after_a_write_and_for_the_last_layer() {
    let (base, top) = (standalone(), overlay());
    let mut stack = open(&[&base]);
    assert!(matches!(stack.pop_top(), Err(SwapTopError::NoLayerBelow)));
    stack.push_top(prepared(&top)).expect("push");
    stack.write_at(0, &[1]).expect("write");
    assert!(matches!(stack.pop_top(), Err(SwapTopError::TopUsed)));
    stack.flush().expect("flush");
    assert!(matches!(stack.pop_top(), Err(SwapTopError::TopUsed)));
}

#[test]
fn first_sync_after_a_fork_covers_the_sealed_layer_and_the_record() {
    let (base, top) = (standalone(), overlay());
    let mut stack = open(&[&base]);
    stack.sync().expect("sync");
    stack.write_at(0, &[1]).expect("write");
    stack.flush().expect("flush");
    stack.push_top(prepared(&top)).expect("push");
    let (calls, before) = (Arc::new(AtomicUsize::new(0)), syncs(&base));
    let seen = Arc::clone(&calls);
    stack.before_first_sync(Box::new(move || {
        match seen.fetch_add(1, Ordering::Relaxed) {
            0 => Err(io::Error::other("not yet")),
            _ => Ok(()),
        }
    }));
    let err = stack.sync().expect_err("the record is not durable");
    assert!(matches!(err, DiskError::BeforeFirstSync(_)));
    assert_eq!(syncs(&base), before + 1);
    assert_eq!(syncs(&top), 1);
    stack.sync().expect("second sync");
    stack.sync().expect("third sync");
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert_eq!(
        (syncs(&base), syncs(&top)),
        (before + 1, 1),
        "nothing was written"
    );
}

#[test]
fn first_sync_of_a_clone_covers_all_layers_once() {
    let (base, middle, top) = (standalone(), overlay(), overlay());
    let mut clone = open(&[&top, &middle, &base]);
    clone.sync().expect("sync");
    clone.write_at(0, &[1]).expect("write");
    clone.sync().expect("sync");
    assert_eq!((syncs(&base), syncs(&middle)), (1, 1));
    assert!(syncs(&top) >= 2);
}

#[test]
fn overwriting_costs_one_barrier_and_allocating_two() {
    let base = standalone();
    let mut stack = open(&[&base]);
    stack.write_at(0, &[1; 4096]).expect("write");
    stack.sync().expect("sync");
    let before = syncs(&base);
    stack.write_at(0, &[2; 4096]).expect("write");
    stack.sync().expect("sync");
    assert_eq!(syncs(&base), before + 1);
    stack.write_at(1 << 19, &[2; 4096]).expect("write");
    stack.sync().expect("sync");
    assert_eq!(syncs(&base), before + 3);
}

/// A full disk at any operation: the request fails, a retry after space was made succeeds, and
/// the image is sound.
#[test]
fn no_space_at_any_operation_can_be_retried() {
    for full_after in 0.. {
        let (base, top) = (standalone(), overlay());
        let mut stack = open(&[&top, &base]);
        top.fill_up_after(full_after);
        let mut failed = 0;
        let mut retry = |request: &mut dyn FnMut(&mut DiskStack) -> Result<(), DiskError>| {
            if let Err(err) = request(&mut stack) {
                assert!(matches!(err, DiskError::NoSpace), "{err:?}");
                failed += 1;
                top.heal();
                request(&mut stack).expect("retry");
            }
        };
        retry(&mut |stack| stack.write_at(1000, &[1; 200_000]));
        retry(&mut |stack| stack.write_zeroes(70_000, 70_000, true));
        retry(&mut DiskStack::sync);
        retry(&mut |stack| stack.write_at(65_536, &[2; 500]));
        retry(&mut |stack| stack.discard(0, 65_536));
        retry(&mut DiskStack::flush);
        retry(&mut |stack| stack.write_at(900_000, &[3; 70_000]));
        retry(&mut DiskStack::sync);
        let mut expected = vec![0u8; SIZE as usize];
        expected[1000..201_000].fill(1);
        expected[70_000..140_000].fill(0);
        expected[65_536..66_036].fill(2);
        expected[..65_536].fill(0);
        expected[900_000..970_000].fill(3);
        let mut seen = vec![9u8; SIZE as usize];
        stack.read_at(0, &mut seen).expect("read");
        assert!(seen == expected, "full after {full_after} operations");
        let report = check(&top).expect("check");
        assert!(report.is_clean(), "full after {full_after}: {report:?}");
        if failed == 0 {
            assert!(full_after > 15, "the history has more operations than that");
            return;
        }
    }
}

#[test]
fn failed_write_back_is_never_forgotten() {
    let base = standalone();
    let mut stack = open(&[&base]);
    stack.write_at(0, &[1]).expect("write");
    base.fail_sync();
    assert!(matches!(stack.sync(), Err(DiskError::Sync { .. })));
    base.heal();
    assert!(matches!(stack.sync(), Err(DiskError::Sync { .. })));
}

#[test]
fn requests_outside_of_the_disk_are_refused() {
    let base = standalone();
    let mut stack = open(&[&base]);
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 2)] {
        let mut buf = vec![0; length];
        let bounds = |err| matches!(err, DiskError::OutOfBounds { .. });
        assert!(bounds(stack.read_at(offset, &mut buf).expect_err("read")));
        assert!(bounds(stack.write_at(offset, &buf).expect_err("write")));
        let length = length as u64;
        assert!(bounds(stack.discard(offset, length).expect_err("discard")));
        assert!(bounds(
            stack.write_zeroes(offset, length, true).expect_err("zero")
        ));
    }
    stack
        .write_at(SIZE, &[])
        .expect("an empty request at the end is none");
}

#[test]
fn read_only_stacks_refuse_changes() {
    let base = standalone();
    let options = StackOptions {
        read_only: true,
        ..StackOptions::default()
    };
    let files = vec![(base.boxed(), DiskFormat::Qcow2)];
    let mut stack = DiskStack::open_storages(files, options).expect("open");
    assert!(matches!(stack.write_at(0, &[1]), Err(DiskError::ReadOnly)));
    assert!(matches!(stack.discard(0, 512), Err(DiskError::ReadOnly)));
    assert!(matches!(
        stack.push_top(prepared(&overlay())),
        Err(SwapTopError::ReadOnly)
    ));
    stack.sync().expect("nothing to do");
    assert!(base.log().iter().all(|op| !matches!(op, Op::Sync)));
}

#[test]
fn chains_that_do_not_fit_are_refused() {
    let (base, top) = (standalone(), overlay());
    let raw = MemFile::new(vec![0; SIZE as usize]);
    let open = |files: &[(&MemFile, DiskFormat)]| {
        let files = files.iter().map(|(file, format)| (file.boxed(), *format));
        DiskStack::open_storages(files.collect(), StackOptions::default()).map(|_| ())
    };
    let (qcow2, raw_format) = (DiskFormat::Qcow2, DiskFormat::Raw);
    assert!(matches!(
        open(&[(&top, qcow2)]),
        Err(OpenDiskError::BackingMismatch {
            layer: 0,
            named: true
        })
    ));
    assert!(matches!(
        open(&[(&base, qcow2), (&base, qcow2)]),
        Err(OpenDiskError::BackingMismatch {
            layer: 0,
            named: false
        })
    ));
    assert!(matches!(
        open(&[(&raw, raw_format), (&base, qcow2)]),
        Err(OpenDiskError::RawOverlay { layer: 0, below: 1 })
    ));
    assert!(matches!(open(&[]), Err(OpenDiskError::Empty)));
    assert!(matches!(
        open(&vec![(&top, qcow2); 65]),
        Err(OpenDiskError::TooDeep { .. })
    ));
}

#[test]
fn prepared_top_must_be_an_empty_overlay_of_the_same_size() {
    let (base, used, small) = (standalone(), overlay(), MemFile::default());
    let mut stack = open(&[&used, &base]);
    stack.write_at(0, &[1]).expect("write");
    stack.sync().expect("sync");
    let open = |file: &MemFile| PreparedTop::open_storage(file.boxed(), DiskFormat::Qcow2);
    assert!(matches!(open(&used), Err(OpenDiskError::TopNotEmpty)));
    assert!(matches!(
        open(&base),
        Err(OpenDiskError::BackingMismatch { named: false, .. })
    ));
    create(&small, 512, Some(("x", DiskFormat::Qcow2)), 16).expect("create");
    let err = stack
        .push_top(open(&small).expect("open"))
        .expect_err("size");
    assert!(matches!(
        err,
        SwapTopError::SizeMismatch { top_bytes: 512, .. }
    ));
}

#[test]
fn raw_disks_work_as_top_and_as_base() {
    let raw = MemFile::new(vec![7; SIZE as usize]);
    let files = vec![(raw.boxed(), DiskFormat::Raw)];
    let mut stack = DiskStack::open_storages(files, StackOptions::default()).expect("open");
    stack.write_at(10, &[1; 3]).expect("write");
    stack.write_zeroes(100, 5, false).expect("zero");
    stack.discard(4096, 8192).expect("discard");
    let top = overlay();
    stack.push_top(prepared(&top)).expect("push");
    stack.write_at(11, &[2]).expect("write");
    let mut seen = [0; 4];
    stack.read_at(10, &mut seen).expect("read");
    assert_eq!(seen, [1, 2, 1, 7]);
    assert_eq!(byte_at(&mut stack, 102), 0);
    assert_eq!(byte_at(&mut stack, 4096), 0);
    assert_eq!(raw.bytes()[11], 1, "the base is not written to");
}

#[test]
fn freed_space_is_used_again_after_a_sync() {
    let base = standalone();
    let mut stack = open(&[&base]);
    stack.write_at(0, &vec![1; SIZE as usize]).expect("write");
    stack.sync().expect("sync");
    let length = base.bytes().len();
    for round in 0..10 {
        stack.discard(0, SIZE).expect("discard");
        stack.sync().expect("sync");
        stack
            .write_at(0, &vec![round; SIZE as usize])
            .expect("write");
        stack.sync().expect("sync");
    }
    assert_eq!(base.bytes().len(), length);
    assert!(check(&base).expect("check").is_clean());
}

#[test]
fn empty_overlay_is_small_on_disk() {
    let file = tempfile::tempfile().expect("temp file");
    create_overlay(&file, 20 << 30, "base.qcow2", DiskFormat::Qcow2).expect("create");
    let header = inspect(&file).expect("inspect");
    assert_eq!(header.virtual_size_bytes, 20 << 30);
    assert!(header.file_bytes <= 300 * 1024, "{}", header.file_bytes);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("stat"));
    assert!(blocks * 512 <= 64 * 1024, "{blocks} sectors");
    let backing = header.backing.expect("backing");
    assert_eq!(backing.name, "base.qcow2");
    assert_eq!(backing.format, Some(DiskFormat::Qcow2));
}

#[test]
fn disks_of_every_size_can_be_made_and_opened() {
    for size in [512, 8 << 40, (8 << 40) + 512, crate::MAX_DISK_BYTES] {
        let make = |overlay: bool| {
            let file = tempfile::tempfile().expect("temp file");
            let done = if overlay {
                create_overlay(&file, size, "base", DiskFormat::Raw)
            } else {
                crate::create_full(&file, size)
            };
            done.expect("create");
            assert_eq!(inspect(&file).expect("inspect").virtual_size_bytes, size);
            assert!(crate::check_refcounts(&file).expect("check").is_clean());
            LayerFile {
                file,
                format: DiskFormat::Qcow2,
            }
        };
        assert_eq!(
            PreparedTop::open(make(true)).expect("top").size_bytes(),
            size
        );
        let base = make(false);
        let mut stack = DiskStack::open(base, Vec::new(), StackOptions::default()).expect("open");
        stack
            .write_at(size - 512, &[1; 512])
            .expect("write at the end");
        stack.sync().expect("sync");
        assert_eq!(byte_at(&mut stack, size - 1), 1);
    }
    let file = tempfile::tempfile().expect("temp file");
    for size in [0, 513, crate::MAX_DISK_BYTES + 512] {
        let err = crate::create_full(&file, size).expect_err("size");
        assert!(matches!(err, CreateDiskError::Size { .. }));
    }
}
