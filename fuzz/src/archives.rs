//! Archives that somebody else made, in memory files.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use archives::{
    Blob, Content, FORMAT, Kind, Machine, Manifest, Memory, MemoryChanges, Part, Port, Reader,
    digest, write,
};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_spec::VmSpec;

const RAM_BYTES: u64 = vm_spec::MIN_MEMORY_BYTES;
/// Bytes after which a caller has enough of an archive.
const ENOUGH_BYTES: u64 = 64 << 20;

fn memory_file() -> io::Result<File> {
    Ok(File::from(memfd_create("archive", MemfdFlags::CLOEXEC)?))
}

fn file_of(bytes: &[u8]) -> File {
    let file = memory_file().expect("a memory file");
    file.write_all_at(bytes, 0).expect("memory takes bytes");
    file
}

/// Tells an archive to end after a while: one of a few bytes may have much of nothing.
fn patience() -> impl FnMut(u64) -> ControlFlow<()> {
    let mut done = 0;
    move |bytes| {
        done += bytes;
        match done < ENOUGH_BYTES {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }
}

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Bytes as an archive, and as the changes of memory in one that is whole.
pub fn archive(bytes: &[u8]) {
    if let Ok(reader) = Reader::open(file_of(bytes)) {
        let _ = reader.extract(&mut |_| memory_file(), &mut patience());
        let mut some = |part| match part {
            Part::Checkpoint => memory_file().map(Some),
            _ => Ok(None),
        };
        let _ = reader.extract_some(&mut some, &mut patience());
    }
    let reader = Reader::open(file_of(&archive_of(bytes))).expect("its manifest is right");
    let ram = memory_file().expect("a memory file");
    ram.set_len(RAM_BYTES).expect("memory has room");
    let mut place = |part| match part {
        Part::Changes => ram.try_clone(),
        _ => memory_file(),
    };
    let _ = reader.extract(&mut place, &mut go_on);
    let length = ram.metadata().expect("a file").len();
    assert_eq!(length, RAM_BYTES, "changes stay within the RAM");
}

/// An archive with these bytes as its changes of memory.
pub fn archive_of(changes: &[u8]) -> Vec<u8> {
    let blob = |bytes: &[u8]| -> Blob {
        digest("a file", &file_of(bytes), &mut go_on).expect("memory is read")
    };
    let changes = &changes[..changes.len().min(RAM_BYTES as usize)];
    let manifest = Manifest {
        format: FORMAT,
        id: "0".repeat(32),
        since: Some("1".repeat(32)),
        boot_left_out: false,
        kind: Kind::Vm,
        created_at_ms: 0,
        machine: machine(blob(b"kernel")),
        layers: Vec::new(),
        memory: Some(Memory {
            ram: Blob {
                sha256: "2".repeat(64),
                bytes: RAM_BYTES,
            },
            changes: Some(MemoryChanges {
                from_sha256: "3".repeat(64),
                file: blob(changes),
            }),
            checkpoint: blob(b"checkpoint"),
        }),
        point: None,
    };
    let mut open = |part| {
        let bytes: &[u8] = match part {
            Part::Kernel => b"kernel",
            Part::Changes => changes,
            _ => b"checkpoint",
        };
        Ok(Content::File(file_of(bytes)))
    };
    let mut archive = Vec::new();
    write(&mut archive, &manifest, &mut open, &mut go_on).expect("memory takes an archive");
    archive
}

fn machine(kernel: Blob) -> Machine {
    Machine {
        name: "vm".into(),
        engine: "soft".into(),
        spec: VmSpec {
            cpus: 1,
            memory_bytes: RAM_BYTES,
            cmdline: String::new(),
            entry: None,
            disks: Vec::new(),
            nics: Vec::new(),
            serial_ports: 1,
        },
        image: None,
        kernel,
        initrd: None,
        disks: Vec::new(),
        serial: vec![Port::Log],
        uuid: "01234567-89ab-4cde-8f01-23456789abcd".into(),
        bios_uuid: None,
        machine_id: "4".repeat(32),
        generation: 0,
        memory_limit_bytes: None,
        has_agent: false,
        ssh_host_key_kinds: Vec::new(),
        has_host_keys: false,
        annotation: String::new(),
        attributes: Default::default(),
    }
}
