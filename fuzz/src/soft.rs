//! A hostile guest on the software engine: any bytes as code, page tables, descriptor tables and
//! registers, in all modes of the CPU.
//!
//! ```text
//! input: mode, 16 register codes, number of patches, { address 3 bytes, length, bytes }, code
//! ```
//!
//! Each exception's handler adds one to the instruction pointer on its stack and returns, so the
//! bytes after a refused instruction are executed too. Where the number of patches has bit 4, the
//! devices of a PC are behind ports and MMIO pages; else whatever is read there tells its address. A run ends after some stretches of
//! instructions or by a kick; then the state is saved, and goes on in another VM.

use std::cell::Cell;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use boot::layout;
use vcpu::{Engine, Exit, GuestIo, Kick, RamSlot, Registers, Segment, SystemRegisters, Vcpu, Vm};
use vcpu_soft::SoftEngine;

use crate::platform::Platform;

const RAM_BYTES: usize = 2 << 20;
/// Words beside RAM that no guest may change, and what they hold.
const FENCE_WORDS: usize = 512;
const FENCE: u64 = 0xfe7c_e5fe_7ce5_fe7c;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PAE_POINTERS: u64 = 0x2800;
/// Directory and table of 32-bit paging without PAE.
const OLD_DIRECTORY: u64 = 0x5000;
const OLD_TABLE: u64 = 0x6000;
const GDT: u64 = 0x7000;
const TSS: u64 = 0x7800;
const IDT: u64 = 0x8000;
/// Handlers without and with an error code on the stack.
const HANDLER: u64 = 0x9000;
const HANDLER_CODE: u64 = 0x9040;
const STACK: u64 = 0xf000;
const CODE: u64 = 0x1_0000;
const CODE_BYTES_MAX: usize = 0x8000;

/// Pages of registers: local APIC, IOAPIC, ACPI events, virtio.
const DEVICES: [u64; 8] = [
    layout::LOCAL_APIC_START,
    layout::IOAPIC_START,
    layout::GED_START,
    layout::VIRTIO_START,
    layout::VIRTIO_START + layout::VIRTIO_BYTES,
    layout::VIRTIO_START + 2 * layout::VIRTIO_BYTES,
    layout::VIRTIO_START + 3 * layout::VIRTIO_BYTES,
    layout::VIRTIO_START + 4 * layout::VIRTIO_BYTES,
];

/// Exceptions that push an error code (SDM 3A 6.15).
const WITH_CODE: [u64; 9] = [8, 10, 11, 12, 13, 14, 17, 21, 29];

/// Stretches of instructions that a run may have, and the longest time without a kick.
const STRETCHES: u32 = 6;
const KICK_EVERY: Duration = Duration::from_millis(1);
/// A run that was kicked must have ended by then.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// Code from which the fuzzer starts: what is dangerous or rare.
pub const SOFT_SEEDS: &[(&str, &[u8])] = &[
    // mov eax, cr0; mov cr0, eax; mov eax, cr4; mov cr4, eax; mov eax, cr3; mov cr3, eax; hlt
    (
        "control",
        &[
            0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0, 0x0f, 0x20, 0xe0, 0x0f, 0x22, 0xe0, 0x0f, 0x20,
            0xd8, 0x0f, 0x22, 0xd8, 0xf4,
        ],
    ),
    // rdmsr; wrmsr; rdtsc; cpuid; xgetbv; xsetbv; swapgs; sysret; sysexit; syscall; sysenter
    (
        "model",
        &[
            0x0f, 0x32, 0x0f, 0x30, 0x0f, 0x31, 0x0f, 0xa2, 0x0f, 0x01, 0xd0, 0x0f, 0x01, 0xd1,
            0x0f, 0x01, 0xf8, 0x48, 0x0f, 0x07, 0x0f, 0x35, 0x0f, 0x05, 0x0f, 0x34,
        ],
    ),
    // lgdt, lidt, sgdt, sidt [esi]; lldt, ltr, sldt, str ax; lmsw, smsw ax; invlpg [esi]; clts
    (
        "tables",
        &[
            0x0f, 0x01, 0x16, 0x0f, 0x01, 0x1e, 0x0f, 0x01, 0x06, 0x0f, 0x01, 0x0e, 0x0f, 0x00,
            0xd0, 0x0f, 0x00, 0xd8, 0x0f, 0x00, 0xc0, 0x0f, 0x00, 0xc8, 0x0f, 0x01, 0xf0, 0x0f,
            0x01, 0xe0, 0x0f, 0x01, 0x3e, 0x0f, 0x06,
        ],
    ),
    // mov ds, ss, fs, gs, ax; far call, far jump, far return, iret, int 3, int 0x80, int1, into
    (
        "segments",
        &[
            0x8e, 0xd8, 0x8e, 0xd0, 0x8e, 0xe0, 0x8e, 0xe8, 0xff, 0x1e, 0xff, 0x2e, 0xcb, 0xcf,
            0x48, 0xcf, 0xcc, 0xcd, 0x80, 0xf1, 0xce, 0x0f, 0x02, 0xc0, 0x0f, 0x03, 0xc0, 0x0f,
            0x00, 0xe0, 0x0f, 0x00, 0xe8,
        ],
    ),
    // rep movsb, stosd, cmpsb, scasw, lodsb, insb, outsd over page ends
    (
        "strings",
        &[
            0xb1, 0xff, 0xf3, 0xa4, 0xb1, 0xff, 0xf3, 0xab, 0xf3, 0xa6, 0xf2, 0x66, 0xaf, 0xf3,
            0xac, 0xb1, 9, 0xf3, 0x6c, 0xb1, 9, 0xf3, 0x6f, 0xfd, 0xf3, 0xa5, 0xfc,
        ],
    ),
    // fninit; fld [esi]; fsave, frstor, fxsave, fxrstor, xsave, xrstor [esi]; ldmxcsr; maskmovdqu
    (
        "floats",
        &[
            0xdb, 0xe3, 0xdb, 0x2e, 0xdd, 0x36, 0xdd, 0x26, 0x0f, 0xae, 0x06, 0x0f, 0xae, 0x0e,
            0x0f, 0xae, 0x26, 0x0f, 0xae, 0x2e, 0x0f, 0xae, 0x16, 0x66, 0x0f, 0xf7, 0xc1, 0x66,
            0x0f, 0x3a, 0x63, 0xc1, 0x0c, 0xd9, 0xf2, 0xdf, 0x36,
        ],
    ),
    // lock cmpxchg16b, lock xadd, xchg, bts [esi], eax; shld; div ecx; idiv; bound; aam 0; enter
    (
        "arithmetic",
        &[
            0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0xf0, 0x0f, 0xc1, 0x06, 0x87, 0x06, 0x0f, 0xab, 0x06,
            0x0f, 0xa5, 0xc8, 0xf7, 0xf1, 0x48, 0xf7, 0xf9, 0x62, 0x06, 0xd4, 0, 0xc8, 0xff, 0xff,
            31, 0xc9,
        ],
    ),
    // Registers of devices at rsi and rdi: all widths, misaligned, locked, over the page's end, as
    // stack, as descriptor table, as operand of floating point and of string instructions
    (
        "registers",
        &[
            0x8b, 0x06, 0x89, 0x06, 0x8a, 0x46, 3, 0x66, 0x89, 0x46, 0x0d, 0x48, 0x8b, 0x46, 0x70,
            0xf0, 0x0f, 0xb1, 0x46, 0x44, 0xf0, 0xff, 0x46, 0x38, 0x87, 0x46, 0x70, 0x0f, 0x11,
            0x46, 0x60, 0xdd, 0x56, 0x50, 0x0f, 0x01, 0x56, 0x08, 0x0f, 0x01, 0x5e, 0x08, 0xff,
            0x76, 0x30, 0x8f, 0x46, 0x30, 0xb1, 0xff, 0xf3, 0xa5, 0xb1, 0xff, 0xf3, 0xaa, 0x89,
            0xf4, 0x50, 0x58, 0xcc,
        ],
    ),
    // in and out at the ports of dx, of all widths; mov cr3 to a device; jump into a device
    (
        "ports",
        &[
            0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xed, 0xef, 0x66, 0xba, 0xf8, 0x0c, 0xed, 0xef,
            0x66, 0xba, 0x71, 0, 0xec, 0xee, 0x0f, 0x22, 0xde, 0xff, 0xe6,
        ],
    ),
    // Code that writes into itself: mov byte [rip + 1], 0x90; nop; jmp back
    (
        "itself",
        &[
            0xc6, 0x05, 1, 0, 0, 0, 0x90, 0xcc, 0xfe, 0x05, 0, 0, 0, 0, 0x40, 0xeb, 0xf0,
        ],
    ),
];

/// What the CPU is in when the input's code begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Real,
    Flat,
    OldPaging,
    Pae,
    Long,
    User,
    Compatible,
    OldUser,
}

const MODES: [Mode; 8] = [
    Mode::Real,
    Mode::Flat,
    Mode::OldPaging,
    Mode::Pae,
    Mode::Long,
    Mode::User,
    Mode::Compatible,
    Mode::OldUser,
];

impl Mode {
    fn is_long(self) -> bool {
        matches!(self, Self::Long | Self::User | Self::Compatible)
    }

    fn is_user(self) -> bool {
        matches!(self, Self::User | Self::Compatible | Self::OldUser)
    }
}

/// Guest RAM between two fences, in words, so that it can be made without unsafe code.
struct Ram {
    words: Vec<u64>,
    first: usize,
}

impl Ram {
    fn new() -> Self {
        let mut words = vec![0_u64; RAM_BYTES / 8 + 2 * FENCE_WORDS + 512];
        let skip = (words.as_ptr() as u64).wrapping_neg() % 4096 / 8;
        let first = FENCE_WORDS + skip as usize;
        words[..first].fill(FENCE);
        words[first + RAM_BYTES / 8..].fill(FENCE);
        Self { words, first }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        for (index, byte) in (at..).zip(bytes) {
            let index = index as usize % RAM_BYTES;
            let (word, shift) = (self.first + index / 8, index % 8 * 8);
            self.words[word] = self.words[word] & !(0xff << shift) | u64::from(*byte) << shift;
        }
    }

    fn put_word(&mut self, at: u64, word: u64) {
        self.put(at, &word.to_le_bytes());
    }

    fn slot(&mut self) -> RamSlot {
        RamSlot {
            gpa: 0,
            host_address: self.words[self.first..].as_mut_ptr() as u64,
            len: RAM_BYTES as u64,
        }
    }

    fn check_fences(&self) {
        let after = self.first + RAM_BYTES / 8;
        let mut fences = self.words[..self.first].iter().chain(&self.words[after..]);
        assert!(
            fences.all(|word| *word == FENCE),
            "the guest wrote outside its RAM"
        );
    }
}

/// Answers a guest's accesses, and ends the run after some stretches.
struct Io<'a> {
    platform: Option<&'a Platform>,
    asked: Cell<u32>,
    started: Instant,
}

impl<'a> Io<'a> {
    fn new(platform: Option<&'a Platform>) -> Self {
        Self {
            platform,
            asked: Cell::new(0),
            started: Instant::now(),
        }
    }
}

impl GuestIo for Io<'_> {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        match self.platform {
            Some(platform) => platform.ports.read(port.into(), data),
            None => data.fill(port as u8),
        }
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        if let Some(platform) = self.platform {
            platform.ports.write(port.into(), data);
        }
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.platform {
            Some(platform) => platform.memory.read(address, data),
            None => data.fill(address as u8),
        }
    }
    fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some(platform) = self.platform {
            platform.memory.write(address, data);
        }
    }
    fn end_of_interrupt(&self, vector: u8) {
        if let Some(platform) = self.platform {
            platform.ioapic.eoi(vector);
        }
    }
    fn stop_wanted(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.asked.get() > STRETCHES || self.started.elapsed() > 2 * KICK_EVERY
    }
}

/// The vCPU that a thread kicks, again and again: one that is halted wakes for nothing else.
static RUNS: Mutex<Option<Arc<dyn Kick>>> = Mutex::new(None);

fn set_running(kick: Option<Arc<dyn Kick>>) {
    static KICKER: OnceLock<thread::JoinHandle<()>> = OnceLock::new();
    KICKER.get_or_init(|| {
        thread::spawn(|| {
            loop {
                thread::sleep(KICK_EVERY);
                if let Some(kick) = &*RUNS.lock().unwrap_or_else(PoisonError::into_inner) {
                    kick.kick();
                }
            }
        })
    });
    *RUNS.lock().unwrap_or_else(PoisonError::into_inner) = kick;
}

/// Code, tables and registers of a guest.
pub fn soft_cpu(bytes: &[u8]) {
    let Some((head, mut rest)) = bytes.split_at_checked(18) else {
        return;
    };
    let mode = MODES[usize::from(head[0]) % MODES.len()];
    let mut ram = Ram::new();
    lay_out(&mut ram, mode);
    for _ in 0..head[17] % 16 {
        let Some((&[a, b, c, len], after)) = rest.split_first_chunk() else {
            break;
        };
        let len = usize::from(len).min(after.len());
        ram.put(u64::from(u32::from_le_bytes([a, b, c, 0])), &after[..len]);
        rest = &after[len..];
    }
    ram.put(CODE, &rest[..rest.len().min(CODE_BYTES_MAX)]);

    let (vm, mut vcpu) = new_vcpu(&mut ram);
    let platform = (head[17] & 0x10 != 0).then(|| Platform::new(&vm));
    vcpu.set_cpu_model()
        .expect("the CPU model is the engine's own");
    let reset = vcpu.system_registers().expect("registers of a new vCPU");
    let mut registers = Registers {
        rip: if mode == Mode::Real { 0 } else { CODE },
        rflags: 2 | u64::from(head[16] & 0xd5) | u64::from(head[16] & 2) << 8,
        ..Registers::default()
    };
    for (register, code) in registers.general.iter_mut().zip(&head[1..17]) {
        *register = value(*code);
    }
    registers.general[4] = STACK;
    if vcpu
        .set_boot_state(&registers, &system(mode, reset))
        .is_err()
    {
        return;
    }
    if run(vcpu.as_mut(), platform.as_ref()) == Exit::Kicked {
        let state = vcpu.save().expect("a kicked vCPU has a state");
        let (_, mut next) = new_vcpu(&mut ram);
        next.restore(&state)
            .expect("a state that was saved can be loaded");
        run(next.as_mut(), platform.as_ref());
    }
    if let Some(platform) = platform {
        platform.check();
    }
    ram.check_fences();
}

fn new_vcpu(ram: &mut Ram) -> (Arc<dyn Vm>, Box<dyn Vcpu>) {
    let vm = SoftEngine.create_vm(&[ram.slot()]).expect("a VM");
    let vcpu = vm.create_vcpu(0, 2).expect("a vCPU");
    (vm, vcpu)
}

fn run(vcpu: &mut dyn Vcpu, platform: Option<&Platform>) -> Exit {
    set_running(Some(vcpu.attach().expect("a way to kick it")));
    let io = Io::new(platform);
    let exit = vcpu.run(&io);
    set_running(None);
    assert!(io.started.elapsed() < ENDS_WITHIN, "a kick was not heard");
    exit
}

/// A value that a register is to have: small, the address of something, or at an edge.
fn value(code: u8) -> u64 {
    let low = u64::from(code & 0x1f);
    match code >> 5 {
        0 => low,
        1 => low.wrapping_neg(),
        // Tables, then pages that are special.
        2 => (if low < 16 { low } else { low + 0x20 }) << 12,
        3 => (RAM_BYTES as u64 - 16) + low,
        4 => (1 << 47) - 16 + low,
        5 => 1_u64.rotate_right(low as u32 + 1),
        6 => DEVICES[(low % 8) as usize] + (low >> 3 << 4),
        _ => 0xc000_0080 + low,
    }
}

/// Page tables with the same addresses inside and outside, descriptor tables, handlers.
fn lay_out(ram: &mut Ram, mode: Mode) {
    for table in [PML4, PDPT, DIRECTORY] {
        ram.put_word(table, table + 0x1000 + 7);
    }
    // The second 2 MiB are the first ones again, as one page.
    ram.put_word(DIRECTORY + 8, 0x87);
    // The four entries of PAE's first table have no bits for rights.
    ram.put_word(PAE_POINTERS, DIRECTORY + 1);
    for (page, at) in (0..512_u64).zip((TABLE..).step_by(8)) {
        let entry = match page {
            // Some that are read-only, absent, the kernel's, not executable, outside RAM.
            0x30 => page << 12 | 5,
            0x31 => 0,
            0x32 => page << 12 | 3,
            0x33 => page << 12 | 7 | 1 << 63,
            0x34 => 0xfee0_0007,
            0x35 => 0x4000_0007,
            // Devices.
            0x36..0x3e => DEVICES[(page - 0x36) as usize] | 7,
            _ => page << 12 | 7,
        };
        ram.put_word(at, entry);
    }
    ram.put_word(OLD_DIRECTORY, 0x87 << 32 | (OLD_TABLE + 7));
    for page in 0..512 {
        let (low, high) = (2 * page, 2 * page + 1);
        ram.put_word(OLD_TABLE + 8 * page, high << 44 | 7 << 32 | low << 12 | 7);
    }
    // Kernel code of 64 and 32 bits, data, user code of 64 and 32 bits, data, 16-bit code, TSS.
    let descriptors = [
        0x00af_9b00_0000_ffff_u64,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x000f_9b00_0000_ffff,
        0x0000_8b00_0000_0067 | TSS << 16,
    ];
    for (at, descriptor) in (GDT + 8..).step_by(8).zip(descriptors) {
        ram.put_word(at, descriptor);
    }
    if mode.is_long() {
        // RSP0 and the first IST stack.
        ram.put_word(TSS + 4, STACK);
        ram.put_word(TSS + 0x24, STACK - 0x400);
    } else {
        // ESP0 and SS0.
        ram.put_word(TSS + 4, STACK | 0x18 << 32);
    }
    for vector in 0..256 {
        let handler = if WITH_CODE.contains(&vector) {
            HANDLER_CODE
        } else {
            HANDLER
        };
        if mode.is_long() {
            ram.put_word(IDT + 16 * vector, handler | 0x8 << 16 | 0xee00 << 32);
        } else if mode != Mode::Real {
            ram.put_word(IDT + 8 * vector, handler | 0x10 << 16 | 0xee00 << 32);
        } else {
            ram.put(4 * vector, &(HANDLER as u32).to_le_bytes());
        }
    }
    let (plain, skip): (&[u8], &[u8]) = if mode.is_long() {
        // add qword [rsp], 1; iretq. Before it: add rsp, 8.
        (
            &[0x48, 0x83, 0x04, 0x24, 1, 0x48, 0xcf],
            &[0x48, 0x83, 0xc4, 8],
        )
    } else if mode == Mode::Real {
        // add word [esp], 1; iret.
        (&[0x67, 0x83, 0x04, 0x24, 1, 0xcf], &[])
    } else {
        (&[0x83, 0x04, 0x24, 1, 0xcf], &[0x83, 0xc4, 4])
    };
    ram.put(HANDLER, plain);
    ram.put(HANDLER_CODE, &[skip, plain].concat());
}

fn system(mode: Mode, reset: SystemRegisters) -> SystemRegisters {
    let mut system = reset;
    if mode == Mode::Real {
        system.segments = system.segments.map(|segment| Segment {
            base: 0,
            selector: 0,
            ..segment
        });
        (system.segments[0].base, system.segments[0].selector) = (CODE, (CODE >> 4) as u16);
        (system.idt.base, system.idt.limit) = (0, 0x3ff);
        return system;
    }
    let (code, code_access, data) = match mode {
        Mode::Long => (0x8, 0xa09b, 0x18),
        Mode::User => (0x23, 0xa0fb, 0x33),
        Mode::Compatible | Mode::OldUser => (0x2b, 0xc0fb, 0x33),
        _ => (0x10, 0xc09b, 0x18),
    };
    let data_access = if mode.is_user() { 0xc0f3 } else { 0xc093 };
    for segment in &mut system.segments[1..6] {
        *segment = flat(data, data_access);
    }
    system.segments[0] = flat(code, code_access);
    system.segments[6] = Segment {
        base: TSS,
        limit: 0x67,
        selector: 0x40,
        access: 0x8b,
    };
    (system.gdt.base, system.gdt.limit) = (GDT, 0x4f);
    (system.idt.base, system.idt.limit) = (IDT, 0xfff);
    (system.cr0, system.cr4) = (0x8005_0033, 0x6b0);
    match mode {
        Mode::Flat => system.cr0 &= !0x8000_0000,
        Mode::OldPaging | Mode::OldUser => {
            system.cr4 &= !0x20;
            system.cr3 = OLD_DIRECTORY;
        }
        Mode::Pae => system.cr3 = PAE_POINTERS,
        _ => {
            system.cr3 = PML4;
            system.efer = 0xd01;
        }
    }
    system
}

fn flat(selector: u16, access: u32) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        access,
    }
}
