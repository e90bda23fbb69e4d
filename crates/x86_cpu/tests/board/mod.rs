//! A board without firmware: RAM, a processor, programs assembled into it.

#![allow(dead_code, reason = "each test program uses its part")]

use std::time::{Duration, Instant};

use iced_x86::code_asm::CodeAssembler;
use x86_cpu::{
    Attention, Cpu, Environment, Ram, RamSlot, Segment, SegmentName, Stop, TableRegister,
};

/// Bytes of RAM.
pub const RAM: u64 = 2 << 20;
pub const ROOT: u64 = 0x1000;
pub const TABLE: u64 = 0x4000;
pub const GDT: u64 = 0x8000;
pub const IDT: u64 = 0x9000;
pub const TSS: u64 = 0xa000;
/// Programs of the kernel.
pub const CODE: u64 = 0x1_0000;
/// Programs of the user.
pub const USER: u64 = 0x4_0000;
/// Handlers.
pub const HANDLERS: u64 = 0x2_0000;
pub const STACK: u64 = 0x8_0000;
pub const USER_STACK: u64 = 0x9_0000;
pub const DATA: u64 = 0xa_0000;

pub const CODE0: u16 = 0x08;
pub const DATA0: u16 = 0x10;
/// In the order that SYSRET wants.
pub const CODE3_32: u16 = 0x1b;
pub const DATA3: u16 = 0x23;
pub const CODE3: u16 = 0x2b;
pub const CODE0_32: u16 = 0x30;
pub const TASK: u16 = 0x38;

/// Pages on either side of RAM that nobody may touch.
const FENCE: usize = 4;

/// A page of RAM.
#[repr(C, align(4096))]
#[derive(Clone)]
pub struct Page([u8; 4096]);

/// Memory that processors reach by address.
pub struct Memory {
    pages: Vec<Page>,
    pub ram: Ram,
}

// The pages are only kept alive here; all accesses are those of `Ram`.
impl Memory {
    pub fn new() -> Self {
        let mut pages = vec![Page([0; 4096]); (RAM >> 12) as usize + 2 * FENCE];
        for page in 0..FENCE {
            pages[page].0.fill(0xa5);
            let last = pages.len() - 1;
            pages[last - page].0.fill(0xa5);
        }
        let ram = Ram::new(&[RamSlot {
            gpa: 0,
            host_address: pages.as_mut_ptr() as u64 + FENCE as u64 * 4096,
            len: RAM,
        }]);
        Self { pages, ram }
    }

    /// Whether nothing was written just outside RAM.
    pub fn fences_stand(&self) -> bool {
        let (low, rest) = self.pages.split_at(FENCE);
        let (_, high) = rest.split_at(rest.len() - FENCE);
        let mut bytes = low.iter().chain(high).flat_map(|page| page.0);
        bytes.all(|byte| byte == 0xa5)
    }

    pub fn poke(&self, gpa: u64, bytes: &[u8]) {
        for (at, byte) in (gpa..).zip(bytes) {
            let shift = (at & 3) * 8;
            let word = self.ram.read_word(at & !3).expect("RAM");
            let word = word & !(0xff << shift) | u32::from(*byte) << shift;
            self.ram.write_word(at & !3, word);
        }
    }

    pub fn poke64(&self, gpa: u64, value: u64) {
        self.poke(gpa, &value.to_le_bytes());
    }

    pub fn peek64(&self, gpa: u64) -> u64 {
        let word = |at| u64::from(self.ram.read_word(at).expect("RAM"));
        word(gpa) | word(gpa + 4) << 32
    }

    /// Assembles a program at `gpa`.
    pub fn program(&self, bits: u32, gpa: u64, write: impl FnOnce(&mut CodeAssembler)) {
        let mut assembler = CodeAssembler::new(bits).expect("a width");
        write(&mut assembler);
        let bytes = assembler.assemble(gpa).expect("a program");
        self.poke(gpa, &bytes);
    }

    /// Tables, segments and a task; the first 2 MiB are mapped to themselves, for users too.
    pub fn furnish(&self) {
        self.poke64(ROOT, 0x2007);
        self.poke64(0x2000, 0x3007);
        self.poke64(0x3000, TABLE | 7);
        for page in 0..RAM >> 12 {
            self.poke64(TABLE + page * 8, page << 12 | 7);
        }
        let descriptors = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x0000_8900_0000_0067 | TSS << 16,
            0,
        ];
        for (at, descriptor) in (GDT..).step_by(8).zip(descriptors) {
            self.poke64(at, descriptor);
        }
        self.poke64(TSS + 4, STACK);
    }

    /// Writes an interrupt gate; `user` lets user code call it.
    pub fn gate(&self, vector: u8, handler: u64, user: bool, stack: u8) {
        let kind = if user { 0xee } else { 0x8e };
        let low = handler & 0xffff
            | u64::from(CODE0) << 16
            | u64::from(stack) << 32
            | kind << 40
            | (handler >> 16 & 0xffff) << 48;
        self.poke64(IDT + u64::from(vector) * 16, low);
        self.poke64(IDT + u64::from(vector) * 16 + 8, handler >> 32);
    }

    /// A processor in 64-bit code at level 0, about to run `CODE`.
    pub fn processor(&self) -> Cpu {
        let mut cpu = Cpu::new(self.ram.clone(), Attention::default());
        (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) = (0x8001_0033, ROOT, 0x6a0, 0xd01);
        let flat = |selector, access| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            access,
        };
        cpu.segments = [flat(DATA0, 0xc093); 6];
        cpu.segments[SegmentName::Cs as usize] = flat(CODE0, 0xa09b);
        cpu.gdt = TableRegister {
            base: GDT,
            limit: 0x47,
        };
        cpu.idt = TableRegister {
            base: IDT,
            limit: 0xfff,
        };
        cpu.tr = Segment {
            selector: TASK,
            base: TSS,
            limit: 0x67,
            access: 0x8b,
        };
        cpu.rip = CODE;
        cpu.general[4] = STACK;
        cpu.star = 0x001b_0008 << 32;
        cpu.state_replaced();
        cpu
    }
}

/// A world with one interrupt line and a port that takes notes.
#[derive(Debug, Default)]
pub struct World {
    pub written: Vec<(u16, u32)>,
    /// An interrupt that comes when so many instructions' worth of looks have passed.
    pub interrupt: Option<u8>,
    /// Whether an interrupt is wanted by a write to port 0x20.
    pub on_request: Option<u8>,
    pub nmi: bool,
    pub clock: u64,
    pub mmio: Vec<(u64, Vec<u8>)>,
}

impl Environment for World {
    fn port_read(&mut self, port: u16, _size: u8) -> u32 {
        port.into()
    }
    fn port_write(&mut self, port: u16, _size: u8, value: u32) {
        if port == 0x20 {
            self.interrupt = self.on_request;
        }
        self.written.push((port, value));
    }
    fn mmio_read(&mut self, _address: u64, data: &mut [u8]) {
        data.fill(0x5a);
    }
    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        if self.mmio.len() < 64 {
            self.mmio.push((address, data.to_vec()));
        }
    }
    fn msr_read(&mut self, _index: u32) -> Option<u64> {
        None
    }
    fn msr_write(&mut self, _index: u32, _value: u64) -> bool {
        false
    }
    fn cpuid(&mut self, leaf: u32, _index: u32) -> [u32; 4] {
        match leaf {
            0 => [7, u32::from_le_bytes(*b"Auth"), 0, 0],
            1 => [0, 0, 1 << 30, 0],
            0x8000_0000 => [0x8000_0008, 0, 0, 0],
            0x8000_0001 => [0, 0, 0, 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29],
            0x8000_0008 => [40, 0, 0, 0],
            _ => [0; 4],
        }
    }
    fn tsc(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
    fn random(&mut self) -> u64 {
        7
    }
    fn take_interrupt(&mut self) -> Option<u8> {
        self.interrupt.take()
    }
    fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }
    fn task_priority(&mut self) -> u8 {
        0
    }
    fn set_task_priority(&mut self, _value: u8) {}
}

/// Runs until HLT; panics when it takes too long.
pub fn run_to_halt(cpu: &mut Cpu, world: &mut World) {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        match cpu.run(world, 1000) {
            Stop::Halted => return,
            Stop::Budget => {}
            Stop::Yield => std::thread::yield_now(),
            Stop::TripleFault => panic!("a triple fault at {:#x}, CR2 {:#x}", cpu.rip, cpu.cr2),
        }
    }
    panic!("no end at {:#x}", cpu.rip);
}
