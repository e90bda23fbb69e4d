//! Programs in long mode with an identity map, at CPL 0.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use iced_x86::code_asm::*;

use crate::{Attention, Cpu, Environment, Ram, RamSlot, Segment, Stop};

mod pairs;
mod straddlers;

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

#[expect(unsafe_code, reason = "a pointer to memory of its own")]
// SAFETY: the pointer leads to memory that the machine owns.
unsafe impl Send for Machine {}

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

#[test]
fn code_that_changes_itself_runs_as_changed() {
    // The immediate of the second instruction of the loop grows, in the page that runs.
    check(1 + 2 + 3 + 4, |a| {
        let mut top = a.create_label();
        a.xor(eax, eax).unwrap();
        a.mov(ecx, 4).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(edx, 1).unwrap();
        a.add(eax, edx).unwrap();
        a.lea(rsi, qword_ptr(top)).unwrap();
        a.inc(dword_ptr(rsi + 1)).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(top).unwrap();
    });
}

#[test]
fn a_store_into_the_running_block_takes_effect_at_once() {
    check(7, |a| {
        let mut changed = a.create_label();
        a.lea(rsi, qword_ptr(changed)).unwrap();
        a.mov(dword_ptr(rsi + 1), 7).unwrap();
        a.set_label(&mut changed).unwrap();
        a.mov(eax, 5).unwrap();
    });
}

#[test]
fn code_crosses_pages() {
    check(3000, |a| {
        a.xor(eax, eax).unwrap();
        for _ in 0..3000 {
            a.inc(rax).unwrap();
        }
    });
}

#[test]
fn flags_survive_what_changes_few_of_them() {
    // CF of the addition goes through INC and a move to ADC; ROL sets it anew.
    check(0x8000_0000_0000_0003, |a| {
        a.mov(rax, -1i64).unwrap();
        a.add(rax, 1).unwrap();
        a.inc(rcx).unwrap();
        a.mov(eax, 1).unwrap();
        a.adc(rax, 0).unwrap();
        a.mov(rdx, 1u64 << 63).unwrap();
        a.rol(rdx, 1).unwrap();
        a.adc(rax, 0).unwrap();
        a.ror(rdx, 1).unwrap();
        a.or(rax, rdx).unwrap();
    });
}

#[test]
fn signed_and_unsigned_conditions_differ() {
    check(0b1011, |a| {
        a.xor(ebx, ebx).unwrap();
        a.mov(ecx, -1).unwrap();
        a.mov(edx, 1).unwrap();
        a.cmp(ecx, edx).unwrap();
        a.setl(bl).unwrap();
        a.seta(bh).unwrap();
        a.movzx(eax, bl).unwrap();
        a.movzx(ebx, bh).unwrap();
        a.lea(eax, dword_ptr(rax + rbx * 2)).unwrap();
        a.mov(esi, 8).unwrap();
        a.xor(edi, edi).unwrap();
        a.test(ecx, ecx).unwrap();
        a.cmovs(edi, esi).unwrap();
        a.or(eax, edi).unwrap();
    });
}

#[test]
fn vectors_move_and_compare() {
    check(0xffff, |a| {
        a.mov(rdi, DATA).unwrap();
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        a.mov(qword_ptr(rdi), rax).unwrap();
        a.mov(qword_ptr(rdi + 8), rax).unwrap();
        a.movups(xmm1, xmmword_ptr(rdi)).unwrap();
        a.movq(xmm2, rax).unwrap();
        a.punpcklqdq(xmm2, xmm2).unwrap();
        a.pcmpeqb(xmm2, xmm1).unwrap();
        a.pmovmskb(eax, xmm2).unwrap();
    });
}

#[test]
fn halts_and_yields() {
    let mut machine = Machine::new();
    machine.write(CODE, &[0x90, 0xf4]);
    assert_eq!(machine.cpu.run(&mut Nothing, 1000), Stop::Halted);
    assert_eq!(machine.cpu.rip, CODE + 2);
    let mut machine = Machine::new();
    // PAUSE in a loop.
    machine.write(CODE, &[0xf3, 0x90, 0xeb, 0xfc]);
    assert_eq!(machine.cpu.run(&mut Nothing, 1_000_000), Stop::Yield);
}

#[test]
fn programs_of_32_bits_run() {
    let mut assembler = CodeAssembler::new(32).unwrap();
    let (mut top, a) = (assembler.create_label(), &mut assembler);
    a.mov(ecx, 100).unwrap();
    a.xor(eax, eax).unwrap();
    a.set_label(&mut top).unwrap();
    a.add(eax, ecx).unwrap();
    a.push(eax).unwrap();
    a.pop(edx).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(top).unwrap();
    let code = assembler.assemble(CODE).unwrap();
    for slice in [1, 5, 1000] {
        let mut machine = Machine::new();
        machine.cpu.segments[1].access = 0xc09b;
        machine.cpu.state_replaced();
        machine.write(CODE, &code);
        machine.write(CODE + code.len() as u64, &[0xeb, 0xfe]);
        while machine.cpu.rip != CODE + code.len() as u64 {
            assert_eq!(machine.cpu.run(&mut Nothing, slice), Stop::Budget);
        }
        assert_eq!(machine.cpu.general[0], 5050);
        assert_eq!(machine.cpu.general[2], 5050);
        assert_eq!(machine.cpu.general[4], STACK);
    }
}

#[test]
fn a_budget_is_kept_to_the_instruction() {
    let mut machine = Machine::new();
    // INC RAX in a loop: two instructions each.
    machine.write(CODE, &[0x48, 0xff, 0xc0, 0xeb, 0xfb]);
    for budget in [1, 2, 3, 64, 65, 66, 500, 10_001] {
        machine.cpu.general[0] = 0;
        machine.cpu.rip = CODE;
        assert_eq!(machine.cpu.run(&mut Nothing, budget), Stop::Budget);
        assert_eq!(machine.cpu.general[0], budget.div_ceil(2));
    }
}

#[test]
fn about_a_budget_is_never_more_and_at_most_a_block_less() {
    let mut machine = Machine::new();
    // INC RAX in a loop: two instructions each.
    machine.write(CODE, &[0x48, 0xff, 0xc0, 0xeb, 0xfb]);
    for budget in [128, 129, 500, 10_001, 100_000] {
        let before = machine.cpu.general[0];
        assert_eq!(machine.cpu.run_about(&mut Nothing, budget), Stop::Budget);
        let done = 2 * (machine.cpu.general[0] - before);
        assert!(
            (budget - 66..=budget + 1).contains(&done),
            "{done} of {budget}"
        );
    }
}

/// Handlers and the decoded form do the same in 16- and 32-bit code.
#[test]
fn narrow_code_runs_by_handlers_as_step_by_step() {
    let ends_after = |slice: u64, bits: u32| {
        let mut a = CodeAssembler::new(bits).unwrap();
        let mut again = a.create_label();
        a.mov(ecx, 300).unwrap();
        a.mov(eax, 0x8765_4321u32).unwrap();
        a.set_label(&mut again).unwrap();
        a.add(eax, ecx).unwrap();
        a.adc(bx, ax).unwrap();
        a.sbb(dh, bl).unwrap();
        a.xor(esi, edx).unwrap();
        a.rol(esi, 7).unwrap();
        a.mov(ah, cl).unwrap();
        a.movsx(edi, bx).unwrap();
        a.shl(edi, cl).unwrap();
        a.sar(bp, 3).unwrap();
        a.inc(bp).unwrap();
        a.neg(dl).unwrap();
        a.sub(ebp, edi).unwrap();
        a.cmp(ebp, -5).unwrap();
        a.setl(ch).unwrap();
        a.mov(ch, 0).unwrap();
        a.movzx(ecx, cx).unwrap();
        a.cmp(al, bl).unwrap();
        a.adc(esi, 0).unwrap();
        a.dec(ecx).unwrap();
        a.jne(again).unwrap();
        a.hlt().unwrap();
        let start = if bits == 16 { 0x8000 } else { CODE };
        let mut machine = Machine::new();
        machine.write(start, &a.assemble(start).unwrap());
        // Compatibility mode.
        machine.cpu.segments[1].access = if bits == 16 { 0x809b } else { 0xc09b };
        machine.cpu.rip = start;
        machine.cpu.state_replaced();
        for _ in 0..1_000_000 {
            match machine.cpu.run(&mut Nothing, slice) {
                Stop::Halted => return (machine.cpu.general, machine.cpu.rflags),
                stop => assert_eq!(stop, Stop::Budget),
            }
        }
        panic!("no end in sight at {:#x}", machine.cpu.rip);
    };
    for bits in [16, 32] {
        let stepped = ends_after(1, bits);
        assert_eq!(stepped.0[1], 0);
        for slice in [70, 1000, 100_000] {
            assert_eq!(
                ends_after(slice, bits),
                stepped,
                "{bits} bits, slices of {slice}"
            );
        }
    }
}

/// A device that asks for an interrupt when it is written to is heard before the next instruction.
#[test]
fn a_device_is_heard_at_once() {
    struct Device(Attention);
    impl Environment for Device {
        fn port_read(&mut self, _port: u16, _size: u8) -> u32 {
            0
        }
        fn port_write(&mut self, _port: u16, _size: u8, _value: u32) {}
        fn mmio_read(&mut self, _address: u64, _data: &mut [u8]) {}
        fn mmio_write(&mut self, address: u64, _data: &[u8]) {
            assert_eq!(address, 0x40_0010);
            self.0.call();
        }
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
    let mut machine = Machine::new();
    // Beyond RAM.
    machine.write(0x3010, &0x40_0083_u64.to_le_bytes());
    let mut assembler = CodeAssembler::new(64).unwrap();
    assembler.mov(rax, 0x40_0010_u64).unwrap();
    assembler.mov(dword_ptr(rax), ecx).unwrap();
    assembler.inc(ebx).unwrap();
    assembler.hlt().unwrap();
    machine.write(CODE, &assembler.assemble(CODE).unwrap());
    let mut device = Device(machine.cpu.attention());
    assert_eq!(machine.cpu.run(&mut device, 1000), Stop::Budget);
    assert_eq!(machine.cpu.general[3], 0);
    assert_eq!(machine.cpu.run(&mut device, 1000), Stop::Halted);
    assert_eq!(machine.cpu.general[3], 1);
}

/// 0F 18 to 0F 1F in every form do nothing, whatever newer processors mean by them.
#[test]
fn hints_do_nothing() {
    let prefixes: [&[u8]; 6] = [&[], &[0x66], &[0xf2], &[0xf3], &[0x48], &[0xf3, 0x48]];
    let mut machine = Machine::new();
    machine.cpu.general[4] = STACK;
    for (prefix, opcode) in prefixes
        .iter()
        .flat_map(|p| (0x18..=0x1f).map(move |o| (p, o)))
    {
        for operand in 0..=255 {
            let mut code = [prefix, &[0x0f, opcode, operand, 0, 0, 0, 0, 0][..]].concat();
            let memory = operand >> 6 != 3;
            let scaled = memory && operand & 7 == 4;
            let displacement = match operand >> 6 {
                0 if operand & 7 == 5 => 4,
                // A SIB byte of 0 names RAX twice.
                0 | 3 => 0,
                1 => 1,
                _ => 4,
            };
            let len = prefix.len() + 3 + usize::from(scaled) + displacement;
            code.truncate(len);
            code.extend([0xeb, 0xfe]);
            machine.write(CODE, &code);
            machine.cpu.rip = CODE;
            let before = machine.cpu.general;
            assert_eq!(
                machine.cpu.run(&mut Nothing, 1),
                Stop::Budget,
                "{code:02x?}"
            );
            let end = CODE + len as u64;
            assert_eq!(
                (machine.cpu.rip, machine.cpu.general),
                (end, before),
                "{code:02x?}"
            );
        }
    }
}
