//! Damaged and hostile files: an error, or some content, but no panic and no endless work.

use proptest::prelude::*;

use super::cases;
use super::mem::MemFile;
use crate::error::LayerError;
use crate::layer::DiskFormat;
use crate::qcow2::create::create;
use crate::qcow2::header::Header;
use crate::repair::{check, repair};
use crate::stack::{DiskStack, PreparedTop, StackOptions};

const SIZE: u64 = 256 * 1024;

/// An image with every kind of entry.
fn valid(bits: u32) -> Vec<u8> {
    let file = MemFile::default();
    create(&file, SIZE, None, bits).expect("create");
    let files = vec![(file.boxed(), DiskFormat::Qcow2)];
    let mut stack = DiskStack::open_storages(files, StackOptions::default()).expect("open");
    stack.write_at(0, &[1; 100_000]).expect("write");
    stack.write_at(200_000, &[2; 10]).expect("write");
    stack.discard(20_000, 40_000).expect("discard");
    stack.sync().expect("sync");
    drop(stack);
    file.bytes()
}

/// Opens and uses an image in every way.
fn use_it(bytes: &[u8]) {
    let file = || MemFile::new(bytes.to_vec());
    let _ = check(&file());
    let _ = repair(&file());
    let _ = PreparedTop::open_storage(file().boxed(), DiskFormat::Qcow2);
    for read_only in [true, false] {
        let options = StackOptions {
            read_only,
            ..StackOptions::default()
        };
        let files = vec![(file().boxed(), DiskFormat::Qcow2)];
        let Ok(mut stack) = DiskStack::open_storages(files, options) else {
            continue;
        };
        // A damaged size can be huge: look at both ends.
        let size = stack.size_bytes();
        let mut buf = vec![0; SIZE.min(size) as usize];
        let _ = stack.read_at(0, &mut buf);
        for (at, piece) in buf.chunks_mut(8192).enumerate() {
            let _ = stack.read_at(at as u64 * 8192, piece);
        }
        let _ = stack.read_at(size - 512, &mut [0; 512]);
        let _ = stack.write_at(3, &[7; 70_000]);
        let _ = stack.write_at(size - 512, &[7; 512]);
        let _ = stack.write_zeroes(50_000.min(size - 512), 512, true);
        let _ = stack.discard(0, SIZE.min(size));
        let _ = stack.flush();
        let _ = stack.sync();
    }
}

fn bits() -> impl Strategy<Value = u32> {
    prop_oneof![Just(9u32), Just(12), Just(16)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(400), ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_never_panic(
        bits in bits(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_header in any::<bool>(),
    ) {
        let mut bytes = valid(bits);
        let end = if in_header { 112 } else { bytes.len() };
        for (at, value) in flips {
            let at = at.index(end);
            bytes[at] = value;
        }
        use_it(&bytes);
    }

    #[test]
    fn replaced_words_never_panic(
        bits in bits(),
        words in prop::collection::vec((any::<prop::sample::Index>(), word()), 1..8),
    ) {
        let mut bytes = valid(bits);
        for (at, word) in words {
            // Mostly words that mean something today.
            let used: Vec<usize> = (0..bytes.len() / 8)
                .filter(|at| bytes[at * 8..at * 8 + 8] != [0; 8] && bytes[at * 8..at * 8 + 8] != [1; 8])
                .collect();
            let at = used[at.index(used.len())] * 8;
            bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
        }
        use_it(&bytes);
    }

    #[test]
    fn cut_files_never_panic(bits in bits(), cut in any::<prop::sample::Index>()) {
        let mut bytes = valid(bits);
        bytes.truncate(cut.index(bytes.len()));
        use_it(&bytes);
    }
}

/// Table entries of all kinds, with offsets in, at and past the end of the file.
fn word() -> impl Strategy<Value = u64> {
    let flags = prop_oneof![
        Just(0),
        Just(1),
        Just(1 << 63),
        Just(1 << 62),
        Just(3 << 62),
        any::<u64>(),
    ];
    let offset = prop_oneof![(0..600u64).prop_map(|n| n * 512), any::<u64>()];
    (flags, offset).prop_map(|(flags, offset)| flags | offset)
}

fn header_error(change: impl FnOnce(&mut Vec<u8>)) -> LayerError {
    let mut bytes = valid(16);
    change(&mut bytes);
    Header::parse(&MemFile::new(bytes)).expect_err("refused")
}

fn set32(at: usize, value: u32) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes())
}

fn set64(at: usize, value: u64) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[at..at + 8].copy_from_slice(&value.to_be_bytes())
}

#[test]
fn every_bad_field_is_named() {
    let check = |err: LayerError, expect: &str| {
        let text = err.to_string();
        assert!(text.contains(expect), "{text:?} should name {expect:?}");
    };
    check(header_error(set32(0, 1)), "not a qcow2 file");
    check(header_error(set32(4, 4)), "version");
    check(header_error(set32(20, 8)), "cluster_bits");
    check(header_error(set32(20, 22)), "cluster_bits");
    check(header_error(set64(24, 0)), "size");
    check(header_error(set64(24, 1 << 50)), "size");
    check(header_error(set64(24, 513)), "size");
    check(header_error(set32(32, 1)), "encrypted");
    check(header_error(set32(36, 0)), "l1_size");
    check(header_error(set32(36, u32::MAX)), "l1_size");
    check(header_error(set64(40, 3)), "l1_table_offset");
    check(header_error(set64(40, 1 << 40)), "the L1 table");
    check(header_error(set64(48, 0)), "refcount_table_offset");
    check(header_error(set32(56, 0)), "refcount_table_clusters");
    check(header_error(set32(56, u32::MAX)), "refcount_table_clusters");
    check(header_error(set64(72, 1)), "dirty bit");
    check(header_error(set64(72, 2)), "corrupt bit");
    check(header_error(set64(72, 4)), "external data files");
    check(header_error(set64(72, 8)), "compression_type");
    check(header_error(set64(72, 16)), "subclusters");
    check(header_error(set64(72, 1 << 20)), "unknown feature");
    check(header_error(set32(96, 7)), "refcount_order");
    check(header_error(set32(100, 8)), "header_length");
    check(header_error(set32(100, 1 << 20)), "header_length");
    check(header_error(|bytes| bytes.truncate(50)), "truncated");
    check(header_error(|bytes| bytes.truncate(100)), "truncated");
    check(header_error(|bytes| bytes.truncate(70_000)), "truncated");
    check(header_error(Vec::clear), "not a qcow2 file");
    let backing = |offset, length| {
        header_error(|bytes| {
            set64(8, offset)(bytes);
            set32(16, length)(bytes);
        })
    };
    check(backing(200, 0), "backing_file_size");
    check(backing(200, 5000), "backing_file_size");
    check(backing(70_000, 10), "backing_file_offset");
    check(backing(u64::MAX, 10), "backing_file_offset");
    check(backing(200, 10), "backing_file_name");
    let extension = |kind: u32, length| {
        header_error(|bytes| {
            set32(112, kind)(bytes);
            set32(116, length)(bytes);
        })
    };
    check(extension(0x1234_5678, u32::MAX), "header extension");
    check(extension(0xe279_2aca, 3), "backing format name");
}
