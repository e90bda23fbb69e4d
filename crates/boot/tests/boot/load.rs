//! Loading into guest RAM: what lands where, and which requests are refused.

use crate::kernel_files::{Segment, bzimage, elf, gzip, note, vmlinux};
use boot::layout::{self, GIB, MIB};
use boot::{BootError, BootRequest, EntryMode, Initrd, Kernel, Platform, load};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

fn platform(ram_bytes: u64) -> Platform {
    Platform {
        ram_bytes,
        vcpus: 2,
        serial_ports: [true, false, false, false],
        virtio_slots: vec![0, 1],
        generation_id: *b"generation-id-16",
        uuid: [0x42; 16],
    }
}

fn memory(ram_bytes: u64) -> GuestMemoryMmap {
    let ranges: Vec<_> = layout::ram_regions(ram_bytes)
        .unwrap()
        .iter()
        .map(|region| (GuestAddress(region.start), region.bytes as usize))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn kernel(file: Vec<u8>) -> Kernel {
    Kernel::from_bytes(file).unwrap()
}

fn bytes(memory: &GuestMemoryMmap, at: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

fn word(memory: &GuestMemoryMmap, at: u64) -> u64 {
    memory.read_obj(GuestAddress(at)).unwrap()
}

fn half(memory: &GuestMemoryMmap, at: u64) -> u32 {
    memory.read_obj(GuestAddress(at)).unwrap()
}

#[test]
fn linux_finds_its_zero_page() {
    let memory = memory(5 * GIB);
    let kernel = kernel(bzimage(&gzip(&vmlinux(b"kernel code"))));
    let disk = vec![0x5a; 3 * MIB as usize + 17];
    let request = BootRequest {
        platform: &platform(5 * GIB),
        kernel: &kernel,
        command_line: "console=ttyS0 quiet",
        initrd: Some(Initrd {
            source: &mut disk.as_slice(),
            bytes: disk.len() as u64,
        }),
        entry: None,
    };
    let state = load(&memory, request).unwrap();
    let registers = state.registers;
    assert_eq!(state.entry, EntryMode::Long64);
    assert_eq!(
        (registers.rip, registers.rsi),
        (0x100_0000, layout::BOOT_PARAMS)
    );
    assert_eq!(
        (registers.cr0 & 0x8000_0001, registers.efer),
        (0x8000_0001, 0x500)
    );
    assert_eq!(
        (registers.cs.selector, registers.data.selector),
        (0x10, 0x18)
    );
    assert_eq!(registers.rsp % 16, 0);
    assert_eq!(bytes(&memory, 0x100_0000, 11), b"kernel code");

    let zero_page = layout::BOOT_PARAMS;
    assert_eq!(bytes(&memory, zero_page + 0x202, 4), b"HdrS");
    assert_eq!(bytes(&memory, zero_page + 0x1fe, 2), [0x55, 0xaa]);
    assert_eq!(half(&memory, zero_page + 0x260), 0x20_0000);
    assert_eq!(word(&memory, zero_page + 0x70), state.rsdp);
    assert_eq!(bytes(&memory, state.rsdp, 8), b"RSD PTR ");
    assert_eq!(bytes(&memory, state.generation_id, 16), b"generation-id-16");
    let command_line = half(&memory, zero_page + 0x228).into();
    assert_eq!(bytes(&memory, command_line, 20), b"console=ttyS0 quiet\0");

    let start = half(&memory, zero_page + 0x218);
    assert_eq!(
        (start % 4096, half(&memory, zero_page + 0x21c)),
        (0, disk.len() as u32)
    );
    assert!(u64::from(start) + disk.len() as u64 <= 0x8000_0000);
    assert_eq!(bytes(&memory, start.into(), disk.len()), disk);

    let count = bytes(&memory, zero_page + 0x1e8, 1)[0];
    let usable: u64 = (0..u64::from(count))
        .map(|index| zero_page + 0x2d0 + 20 * index)
        .filter(|entry| half(&memory, entry + 16) == 1)
        .map(|entry| word(&memory, entry + 8))
        .sum();
    assert_eq!(usable, 5 * GIB - (MIB - layout::LOW_MEMORY_END));
}

#[test]
fn pvh_finds_its_start_info() {
    let memory = memory(64 * MIB);
    let code = Segment::new(0x20_0000, b"pvh code");
    let entry = 0x20_0004u32.to_le_bytes();
    let kernel = kernel(elf(0x20_0000, &[code], &note(b"Xen\0", 18, &entry)));
    let module = [7u8; 100];
    let request = BootRequest {
        platform: &platform(64 * MIB),
        kernel: &kernel,
        command_line: "mode=counter",
        initrd: Some(Initrd {
            source: &mut module.as_slice(),
            bytes: 100,
        }),
        entry: None,
    };
    let state = load(&memory, request).unwrap();
    let registers = state.registers;
    assert_eq!(state.entry, EntryMode::Pvh32);
    assert_eq!(
        (registers.rip, registers.rbx),
        (0x20_0004, layout::PVH_START_INFO)
    );
    assert_eq!((registers.cr0, registers.cr4, registers.efer), (0x11, 0, 0));
    assert_eq!((registers.cs.access, registers.tr.access), (0xc09b, 0x8b));

    let info = layout::PVH_START_INFO;
    assert_eq!(
        (half(&memory, info), half(&memory, info + 4)),
        (0x336e_c578, 1)
    );
    assert_eq!(half(&memory, info + 12), 1);
    let modules = word(&memory, info + 16);
    assert_eq!(bytes(&memory, word(&memory, modules), 100), module);
    assert_eq!(word(&memory, modules + 8), 100);
    assert_eq!(
        bytes(&memory, word(&memory, info + 24), 13),
        b"mode=counter\0"
    );
    assert_eq!(word(&memory, info + 32), state.rsdp);
    let map = word(&memory, info + 40);
    assert_eq!(half(&memory, info + 48), 3);
    assert_eq!(
        (word(&memory, map + 48), word(&memory, map + 56)),
        (MIB, 63 * MIB)
    );
}

#[test]
fn plain_elf_starts_in_long_mode_at_a_chosen_entry() {
    let memory = memory(16 * MIB);
    let kernel = kernel(elf(0x10_0000, &[Segment::new(0x10_0000, &[0xf4; 32])], &[]));
    let request = BootRequest {
        platform: &platform(16 * MIB),
        kernel: &kernel,
        command_line: "",
        initrd: None,
        entry: Some(0x10_0010),
    };
    let registers = load(&memory, request).unwrap().registers;
    assert_eq!(
        (registers.rip, registers.rsi),
        (0x10_0010, layout::BOOT_PARAMS)
    );
    let root = word(&memory, registers.cr3);
    assert_eq!(root & 0xfff, 3);
    assert_eq!(bytes(&memory, layout::COMMAND_LINE, 1), [0]);
    assert_eq!(
        bytes(&memory, layout::RESET_VECTOR, 5),
        [0xb0, 0xfe, 0xe6, 0x64, 0xf4]
    );
}

#[test]
fn kernel_over_the_reset_vector_is_left_alone() {
    let memory = memory(16 * MIB);
    let kernel = kernel(elf(
        0x10_0000,
        &[Segment::new(0xf_f000, &[0x90; 0x2000])],
        &[],
    ));
    let request = BootRequest {
        platform: &platform(16 * MIB),
        kernel: &kernel,
        command_line: "",
        initrd: None,
        entry: None,
    };
    load(&memory, request).unwrap();
    assert_eq!(bytes(&memory, layout::RESET_VECTOR, 16), [0x90; 16]);
}

struct Case {
    ram_bytes: u64,
    platform: Platform,
    kernel: Vec<u8>,
    command_line: String,
    initrd_bytes: Option<u64>,
    initrd_source: &'static [u8],
    entry: Option<u64>,
}

impl Case {
    fn good() -> Self {
        Self {
            ram_bytes: 32 * MIB,
            platform: platform(32 * MIB),
            kernel: vmlinux(b"code"),
            command_line: String::new(),
            initrd_bytes: None,
            initrd_source: &[],
            entry: None,
        }
    }

    fn error(self) -> BootError {
        let kernel = kernel(self.kernel);
        let mut source = self.initrd_source;
        let request = BootRequest {
            platform: &self.platform,
            kernel: &kernel,
            command_line: &self.command_line,
            initrd: self.initrd_bytes.map(|bytes| Initrd {
                source: &mut source,
                bytes,
            }),
            entry: self.entry,
        };
        load(&memory(self.ram_bytes), request).unwrap_err()
    }
}

#[test]
fn impossible_requests_are_refused() {
    let check = |text: &str, change: &dyn Fn(&mut Case)| {
        let mut case = Case::good();
        change(&mut case);
        let error = case.error();
        assert!(error.to_string().contains(text), "{text}: {error}");
    };
    check("memory size 5", &|c| c.platform.ram_bytes = 5);
    check("does not cover RAM", &|c| c.platform.ram_bytes = 33 * MIB);
    check("0 CPUs", &|c| c.platform.vcpus = 0);
    check("65 CPUs", &|c| c.platform.vcpus = 65);
    check("slot 14", &|c| c.platform.virtio_slots = vec![14]);
    check("slot 3", &|c| c.platform.virtio_slots = vec![3, 3]);
    check("not inside guest RAM of", &|c| {
        c.ram_bytes = 16 * MIB;
        c.platform.ram_bytes = 16 * MIB;
    });
    let at = |start| elf(start, &[Segment::new(start, &[0xf4; 8])], &[]);
    check("not inside guest RAM", &|c| {
        c.kernel = at(layout::HOLE_START)
    });
    check("below 1 MiB", &|c| c.kernel = at(0x7000));
    check("below 1 MiB", &|c| c.kernel = at(0xe_fffc));
    check("entry point 0x3000000", &|c| c.entry = Some(0x300_0000));
    check("2048 bytes, this kernel takes 2047", &|c| {
        c.command_line = "x".repeat(2048)
    });
    check("NUL byte at 1", &|c| c.command_line = "a\0b".into());
    check("does not fit between", &|c| c.initrd_bytes = Some(16 * MIB));
    check("does not fit between", &|c| c.initrd_bytes = Some(u64::MAX));
    check("at byte 0 of 5", &|c| {
        c.initrd_bytes = Some(5);
        c.initrd_source = b"four";
    });
}
