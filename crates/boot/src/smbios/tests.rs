//! The table as readers of it take it apart, and clones that get theirs.

use vm_memory::GuestMemoryMmap;

use super::*;

const UUID: [u8; 16] = [
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
];

fn facts(uuid: [u8; 16], ram_bytes: u64) -> MachineFacts {
    MachineFacts {
        uuid,
        vcpus: 4,
        ram_bytes,
    }
}

/// A structure as a reader of the table takes it apart.
struct Seen {
    kind: u8,
    formatted: Vec<u8>,
    texts: Vec<String>,
}

/// Walks the table as DSP0134 6.1.3 says.
fn walk(mut bytes: &[u8]) -> Vec<Seen> {
    let mut seen = vec![];
    while !bytes.is_empty() {
        let (formatted, rest) = bytes.split_at(bytes[1].into());
        let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
        let texts = rest[..end].split(|byte| *byte == 0);
        let texts = texts.filter(|text| !text.is_empty());
        seen.push(Seen {
            kind: formatted[0],
            formatted: formatted.to_vec(),
            texts: texts
                .map(|text| String::from_utf8(text.to_vec()).unwrap())
                .collect(),
        });
        bytes = &rest[end + 2..];
    }
    seen
}

#[test]
fn a_reader_finds_every_structure_with_its_length() {
    let seen = walk(&table(&facts(UUID, 512 * MIB)));
    let kinds: Vec<u8> = seen.iter().map(|structure| structure.kind).collect();
    assert_eq!(kinds, [0, 1, 3, 2, 4, 16, 17, 32, 127]);
    // Least lengths of version 3.0.
    let wanted = [24, 27, 22, 15, 48, 23, 40, 11, 4];
    for ((structure, bytes), handle) in seen.iter().zip(wanted).zip(0u16..) {
        assert_eq!(structure.formatted.len(), bytes, "type {}", structure.kind);
        assert_eq!(structure.formatted[2..4], handle.to_le_bytes());
    }
    let [_, system, ..] = &seen[..] else { panic!() };
    let uuid = [
        0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee,
        0xff,
    ];
    assert_eq!(system.formatted[8..24], uuid);
    assert_eq!(system.texts[0], VENDOR);
    assert_eq!(system.texts[3], "mitose-00112233445566778899aabbccddeeff");
    assert_eq!(seen[4].formatted[35..38], [4; 3]);
}

#[test]
fn memory_of_any_size_is_told() {
    let sizes = |ram_bytes| {
        let seen = walk(&table(&facts(UUID, ram_bytes)));
        let (array, device) = (&seen[5].formatted, &seen[6].formatted);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        (
            number(&array[7..11]),
            number(&array[15..23]),
            number(&device[12..14]),
            number(&device[28..32]),
        )
    };
    assert_eq!(sizes(128 * MIB), (128 << 10, 0, 128, 0));
    assert_eq!(sizes(512 << 30), (512 << 20, 0, 0x7fff, 512 << 10));
    let huge = 4u64 << 40;
    assert_eq!(sizes(huge), (0x8000_0000, huge, 0x7fff, 4 << 20));
}

#[test]
fn the_entry_point_names_the_table_and_adds_up() {
    let table = table(&facts(UUID, 64 * MIB));
    let entry = entry_point(&table);
    assert_eq!(entry.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
    assert_eq!(entry[12..16], (table.len() as u32).to_le_bytes());
    assert_eq!(entry[16..24], SMBIOS_TABLE.to_le_bytes());
}

#[test]
fn a_clone_gets_its_uuid_where_its_source_had_tables() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let read = || {
        let mut bytes = vec![0; TABLE_BYTES_MAX];
        memory
            .read_slice(&mut bytes, GuestAddress(SMBIOS_TABLE))
            .unwrap();
        bytes
    };
    let clone = facts([7; 16], 64 * MIB);
    assert!(!adopt_uuid(&memory, &clone).unwrap());
    assert!(read().iter().all(|byte| *byte == 0));
    let source = table(&facts(UUID, 64 * MIB));
    memory
        .write_slice(&source, GuestAddress(SMBIOS_TABLE))
        .unwrap();
    memory
        .write_slice(&entry_point(&source), GuestAddress(SMBIOS_START))
        .unwrap();
    assert!(adopt_uuid(&memory, &clone).unwrap());
    assert_eq!(read()[..source.len()], table(&clone));
    // An entry point that a guest has changed is its own.
    memory
        .write_slice(&[0], GuestAddress(SMBIOS_START))
        .unwrap();
    assert!(!adopt_uuid(&memory, &facts(UUID, 64 * MIB)).unwrap());
    assert_eq!(read()[..source.len()], table(&clone));
}
