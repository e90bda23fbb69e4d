//! Programs in long mode with an identity map, at CPL 0.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use iced_x86::code_asm::*;

use crate::{Attention, Cpu, Environment, Ram, RamSlot, Segment, Stop};

const RAM_LEN: usize = 4 << 20;
pub(super) const CODE: u64 = 0x10_0000;
pub(super) const DATA: u64 = 0x20_0000;
pub(super) const STACK: u64 = 0x30_0000;

/// A world without devices.
#[derive(Default)]
pub(super) struct Nothing;

impl Environment for Nothing {
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
    fn cpuid(&mut self, _leaf: u32, _index: u32) -> [u32; 4] {
        [0; 4]
    }
    fn tsc(&mut self) -> u64 {
        0
    }
    fn random(&mut self) -> u64 {
        4
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

/// A processor and its RAM.
pub(super) struct Machine {
    pub(super) cpu: Cpu,
    memory: *mut u8,
}

impl Drop for Machine {
    #[expect(unsafe_code, reason = "frees what `new` took")]
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.memory, layout()) }
    }
}

fn layout() -> Layout {
    Layout::from_size_align(RAM_LEN, 4096).unwrap()
}

impl Machine {
    #[expect(unsafe_code, reason = "guest RAM is plain memory of the host")]
    pub(super) fn new() -> Self {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout()) };
        assert!(!memory.is_null());
        let ram = Ram::new(&[RamSlot {
            gpa: 0,
            host_address: memory as u64,
            len: RAM_LEN as u64,
        }]);
        let mut machine = Self {
            cpu: Cpu::new(ram, Attention::default()),
            memory,
        };
        machine.write(0x1000, &0x2003u64.to_le_bytes());
        machine.write(0x2000, &0x3003u64.to_le_bytes());
        for page in 0..2u64 {
            let entry = page << 21 | 0x83;
            machine.write(0x3000 + page * 8, &entry.to_le_bytes());
        }
        let cpu = &mut machine.cpu;
        (cpu.cr0, cpu.cr3, cpu.cr4) = (0x8005_0033, 0x1000, 0x6b0);
        cpu.efer = 0xd01;
        let segment = |selector, access| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            access,
        };
        cpu.segments = [segment(0x18, 0xc093); 6];
        cpu.segments[1] = segment(0x10, 0xa09b);
        cpu.general[4] = STACK;
        cpu.rip = CODE;
        cpu.state_replaced();
        machine
    }

    #[expect(unsafe_code, reason = "guest RAM is plain memory of the host")]
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= RAM_LEN);
        // SAFETY: inside the allocation.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.memory.add(at as usize), bytes.len()) }
    }

    #[expect(unsafe_code, reason = "guest RAM is plain memory of the host")]
    pub(super) fn read(&self, at: u64) -> u64 {
        assert!(at as usize + 8 <= RAM_LEN);
        // SAFETY: inside the allocation.
        unsafe { self.memory.add(at as usize).cast::<u64>().read_unaligned() }
    }

    /// Puts code in place and runs it to its end, in slices of `slice` instructions.
    pub(super) fn run(&mut self, slice: u64, write: impl FnOnce(&mut CodeAssembler)) {
        let mut assembler = CodeAssembler::new(64).unwrap();
        write(&mut assembler);
        let code = assembler.assemble(CODE).unwrap();
        self.write(CODE, &code);
        self.write(CODE + code.len() as u64, &[0xeb, 0xfe]);
        let end = CODE + code.len() as u64;
        for _ in 0..1_000_000 {
            if self.cpu.rip == end {
                return;
            }
            assert_eq!(self.cpu.run(&mut Nothing, slice), Stop::Budget);
        }
        panic!("no end in sight at {:#x}", self.cpu.rip);
    }
}

/// Runs code with several slice lengths and checks RAX.
fn check(expected: u64, write: impl Fn(&mut CodeAssembler)) {
    for slice in [1, 2, 7, 1000] {
        let mut machine = Machine::new();
        machine.run(slice, &write);
        assert_eq!(machine.cpu.general[0], expected, "slices of {slice}");
    }
}

#[test]
fn a_loop_sums() {
    check(5050, |a| {
        let mut top = a.create_label();
        a.mov(ecx, 100).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(rax, rcx).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(top).unwrap();
    });
}

#[test]
fn calls_and_the_stack() {
    check(0x1234_5678_9abc_def0 ^ 0xff, |a| {
        let (mut function, mut over) = (a.create_label(), a.create_label());
        a.mov(rbx, 0x1234_5678_9abc_def0u64).unwrap();
        a.push(rbx).unwrap();
        a.call(function).unwrap();
        a.pop(rcx).unwrap();
        a.jmp(over).unwrap();
        a.set_label(&mut function).unwrap();
        a.push(rbp).unwrap();
        a.mov(rbp, rsp).unwrap();
        a.mov(rax, qword_ptr(rbp + 16)).unwrap();
        a.xor(rax, 0xff).unwrap();
        a.leave().unwrap();
        a.ret().unwrap();
        a.set_label(&mut over).unwrap();
        a.nop().unwrap();
    });
}

#[test]
fn strings_go_on_where_the_budget_ended() {
    let mut machine = Machine::new();
    machine.run(100, |a| {
        a.mov(rdi, DATA + 3).unwrap();
        a.mov(ecx, 10_000).unwrap();
        a.mov(eax, 0x5a).unwrap();
        a.cld().unwrap();
        a.rep().stosb().unwrap();
        a.mov(rsi, DATA + 3).unwrap();
        a.mov(rdi, DATA + 20_005).unwrap();
        a.mov(ecx, 1250).unwrap();
        a.rep().movsq().unwrap();
    });
    assert_eq!(machine.cpu.general[1], 0);
    assert_eq!(machine.cpu.general[7], DATA + 30_005);
    assert_eq!(machine.read(DATA + 29_997), 0x5a5a_5a5a_5a5a_5a5a);
    assert_eq!(machine.read(DATA + 30_005) & 0xff, 0);
}

#[test]
fn locked_and_bit_operations() {
    check(7 + 0x10, |a| {
        a.mov(rdi, DATA).unwrap();
        a.mov(eax, 3).unwrap();
        a.mov(qword_ptr(rdi), 4).unwrap();
        a.lock().xadd(qword_ptr(rdi), rax).unwrap();
        a.lock().bts(qword_ptr(rdi), 4).unwrap();
        a.mov(rax, qword_ptr(rdi)).unwrap();
    });
}
