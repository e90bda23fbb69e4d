//! Speed of the interpreter in four loops: instructions per second, in millions.

#![expect(unsafe_code, reason = "guest RAM is plain memory of the host")]
#![allow(clippy::unwrap_used, reason = "a measuring program")]

use std::time::Instant;

use iced_x86::code_asm::*;
use x86_cpu::{Attention, Cpu, Environment, Ram, RamSlot, Segment, Stop};

const RAM_LEN: usize = 4 << 20;
const CODE: u64 = 0x10_0000;
const BUDGET: u64 = 300_000_000;

struct Nothing;

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

/// Long mode, 4 MiB mapped one to one, code in place.
fn machine(write: impl FnOnce(&mut CodeAssembler)) -> Cpu {
    let memory = Box::leak(vec![0u64; RAM_LEN / 8 + 512].into_boxed_slice());
    let start = (memory.as_mut_ptr() as u64 + 4095) & !4095;
    let put = |at: u64, bytes: &[u8]| {
        // SAFETY: all places used here are below `RAM_LEN`.
        unsafe { std::ptr::copy(bytes.as_ptr(), (start + at) as *mut u8, bytes.len()) }
    };
    put(0x1000, &0x2003u64.to_le_bytes());
    put(0x2000, &0x3003u64.to_le_bytes());
    put(0x3000, &0x83u64.to_le_bytes());
    put(0x3008, &0x20_0083u64.to_le_bytes());
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler);
    put(CODE, &assembler.assemble(CODE).unwrap());
    let slots = [RamSlot {
        gpa: 0,
        host_address: start,
        len: RAM_LEN as u64,
    }];
    let mut cpu = Cpu::new(Ram::new(&slots), Attention::default());
    (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) = (0x8005_0033, 0x1000, 0x6b0, 0xd01);
    let segment = |selector, access| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        access,
    };
    cpu.segments = [segment(0x18, 0xc093); 6];
    cpu.segments[1] = segment(0x10, 0xa09b);
    cpu.general[4] = 0x30_0000;
    cpu.rip = CODE;
    cpu.state_replaced();
    cpu
}

fn measure(name: &str, write: impl FnOnce(&mut CodeAssembler)) {
    let mut cpu = machine(write);
    let begin = Instant::now();
    assert_eq!(cpu.run(&mut Nothing, BUDGET), Stop::Budget);
    let rate = BUDGET as f64 / begin.elapsed().as_secs_f64() / 1e6;
    println!("{name:8} {rate:7.0} M instructions/s");
}

fn integers(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    a.set_label(&mut top).unwrap();
    a.add(rax, rcx).unwrap();
    a.xor(rdx, rax).unwrap();
    a.lea(rbx, qword_ptr(rax + rdx * 4 + 7)).unwrap();
    a.shr(rbx, 3).unwrap();
    a.add(rsi, rbx).unwrap();
    a.inc(rcx).unwrap();
    a.cmp(rcx, 0x7fff_ffff).unwrap();
    a.jne(top).unwrap();
}

fn memory(a: &mut CodeAssembler) {
    let (mut again, mut top) = (a.create_label(), a.create_label());
    a.set_label(&mut again).unwrap();
    a.mov(rsi, 0x20_0000u64).unwrap();
    a.mov(rdi, 0x20_8000u64).unwrap();
    a.mov(ecx, 4096).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(rax, qword_ptr(rsi)).unwrap();
    a.add(rax, qword_ptr(rsi + 8)).unwrap();
    a.mov(qword_ptr(rdi), rax).unwrap();
    a.add(rsi, 8).unwrap();
    a.add(rdi, 8).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(top).unwrap();
    a.jmp(again).unwrap();
}

fn branches(a: &mut CodeAssembler) {
    let (mut top, mut odd, mut on) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(eax, 12345).unwrap();
    a.set_label(&mut top).unwrap();
    a.imul_3(eax, eax, 1_103_515_245).unwrap();
    a.add(eax, 12345).unwrap();
    a.test(eax, 0x1_0000).unwrap();
    a.jnz(odd).unwrap();
    a.add(ebx, 3).unwrap();
    a.jmp(on).unwrap();
    a.set_label(&mut odd).unwrap();
    a.sub(ebx, 1).unwrap();
    a.set_label(&mut on).unwrap();
    a.cmp(ebx, 100).unwrap();
    a.jl(top).unwrap();
    a.xor(ebx, ebx).unwrap();
    a.jmp(top).unwrap();
}

/// Fibonacci numbers, the slow way.
fn calls(a: &mut CodeAssembler) {
    let (mut top, mut function, mut end) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut top).unwrap();
    a.mov(edi, 20).unwrap();
    a.call(function).unwrap();
    a.jmp(top).unwrap();
    a.set_label(&mut function).unwrap();
    a.push(rbx).unwrap();
    a.push(rbp).unwrap();
    a.mov(ebx, edi).unwrap();
    a.mov(eax, 1).unwrap();
    a.cmp(edi, 2).unwrap();
    a.jle(end).unwrap();
    a.lea(edi, dword_ptr(rbx - 1)).unwrap();
    a.call(function).unwrap();
    a.mov(ebp, eax).unwrap();
    a.lea(edi, dword_ptr(rbx - 2)).unwrap();
    a.call(function).unwrap();
    a.add(eax, ebp).unwrap();
    a.set_label(&mut end).unwrap();
    a.pop(rbp).unwrap();
    a.pop(rbx).unwrap();
    a.ret().unwrap();
}

fn main() {
    measure("int", integers);
    measure("mem", memory);
    measure("branch", branches);
    measure("call", calls);
}
