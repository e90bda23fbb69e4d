//! Merging of runs of layers, and putting the result below a top.

use std::fs::{File, OpenOptions};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::cases;
use super::mem::{MemFile, Op};
use super::qemu::{assert_clean, guest_bytes, qemu_img};
use crate::copy::CopyDiskError;
use crate::error::{DiskError, OpenDiskError, ReplaceBelowError};
use crate::layer::{DiskFormat, LayerFile};
use crate::pace::Pace;
use crate::qcow2::create::create;
use crate::repair::check;
use crate::stack::{DiskStack, PreparedBelow, PreparedTop, StackOptions};
use crate::{CopyReport, create_overlay, inspect, merge};

/// Not a multiple of any cluster.
const SIZE: u64 = 900 * 1024 + 512;

fn go_on(_: crate::Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn open_file(dir: &Path, name: &str, create: bool) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(create);
    options.open(dir.join(name)).expect("open")
}

fn layer(dir: &Path, name: &str, format: DiskFormat) -> LayerFile {
    LayerFile {
        file: open_file(dir, name, false),
        format,
    }
}

fn pattern(at: u64, length: u64, seed: u8) -> Vec<u8> {
    (at..at + length)
        .map(|i| (i / 5).to_le_bytes()[0].wrapping_add(seed))
        .collect()
}

/// A change of one layer.
#[derive(Clone, Debug)]
enum Change {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Discard(u64, u64),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let sectors = (0..SIZE / 512, 1..300u64);
    let wide = (0..SIZE / 512, 1..SIZE / 512);
    let range = prop_oneof![4 => sectors, 1 => wide]
        .prop_map(|(at, n)| (at * 512, (n * 512).min(SIZE - at * 512)));
    let change = prop_oneof![
        4 => (range.clone(), 0..4u8).prop_map(|((at, n), seed)| Change::Write(at, n, seed)),
        2 => range.clone().prop_map(|(at, n)| Change::Zero(at, n)),
        2 => range.prop_map(|(at, n)| Change::Discard(at, n)),
    ];
    prop::collection::vec(change, 0..8)
}

fn format_name(index: usize) -> String {
    format!("l{index}.qcow2")
}

/// Makes a chain of files over a base and returns what the guest sees.
fn build(dir: &Path, base: DiskFormat, layers: &[(u32, Vec<Change>)]) -> Vec<u8> {
    let content = pattern(0, SIZE, 90);
    std::fs::write(dir.join("base.raw"), &content).expect("base");
    if base == DiskFormat::Qcow2 {
        let convert = [
            "convert", "-c", "-f", "raw", "-O", "qcow2", "base.raw", "base",
        ];
        qemu_img(&convert, dir);
    } else {
        std::fs::rename(dir.join("base.raw"), dir.join("base")).expect("rename");
    }
    let mut model = content;
    let mut chain: Vec<(String, DiskFormat)> = vec![("base".into(), base)];
    for (index, (bits, changes)) in layers.iter().enumerate() {
        let name = format_name(index);
        let (below, format) = chain[0].clone();
        let file = open_file(dir, &name, true);
        create(&file, SIZE, Some((&below, format)), *bits).expect("create");
        let files = chain.iter().map(|(name, format)| layer(dir, name, *format));
        let top = LayerFile {
            file,
            format: DiskFormat::Qcow2,
        };
        let mut stack =
            DiskStack::open(top, files.collect(), StackOptions::default()).expect("open");
        for change in changes {
            match *change {
                Change::Write(at, n, seed) => {
                    // Seed 0 writes zeroes as data.
                    let data = if seed == 0 {
                        vec![0; n as usize]
                    } else {
                        pattern(at, n, seed)
                    };
                    stack.write_at(at, &data).expect("write");
                    model[at as usize..(at + n) as usize].copy_from_slice(&data);
                }
                Change::Zero(at, n) => {
                    stack.write_zeroes(at, n, true).expect("zero");
                    model[at as usize..(at + n) as usize].fill(0);
                }
                Change::Discard(at, n) => {
                    stack.discard(at, n).expect("discard");
                    let mut now = vec![0; n as usize];
                    stack.read_at(at, &mut now).expect("read");
                    model[at as usize..(at + n) as usize].copy_from_slice(&now);
                }
            }
        }
        stack.sync().expect("sync");
        chain.insert(0, (name, DiskFormat::Qcow2));
    }
    model
}

/// Merges layers `run` of the chain in `dir` into file `merged`.
fn merge_files(dir: &Path, run: std::ops::Range<usize>, base: DiskFormat) -> CopyReport {
    let files = run.clone().rev();
    let files = files.map(|index| layer(dir, &format_name(index), DiskFormat::Qcow2));
    let (parent, format) = match run.start {
        0 => ("base".to_owned(), base),
        at => (format_name(at - 1), DiskFormat::Qcow2),
    };
    let target = open_file(dir, "merged", true);
    let mut go_on = go_on;
    let mut pace = Pace::free(&mut go_on);
    merge(files.collect(), target, &parent, format, &mut pace).expect("merge")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(32), ..ProptestConfig::default() })]

    /// The merged run shows what the run showed, by our reading and by QEMU's, whatever lies below.
    #[test]
    fn a_merged_run_shows_the_same(
        raw_base in any::<bool>(),
        layers in prop::collection::vec(
            (prop_oneof![Just(9u32), Just(12), Just(14), Just(14), Just(16), Just(21)], changes()),
            1..6,
        ),
        cut in any::<(usize, usize)>(),
    ) {
        let dir = TempDir::new().expect("temp dir");
        let dir = dir.path();
        let base = if raw_base { DiskFormat::Raw } else { DiskFormat::Qcow2 };
        let model = build(dir, base, &layers);
        let start = cut.0 % layers.len();
        let end = start + 1 + cut.1 % (layers.len() - start);
        let unmerged = guest_bytes(dir, &format_name(end - 1));
        let report = merge_files(dir, start..end, base);

        assert_clean(dir, "merged");
        prop_assert!(guest_bytes(dir, "merged") == unmerged);
        let own: u64 = (start..end)
            .map(|index| std::fs::metadata(dir.join(format_name(index))).expect("stat").len())
            .sum();
        prop_assert!(report.copied_bytes <= own, "{report:?}, {own}");
        if end == layers.len() {
            prop_assert!(unmerged == model);
        } else {
            crate::set_backing(&open_file(dir, &format_name(end), false), "merged", DiskFormat::Qcow2)
                .expect("set backing");
        }
        let top = if end == layers.len() { "merged".to_owned() } else { format_name(layers.len() - 1) };
        prop_assert!(guest_bytes(dir, &top) == model);
        let unmerged = format_name(end - 1);
        qemu_img(&["compare", "-f", "qcow2", "-F", "qcow2", "merged", &unmerged], dir);
        assert_clean(dir, &top);
    }
}

/// A base, three deltas and a top in memory.
struct Stack {
    files: Vec<MemFile>,
    stack: DiskStack,
}

impl Stack {
    fn new() -> Stack {
        let base = MemFile::default();
        create(&base, SIZE, None, 16).expect("create");
        let files = vec![(base.boxed(), DiskFormat::Qcow2)];
        let mut stack = DiskStack::open_storages(files, StackOptions::default()).expect("open");
        let mut files = vec![base];
        for index in 0..4u8 {
            let at = u64::from(index) * 100_000;
            stack
                .write_at(at, &pattern(at, 150_000, index))
                .expect("write");
            stack.flush().expect("flush");
            let top = overlay();
            stack.push_top(prepared_top(&top)).expect("push");
            files.push(top);
        }
        Stack { files, stack }
    }

    /// Merges all but base and top.
    fn merged(&self) -> MemFile {
        let run = self.files[1..4].iter().rev();
        let run = run.map(|file| (file.boxed(), DiskFormat::Qcow2));
        let target = MemFile::default();
        crate::merge::merge_storages(
            run.collect(),
            target.boxed(),
            ("base", DiskFormat::Qcow2),
            &mut Pace::free(&mut go_on),
        )
        .expect("merge");
        target
    }

    fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        self.stack.read_at(0, &mut bytes).expect("read");
        bytes
    }
}

fn overlay() -> MemFile {
    let file = MemFile::default();
    create(&file, SIZE, Some(("x", DiskFormat::Qcow2)), 14).expect("create");
    file
}

fn prepared_top(file: &MemFile) -> PreparedTop {
    PreparedTop::open_storage(file.boxed(), DiskFormat::Qcow2).expect("prepared")
}

fn below(files: &[&MemFile]) -> Result<PreparedBelow, OpenDiskError> {
    let files = files.iter().map(|file| (file.boxed(), DiskFormat::Qcow2));
    PreparedBelow::open_storages(files.collect())
}

fn writes(file: &MemFile) -> usize {
    let log = file.log();
    log.iter()
        .filter(|op| matches!(op, Op::Write { .. }))
        .count()
}

#[test]
fn a_stack_in_use_goes_on_over_the_merged_layer() {
    let mut disk = Stack::new();
    // In the top's memory only.
    disk.stack.write_at(5000, &[9; 100_000]).expect("write");
    let seen = disk.bytes();
    let merged = disk.merged();
    let new = below(&[&merged, &disk.files[0]]).expect("prepare");
    let before: Vec<_> = disk.files.iter().map(writes).collect();
    let old = disk.stack.replace_below(new, "merged").expect("replace");
    let after: Vec<_> = disk.files.iter().map(writes).collect();
    assert_eq!(
        after[4],
        before[4] + 1,
        "one write, to the header of the top"
    );
    assert_eq!(after[..4], before[..4], "sealed layers are left alone");
    drop(old);
    assert_eq!(disk.stack.depth(), 3);
    assert!(disk.bytes() == seen);

    // The old layers play no part any more.
    let log = disk.files[2].log().len();
    disk.stack.write_at(0, &[8; 5000]).expect("write");
    disk.stack.sync().expect("sync");
    assert_eq!(disk.files[2].log().len(), log);
    let header = crate::qcow2::header::Header::parse(&disk.files[4]).expect("header");
    assert_eq!(header.backing.expect("backing").name, "merged");
    assert!(check(&disk.files[4]).expect("check").is_clean());
    assert!(matches!(
        disk.stack.pop_top(),
        Err(crate::SwapTopError::TopUsed)
    ));

    // Forks go on from there.
    let top = overlay();
    disk.stack.push_top(prepared_top(&top)).expect("push");
    disk.stack.write_at(0, &[1]).expect("write");
    let mut expected = seen;
    expected[..5000].fill(8);
    expected[0] = 1;
    assert!(disk.bytes() == expected);
}

#[test]
fn layers_that_do_not_fit_are_refused() {
    let mut disk = Stack::new();
    let (merged, seen) = (disk.merged(), disk.bytes());
    let small = MemFile::default();
    create(&small, 512, None, 16).expect("create");
    let new = below(&[&small]).expect("prepare");
    let error = disk.stack.replace_below(new, "x").expect_err("size");
    let size = matches!(
        error,
        ReplaceBelowError::SizeMismatch { new_bytes: 512, .. }
    );
    assert!(size, "{error:?}");
    let new = || below(&[&merged, &disk.files[0]]).expect("prepare");
    let (first, second, third) = (new(), new(), new());
    let error = disk.stack.replace_below(first, "").expect_err("name");
    assert!(matches!(error, ReplaceBelowError::Header(_)), "{error:?}");
    assert_eq!(disk.stack.depth(), 5);
    assert!(disk.bytes() == seen);

    let options = StackOptions {
        read_only: true,
        ..StackOptions::default()
    };
    let files = vec![(disk.files[0].boxed(), DiskFormat::Qcow2)];
    let mut fixed = DiskStack::open_storages(files, options).expect("open");
    let error = fixed.replace_below(second, "x").expect_err("read-only");
    assert!(matches!(error, ReplaceBelowError::ReadOnly), "{error:?}");
    let files = vec![(disk.files[0].boxed(), DiskFormat::Qcow2)];
    let mut single = DiskStack::open_storages(files, StackOptions::default()).expect("open");
    let error = single.replace_below(third, "x").expect_err("single");
    assert!(
        matches!(error, ReplaceBelowError::NoLayerBelow),
        "{error:?}"
    );

    assert!(matches!(below(&[]), Err(OpenDiskError::Empty)));
    let open_end = below(&[&merged]).expect_err("names a backing file");
    let named = matches!(
        open_end,
        OpenDiskError::BackingMismatch {
            layer: 1,
            named: true
        }
    );
    assert!(named, "{open_end:?}");
    let too_deep = below(&[&merged; 64]).expect_err("too deep");
    assert!(
        matches!(too_deep, OpenDiskError::TooDeep { layers: 65, .. }),
        "{too_deep:?}"
    );
}

#[test]
fn runs_that_cannot_be_merged_are_refused() {
    let dir = TempDir::new().expect("temp dir");
    let dir = dir.path();
    build(dir, DiskFormat::Raw, &[(14, vec![]), (14, vec![])]);
    create_overlay(
        &open_file(dir, "small", true),
        512,
        "l1.qcow2",
        DiskFormat::Qcow2,
    )
    .expect("overlay");
    let mut made = 0;
    let mut try_merge = |names: &[(&str, DiskFormat)]| {
        let run = names.iter().map(|(name, format)| layer(dir, name, *format));
        made += 1;
        let target = open_file(dir, &format!("m{made}"), true);
        let mut go_on = go_on;
        let mut pace = Pace::free(&mut go_on);
        let done = merge(run.collect(), target, "base", DiskFormat::Raw, &mut pace);
        done.expect_err("refused")
    };
    let (qcow2, raw) = (DiskFormat::Qcow2, DiskFormat::Raw);
    let error = try_merge(&[]);
    assert!(
        matches!(error, CopyDiskError::Source(OpenDiskError::Empty)),
        "{error:?}"
    );
    let error = try_merge(&[("small", qcow2), ("l1.qcow2", qcow2)]);
    let sizes = matches!(
        error,
        CopyDiskError::Sizes {
            layer: 1,
            wanted: 512,
            ..
        }
    );
    assert!(sizes, "{error:?}");
    let error = try_merge(&[("l0.qcow2", qcow2), ("base", raw)]);
    let overlay = matches!(
        error,
        CopyDiskError::Source(OpenDiskError::RawOverlay { layer: 1, .. })
    );
    assert!(overlay, "{error:?}");
    let error = try_merge(&[("base", qcow2)]);
    let format = matches!(
        error,
        CopyDiskError::Source(OpenDiskError::Layer { layer: 0, .. })
    );
    assert!(format, "{error:?}");
}

#[test]
fn a_merge_can_be_slowed_and_cancelled() {
    let dir = TempDir::new().expect("temp dir");
    let dir = dir.path();
    let write = || vec![Change::Write(0, 800 << 10, 3)];
    build(dir, DiskFormat::Raw, &[(14, write()), (14, write())]);
    let run = || {
        let layers = [1, 0].map(|at| layer(dir, &format_name(at), DiskFormat::Qcow2));
        Vec::from(layers)
    };
    let mut go_on = go_on;
    let mut slow = Pace::limited(&mut go_on, NonZeroU64::new(4 << 20).expect("not 0"));
    let target = open_file(dir, "slow", true);
    let report = merge(run(), target, "base", DiskFormat::Raw, &mut slow).expect("merge");
    assert_eq!(report.copied_bytes, 800 << 10);
    assert!(report.elapsed >= Duration::from_millis(140), "{report:?}");

    let mut stop = |_| ControlFlow::Break(());
    let target = open_file(dir, "cancelled", true);
    let error = merge(
        run(),
        target,
        "base",
        DiskFormat::Raw,
        &mut Pace::free(&mut stop),
    )
    .expect_err("cancelled");
    assert!(matches!(error, CopyDiskError::Cancelled), "{error:?}");
}

#[test]
fn a_full_disk_ends_a_merge_and_leaves_its_sources() {
    let mut disk = Stack::new();
    let seen = disk.bytes();
    for operations in 0.. {
        let target = MemFile::default();
        target.fill_up_after(operations);
        let run = disk.files[1..4].iter().rev();
        let done = crate::merge::merge_storages(
            run.map(|file| (file.boxed(), DiskFormat::Qcow2)).collect(),
            target.boxed(),
            ("base", DiskFormat::Qcow2),
            &mut Pace::free(&mut go_on),
        );
        let Err(error) = done else {
            assert!(operations > 5, "a merge has more operations than that");
            break;
        };
        let no_space = matches!(
            error,
            CopyDiskError::Create(crate::CreateDiskError::NoSpace)
                | CopyDiskError::Write(DiskError::NoSpace)
        );
        assert!(no_space, "{error:?}");
    }
    assert!(disk.bytes() == seen);
}

#[test]
fn only_allocated_clusters_are_copied() {
    let dir = TempDir::new().expect("temp dir");
    let dir = dir.path();
    let name = |index: usize| format!("big{index}");
    let size = 1 << 40;
    for index in 0..3 {
        let (below, format) = match index {
            0 => ("base".to_owned(), DiskFormat::Raw),
            _ => (name(index - 1), DiskFormat::Qcow2),
        };
        let file = open_file(dir, &name(index), true);
        create_overlay(&file, size, &below, format).expect("overlay");
    }
    let base = open_file(dir, "base", true);
    base.set_len(size).expect("length");
    let mut files = [2, 1, 0]
        .map(|at| layer(dir, &name(at), DiskFormat::Qcow2))
        .into_iter();
    let top = files.next().expect("top");
    let mut rest: Vec<_> = files.collect();
    rest.push(layer(dir, "base", DiskFormat::Raw));
    let mut stack = DiskStack::open(top, rest, StackOptions::default()).expect("open");
    for at in [0, size / 2, size - 4096] {
        stack.write_at(at, &[1; 4096]).expect("write");
    }
    stack.sync().expect("sync");
    let run = [2, 1, 0].map(|at| layer(dir, &name(at), DiskFormat::Qcow2));
    let target = open_file(dir, "merged", true);
    let mut calls = 0;
    let mut count = |_| {
        calls += 1;
        ControlFlow::Continue(())
    };
    let mut pace = Pace::free(&mut count);
    let report = merge(Vec::from(run), target, "base", DiskFormat::Raw, &mut pace).expect("merge");
    assert_eq!(report.copied_bytes, 3 * 16384);
    let header = inspect(&open_file(dir, "merged", false)).expect("inspect");
    assert!(header.file_bytes < 4 << 20, "{header:?}");
}
