//! Archives that are whole come back as they were; all others are refused by name.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;
use vm_spec::{DiskSpec, VmSpec};

use crate::{
    ArchiveError, Blob, Changes, Content, FORMAT, Kind, Layer, LayerFormat, Machine, Manifest,
    Memory, MemoryChanges, Part, Point, Port, Reader, digest, survey, write,
};

/// Files of an archive and what it says of them.
struct Sample {
    manifest: Manifest,
    files: Vec<(Part, File)>,
}

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn blob(file: &File) -> Blob {
    digest("a file", file, &mut go_on).unwrap()
}

/// A machine with one disk of two layers and 16 MiB of RAM, most of it holes.
fn sample() -> Sample {
    let kernel = file_of(b"kernel");
    let lower = file_of(&[7; 1024]);
    let upper = file_of(b"an overlay");
    let ram = tempfile::tempfile().unwrap();
    ram.set_len(16 << 20).unwrap();
    ram.write_all_at(b"here", 4096).unwrap();
    ram.write_all_at(b"there", (9 << 20) + 5).unwrap();
    let checkpoint = file_of(b"checkpoint");
    let layer = |id: &str, parent: Option<&str>, format, file| Layer {
        id: id.into(),
        parent: parent.map(str::to_owned),
        format,
        disk_bytes: 1024,
        file: blob(file),
        included: true,
    };
    let manifest = Manifest {
        format: 1,
        id: "0123456789abcdef".repeat(2),
        since: None,
        boot_left_out: false,
        kind: Kind::Vm,
        created_at_ms: 1,
        machine: Machine {
            name: "web".into(),
            engine: "kvm".into(),
            spec: VmSpec {
                cpus: 1,
                memory_bytes: 16 << 20,
                cmdline: "quiet".into(),
                entry: None,
                disks: vec![DiskSpec {
                    serial: "d0".into(),
                    read_only: false,
                }],
                nics: Vec::new(),
                serial_ports: 1,
            },
            image: None,
            kernel: blob(&kernel),
            initrd: None,
            disks: vec![Some("top".into())],
            serial: vec![Port::Log],
            uuid: "01234567-89ab-4cde-8f01-23456789abcd".into(),
            bios_uuid: None,
            machine_id: "0".repeat(32),
            generation: 0,
            memory_limit_bytes: None,
            has_agent: false,
            ssh_host_key_kinds: Vec::new(),
            has_host_keys: false,
            annotation: "mine".into(),
            attributes: [("a".to_owned(), "b".to_owned())].into(),
        },
        layers: vec![
            layer("low", None, LayerFormat::Raw, &lower),
            layer("top", Some("low"), LayerFormat::Qcow2, &upper),
        ],
        memory: Some(Memory {
            ram: blob(&ram),
            changes: None,
            checkpoint: blob(&checkpoint),
        }),
        point: None,
    };
    Sample {
        manifest,
        files: vec![
            (Part::Kernel, kernel),
            (Part::Layer(0), lower),
            (Part::Layer(1), upper),
            (Part::Ram, ram),
            (Part::Checkpoint, checkpoint),
        ],
    }
}

impl Sample {
    fn open(&self, part: Part) -> std::io::Result<File> {
        let found = self.files.iter().find(|(p, _)| *p == part).unwrap();
        let mut file = found.1.try_clone()?;
        file.rewind()?;
        Ok(file)
    }

    fn archive(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut open = |part| self.open(part).map(Content::File);
        write(&mut bytes, &self.manifest, &mut open, &mut go_on).unwrap();
        bytes
    }

    fn content(&self) -> Vec<Vec<u8>> {
        let parts = self.manifest.parts();
        parts
            .into_iter()
            .map(|(part, _)| all_of(self.open(part).unwrap()))
            .collect()
    }
}

fn all_of(mut file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Reads an archive whole; returns its manifest and the content of its parts.
fn take_in(bytes: &[u8]) -> Result<(Manifest, Vec<File>), ArchiveError> {
    let mut file = file_of(bytes);
    file.rewind().unwrap();
    let reader = Reader::open(file)?;
    let mut files = Vec::new();
    let mut place = |_| {
        let file = tempfile::tempfile()?;
        files.push(file.try_clone()?);
        Ok(file)
    };
    reader.extract(&mut place, &mut go_on)?;
    Ok((reader.manifest().clone(), files))
}

#[test]
fn an_archive_comes_back_as_it_was_with_its_holes() {
    let sample = sample();
    let bytes = sample.archive();
    assert!(bytes.len() < 64 << 10, "holes are written: {}", bytes.len());
    let (manifest, files) = take_in(&bytes).unwrap();
    assert_eq!(manifest, sample.manifest);
    assert!(files[3].metadata().unwrap().blocks() * 512 < 64 << 10);
    let content: Vec<_> = files.into_iter().map(all_of).collect();
    assert_eq!(content, sample.content());
}

#[test]
fn tar_lists_and_unpacks_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let sample = sample();
    std::fs::write(&path, sample.archive()).unwrap();
    let unpacked = std::process::Command::new("tar")
        .args(["-xf", "a.tar"])
        .current_dir(dir.path())
        .status()
        .unwrap();
    assert!(unpacked.success());
    let ram = std::fs::read(dir.path().join("memory/ram")).unwrap();
    assert_eq!(ram, sample.content()[3]);
    let summed = std::process::Command::new("sha256sum")
        .arg("manifest.json")
        .current_dir(dir.path())
        .output()
        .unwrap();
    let digest = std::fs::read_to_string(dir.path().join("manifest.sha256")).unwrap();
    assert!(String::from_utf8_lossy(&summed.stdout).starts_with(digest.trim()));
}

#[test]
fn digests_of_holes_are_those_of_zeros() {
    let holes = tempfile::tempfile().unwrap();
    holes.set_len((3 << 20) + 17).unwrap();
    holes.write_all_at(b"x", 2 << 20).unwrap();
    let mut zeros = vec![0; (3 << 20) + 17];
    zeros[2 << 20] = b'x';
    assert_eq!(blob(&holes), blob(&file_of(&zeros)));
}

#[test]
fn every_cut_is_found() {
    let bytes = sample().archive();
    // Two blocks of zeros end a tar file: what is cut there was nothing.
    for length in (0..bytes.len() - 1024).step_by(331) {
        let refused = take_in(&bytes[..length]).unwrap_err();
        let message = chain(&refused);
        assert!(!message.contains('\n'), "{message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_flipped_bit_is_found_or_changes_nothing(place in any::<prop::sample::Index>(), bit in 0u8..8) {
        let sample = sample();
        let mut bytes = sample.archive();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        // Bytes between members belong to none of them.
        if let Ok((manifest, files)) = take_in(&bytes) {
            prop_assert_eq!(manifest, sample.manifest.clone());
            let content: Vec<_> = files.into_iter().map(all_of).collect();
            prop_assert!(content == sample.content(), "byte {} of {}", place, bytes.len());
        }
    }

    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        prop_assert!(take_in(&bytes).is_err());
    }
}

/// An archive of the given members, with a manifest that says what the sample's does.
fn hostile(change: impl FnOnce(&mut Vec<(String, Vec<u8>, tar::EntryType)>)) -> Vec<u8> {
    let sample = sample();
    let text = serde_json::to_vec(&sample.manifest).unwrap();
    let digest = format!("{}\n", crate::content::sha256(&text)).into_bytes();
    let plain = tar::EntryType::Regular;
    let mut members = vec![
        ("manifest.json".to_owned(), text, plain),
        ("manifest.sha256".to_owned(), digest, plain),
    ];
    for ((part, _), content) in sample.manifest.parts().iter().zip(sample.content()) {
        members.push((sample.manifest.name_of(*part), content, plain));
    }
    change(&mut members);
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content, kind) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_entry_type(kind);
        // Written as it is: the package refuses such names itself.
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        if kind == tar::EntryType::Symlink {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        builder.append(&header, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn check(expected: &str, change: impl FnOnce(&mut Vec<(String, Vec<u8>, tar::EntryType)>)) {
    let refused = take_in(&hostile(change)).expect_err(expected);
    let message = chain(&refused);
    assert!(
        message.contains(expected),
        "{message:?} has no {expected:?}"
    );
}

#[test]
fn hostile_archives_are_refused_by_name() {
    assert!(take_in(&hostile(|_| ())).is_ok());
    check("\"../../etc/passwd\"", |m| {
        m[3].0 = "../../etc/passwd".into()
    });
    check("\"/etc/passwd\"", |m| m[3].0 = "/etc/passwd".into());
    check("layers/0.raw is a link", |m| {
        m[3].2 = tar::EntryType::Symlink;
        m[3].1.clear();
    });
    check("layers/0.raw is a link", |m| m[3].2 = tar::EntryType::Block);
    check("where layers/1.qcow2 belongs", |m| {
        m.insert(4, m[3].clone())
    });
    check("where the end belongs", |m| m.push(m[3].clone()));
    check("layers/0.raw has 1025 bytes", |m| m[3].1.push(0));
    check("layers/0.raw is damaged", |m| m[3].1[5] ^= 1);
    check("memory/state is missing", |m| drop(m.pop()));
    check("manifest.json is damaged", |m| m[0].1.push(b' '));
    check("where manifest.json belongs", |m| m.swap(0, 1));
    check("manifest.json has 5000000 bytes", |m| {
        m[0].1 = vec![b' '; 5_000_000]
    });
}

fn check_manifest(expected: &str, change: impl FnOnce(&mut Manifest)) {
    let mut manifest = sample().manifest;
    change(&mut manifest);
    let message = manifest.check().expect_err(expected).to_string();
    assert!(
        message.contains(expected),
        "{message:?} has no {expected:?}"
    );
}

#[test]
fn manifests_that_cannot_be_are_refused_by_field() {
    check_manifest("format: 3", |m| m.format = 3);
    check_manifest("format: 0", |m| m.format = 0);
    check_manifest("id: \"x\"", |m| m.id = "x".into());
    check_manifest("spec: cpus: 0", |m| m.machine.spec.cpus = 0);
    check_manifest("memory/ram cannot have", |m| {
        m.memory.as_mut().unwrap().ram.bytes = 1 << 40;
    });
    check_manifest("memory/state cannot have", |m| {
        m.memory.as_mut().unwrap().checkpoint.bytes = 1 << 40;
    });
    check_manifest("does not come before it", |m| m.layers.swap(0, 1));
    check_manifest("does not come before it", |m| {
        m.layers[1].parent = Some("top".into());
    });
    check_manifest("low is there twice", |m| {
        let again = m.layers[0].clone();
        m.layers.push(again);
    });
    check_manifest("no layer \"nowhere\"", |m| {
        m.machine.disks[0] = Some("nowhere".into());
    });
    check_manifest("no disk uses other", |m| {
        let mut other = m.layers[0].clone();
        other.id = "other".into();
        m.layers.push(other);
    });
    check_manifest("is raw and has a parent", |m| {
        m.layers[1].format = LayerFormat::Raw
    });
    check_manifest("an impossible disk size", |m| m.layers[1].disk_bytes = 1000);
    check_manifest("layers/0.raw cannot have", |m| {
        m.layers[0].file.bytes = 1 << 50
    });
    check_manifest("boot/kernel cannot have", |m| {
        m.machine.kernel.bytes = 1 << 50
    });
    check_manifest("no name of letters", |m| m.machine.name = "../x".into());
    check_manifest("no name of letters", |m| m.layers[0].id = "a/b".into());
    check_manifest("uuid: ", |m| m.machine.uuid = "0".repeat(32));
    check_manifest("engine: \"magic\"", |m| m.machine.engine = "magic".into());
    check_manifest("disks: 0 of 1", |m| m.machine.disks.clear());
    check_manifest("serial: 0 of 1", |m| m.machine.serial.clear());
    check_manifest("annotation: more than", |m| {
        m.machine.annotation = "x".repeat(1 << 20)
    });
    check_manifest("sha256: \"zz\"", |m| m.machine.kernel.sha256 = "zz".into());
}

/// The sample a little later: what changed of its memory, and the RAM that it starts from.
fn later() -> (Sample, Changes, File) {
    let mut sample = sample();
    let base = sample.open(Part::Ram).unwrap();
    let (table, next) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let before = survey(&base, Some(&table), None, &mut go_on).unwrap();
    let ram = file_of(&all_of(base.try_clone().unwrap()));
    ram.write_all_at(b"changed", 7 << 20).unwrap();
    ram.write_all_at(&[0; 4096], 9 << 20).unwrap();
    let told = survey(&ram, Some(&next), Some(&table), &mut go_on).unwrap();
    let changes = told.changes.unwrap();
    let file = changes.digest(&ram, &mut go_on).unwrap();
    let memory = sample.manifest.memory.as_mut().unwrap();
    memory.ram = told.ram;
    memory.changes = Some(MemoryChanges {
        from_sha256: before.ram.sha256,
        file,
    });
    sample.manifest.since = Some("a".repeat(32));
    sample.manifest.format = FORMAT;
    sample.manifest.boot_left_out = true;
    sample.files.retain(|(part, _)| *part != Part::Ram);
    sample.files.push((Part::Changes, ram));
    (sample, changes, base)
}

fn archive_of_changes(sample: &Sample, changes: &Changes) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut open = |part| {
        let file = sample.open(part)?;
        Ok(match part {
            Part::Changes => Content::Bytes(Box::new(changes.content(file))),
            _ => Content::File(file),
        })
    };
    write(&mut bytes, &sample.manifest, &mut open, &mut go_on).unwrap();
    bytes
}

/// The RAM that an archive makes of `base`.
fn changed(bytes: &[u8], base: &File) -> Result<Vec<u8>, ArchiveError> {
    let ram = file_of(&all_of(base.try_clone().unwrap()));
    let reader = Reader::open(file_of(bytes))?;
    let mut place = |part| match part {
        Part::Changes => Ok(Some(ram.try_clone()?)),
        Part::Layer(0) => Ok(None),
        _ => tempfile::tempfile().map(Some),
    };
    reader.extract_some(&mut place, &mut go_on)?;
    Ok(all_of(ram))
}

#[test]
fn changes_of_memory_make_the_ram_that_was() {
    let (sample, changes, base) = later();
    let bytes = archive_of_changes(&sample, &changes);
    let wanted = all_of(sample.open(Part::Changes).unwrap());
    assert!(changed(&bytes, &base).unwrap() == wanted);
    assert!(wanted != all_of(base.try_clone().unwrap()));
    for length in (0..bytes.len() - 1024).step_by(997) {
        assert!(changed(&bytes[..length], &base).is_err(), "{length}");
    }
    let layer = sample.manifest.layers[0].file.bytes as usize;
    assert!(layer < bytes.len());
    for at in (0..bytes.len()).step_by(499) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 64;
        // What is between members, or was passed over, changes nothing.
        if let Ok(ram) = changed(&bytes, &base) {
            assert!(ram == wanted, "byte {at}");
        }
    }
}

#[test]
fn manifests_of_changes_and_fork_points_are_checked_too() {
    let manifest = later().0.manifest;
    manifest.check().unwrap();
    let check = |expected: &str, change: &dyn Fn(&mut Manifest)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        let message = changed.check().expect_err(expected).to_string();
        assert!(message.contains(expected), "{message:?}");
    };
    check("format: 1 does not know", &|m| m.format = 1);
    check("since: changes of memory", &|m| {
        (m.boot_left_out, m.since) = (false, None);
    });
    check("since: boot files", &|m| {
        (m.boot_left_out, m.since, m.memory) = (true, None, None);
    });
    check("boot/kernel cannot have", &|m| {
        (m.boot_left_out, m.machine.kernel.bytes) = (true, 1 << 50);
    });
    check("format: 1 does not know", &|m| {
        (m.format, m.boot_left_out, m.memory) = (1, true, None);
    });
    check("memory/ram cannot have", &|m| {
        m.memory.as_mut().unwrap().ram.bytes -= 4096;
    });
    check("memory/changes cannot have", &|m| {
        let memory = m.memory.as_mut().unwrap();
        memory.changes.as_mut().unwrap().file.bytes = 1 << 40;
    });
    check("from_sha256: \"x\"", &|m| {
        let memory = m.memory.as_mut().unwrap();
        memory.changes.as_mut().unwrap().from_sha256 = "x".into();
    });
    let point = |name: &str| {
        Some(Point {
            name: name.into(),
            quiesced: true,
        })
    };
    check("point: it is no fork point", &|m| m.point = point("p"));
    check("point: \"../p\"", &|m| m.point = point("../p"));
    check("point: it is no fork point", &|m| {
        (m.kind, m.point, m.memory) = (Kind::ForkPoint, point("p"), None);
    });
    let mut document = serde_json::to_value(&manifest).unwrap();
    document["format"] = 9.into();
    document["news"] = true.into();
    let text = serde_json::to_vec(&document).unwrap();
    let digest = format!("{}\n", crate::content::sha256(&text)).into_bytes();
    let refused = take_in(&hostile(|m| (m[0].1, m[1].1) = (text, digest))).unwrap_err();
    assert!(refused.to_string().contains("format: 9"), "{refused}");
}

#[test]
fn unknown_members_of_a_manifest_are_refused() {
    let mut document = serde_json::to_value(sample().manifest).unwrap();
    document["machine"]["hook"] = "rm".into();
    let error = serde_json::from_value::<Manifest>(document).unwrap_err();
    assert!(error.to_string().contains("hook"), "{error}");
}

#[test]
fn writing_and_reading_end_when_the_caller_wants() {
    let sample = sample();
    let mut stop = |_| ControlFlow::Break(());
    let mut open = |part| sample.open(part).map(Content::File);
    let ended = write(&mut Vec::new(), &sample.manifest, &mut open, &mut stop);
    assert!(matches!(ended, Err(ArchiveError::Cancelled)));
    let mut file = file_of(&sample.archive());
    file.rewind().unwrap();
    let reader = Reader::open(file).unwrap();
    let ended = reader.extract(&mut |_| tempfile::tempfile(), &mut stop);
    assert!(matches!(ended, Err(ArchiveError::Cancelled)));
}

/// Header of a name of a terabyte, which is a hole.
fn endless_name() -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_path("././@LongLink").unwrap();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    header
}

#[test]
fn names_without_end_are_not_kept_in_memory() {
    let header = endless_name();
    let file = file_of(header.as_bytes());
    file.set_len(1 << 40).unwrap();
    let error = Reader::open(file).unwrap_err();
    assert!(
        chain(&error).contains("longer than any"),
        "{}",
        chain(&error)
    );
}

#[test]
fn a_member_that_says_it_is_large_has_no_longer_a_name() {
    let mut manifest = sample().manifest;
    manifest.layers[0].disk_bytes = 1 << 45;
    manifest.layers[0].file.bytes = 1 << 45;
    let text = serde_json::to_vec(&manifest).unwrap();
    let mut bytes = hostile(|members| {
        let layer = members.iter().position(|(name, ..)| name == "layers/0.raw");
        members.truncate(layer.unwrap());
        members[1].1 = format!("{}\n", crate::content::sha256(&text)).into_bytes();
        members[0].1 = text;
    });
    // Two blocks of zeros are the end.
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(endless_name().as_bytes());
    let file = file_of(&bytes);
    file.set_len(1 << 41).unwrap();
    let reader = Reader::open(file).unwrap();
    let mut place = |_| tempfile::tempfile();
    let error = reader.extract(&mut place, &mut go_on).unwrap_err();
    assert!(
        chain(&error).contains("longer than any"),
        "{}",
        chain(&error)
    );
}

#[test]
fn another_file_is_refused_without_its_content() {
    let lines = b"root:x:0:0:root:/root:/bin/bash\n".repeat(100);
    for content in [&lines[..], b"", b"short"] {
        let error = Reader::open(file_of(content)).unwrap_err();
        assert!(matches!(error, ArchiveError::Foreign), "{error}");
    }
}
