//! Makes bare-metal programs: page tables, descriptors, handlers that note every exception.
//!
//! A program tries something that traps; the handler writes a record and goes on behind it in
//! supervisor mode, whatever the mode was. All memory is mapped at its physical address.

use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::{CodeAssembler, CodeLabel, gpr64::*, qword_ptr};
use iced_x86::code_asm::{al, dword_ptr, ecx, gpr32, ptr};

use crate::engines::{END_PORT, PortWrite};

/// Guest RAM.
pub const RAM_BYTES: u64 = 4 << 20;
/// The highest page table.
pub const PAGE_TABLES: u64 = 0x1000;
const LEVEL3: u64 = 0x2000;
const LEVEL2: u64 = 0x3000;
/// The two lowest page tables, which map 4 MiB.
pub const LEVEL1: u64 = 0x4000;
const LEVEL2_APIC: u64 = 0x6000;
/// Descriptors.
pub const GDT: u64 = 0x8000;
/// Bytes of them.
pub const GDT_BYTES: u16 = 128;
/// Gates.
pub const IDT: u64 = 0x9000;
/// Task state.
pub const TSS: u64 = 0xa000;
/// Bytes of it: an I/O map lies behind its 104 bytes, which allows port 0x80 only.
pub const TSS_BYTES: u32 = 104 + 32 + 1;
const HANDLERS: u64 = 0xb000;
const HANDLER_BYTES: u64 = 16;
const VARIABLES: u64 = 0xd000;
/// Where a handler goes on.
const RESUME: i32 = VARIABLES as i32;
/// Number of the record that a handler writes.
const CURRENT: i32 = VARIABLES as i32 + 8;
const LOG: u64 = 0xe000;
const RECORD_BYTES: u64 = 128;
const VALUES: u64 = 0xf000;
/// Top of the stack that programs start with.
pub const KERNEL_STACK: u64 = 0x2_0000;
/// Top of the stack of exceptions in user mode.
pub const TASK_STACK: u64 = 0x2_4000;
/// Tops of the stacks IST1 and IST2.
pub const OTHER_STACKS: [u64; 2] = [0x2_8000, 0x2_c000];
/// Top of the user stack.
pub const USER_STACK: u64 = 0x3_0000;
/// Where programs lie; user mode reaches it.
pub const CODE: u64 = 0x10_0000;
const CODE_BYTES: u64 = 0x1_0000;
/// Memory for cases from here on, 512 pages, supervisor's and writable unless a case says else.
pub const SCRATCH: u64 = 0x20_0000;
/// The local APIC.
pub const APIC: u64 = 0xfee0_0000;

/// Selectors.
pub const KERNEL_CODE: u16 = 0x10;
/// Data and stack of the supervisor.
pub const KERNEL_DATA: u16 = 0x18;
/// 64-bit user code.
pub const USER_CODE: u16 = 0x33;
/// Data and stack of user mode.
pub const USER_DATA: u16 = 0x2b;
/// Task register.
pub const TASK: u16 = 0x40;
/// A data segment that is not present.
pub const ABSENT: u16 = 0x58;
/// 32-bit user code.
pub const USER_CODE_32: u16 = 0x23;

/// Bits of page table entries.
pub const PRESENT: u64 = 1;
/// Writable.
pub const WRITABLE: u64 = 1 << 1;
/// User mode reaches it.
pub const USER: u64 = 1 << 2;
/// Accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty.
pub const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
/// Survives a load of CR3.
pub const GLOBAL: u64 = 1 << 8;
/// No instructions.
pub const NO_EXECUTE: u64 = 1 << 63;

const UNUSED: u64 = u64::MAX;

/// What is true after the program.
pub type Check = Box<dyn Fn(&Outcome)>;

/// A program under construction.
pub struct Kit {
    /// Takes the instructions.
    pub asm: CodeAssembler,
    marks: Vec<CodeLabel>,
    /// Whether the current trap has its mark.
    marked: bool,
    values: u64,
    entries: Vec<(u64, u64)>,
    gates: Vec<(u64, CodeLabel)>,
    stacks: Vec<(u64, u64)>,
}

/// A program, ready to run.
pub struct Program {
    /// Address and content.
    pub image: Vec<(u64, Vec<u8>)>,
    /// First instruction.
    pub entry: u64,
    marks: Vec<u64>,
}

/// What the handler saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Vector; all ones where nothing trapped.
    pub vector: u64,
    /// Error code; 0 where the vector has none.
    pub error: u64,
    /// Saved RIP.
    pub rip: u64,
    /// Saved CS.
    pub cs: u64,
    /// Saved RFLAGS.
    pub rflags: u64,
    /// Saved RSP.
    pub rsp: u64,
    /// Saved SS.
    pub ss: u64,
    /// CR2.
    pub cr2: u64,
    /// Address above the frame.
    pub frame: u64,
    /// RAX.
    pub rax: u64,
    /// DR6.
    pub dr6: u64,
}

/// What a program left.
pub struct Outcome {
    records: Vec<Record>,
    marks: Vec<u64>,
    ram: Vec<u8>,
    /// What it wrote to ports.
    pub ports: Vec<PortWrite>,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = self.records.iter().filter(|record| record.vector != UNUSED);
        to.debug_list().entries(used).finish()
    }
}

impl Outcome {
    /// Reads RAM after a run.
    pub fn new(program: &Program, ram: &[u8], ports: Vec<PortWrite>) -> Self {
        let word = |address: u64| {
            let at = address as usize;
            u64::from_le_bytes(ram[at..at + 8].try_into().unwrap())
        };
        let records = (0..PAGE / RECORD_BYTES).map(|index| {
            let field = |number: u64| word(LOG + index * RECORD_BYTES + 8 * number);
            Record {
                vector: field(0),
                error: field(1),
                rip: field(2),
                cs: field(3),
                rflags: field(4),
                rsp: field(5),
                ss: field(6),
                cr2: field(7),
                frame: field(8),
                rax: field(9),
                dr6: field(10),
            }
        });
        Self {
            records: records.collect(),
            marks: program.marks.clone(),
            ram: ram.to_vec(),
            ports,
        }
    }

    /// Returns a record; the trap must have happened.
    pub fn record(&self, trap: usize) -> &Record {
        &self.records[trap]
    }

    /// Returns the address of the mark of a trap.
    pub fn mark(&self, trap: usize) -> u64 {
        self.marks[trap]
    }

    /// Returns a value of the program.
    pub fn value(&self, index: u64) -> u64 {
        self.word(VALUES + 8 * index)
    }

    /// Returns a word of RAM.
    pub fn word(&self, address: u64) -> u64 {
        let at = address as usize;
        u64::from_le_bytes(self.ram[at..at + 8].try_into().unwrap())
    }

    /// Checks vector, error code and that RIP is at the mark.
    pub fn faults(&self, trap: usize, vector: u64, error: u64) -> &Record {
        let record = self.record(trap);
        assert_eq!(
            (record.vector, record.error, record.rip),
            (vector, error, self.mark(trap)),
            "trap {trap}: vector, error, RIP; {record:x?}"
        );
        record
    }

    /// Checks a page fault: error code and address.
    pub fn page_faults(&self, trap: usize, error: u64, address: u64) {
        let record = self.faults(trap, 14, error);
        assert_eq!(record.cr2, address, "trap {trap}: CR2");
    }
}

const PAGE: u64 = 4096;

impl Kit {
    /// Starts a program.
    pub fn new() -> Self {
        Self {
            asm: CodeAssembler::new(64).unwrap(),
            marks: Vec::new(),
            marked: false,
            values: 0,
            entries: Vec::new(),
            gates: Vec::new(),
            stacks: Vec::new(),
        }
    }

    /// Maps the page at `linear` with `entry`, its physical address and bits.
    pub fn map(&mut self, linear: u64, entry: u64) {
        self.entries.push((LEVEL1 + linear / PAGE * 8, entry));
    }

    /// Address of the lowest page table entry of `linear`.
    pub fn entry_of(linear: u64) -> u64 {
        LEVEL1 + linear / PAGE * 8
    }

    /// Writes a word of RAM before the program starts.
    pub fn word(&mut self, address: u64, word: u64) {
        self.entries.push((address, word));
    }

    /// Has `vector` handled at `label` instead of being noted.
    pub fn handler(&mut self, vector: u64, label: CodeLabel) {
        self.gates.push((vector, label));
    }

    /// Gives `vector` a stack of its own, IST1 or IST2.
    pub fn other_stack(&mut self, vector: u64, number: u64) {
        self.stacks.push((vector, number));
    }

    /// Notes the present place as the one that the current trap is to happen at.
    pub fn mark(&mut self) {
        let mut label = self.asm.create_label();
        self.asm.set_label(&mut label).unwrap();
        *self.marks.last_mut().unwrap() = label;
        self.marked = true;
    }

    /// Sets the label that the handler goes on at.
    fn resume(&mut self, mut label: CodeLabel) {
        self.asm.set_label(&mut label).unwrap();
        self.asm.nop().unwrap();
        if !self.marked {
            *self.marks.last_mut().unwrap() = label;
        }
    }

    fn begin_trap(&mut self) -> (usize, CodeLabel) {
        let number = self.marks.len();
        let resume = self.asm.create_label();
        self.asm.lea(rax, ptr(resume)).unwrap();
        self.asm.mov(qword_ptr(RESUME), rax).unwrap();
        self.asm.mov(qword_ptr(CURRENT), number as i32).unwrap();
        self.marks.push(resume);
        self.marked = false;
        (number, resume)
    }

    /// Runs `snippet`, which is to trap, in supervisor mode. RAX is overwritten before it.
    pub fn trap(&mut self, snippet: impl FnOnce(&mut Self)) -> usize {
        let (number, resume) = self.begin_trap();
        snippet(self);
        // Something to carry the label where the snippet ended with a mark.
        self.asm.nop().unwrap();
        self.resume(resume);
        number
    }

    /// Runs `snippet`, which is to trap, in user mode.
    pub fn user_trap(&mut self, snippet: impl FnOnce(&mut Self)) -> usize {
        self.user_trap_with(2, snippet)
    }

    /// Runs `snippet`, which is to trap, in user mode with `flags`.
    pub fn user_trap_with(&mut self, flags: i32, snippet: impl FnOnce(&mut Self)) -> usize {
        let (number, resume) = self.begin_trap();
        let mut user = self.asm.create_label();
        self.asm.push(i32::from(USER_DATA)).unwrap();
        self.asm.push(USER_STACK as i32).unwrap();
        self.asm.push(flags).unwrap();
        self.asm.push(i32::from(USER_CODE)).unwrap();
        self.asm.lea(rax, ptr(user)).unwrap();
        self.asm.push(rax).unwrap();
        self.asm.iretq().unwrap();
        self.asm.set_label(&mut user).unwrap();
        self.asm.nop().unwrap();
        snippet(self);
        self.asm.ud2().unwrap();
        self.resume(resume);
        number
    }

    /// Keeps RAX for the check.
    pub fn keep(&mut self) -> u64 {
        let index = self.values;
        self.values += 1;
        self.asm
            .mov(qword_ptr((VALUES + 8 * index) as i32), rax)
            .unwrap();
        index
    }

    /// Writes RCX's MSR: EDX:EAX from `value`.
    pub fn write_msr(&mut self, index: u32, value: u64) {
        self.asm.mov(ecx, index).unwrap();
        self.asm.mov(gpr32::eax, value as u32).unwrap();
        self.asm.mov(gpr32::edx, (value >> 32) as u32).unwrap();
        self.asm.wrmsr().unwrap();
    }

    /// Reads an MSR to RAX.
    pub fn read_msr(&mut self, index: u32) {
        self.asm.mov(ecx, index).unwrap();
        self.asm.rdmsr().unwrap();
        self.asm.shl(rdx, 32).unwrap();
        self.asm.or(rax, rdx).unwrap();
    }

    /// Writes a register of the local APIC.
    pub fn write_apic(&mut self, register: u64, value: u32) {
        self.asm.mov(gpr32::edx, (APIC + register) as u32).unwrap();
        self.asm.mov(dword_ptr(rdx), value).unwrap();
    }

    /// Puts the program together.
    pub fn finish(mut self) -> Program {
        self.asm.mov(al, 0).unwrap();
        self.asm.mov(gpr32::edx, u32::from(END_PORT)).unwrap();
        self.asm.out(iced_x86::code_asm::dx, al).unwrap();
        let mut again = self.asm.create_label();
        self.asm.set_label(&mut again).unwrap();
        self.asm.hlt().unwrap();
        self.asm.jmp(again).unwrap();
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = self.asm.assemble_options(CODE, options).unwrap();
        let marks = self
            .marks
            .iter()
            .map(|label| result.label_ip(label).unwrap())
            .collect();
        let mut image = tables();
        image.push((HANDLERS, handlers()));
        image.push((LOG, vec![0xff; PAGE as usize]));
        for (vector, label) in &self.gates {
            let gate = gate(*vector, result.label_ip(label).unwrap(), 0);
            image.push((IDT + 16 * vector, gate));
        }
        for (vector, number) in &self.stacks {
            image.push((IDT + 16 * vector + 4, vec![*number as u8]));
        }
        for (address, word) in &self.entries {
            image.push((*address, word.to_le_bytes().to_vec()));
        }
        assert!((result.inner.code_buffer.len() as u64) < CODE_BYTES);
        image.push((CODE, result.inner.code_buffer));
        Program {
            image,
            entry: CODE,
            marks,
        }
    }
}

/// A 64-bit interrupt gate.
fn gate(vector: u64, handler: u64, stack: u64) -> Vec<u8> {
    // User mode may use INT3, INTO's vector and one more.
    let level: u64 = if matches!(vector, 3 | 4 | 0x60) { 3 } else { 0 };
    let low = (handler & 0xffff)
        | u64::from(KERNEL_CODE) << 16
        | stack << 32
        | (0x8e00 | level << 13) << 32
        | (handler >> 16 & 0xffff) << 48;
    [low.to_le_bytes(), (handler >> 32).to_le_bytes()].concat()
}

/// Page tables, descriptors, gates, task state.
fn tables() -> Vec<(u64, Vec<u8>)> {
    let table = PRESENT | WRITABLE | USER;
    let mut words: Vec<(u64, u64)> = vec![
        (PAGE_TABLES, LEVEL3 | table),
        (LEVEL3, LEVEL2 | table),
        (LEVEL2, LEVEL1 | table),
        (LEVEL2 + 8, (LEVEL1 + PAGE) | table),
        (LEVEL3 + 3 * 8, LEVEL2_APIC | table),
        // Devices: write-through, cache disabled.
        (
            LEVEL2_APIC + (APIC >> 21 & 511) * 8,
            APIC | PRESENT | WRITABLE | LARGE | 0x18,
        ),
    ];
    for page in 0..RAM_BYTES / PAGE {
        let address = page * PAGE;
        let code = (CODE..CODE + CODE_BYTES).contains(&address);
        let stack = (OTHER_STACKS[1]..USER_STACK).contains(&address);
        let user = if code || stack { USER } else { 0 };
        words.push((LEVEL1 + 8 * page, address | PRESENT | WRITABLE | user));
    }
    let task_low = u64::from(TSS_BYTES - 1) | (TSS & 0xff_ffff) << 16 | 0x8b << 40;
    let descriptors = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0,
        task_low,
        TSS >> 32,
        0,
        0x00cf_1300_0000_ffff,
    ];
    for (index, descriptor) in descriptors.into_iter().enumerate() {
        words.push((GDT + 8 * index as u64, descriptor));
    }
    words.push((TSS + 4, TASK_STACK));
    words.push((TSS + 36, OTHER_STACKS[0]));
    words.push((TSS + 44, OTHER_STACKS[1]));
    let mut image: Vec<_> = words
        .into_iter()
        .map(|(address, word)| (address, word.to_le_bytes().to_vec()))
        .collect();
    image.push((TSS + 102, 104_u16.to_le_bytes().to_vec()));
    let mut ports = vec![0xff; 33];
    ports[0x80 / 8] = 0xfe;
    image.push((TSS + 104, ports));
    for vector in 0..256 {
        image.push((
            IDT + 16 * vector,
            gate(vector, HANDLERS + HANDLER_BYTES * vector, 0),
        ));
    }
    image
}

/// A handler for each vector, and what they share behind them.
fn handlers() -> Vec<u8> {
    let shared = HANDLERS + HANDLER_BYTES * 256;
    let mut bytes = Vec::new();
    for vector in 0..256_u32 {
        let mut asm = CodeAssembler::new(64).unwrap();
        if !matches!(vector, 8 | 10..=14 | 17 | 21) {
            asm.push(0).unwrap();
        }
        asm.push(vector as i32).unwrap();
        asm.jmp(shared).unwrap();
        let address = HANDLERS + HANDLER_BYTES * u64::from(vector);
        let mut stub = asm.assemble(address).unwrap();
        stub.resize(HANDLER_BYTES as usize, 0xcc);
        bytes.extend(stub);
    }
    let mut asm = CodeAssembler::new(64).unwrap();
    asm.push(rax).unwrap();
    asm.push(rbx).unwrap();
    asm.mov(rbx, qword_ptr(CURRENT)).unwrap();
    asm.shl(rbx, RECORD_BYTES.trailing_zeros()).unwrap();
    asm.add(rbx, LOG as i32).unwrap();
    for field in 0..7 {
        asm.mov(rax, qword_ptr(rsp + 16 + 8 * field)).unwrap();
        asm.mov(qword_ptr(rbx + 8 * field), rax).unwrap();
    }
    asm.mov(rax, cr2()).unwrap();
    asm.mov(qword_ptr(rbx + 56), rax).unwrap();
    asm.lea(rax, ptr(rsp + 16 + 56)).unwrap();
    asm.mov(qword_ptr(rbx + 64), rax).unwrap();
    asm.mov(rax, qword_ptr(rsp + 8)).unwrap();
    asm.mov(qword_ptr(rbx + 72), rax).unwrap();
    asm.mov(rax, iced_x86::code_asm::dr6).unwrap();
    asm.mov(qword_ptr(rbx + 80), rax).unwrap();
    asm.pop(rbx).unwrap();
    asm.pop(rax).unwrap();
    asm.mov(rsp, KERNEL_STACK).unwrap();
    asm.jmp(qword_ptr(RESUME)).unwrap();
    bytes.extend(asm.assemble(shared).unwrap());
    bytes
}

fn cr2() -> iced_x86::code_asm::AsmRegisterCr {
    iced_x86::code_asm::cr2
}
