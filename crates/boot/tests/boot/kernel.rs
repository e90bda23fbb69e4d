//! Kernel files: what is recognised, how it is entered, and that damaged ones are refused.

use crate::kernel_files::{Segment, bzimage, elf, gzip, lz4, note, vmlinux, zstd};
use boot::{Kernel, KernelError, KernelKind, PayloadError, extract_vmlinux};
use proptest::prelude::*;

fn parse(file: &[u8]) -> Result<Kernel, KernelError> {
    Kernel::from_bytes(file.to_vec())
}

fn check(file: &[u8], kind: KernelKind, entry: u64) {
    let kernel = parse(file).unwrap();
    assert_eq!((kernel.kind(), kernel.entry()), (kind, entry));
}

fn refused(file: &[u8], text: &str) {
    let error = parse(file).unwrap_err();
    assert!(error.to_string().contains(text), "{error}");
}

fn pvh_note(entry: u32) -> Vec<u8> {
    note(b"Xen\0", 18, &entry.to_le_bytes())
}

#[test]
fn each_kind_of_elf_is_entered_its_own_way() {
    let code = Segment::new(0x10_0000, &[0xf4; 64]);
    check(
        &elf(0x10_0010, std::slice::from_ref(&code), &[]),
        KernelKind::Elf,
        0x10_0010,
    );
    let with_note = elf(0x10_0010, std::slice::from_ref(&code), &pvh_note(0x10_0020));
    check(&with_note, KernelKind::Pvh, 0x10_0020);
    check(&vmlinux(b"code"), KernelKind::Linux, 0x100_0000);

    let linux_notes = [pvh_note(0x100_0040), note(b"Xen\0", 6, b"linux\0")].concat();
    check(
        &elf(0x10_0000, std::slice::from_ref(&code), &linux_notes),
        KernelKind::Linux,
        0x10_0000,
    );
    let high = Segment {
        virtual_start: 0xffff_ffff_8100_0000,
        ..Segment::new(0x100_0000, b"...LLinux version 4.19.0 (gcc)...")
    };
    check(
        &elf(0x100_0000, std::slice::from_ref(&high), &[]),
        KernelKind::Linux,
        0x100_0000,
    );
    check(
        &elf(0xffff_ffff_8100_0004, &[high], &[]),
        KernelKind::Linux,
        0x100_0004,
    );
    let low = Segment::new(0x10_0000, b"Linux version 4.19.0 is emulated");
    check(&elf(0x10_0000, &[low], &[]), KernelKind::Elf, 0x10_0000);
}

#[test]
fn bad_elf_fields_are_named() {
    let code = Segment::new(0x10_0000, &[0xf4; 64]);
    let good = elf(0x10_0000, std::slice::from_ref(&code), &[]);
    let changed = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        bad
    };
    refused(b"#!/bin/sh", "neither a bzImage nor an ELF");
    refused(&[], "neither a bzImage nor an ELF");
    refused(&good[..40], "cut off");
    refused(&good[..100], "e_phoff");
    refused(&good[..good.len() - 1], "p_filesz");
    refused(&changed(4, &[1]), "EI_CLASS");
    refused(&changed(5, &[2]), "EI_DATA");
    refused(&changed(16, &[1]), "e_type");
    refused(&changed(18, &[183]), "e_machine");
    refused(&changed(24, &[0; 8]), "e_entry");
    refused(&changed(54, &[32]), "e_phentsize");
    refused(&changed(56, &[0]), "e_phnum");
    refused(&changed(56, &[0xff, 0xff]), "e_phnum");
    refused(&changed(64, &[2]), "no segment");
    refused(&changed(64 + 40, &[1, 0]), "p_memsz");
    refused(&changed(64 + 24, &[0xff; 8]), "p_paddr");
    let twice = elf(
        0x10_0000,
        &[code.clone(), Segment::new(0x10_003f, &[1])],
        &[],
    );
    refused(&twice, "overlap");
}

#[test]
fn bzimage_is_extracted_from_every_known_compression() {
    let content: Vec<u8> = (0..100_000u32)
        .flat_map(|n| (n / 7).to_le_bytes())
        .collect();
    let vmlinux = vmlinux(&content);
    for payload in [
        gzip(&vmlinux),
        lz4(&vmlinux),
        zstd(&vmlinux),
        vmlinux.clone(),
    ] {
        let file = bzimage(&payload);
        assert_eq!(extract_vmlinux(&file).unwrap(), vmlinux);
        check(&file, KernelKind::Linux, 0x100_0000);
    }
    assert_eq!(extract_vmlinux(&vmlinux).unwrap(), vmlinux);
}

#[test]
fn unknown_compression_leaves_extraction_to_the_kernel() {
    let file = bzimage(b"\xfd7zXZ\0 some xz stream");
    check(&file, KernelKind::Linux, 0x100_0200);
    assert!(matches!(
        extract_vmlinux(&file),
        Err(KernelError::Payload(
            PayloadError::UnknownCompression { .. }
        ))
    ));
}

#[test]
fn a_cut_file_is_told_where_its_program_headers_end() {
    let file = elf(0x10_0000, &[Segment::new(0x10_0000, &[0xf4])], &[]);
    let KernelError::Truncated { needed, bytes, .. } = parse(&file[..0x64]).unwrap_err() else {
        unreachable!("another error");
    };
    assert_eq!((needed, bytes), (64 + 56, 0x64));
}

#[test]
fn bad_bzimage_fields_are_named() {
    let good = bzimage(&gzip(&vmlinux(b"code")));
    let changed = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        bad
    };
    refused(&good[..0x280], "setup header");
    refused(&good[..good.len() - 1], "payload_length");
    refused(&changed(0x206, &[0x0b, 2]), "version");
    refused(&changed(0x211, &[0]), "loadflags");
    refused(&changed(0x236, &[0]), "xloadflags");
    refused(&changed(0x248, &[0xff; 4]), "payload_length");
}

#[test]
fn lengths_a_payload_declares_are_bounds() {
    let vmlinux = vmlinux(&[0x90; 10_000]);
    for payload in [gzip(&vmlinux), lz4(&vmlinux), zstd(&vmlinux)] {
        for declared in [
            0u32,
            1,
            vmlinux.len() as u32 - 1,
            vmlinux.len() as u32 + 1,
            u32::MAX,
        ] {
            let mut bad = payload.clone();
            let at = bad.len() - 4;
            bad[at..].copy_from_slice(&declared.to_le_bytes());
            assert!(
                matches!(parse(&bzimage(&bad)), Err(KernelError::Payload(_))),
                "{declared}"
            );
        }
        for cut in 0..payload.len() {
            assert!(
                parse(&bzimage(&payload[..cut])).is_err() || cut < 4,
                "{cut}"
            );
        }
    }
}

fn samples() -> Vec<Vec<u8>> {
    let vmlinux = vmlinux(b"a kernel of a few bytes, a kernel of a few bytes");
    let code = Segment::new(0x10_0000, &[0xf4; 64]);
    vec![
        elf(0x10_0000, &[code], &pvh_note(0x10_0000)),
        bzimage(&gzip(&vmlinux)),
        bzimage(&lz4(&vmlinux)),
        bzimage(&zstd(&vmlinux)),
        vmlinux,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_files_never_panic(
        sample in 0usize..5,
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut file = samples().swap_remove(sample);
        for (at, value) in flips {
            let at = at.index(file.len());
            file[at] = value;
        }
        let cut = cut.index(file.len() + 1);
        let _ = parse(&file);
        let _ = parse(&file[..cut]);
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = parse(&bytes);
        if bytes.len() > 4 {
            bytes[..4].copy_from_slice(b"\x7fELF");
            let _ = parse(&bytes);
        }
    }
}
