//! Disk files of every kind, made byte by byte.

use proptest::prelude::*;

use super::*;

fn file(parts: &[(u64, &[u8])], len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at).unwrap();
    }
    file
}

const EXT: &[u8] = &[0x53, 0xef];

fn gpt_disk(partitions: &[(u64, u64)]) -> File {
    let mut header = [0u8; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[72] = 2;
    header[80] = 128;
    header[84] = 128;
    let disk = file(&[(512, &header), (510, &[0x55, 0xaa])], 64 << 20);
    for (index, (start, end)) in partitions.iter().enumerate() {
        let mut entry = [1u8; 48];
        entry[32..40].copy_from_slice(&start.to_le_bytes());
        entry[40..48].copy_from_slice(&end.to_le_bytes());
        disk.write_all_at(&entry, 1024 + 128 * index as u64)
            .unwrap();
    }
    disk
}

#[test]
fn kinds_are_told_by_magic() {
    let kind = |at: u64, magic: &[u8]| detect(&file(&[(at, magic)], 4096)).unwrap();
    assert_eq!(kind(0, b"QFI\xfb"), FileKind::Qcow2);
    assert_eq!(kind(257, b"ustar"), FileKind::Archive);
    assert_eq!(kind(0, &[0x1f, 0x8b]), FileKind::Archive);
    assert_eq!(kind(0, b"KDMV"), FileKind::Foreign("VMDK"));
    assert_eq!(kind(64, b"\x7f\x10\xda\xbe"), FileKind::Foreign("VDI"));
    assert_eq!(kind(0, b""), FileKind::Raw);
    assert_eq!(detect(&file(&[], 0)).unwrap(), FileKind::Raw);
}

#[test]
fn roots_are_found_on_disks_and_in_partitions() {
    assert_eq!(
        find_root(&file(&[(1080, EXT)], 1 << 20)).unwrap(),
        RootPlace::WholeDisk
    );
    let disk = gpt_disk(&[(2048, 4095), (4096, 100_000), (100_001, 110_000)]);
    assert!(matches!(find_root(&disk).unwrap(), RootPlace::Nowhere(_)));
    disk.write_all_at(EXT, 100_001 * 512 + 1080).unwrap();
    assert_eq!(find_root(&disk).unwrap(), RootPlace::Partition(3));
    disk.write_all_at(EXT, 4096 * 512 + 1080).unwrap();
    assert_eq!(find_root(&disk).unwrap(), RootPlace::Partition(2));

    let mut entry = [0u8; 16];
    entry[8..12].copy_from_slice(&2048u32.to_le_bytes());
    entry[12..16].copy_from_slice(&4096u32.to_le_bytes());
    let disk = file(
        &[
            (446, &entry),
            (510, &[0x55, 0xaa]),
            (2048 * 512 + 1080, EXT),
        ],
        4 << 20,
    );
    assert_eq!(find_root(&disk).unwrap(), RootPlace::Partition(1));
    let xfs = file(&[(0, b"XFSB")], 1 << 20);
    assert_eq!(
        find_root(&xfs).unwrap(),
        RootPlace::Nowhere("it has a xfs file system".into())
    );
}

#[test]
fn qcow2_files_that_need_another_file_are_refused() {
    let mut head = [0u8; 104];
    head[..4].copy_from_slice(b"QFI\xfb");
    head[7] = 3;
    let check = |at: usize, value: u8| {
        let mut bad = head;
        bad[at] = value;
        check_qcow2(&file(&[(0, &bad)], 104))
    };
    check(7, 2).unwrap();
    check(7, 3).unwrap();
    for (at, value, word) in [
        (15, 1, "backing file"),
        (35, 2, "encrypted"),
        (79, 4, "another file"),
        (79, 2, "corrupt"),
        (79, 1, "not closed"),
        (7, 9, "version"),
    ] {
        let problem = check(at, value).unwrap_err();
        assert!(problem.contains(word), "{problem}");
    }
    assert!(check_qcow2(&file(&[(0, &head[..50])], 50)).is_err());
}

proptest! {
    #[test]
    fn any_content_is_looked_at_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048), magic in any::<bool>()) {
        let mut bytes = bytes;
        if magic && bytes.len() > 520 {
            bytes[512..520].copy_from_slice(b"EFI PART");
        }
        let disk = file(&[(0, &bytes)], bytes.len() as u64);
        let _ = detect(&disk).unwrap();
        let _ = find_root(&disk).unwrap();
        let _ = check_qcow2(&disk);
    }
}
