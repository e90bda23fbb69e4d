//! Ranges of the description, and text forms of sizes and addresses.

use super::*;

fn spec() -> VmSpec {
    VmSpec {
        cpus: 1,
        memory_bytes: 128 << 20,
        cmdline: String::new(),
        entry: None,
        disks: vec![],
        nics: vec![],
        serial_ports: 1,
    }
}

#[test]
fn fields_out_of_range_are_named() {
    type Change = fn(&mut VmSpec);
    let cases: [(Change, &str); 8] = [
        (|s| s.cpus = 0, "cpus"),
        (|s| s.cpus = 9, "cpus"),
        (|s| s.memory_bytes = 0, "memory"),
        (|s| s.memory_bytes = 1 << 40, "memory"),
        (|s| s.memory_bytes = (64 << 20) + 4096, "memory"),
        (|s| s.cmdline = "x".repeat(MAX_CMDLINE_BYTES + 1), "cmdline"),
        (|s| s.cmdline = "a\0b".into(), "cmdline"),
        (
            |s| {
                s.disks = vec![DiskSpec {
                    serial: "two words".into(),
                    read_only: false,
                }]
            },
            "disk serial",
        ),
    ];
    assert_eq!(spec().validate(), Ok(()));
    for (change, field) in cases {
        let mut changed = spec();
        change(&mut changed);
        let error = changed.validate().expect_err(field).to_string();
        assert!(error.starts_with(field), "{error}");
    }
}

#[test]
fn sizes_read_as_powers_of_1024() {
    let cases = [
        ("0", 0),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("64k", 65536),
    ];
    for (text, bytes) in cases {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for text in ["", "G", "-1", "1X", "99999999999999999999", "1e3M", "1..5G"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
    for (bytes, text) in [
        (0, "0"),
        (1023, "1023"),
        (1 << 40, "1 TiB"),
        (1 << 60, "1024 PiB"),
        (3 << 29, "1.5 GiB"),
        ((1 << 30) + 1, "1073741825"),
        (u64::MAX, "18446744073709551615"),
    ] {
        assert_eq!(format_exact(bytes), text);
    }
    assert_eq!(format_size(0), "0 B");
    assert_eq!(format_size(3 << 29), "1.5 GiB");
}

#[test]
fn addresses_read_back_as_written() {
    let mac: MacAddr = "52:54:00:ab:CD:ef".parse().expect("valid");
    assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
    for text in [
        "",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:ef:01",
        "5:54:00:ab:cd:ef",
        "gg:54:00:ab:cd:ef",
    ] {
        assert!(text.parse::<MacAddr>().is_err(), "{text}");
    }
    assert!(MacAddr::local([0xff; 6]).is_unicast());
}
