//! Runs cases on the software CPU.
//!
//! The processor starts each case in a 64-bit user program. Its page tables map the same linear
//! addresses as the native runner's child has; every exception leads to a HLT of its own in
//! supervisor mode, so the vector is where the processor halts and the rest is on its stack.

#![expect(
    unsafe_code,
    reason = "guest RAM is read and written by the processor behind Rust's back"
)]

use std::ptr;

use x86_cpu::{
    Attention, Cpu, Environment, Ram, RamSlot, Segment, SegmentName, Stop, TableRegister,
};
use x86_fp::FpState;

use crate::layout::{
    CODE, CODE_PAGES, DATA, DATA_PAGES, EXIT, HIGH, MEMORY_BYTES, PAGE, READ_ONLY,
};
use crate::state::Extended;
use crate::{Case, Outcome, State, Trap};

// Guest-physical addresses.
const LEVEL4: u64 = 0x1000;
const LEVEL3_LOW: u64 = 0x2000;
const LEVEL2_LOW: u64 = 0x3000;
const LEVEL1_LOW: u64 = 0x4000;
const LEVEL3_HIGH: u64 = 0x5000;
const LEVEL2_HIGH: u64 = 0x6000;
const LEVEL1_HIGH: u64 = 0x7000;
const LEVEL3_KERNEL: u64 = 0x8000;
const LEVEL2_KERNEL: u64 = 0x9000;
const GDT: u64 = 0xa000;
const IDT: u64 = 0xb000;
const TSS: u64 = 0xc000;
const STUBS: u64 = 0xd000;
const STACK_TOP: u64 = 0xf000;
const EXIT_PAGE: u64 = 0x1_0000;
const CODE_PAGE: u64 = 0x1_1000;
const DATA_PAGE: u64 = CODE_PAGE + CODE_PAGES * PAGE;
const HIGH_PAGE: u64 = DATA_PAGE + DATA_PAGES * PAGE;
const RAM_BYTES: u64 = 0x20_0000;

/// Linear address of guest-physical address 0, for the supervisor.
const KERNEL: u64 = 0xffff_8000_0000_0000;
/// Bytes of a handler.
const STUB_BYTES: u64 = 16;
const HLT: u8 = 0xf4;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Code segment of 64-bit user programs; the selectors are those of the host's kernel, since
/// programs can read and load them.
const USER_CODE: u16 = 0x33;
/// Data and stack segment of user programs.
const USER_STACK: u16 = 0x2b;
const KERNEL_CODE: u16 = 0x10;
const TASK: u16 = 0x40;
const DESCRIPTORS: [u64; 7] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];
const GDT_LIMIT: u16 = 127;

/// Instructions after which a case counts as hanging; repeated string instructions may take some.
const INSTRUCTIONS_MAX: u64 = 1_000_000;

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; PAGE as usize]);

/// A software CPU, ready to run cases.
pub struct Soft {
    /// Owner of the memory that `ram` points to.
    _pages: Vec<Page>,
    ram: *mut u8,
    cpu: Cpu,
}

impl std::fmt::Debug for Soft {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Soft").finish_non_exhaustive()
    }
}

/// Why a case has no outcome on the software CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftError {
    /// It does not end.
    Hang,
    /// It reset the machine.
    TripleFault,
    /// It halted where no handler is, at this address.
    Halted(u64),
}

impl Default for Soft {
    fn default() -> Self {
        Self::new()
    }
}

impl Soft {
    /// Makes one with its page tables and handlers.
    pub fn new() -> Self {
        let mut pages = vec![Page([0; PAGE as usize]); (RAM_BYTES / PAGE) as usize];
        let ram = pages.as_mut_ptr().cast::<u8>();
        let slot = RamSlot {
            gpa: 0,
            host_address: ram.expose_provenance() as u64,
            len: RAM_BYTES,
        };
        let mut soft = Self {
            _pages: pages,
            ram,
            cpu: Cpu::new(Ram::new(&[slot]), Attention::default()),
        };
        soft.write_tables();
        soft.write_descriptors();
        soft.write(EXIT_PAGE, &[HLT]);
        soft
    }

    fn write(&mut self, gpa: u64, bytes: &[u8]) {
        assert!(gpa + bytes.len() as u64 <= RAM_BYTES);
        // SAFETY: inside the pages, as just checked; the processor does not run meanwhile.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.ram.add(gpa as usize), bytes.len());
        }
    }

    fn write_word(&mut self, gpa: u64, word: u64) {
        self.write(gpa, &word.to_le_bytes());
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) {
        assert!(gpa + bytes.len() as u64 <= RAM_BYTES);
        // SAFETY: as in `write`.
        unsafe {
            let from = self.ram.add(gpa as usize);
            ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len());
        }
    }

    fn read_word(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn write_tables(&mut self) {
        let index = |linear: u64, level: u32| (linear >> (12 + 9 * (level - 1)) & 511) * 8;
        let table = PRESENT | WRITABLE | USER;
        let mut entry = |table: u64, linear: u64, level: u32, value: u64| {
            self.write_word(table + index(linear, level), value);
        };
        entry(LEVEL4, CODE, 4, LEVEL3_LOW | table);
        entry(LEVEL3_LOW, CODE, 3, LEVEL2_LOW | table);
        entry(LEVEL2_LOW, CODE, 2, LEVEL1_LOW | table);
        entry(LEVEL4, HIGH, 4, LEVEL3_HIGH | table);
        entry(LEVEL3_HIGH, HIGH, 3, LEVEL2_HIGH | table);
        entry(LEVEL2_HIGH, HIGH, 2, LEVEL1_HIGH | table);
        entry(LEVEL4, KERNEL, 4, LEVEL3_KERNEL | PRESENT | WRITABLE);
        entry(LEVEL3_KERNEL, KERNEL, 3, LEVEL2_KERNEL | PRESENT | WRITABLE);
        entry(LEVEL2_KERNEL, KERNEL, 2, PRESENT | WRITABLE | LARGE);
        entry(LEVEL1_LOW, EXIT, 1, EXIT_PAGE | PRESENT | USER);
        for page in 0..CODE_PAGES {
            let physical = CODE_PAGE + page * PAGE;
            entry(LEVEL1_LOW, CODE + page * PAGE, 1, physical | PRESENT | USER);
        }
        for page in 0..DATA_PAGES {
            let linear = DATA + page * PAGE;
            let writable = if linear < READ_ONLY { WRITABLE } else { 0 };
            let physical = DATA_PAGE + page * PAGE;
            let value = physical | PRESENT | USER | writable | NO_EXECUTE;
            entry(LEVEL1_LOW, linear, 1, value);
        }
        let high = HIGH_PAGE | PRESENT | USER | WRITABLE | NO_EXECUTE;
        entry(LEVEL1_HIGH, HIGH, 1, high);
    }

    fn write_descriptors(&mut self) {
        for (index, descriptor) in DESCRIPTORS.iter().enumerate() {
            self.write_word(GDT + 8 * index as u64, *descriptor);
        }
        for vector in 0..256 {
            let handler = KERNEL + STUBS + STUB_BYTES * vector;
            if vector < 32 {
                self.write(STUBS + STUB_BYTES * vector, &[HLT]);
            }
            // Programs may use INT3 and INTO's vector.
            let level: u64 = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let low = (handler & 0xffff)
                | u64::from(KERNEL_CODE) << 16
                | (0x8e00 | level << 13) << 32
                | (handler >> 16 & 0xffff) << 48;
            self.write_word(IDT + 16 * vector, low);
            self.write_word(IDT + 16 * vector + 8, handler >> 32);
        }
        self.write_word(TSS + 4, KERNEL + STACK_TOP);
        // The I/O map lies beyond the limit: no port is allowed.
        self.write(TSS + 102, &104_u16.to_le_bytes());
    }

    /// Runs `case`, `budget` instructions at a time.
    pub fn run(&mut self, case: &Case, budget: u64) -> Result<Outcome, SoftError> {
        assert_eq!(case.memory.len(), MEMORY_BYTES);
        self.write(CODE_PAGE + (case.state.rip - CODE), &case.code);
        self.write(DATA_PAGE, &case.memory);
        self.load(&case.state);
        let mut done = 0;
        loop {
            match self.cpu.run(&mut Surroundings, budget) {
                Stop::Halted => return self.outcome(),
                Stop::TripleFault => return Err(SoftError::TripleFault),
                Stop::Budget | Stop::Yield => done += budget,
            }
            if done > INSTRUCTIONS_MAX {
                return Err(SoftError::Hang);
            }
        }
    }

    fn load(&mut self, state: &State) {
        let cpu = &mut self.cpu;
        let null = Segment {
            access: 1 << 16,
            ..Segment::default()
        };
        cpu.segments = [null; 6];
        let user = |selector, access| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            access,
        };
        cpu.segments[SegmentName::Cs as usize] = user(USER_CODE, 0xa0fb);
        cpu.segments[SegmentName::Ss as usize] = user(USER_STACK, 0xc0f3);
        cpu.tr = Segment {
            selector: TASK,
            base: KERNEL + TSS,
            limit: 103,
            access: 0x8b,
        };
        cpu.ldtr = null;
        cpu.gdt = TableRegister {
            base: KERNEL + GDT,
            limit: GDT_LIMIT,
        };
        cpu.idt = TableRegister {
            base: KERNEL + IDT,
            limit: 4095,
        };
        cpu.cr0 = 0x8005_0033;
        cpu.cr2 = 0;
        cpu.cr3 = LEVEL4;
        cpu.cr4 = 0x6b0;
        cpu.efer = 0xd01;
        cpu.general = state.general;
        cpu.rip = state.rip;
        cpu.rflags = state.rflags;
        cpu.fp = FpState::from_fxsave(&state.extended.to_image());
        cpu.state_replaced();
    }

    /// Reads what the exception left on the supervisor's stack.
    fn outcome(&self) -> Result<Outcome, SoftError> {
        let halted_at = self.cpu.rip.wrapping_sub(1);
        let vector = halted_at.wrapping_sub(KERNEL + STUBS) / STUB_BYTES;
        if vector >= 32 || !halted_at.is_multiple_of(STUB_BYTES) {
            return Err(SoftError::Halted(halted_at));
        }
        let vector = vector as u8;
        let pushed = |index: u64| self.read_word(STACK_TOP - 8 * index);
        let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
        let rip = pushed(5);
        let mut general = self.cpu.general;
        general[4] = pushed(2);
        let done = vector == 13 && rip == EXIT;
        let trap = Trap {
            vector,
            error: if has_error { pushed(6) as u32 } else { 0 },
            address: if vector == 14 { self.cpu.cr2 } else { 0 },
        };
        let mut memory = vec![0; MEMORY_BYTES];
        self.read(DATA_PAGE, &mut memory);
        Ok(Outcome {
            state: State {
                general,
                rip,
                rflags: pushed(3),
                extended: Extended::from_image(&self.cpu.fp.to_fxsave()),
            },
            memory,
            trap: (!done).then_some(trap),
        })
    }
}

/// A machine without devices and interrupts, with a CPU of x86-64-v2.
#[derive(Debug)]
struct Surroundings;

impl Environment for Surroundings {
    fn port_read(&mut self, _port: u16, _size: u8) -> u32 {
        u32::MAX
    }

    fn port_write(&mut self, _port: u16, _size: u8, _value: u32) {}

    fn mmio_read(&mut self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&mut self, _address: u64, _data: &[u8]) {}

    fn msr_read(&mut self, _index: u32) -> Option<u64> {
        None
    }

    fn msr_write(&mut self, _index: u32, _value: u64) -> bool {
        false
    }

    fn cpuid(&mut self, leaf: u32, _index: u32) -> [u32; 4] {
        let letters = |name: [u8; 4]| u32::from_le_bytes(name);
        match leaf {
            0 => [7, letters(*b"Auth"), letters(*b"cAMD"), letters(*b"enti")],
            1 => [0x000f_0f00, 0, 0x0298_2203, 0x078b_fbfd],
            0x8000_0000 => [0x8000_0008, 0, 0, 0],
            // LAHF; SYSCALL, NX, FFXSR, 1 GiB pages, RDTSCP, long mode.
            0x8000_0001 => [
                0,
                0,
                1,
                1 << 11 | 1 << 20 | 1 << 25 | 1 << 26 | 1 << 27 | 1 << 29,
            ],
            0x8000_0008 => [0x3028, 0, 0, 0],
            _ => [0; 4],
        }
    }

    fn tsc(&mut self) -> u64 {
        0
    }

    fn random(&mut self) -> u64 {
        0
    }

    fn take_interrupt(&mut self) -> Option<u8> {
        None
    }

    fn take_nmi(&mut self) -> bool {
        false
    }

    fn task_priority(&mut self) -> u8 {
        0
    }

    fn set_task_priority(&mut self, _value: u8) {}
}
