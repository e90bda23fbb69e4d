//! Differences of RAM against a plain model: what is put together again is what was there, and what
//! was meddled with is refused.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;

use super::{HEADER, PAGE, Run, STEP_PAGES, apply, max_changes_bytes, survey};
use crate::{ArchiveError, Blob, Changes, copy_expected, digest};

const PAGES: usize = 300;
const BYTES: u64 = (PAGES * PAGE) as u64;

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A file of RAM; pages of zeros are holes.
fn file_of(ram: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(ram.len() as u64).unwrap();
    for (index, page) in ram.chunks(PAGE).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, (index * PAGE) as u64).unwrap();
        }
    }
    file
}

fn content(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn member(changes: &Changes, ram: &File) -> (Vec<u8>, Blob) {
    let mut bytes = Vec::new();
    let mut from = changes.content(ram.try_clone().unwrap());
    from.read_to_end(&mut bytes).unwrap();
    let blob = changes.digest(ram, &mut go_on).unwrap();
    assert_eq!(blob.bytes, bytes.len() as u64);
    assert!(blob.bytes <= max_changes_bytes(BYTES));
    (bytes, blob)
}

/// What a guest does to its RAM between two exports.
#[derive(Clone, Debug)]
enum Touch {
    /// Some bytes somewhere.
    Bytes(usize, u8),
    /// Pages from one on.
    Pages(usize, usize, u8),
    /// Pages of zeros from one on.
    Zeros(usize, usize),
}

fn writes() -> impl Strategy<Value = Vec<Touch>> {
    let one = prop_oneof![
        (0..PAGES * PAGE, any::<u8>()).prop_map(|(at, byte)| Touch::Bytes(at, byte)),
        (0..PAGES, 1..400_usize, 1..=255_u8).prop_map(|(at, n, byte)| Touch::Pages(at, n, byte)),
        (0..PAGES, 1..400_usize).prop_map(|(at, n)| Touch::Zeros(at, n)),
    ];
    prop::collection::vec(one, 0..12)
}

fn write(ram: &mut [u8], writes: &[Touch]) {
    for write in writes {
        match *write {
            Touch::Bytes(at, byte) => ram[at] = byte,
            Touch::Pages(at, count, byte) => {
                let end = (at + count).min(PAGES) * PAGE;
                for (index, page) in ram[at * PAGE..end].chunks_mut(PAGE).enumerate() {
                    page.fill(byte);
                    page[17] = index as u8;
                }
            }
            Touch::Zeros(at, count) => ram[at * PAGE..(at + count).min(PAGES) * PAGE].fill(0),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_chain_of_differences_is_what_the_ram_was(steps in prop::collection::vec(writes(), 4)) {
        let mut ram = vec![0; PAGES * PAGE];
        let mut earlier: Option<File> = None;
        let restored = tempfile::tempfile().unwrap();
        restored.set_len(BYTES).unwrap();
        for (number, step) in steps.iter().enumerate() {
            let before = ram.clone();
            write(&mut ram, step);
            let now = file_of(&ram);
            let table = tempfile::tempfile().unwrap();
            let told = survey(&now, Some(&table), earlier.as_ref(), &mut go_on).unwrap();
            prop_assert_eq!(&told.ram, &digest("ram", &now, &mut go_on).unwrap());
            prop_assert_eq!(told.table.unwrap(), digest("table", &table, &mut go_on).unwrap());
            let full = ram.chunks(PAGE).filter(|page| page.iter().any(|b| *b != 0)).count();
            prop_assert_eq!(told.full_pages, full as u64);
            if number == 0 {
                prop_assert!(told.changes.is_none());
                prop_assert!(copy_expected("ram", &now, &told.ram, &restored, &mut go_on).unwrap());
            } else {
                let changes = told.changes.unwrap();
                // No page more than those that differ.
                let pairs = ram.chunks(PAGE).zip(before.chunks(PAGE));
                let differ = pairs.filter(|(now, then)| now != then).count();
                let told: usize = changes.runs.iter().map(|run| run.count as usize).sum();
                prop_assert_eq!(told, differ);
                let (bytes, blob) = member(&changes, &now);
                apply("changes", &mut &bytes[..], &blob, &restored, BYTES, &mut go_on).unwrap();
            }
            prop_assert!(content(&restored) == ram);
            earlier = Some(table);
        }
    }

    #[test]
    fn garbage_never_leaves_the_ram(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        let to = file_of(&vec![0; PAGES * PAGE]);
        let file = memory_of(&bytes);
        let blob = digest("garbage", &file, &mut go_on).unwrap();
        let _ = apply("changes", &mut &bytes[..], &blob, &to, BYTES, &mut go_on);
        prop_assert_eq!(to.metadata().unwrap().len(), BYTES);
    }
}

#[test]
fn a_member_that_was_meddled_with_is_refused() {
    let (mut bytes, blob, base) = sample();
    let to = file_of(&base);
    for at in 0..bytes.len() {
        let bit = 1 << (at % 8);
        bytes[at] ^= bit;
        let refused = apply("changes", &mut &bytes[..], &blob, &to, BYTES, &mut go_on);
        assert!(refused.is_err(), "byte {at}");
        bytes[at] ^= bit;
        let refused = apply("changes", &mut &bytes[..at], &blob, &to, BYTES, &mut go_on);
        assert!(matches!(refused, Err(ArchiveError::Cut { .. })), "{at}");
        assert_eq!(to.metadata().unwrap().len(), BYTES);
    }
    apply("changes", &mut &bytes[..], &blob, &to, BYTES, &mut go_on).unwrap();
}

/// A member, and the RAM that it starts from.
fn sample() -> (Vec<u8>, Blob, Vec<u8>) {
    let mut base = vec![0; PAGES * PAGE];
    write(&mut base, &[Touch::Pages(10, 20, 7)]);
    let table = tempfile::tempfile().unwrap();
    survey(&file_of(&base), Some(&table), None, &mut go_on).unwrap();
    let mut ram = base.clone();
    write(
        &mut ram,
        &[
            Touch::Zeros(12, 3),
            Touch::Bytes(40, 1),
            Touch::Bytes(90_000, 2),
        ],
    );
    let now = file_of(&ram);
    let next = tempfile::tempfile().unwrap();
    let told = survey(&now, Some(&next), Some(&table), &mut go_on).unwrap();
    let (bytes, blob) = member(&told.changes.unwrap(), &now);
    (bytes, blob, base)
}

fn memory_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn check_runs(runs: &[(u64, u32, u32)]) -> Result<(), ArchiveError> {
    let mut bytes = Vec::new();
    for (first, count, kind) in runs {
        bytes.extend(first.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        if *kind == 1 {
            bytes.resize(
                bytes.len() + PAGE * (*count as usize).min(STEP_PAGES + 1),
                9,
            );
        }
    }
    let blob = digest("runs", &memory_of(&bytes), &mut go_on).unwrap();
    let to = file_of(&vec![0; PAGES * PAGE]);
    let done = apply("changes", &mut &bytes[..], &blob, &to, BYTES, &mut go_on);
    assert_eq!(to.metadata().unwrap().len(), BYTES);
    done
}

#[test]
fn runs_that_cannot_be_are_refused() {
    let last = PAGES as u64 - 1;
    check_runs(&[(0, 2, 1), (2, 1, 0), (last, 1, 1)]).unwrap();
    for runs in [
        &[(0, 0, 0)][..],
        &[(0, 257, 0)],
        &[(0, 257, 1)],
        &[(0, 1, 2)],
        &[(last, 2, 1)],
        &[(last + 1, 1, 0)],
        &[(u64::MAX, 1, 1)],
        &[(u64::MAX - 1, 2, 0)],
        &[(5, 2, 0), (6, 1, 0)],
        &[(5, 2, 0), (4, 1, 1)],
    ] {
        let refused = check_runs(runs).unwrap_err();
        assert!(matches!(refused, ArchiveError::Damaged { .. }), "{runs:?}");
    }
    // A file of another size is none of the RAM.
    let to = file_of(&[1; PAGE]);
    let blob = digest("nothing", &memory_of(&[]), &mut go_on).unwrap();
    assert!(apply("changes", &mut &[][..], &blob, &to, BYTES, &mut go_on).is_err());
}

#[test]
fn a_header_is_read_as_it_was_written() {
    let run = Run {
        first: 1 << 26,
        count: 256,
        full: true,
    };
    assert_eq!(run.header().len(), HEADER);
    assert_eq!(Run::parse(run.header(), 0, u64::MAX), Some(run));
}

#[test]
fn pages_that_became_zeros_are_holes_again() {
    let (bytes, blob, mut base) = sample();
    let to = file_of(&base);
    let before = to.metadata().unwrap().blocks();
    apply("changes", &mut &bytes[..], &blob, &to, BYTES, &mut go_on).unwrap();
    base[12 * PAGE..15 * PAGE].fill(0);
    assert!(content(&to)[12 * PAGE..15 * PAGE].iter().all(|b| *b == 0));
    // Three pages went, two came.
    assert!(to.metadata().unwrap().blocks() < before + 8);
}

#[test]
fn a_table_that_cannot_be_written_is_none() {
    let path = tempfile::NamedTempFile::new().unwrap();
    let read_only = File::open(path.path()).unwrap();
    let told = survey(
        &file_of(&vec![1; PAGES * PAGE]),
        Some(&read_only),
        None,
        &mut go_on,
    )
    .unwrap();
    assert_eq!((told.table, told.full_pages), (None, PAGES as u64));
}
