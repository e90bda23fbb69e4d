//! ACPI tables: sums and pointers by hand, the whole by ACPICA's compiler.

use std::process::Command;

use super::*;
use crate::elf::{u32_at, u64_at};

fn platform() -> Platform {
    Platform {
        ram_bytes: 512 << 20,
        vcpus: 4,
        serial_ports: [true, false, true, true],
        virtio_slots: vec![0, 7, 8, 13],
        generation_id: [7; 16],
        uuid: [0; 16],
    }
}

fn largest() -> Platform {
    Platform {
        vcpus: layout::VCPUS_MAX,
        serial_ports: [true; 4],
        virtio_slots: (0..layout::VIRTIO_SLOTS).collect(),
        ..platform()
    }
}

/// Returns the table at a guest address.
fn table_at(blob: &[u8], address: u64) -> &[u8] {
    let start = (address - ACPI_START) as usize;
    let bytes = u32_at(blob, start + 4) as usize;
    &blob[start..start + bytes]
}

fn all_tables(blob: &[u8]) -> Vec<&[u8]> {
    let xsdt = table_at(blob, u64_at(blob, 24));
    let mut tables: Vec<&[u8]> = xsdt[HEADER_BYTES..]
        .chunks(8)
        .map(|entry| table_at(blob, u64_at(entry, 0)))
        .collect();
    let fadt = tables
        .iter()
        .find(|table| table.starts_with(b"FACP"))
        .unwrap();
    tables.push(table_at(blob, u64_at(fadt, FADT_X_DSDT)));
    tables.push(xsdt);
    tables
}

#[test]
fn every_sum_is_zero_and_every_pointer_hits() {
    for platform in [platform(), largest()] {
        let blob = tables(&platform);
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(&blob[..8], b"RSD PTR ");
        assert_eq!((sum(&blob[..20]), sum(&blob[..36])), (0, 0));
        let found = all_tables(&blob);
        let signatures: Vec<&[u8]> = found.iter().map(|table| &table[..4]).collect();
        assert_eq!(signatures, [&b"FACP"[..], b"APIC", b"DSDT", b"XSDT"]);
        for table in found {
            assert_eq!(sum(table), 0, "{:?}", &table[..4]);
        }
    }
}

#[test]
fn madt_lists_each_cpu_once() {
    let blob = tables(&largest());
    let madt = all_tables(&blob)[1];
    let mut rest = &madt[HEADER_BYTES + 8..];
    let mut ids = Vec::new();
    while !rest.is_empty() {
        if rest[0] == MADT_LOCAL_APIC {
            assert_eq!((rest[2], u32_at(rest, 4)), (rest[3], 1));
            ids.push(rest[3]);
        }
        rest = &rest[usize::from(rest[1])..];
    }
    assert_eq!(ids, (0..layout::VCPUS_MAX).collect::<Vec<_>>());
}

/// Disassembles each table and compiles the DSDT again; ACPICA's verdict counts.
#[test]
fn acpica_understands_every_table() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("skipped: iasl (package acpica-tools) is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let blob = tables(&largest());
    for table in all_tables(&blob) {
        let name = String::from_utf8(table[..4].to_vec()).unwrap();
        let path = directory.path().join(format!("{name}.dat"));
        std::fs::write(&path, table).unwrap();
        let iasl = |arguments: &[&str], file: &std::path::Path| {
            let output = Command::new("iasl")
                .args(arguments)
                .arg(file)
                .output()
                .unwrap();
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(output.status.success(), "{name}: {text}");
            for word in ["Invalid", "exceeds", "Unknown", "incorrect", "Error"] {
                let bad = text.lines().find(|line| line.contains(word));
                assert!(
                    bad.is_none_or(|line| line.contains("0 Errors")),
                    "{name}: {text}"
                );
            }
            text
        };
        iasl(&["-d"], &path);
        let source = path.with_extension("dsl");
        let text = std::fs::read_to_string(&source).unwrap();
        if name == "DSDT" {
            // Kernels match the generation id by a name without the hexadecimal suffix that
            // the compiler wants, so it gets a regular one here.
            std::fs::write(&source, text.replace("VMGENCTR", "VMGE0001")).unwrap();
            let verdict = iasl(&[], &source);
            assert!(verdict.contains("0 Errors, 0 Warnings"), "{verdict}");
            for part in [
                "LNRO0005",
                "ACPI0013",
                "PNP0501",
                "VMGENCTR",
                "Notify (PWRB, 0x80)",
            ] {
                assert!(text.contains(part), "{part} is missing:\n{text}");
            }
        }
    }
}
