//! Disk files of every kind, made byte by byte.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::Watch;
use crate::tool::Tool;

fn file(parts: &[(u64, &[u8])], len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    for (at, bytes) in parts {
        file.write_all_at(bytes, *at).unwrap();
    }
    file
}

/// Makes a small ext file system with the given files; `kind` is ext2, ext3 or ext4.
fn ext(kind: &str, files: &[&str], bytes: u64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let content = dir.path().join("content");
    for file in files {
        let path = content.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    fs::create_dir_all(&content).unwrap();
    let disk = dir.path().join("disk");
    File::create_new(&disk).unwrap().set_len(bytes).unwrap();
    Tool::new("mkfs.ext4", "e2fsprogs")
        .args(["-q", "-F", "-t", kind, "-d"])
        .arg(content)
        .arg(&disk)
        .output(&Watch::default())
        .unwrap();
    fs::read(disk).unwrap()
}

const MIB: u64 = 1 << 20;
const SYSTEM: [&str; 2] = ["etc/os-release", "sbin/init"];

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
    assert_eq!(kind(0, b"LUKS\xba\xbe"), FileKind::Foreign("LUKS"));
    assert_eq!(kind(0, b"\xfd7zXZ\0"), FileKind::Packed("xz"));
    assert_eq!(kind(0, b""), FileKind::Raw);
    assert_eq!(detect(&file(&[], 0)).unwrap(), FileKind::Raw);
}

fn check_nowhere(disk: &File, wanted: Option<u32>, words: &[&str]) {
    let RootPlace::Nowhere(problem) = find_root(disk, wanted).unwrap() else {
        panic!("a root was found where {words:?} was to be said");
    };
    for word in words {
        assert!(problem.contains(word), "{word}: {problem}");
    }
}

#[test]
fn a_file_system_may_be_on_the_disk_itself() {
    let whole = ext("ext4", &[], 2 * MIB);
    let disk = file(&[(0, &whole)], 2 * MIB);
    assert_eq!(find_root(&disk, None).unwrap(), RootPlace::WholeDisk);
    check_nowhere(&disk, Some(1), &["no partitions"]);
    let half = file(&[(0, &whole[..MIB as usize])], MIB);
    check_nowhere(&half, None, &["cut short", "2097152", "1048576"]);
    let xfs = file(&[(0, b"XFSB")], MIB);
    check_nowhere(&xfs, None, &["xfs", "ext4"]);
}

#[test]
fn roots_are_told_by_what_they_hold() {
    // A data partition that is larger than the root, which is as in older and newer systems.
    for (kind, files) in [
        ("ext4", &SYSTEM),
        ("ext2", &["etc/fstab", "sbin/init"]),
        ("ext3", &["etc/passwd", "usr/lib/systemd/systemd"]),
    ] {
        let disk = gpt_disk(&[(2048, 8191), (8192, 12287), (12288, 40959)]);
        disk.write_all_at(&ext("ext4", &["grub/grub.cfg"], 3 * MIB), 2048 * 512)
            .unwrap();
        disk.write_all_at(&ext(kind, files, 2 * MIB), 8192 * 512)
            .unwrap();
        let data = ext("ext4", &["srv/etc/os-release", "etc"], 14 * MIB);
        disk.write_all_at(&data, 12288 * 512).unwrap();
        assert_eq!(find_root(&disk, None).unwrap(), RootPlace::Partition(2));
        assert_eq!(find_root(&disk, Some(3)).unwrap(), RootPlace::Partition(3));
        check_nowhere(&disk, Some(4), &["no partition 4", "2: ext4 with a system"]);

        disk.write_all_at(&ext(kind, files, 3 * MIB), 2048 * 512)
            .unwrap();
        let both = [
            "more than one",
            "--root-partition",
            "1: ext4 with",
            "2: ext4 with",
        ];
        check_nowhere(&disk, None, &both);
        // The type in the table decides.
        let root = [
            0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84,
            0xb7, 0x09,
        ];
        disk.write_all_at(&root, 1024).unwrap();
        assert_eq!(find_root(&disk, None).unwrap(), RootPlace::Partition(1));
    }
}

#[test]
fn a_directory_of_many_entries_is_searched_whole() {
    let mut files: Vec<String> = (0..900)
        .map(|i| format!("etc/some-longer-name-{i}"))
        .collect();
    files.push("etc/os-release".into());
    files.push("init".into());
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    for kind in ["ext2", "ext4"] {
        let disk = gpt_disk(&[(2048, 18431)]);
        disk.write_all_at(&ext(kind, &files, 8 * MIB), MIB).unwrap();
        assert_eq!(find_root(&disk, None).unwrap(), RootPlace::Partition(1));
    }
}

#[test]
fn disks_without_a_system_are_refused_by_what_they_have() {
    check_nowhere(&file(&[], MIB), None, &["neither"]);
    let disk = gpt_disk(&[(2048, 8191), (8192, 12287)]);
    check_nowhere(
        &disk,
        None,
        &["no partition has an ext4", "2: nothing known, 2 MiB"],
    );
    disk.write_all_at(b"XFSB", 8192 * 512).unwrap();
    let boot = ext("ext4", &["grub/grub.cfg"], 3 * MIB);
    disk.write_all_at(&boot, 2048 * 512).unwrap();
    check_nowhere(&disk, None, &["--root-partition", "1: ext4, 3 MiB; 2: xfs"]);
    assert_eq!(find_root(&disk, Some(1)).unwrap(), RootPlace::Partition(1));
    let large = ext("ext4", &SYSTEM, 4 * MIB);
    disk.write_all_at(&large, 2048 * 512).unwrap();
    check_nowhere(&disk, None, &["partition 1", "cut short"]);
}

/// An entry of a boot record.
fn slot(kind: u8, start: u32, sectors: u32) -> [u8; 16] {
    let mut entry = [0u8; 16];
    entry[4] = kind;
    entry[8..12].copy_from_slice(&start.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    entry
}

#[test]
fn primary_and_logical_partitions_have_the_numbers_of_linux() {
    let system = ext("ext4", &SYSTEM, 2 * MIB);
    let sign = [0x55, 0xaa];
    let primary = file(
        &[(446, &slot(0x83, 2048, 4096)), (510, &sign), (MIB, &system)],
        4 * MIB,
    );
    assert_eq!(find_root(&primary, None).unwrap(), RootPlace::Partition(1));

    let (first, second) = (4096 * 512, 10240 * 512);
    let logical = |link: [u8; 16]| {
        file(
            &[
                (446, &slot(0x83, 2048, 2048)),
                (446 + 16, &slot(0x0f, 4096, 16384)),
                (510, &sign),
                (first + 446, &slot(0x82, 2048, 2048)),
                (first + 446 + 16, &link),
                (first + 510, &sign),
                (second + 446, &slot(0x83, 2048, 4096)),
                (second + 510, &sign),
                (second + 2048 * 512, &system),
            ],
            10 * MIB,
        )
    };
    let disk = logical(slot(0x05, 6144, 8192));
    assert_eq!(find_root(&disk, None).unwrap(), RootPlace::Partition(6));
    // A chain that leads to itself ends.
    check_nowhere(&logical(slot(0x05, 0, 8192)), None, &["no partition"]);
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
        let _ = find_root(&disk, None).unwrap();
        let _ = check_qcow2(&disk);
    }

    #[test]
    fn any_damage_of_a_file_system_is_looked_at_without_panic(
        hits in prop::collection::vec((0usize..200_000, any::<u8>()), 1..60)
    ) {
        let mut system = small_system();
        for (at, byte) in hits {
            // Half of them where the structures are.
            let at = if at % 2 == 0 { 1024 + at % 3072 } else { at };
            system[at] = byte;
        }
        system[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        let disk = gpt_disk(&[(2048, 8191)]);
        disk.write_all_at(&system, MIB).unwrap();
        let _ = find_root(&disk, None).unwrap();
    }
}

fn small_system() -> Vec<u8> {
    static SMALL: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    SMALL.get_or_init(|| ext("ext4", &SYSTEM, 2 * MIB)).clone()
}
