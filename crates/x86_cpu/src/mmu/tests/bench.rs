//! A processor with a megabyte of RAM and a world that takes notes.

use std::sync::atomic::Ordering;

use iced_x86::{Decoder, DecoderOptions};

use crate::state::Flow;
use crate::system::execute;
use crate::{Attention, Cpu, Environment, Fault, Ram, RamSlot, Segment, SegmentName};

/// Level-4 table; the others follow.
pub(crate) const ROOT: u64 = 0x1000;
pub(crate) const DIRECTORY: u64 = 0x3000;
pub(crate) const TABLE: u64 = 0x4000;
pub(crate) const GDT: u64 = 0x8000;
pub(crate) const IDT: u64 = 0x9000;
pub(crate) const TSS: u64 = 0xa000;
/// Where [`Bench::run`] puts instructions.
pub(crate) const CODE: u64 = 0x2_0000;
/// Top of the stack.
pub(crate) const STACK: u64 = 0x3_0000;
const PAGES: usize = 256;

/// Selectors of the GDT.
pub(crate) const CODE0: u16 = 0x08;
pub(crate) const DATA0: u16 = 0x10;
pub(crate) const CODE3: u16 = 0x1b;
pub(crate) const DATA3: u16 = 0x23;
pub(crate) const CODE0_32: u16 = 0x28;
pub(crate) const CODE3_32: u16 = 0x33;
pub(crate) const TASK: u16 = 0x40;

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

/// What the processor asked for.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) mmio_reads: Vec<(u64, usize)>,
    pub(crate) mmio_writes: Vec<(u64, Vec<u8>)>,
    pub(crate) ports: Vec<(u16, u8, Option<u32>)>,
    pub(crate) msr_writes: Vec<(u32, u64)>,
    pub(crate) priority: u8,
    pub(crate) intel: bool,
}

impl Environment for World {
    fn port_read(&mut self, port: u16, size: u8) -> u32 {
        self.ports.push((port, size, None));
        0x8765_4321
    }
    fn port_write(&mut self, port: u16, size: u8, value: u32) {
        self.ports.push((port, size, Some(value)));
    }
    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        self.mmio_reads.push((address, data.len()));
        data.fill(0x41);
    }
    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        self.mmio_writes.push((address, data.to_vec()));
    }
    fn msr_read(&mut self, index: u32) -> Option<u64> {
        (index == 0x1b).then_some(0xfee0_0900)
    }
    fn msr_write(&mut self, index: u32, value: u64) -> bool {
        self.msr_writes.push((index, value));
        index == 0x6e0
    }
    fn cpuid(&mut self, leaf: u32, _index: u32) -> [u32; 4] {
        let vendor = if self.intel { *b"Genu" } else { *b"Auth" };
        match leaf {
            0 => [7, u32::from_le_bytes(vendor), 0, 0],
            1 => [0, 0, 1 << 30, 0],
            7 => [0, 1 | 1 << 7 | 1 << 18, 1 << 2 | 1 << 22, 0],
            0x8000_0000 => [0x8000_0008, 0, 0, 0],
            0x8000_0001 => [0, 0, 0, 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29],
            0x8000_0008 => [40, 0, 0, 0],
            _ => [leaf, 1, 2, 3],
        }
    }
    fn tsc(&mut self) -> u64 {
        0x1_0000_0002
    }
    fn random(&mut self) -> u64 {
        0x1234_5678_9abc_def0
    }
    fn take_interrupt(&mut self) -> Option<u8> {
        None
    }
    fn take_nmi(&mut self) -> bool {
        false
    }
    fn task_priority(&mut self) -> u8 {
        self.priority
    }
    fn set_task_priority(&mut self, value: u8) {
        self.priority = value;
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) cpu: Cpu,
    pub(crate) world: World,
    /// Its memory; the processor reaches it by address only.
    _pages: Memory,
}

struct Memory(#[expect(dead_code, reason = "reached by address")] Vec<Page>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Bench {
    fn empty() -> Self {
        let mut pages = vec![Page([0; 4096]); PAGES];
        let slot = RamSlot {
            gpa: 0,
            host_address: pages.as_mut_ptr() as u64,
            len: PAGES as u64 * 4096,
        };
        let ram = Ram::new(&[slot]);
        let mut cpu = Cpu::new(ram, Attention::default());
        cpu.gdt.base = GDT;
        cpu.gdt.limit = 0x4f;
        cpu.idt.base = IDT;
        cpu.idt.limit = 0xfff;
        cpu.general[4] = STACK;
        cpu.rip = CODE;
        let mut bench = Self {
            cpu,
            world: World::default(),
            _pages: Memory(pages),
        };
        let descriptors = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0,
            0x0000_8900_0000_0067 | TSS << 16,
            0,
        ];
        for (at, descriptor) in (GDT..).step_by(8).zip(descriptors) {
            bench.poke64(at, descriptor);
        }
        bench.cpu.tr = Segment {
            selector: TASK,
            base: TSS,
            limit: 0x67,
            access: 0x8b,
        };
        bench
    }

    /// Another processor over the same RAM, as it is.
    pub(crate) fn second(&self) -> Cpu {
        let mut cpu = Cpu::new(self.cpu.ram.clone(), Attention::default());
        (cpu.cr0, cpu.cr3, cpu.cr4) = (self.cpu.cr0, self.cpu.cr3, self.cpu.cr4);
        cpu.efer = self.cpu.efer;
        cpu.segments = self.cpu.segments;
        cpu.state_replaced();
        cpu
    }

    /// 64-bit code at level 0; the first megabyte is mapped to itself, for users too.
    pub(crate) fn long() -> Self {
        let mut bench = Self::empty();
        bench.poke64(ROOT, 0x2007);
        bench.poke64(ROOT + 0x1000, DIRECTORY | 7);
        bench.poke64(DIRECTORY, TABLE | 7);
        for page in 0..PAGES as u64 {
            bench.poke64(TABLE + page * 8, page << 12 | 7);
        }
        let cpu = &mut bench.cpu;
        (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) = (0x8001_0031, ROOT, 0x6a0, 0xd01);
        bench.use_code(CODE0);
        bench
    }

    /// 32-bit protected mode at level 0, without paging.
    pub(crate) fn protected() -> Self {
        let mut bench = Self::empty();
        bench.cpu.cr0 = 0x31;
        bench.use_code(CODE0_32);
        bench
    }

    /// 16-bit real mode.
    pub(crate) fn real() -> Self {
        let mut bench = Self::empty();
        bench.cpu.cr0 = 0x10;
        bench.cpu.startup((CODE >> 12) as u8);
        bench.cpu.idt.base = 0;
        bench.cpu.general[4] = 0xfff0;
        bench.cpu.refresh();
        bench
    }

    /// Sets CS to a code segment of the GDT, the others to the data segment of its level.
    pub(crate) fn use_code(&mut self, selector: u16) {
        let level = u64::from(selector & 3);
        let data = self.loaded(DATA0 + 0x10 * u16::from(level == 3) + level as u16);
        self.cpu.segments = [data; 6];
        self.cpu.segments[SegmentName::Cs as usize] = self.loaded(selector);
        self.cpu.state_replaced();
    }

    fn loaded(&self, selector: u16) -> Segment {
        let word = self.peek64(GDT + u64::from(selector & 0xfff8));
        Segment {
            selector,
            base: 0,
            limit: 0xffff_ffff,
            access: (word >> 40) as u32 & 0xf0ff,
        }
    }

    pub(crate) fn set_cpl(&mut self, cpl: u8) {
        self.use_code(if cpl == 3 { CODE3 } else { CODE0 });
    }

    /// Writes an interrupt gate of long mode: type, DPL and presence in `kind`.
    pub(crate) fn gate64(&mut self, vector: u8, selector: u16, offset: u64, kind: u8, ist: u8) {
        let at = IDT + u64::from(vector) * 16;
        let low = offset & 0xffff
            | u64::from(selector) << 16
            | u64::from(ist) << 32
            | u64::from(kind) << 40
            | (offset >> 16 & 0xffff) << 48;
        self.poke64(at, low);
        self.poke64(at + 8, offset >> 32);
    }

    /// Writes a gate of protected mode.
    pub(crate) fn gate32(&mut self, vector: u8, selector: u16, offset: u64, kind: u8) {
        let low = offset & 0xffff
            | u64::from(selector) << 16
            | u64::from(kind) << 40
            | (offset >> 16 & 0xffff) << 48;
        self.poke64(IDT + u64::from(vector) * 8, low);
    }

    pub(crate) fn parts(&mut self) -> (&mut Cpu, &mut World) {
        (&mut self.cpu, &mut self.world)
    }

    pub(crate) fn poke64(&self, gpa: u64, value: u64) {
        let place = self.cpu.ram.entry64(gpa).expect("RAM");
        place.store(value, Ordering::Relaxed);
    }

    pub(crate) fn poke32(&self, gpa: u64, value: u32) {
        let place = self.cpu.ram.entry32(gpa).expect("RAM");
        place.store(value, Ordering::Relaxed);
    }

    pub(crate) fn peek64(&self, gpa: u64) -> u64 {
        self.cpu.ram.read64(gpa).expect("RAM")
    }

    pub(crate) fn peek32(&self, gpa: u64) -> u32 {
        self.cpu.ram.read32(gpa).expect("RAM")
    }

    /// Executes one instruction as the interpreter does.
    pub(crate) fn run(&mut self, bytes: &[u8]) -> Result<Flow, Fault> {
        let access = self.cpu.segments[SegmentName::Cs as usize].access;
        let bits = match (self.cpu.long_code(), access & 1 << 14 != 0) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        };
        let start = self.cpu.rip;
        let mut decoder = Decoder::with_ip(bits, bytes, start, DecoderOptions::NONE);
        let instruction = decoder.decode();
        assert_eq!(
            instruction.len(),
            bytes.len(),
            "{bytes:x?} is one instruction"
        );
        self.cpu.rip = instruction.next_ip();
        let result = execute(&mut self.cpu, &mut self.world, &instruction);
        if result.is_err() {
            self.cpu.rip = start;
        }
        result
    }

    /// Eight-byte values from RSP upwards.
    pub(crate) fn frame(&self, values: u64) -> Vec<u64> {
        let start = self.cpu.general[4];
        (0..values).map(|at| self.peek64(start + 8 * at)).collect()
    }
}
