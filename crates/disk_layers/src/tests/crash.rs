//! What is on the disk when the host or the process dies.
//!
//! Every operation on the file is recorded and replayed up to a cut. A host crash keeps what was
//! made durable and any part of the rest; the death of the process keeps all that was issued.

use std::ops::Range;

use proptest::prelude::*;
use tempfile::TempDir;

use super::mem::{MemFile, Op, apply};
use super::qemu::{assert_clean, assert_no_errors, guest_bytes};
use super::{cases, judged_cases};
use crate::layer::DiskFormat;
use crate::qcow2::create::create;
use crate::repair::{check, repair};
use crate::stack::{DiskStack, StackOptions};

const SIZE: u64 = 300 * 1024 + 512;

#[derive(Clone, Debug)]
enum Step {
    Write { at: u64, length: u64, seed: u8 },
    Zero { at: u64, length: u64 },
    Discard { at: u64, length: u64 },
    Flush,
    Sync,
}

fn step(with_flush: bool) -> impl Strategy<Value = Step> {
    let range =
        (0..SIZE / 512, 1..120u64).prop_map(|(at, n)| (at * 512, (n * 512).min(SIZE - at * 512)));
    prop_oneof![
        8 => (range.clone(), 1..=255u8).prop_map(|((at, length), seed)| Step::Write { at, length, seed }),
        2 => range.clone().prop_map(|(at, length)| Step::Zero { at, length }),
        3 => range.prop_map(|(at, length)| Step::Discard { at, length }),
        4 => Just(if with_flush { Step::Flush } else { Step::Sync }),
        2 => Just(Step::Sync),
    ]
}

/// A flush that was acknowledged.
struct Acked {
    /// Operations of the file up to then.
    operations: usize,
    /// The guest's disk as it was.
    model: Vec<u8>,
}

struct History {
    below: Vec<u8>,
    start: Vec<u8>,
    log: Vec<Op>,
    acked: Vec<Acked>,
    /// Guest ranges changed, with the operations that came before.
    changed: Vec<(usize, Range<usize>)>,
}

fn pattern(at: u64, length: u64, seed: u8) -> Vec<u8> {
    (at..at + length)
        .map(|i| (i / 7).to_le_bytes()[0] ^ seed)
        .collect()
}

/// Runs the steps on an overlay of a raw base, recording the overlay's file.
fn record(cluster_bits: u32, steps: &[Step], durable_flush: bool) -> History {
    let below = pattern(0, SIZE, 0x5a);
    let file = MemFile::default();
    let backing = Some(("base.raw", DiskFormat::Raw));
    create(&file, SIZE, backing, cluster_bits).expect("create");
    let file = MemFile::new(file.bytes());
    let start = file.bytes();
    let options = StackOptions {
        cache_bytes: 16 * 4096,
        ..StackOptions::default()
    };
    let files = vec![
        (file.boxed(), DiskFormat::Qcow2),
        (MemFile::new(below.clone()).boxed(), DiskFormat::Raw),
    ];
    let mut stack = DiskStack::open_storages(files, options).expect("open");
    let mut model = below.clone();
    let mut acked = vec![Acked {
        operations: 0,
        model: model.clone(),
    }];
    let mut changed = Vec::new();
    for step in steps {
        let before = file.log().len();
        let range = |at: u64, length: u64| at as usize..(at + length) as usize;
        match *step {
            Step::Write { at, length, seed } => {
                let data = pattern(at, length, seed);
                stack.write_at(at, &data).expect("write");
                model[range(at, length)].copy_from_slice(&data);
                changed.push((before, range(at, length)));
            }
            Step::Zero { at, length } => {
                stack.write_zeroes(at, length, true).expect("zero");
                model[range(at, length)].fill(0);
                changed.push((before, range(at, length)));
            }
            Step::Discard { at, length } => {
                stack.discard(at, length).expect("discard");
                let mut now = vec![0; length as usize];
                stack.read_at(at, &mut now).expect("read");
                model[range(at, length)].copy_from_slice(&now);
                changed.push((before, range(at, length)));
            }
            Step::Flush | Step::Sync => {
                if matches!(step, Step::Sync) {
                    stack.sync().expect("sync");
                } else {
                    stack.flush().expect("flush");
                }
                if matches!(step, Step::Sync) || !durable_flush {
                    acked.push(Acked {
                        operations: file.log().len(),
                        model: model.clone(),
                    });
                }
            }
        }
    }
    if !durable_flush {
        stack.flush().expect("flush");
    }
    drop(stack);
    History {
        below,
        start,
        log: file.log(),
        acked,
        changed,
    }
}

impl History {
    /// The file after the first `cut` operations and those of the rest that `keep` lets through.
    fn replay(&self, cut: usize, keep: impl Fn(usize) -> bool) -> Vec<u8> {
        let mut bytes = self.start.clone();
        for (at, op) in self.log.iter().enumerate() {
            if at < cut || keep(at) {
                apply(&mut bytes, op);
            }
        }
        bytes
    }

    /// Checks that `bytes` is a sound image that holds all that was flushed before `cut` and not
    /// changed since. Returns the guest's bytes.
    fn judge(&self, bytes: Vec<u8>, cut: usize, last: usize) -> Vec<u8> {
        let file = MemFile::new(bytes);
        let report = check(&file).expect("the image can be checked");
        assert_eq!(report.uncounted, 0, "cut {cut}: {report:?}");
        let files = vec![
            (file.boxed(), DiskFormat::Qcow2),
            (MemFile::new(self.below.clone()).boxed(), DiskFormat::Raw),
        ];
        let mut stack = DiskStack::open_storages(files, StackOptions::default()).expect("open");
        let mut seen = vec![0; SIZE as usize];
        stack.read_at(0, &mut seen).expect("read");
        drop(stack);

        let acked = self.acked.iter().rfind(|acked| acked.operations <= cut);
        let acked = acked.expect("the start is acknowledged");
        let mut expected = acked.model.clone();
        for (before, range) in &self.changed {
            if *before >= acked.operations && *before <= last {
                expected[range.clone()].copy_from_slice(&seen[range.clone()]);
            }
        }
        let wrong = seen.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "cut {cut}: flushed content lost");

        repair(&file).expect("repair");
        assert!(check(&file).expect("check").is_clean());
        let files = vec![
            (file.boxed(), DiskFormat::Qcow2),
            (MemFile::new(self.below.clone()).boxed(), DiskFormat::Raw),
        ];
        let mut stack = DiskStack::open_storages(files, StackOptions::default()).expect("open");
        let mut again = vec![0; SIZE as usize];
        stack.read_at(0, &mut again).expect("read");
        assert!(again == seen, "cut {cut}: repair changed the disk");
        seen
    }

    /// Positions just after each sync, the start, and the end.
    fn syncs(&self) -> Vec<usize> {
        let mut cuts = vec![0];
        let syncs = self.log.iter().enumerate();
        cuts.extend(syncs.filter_map(|(at, op)| matches!(op, Op::Sync).then_some(at + 1)));
        cuts
    }
}

fn bits() -> impl Strategy<Value = u32> {
    prop_oneof![Just(9u32), Just(12), Just(16)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(16), ..ProptestConfig::default() })]

    /// A host crash: everything up to a flush is there, and any part of what was issued between
    /// it and the next.
    #[test]
    fn host_crash_loses_nothing_that_was_flushed(
        bits in bits(),
        steps in prop::collection::vec(step(false), 1..40),
        mask in any::<u64>(),
    ) {
        let history = record(bits, &steps, true);
        let cuts = history.syncs();
        for (index, &cut) in cuts.iter().enumerate() {
            let next = cuts.get(index + 1).copied().unwrap_or(history.log.len());
            for shift in [0, 3, 7] {
                let mask = mask.rotate_left(shift * 11 + index as u32);
                let kept = |at: usize| at < next && mask >> (at % 64) & 1 == 1;
                history.judge(history.replay(cut, kept), cut, next);
            }
            history.judge(history.replay(cut, |_| false), cut, cut);
        }
    }

    /// The process dies: everything issued is there, in order.
    #[test]
    fn process_death_loses_nothing_that_was_flushed(
        bits in bits(),
        steps in prop::collection::vec(step(true), 1..30),
    ) {
        let history = record(bits, &steps, false);
        for cut in 0..=history.log.len() {
            history.judge(history.replay(cut, |_| false), cut, cut);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: judged_cases(8), ..ProptestConfig::default() })]

    /// The same cuts, judged by QEMU.
    #[test]
    fn qemu_accepts_the_image_at_every_flush(
        bits in bits(),
        steps in prop::collection::vec(step(false), 1..25),
        mask in any::<u64>(),
    ) {
        let dir = TempDir::new().expect("temp dir");
        let history = record(bits, &steps, true);
        std::fs::write(dir.path().join("base.raw"), &history.below).expect("base");
        let cuts = history.syncs();
        for (index, &cut) in cuts.iter().enumerate() {
            let next = cuts.get(index + 1).copied().unwrap_or(history.log.len());
            let kept = |at: usize| at < next && mask.rotate_left(index as u32) >> (at % 64) & 1 == 1;
            for (bytes, last) in [
                (history.replay(cut, |_| false), cut),
                (history.replay(cut, kept), next),
            ] {
                let seen = history.judge(bytes.clone(), cut, last);
                std::fs::write(dir.path().join("top.qcow2"), &bytes).expect("top");
                assert_no_errors(dir.path(), "top.qcow2", &format!("cut {cut}"));
                prop_assert!(guest_bytes(dir.path(), "top.qcow2") == seen);
            }
            // Where a guest's flush was acknowledged there are no leaks either.
            if history.acked.iter().any(|acked| acked.operations == cut) {
                std::fs::write(dir.path().join("top.qcow2"), history.replay(cut, |_| false))
                    .expect("top");
                assert_clean(dir.path(), "top.qcow2");
            }
        }
    }
}
