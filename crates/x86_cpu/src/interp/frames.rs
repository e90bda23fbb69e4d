//! No instruction's handler keeps a stack frame while those after it run: thousands of them run
//! before the loop gets control back. Only where the compiler turns calls at the end into jumps.

use super::tests::{CODE, DATA, Machine, Nothing};

/// Enough for one handler and what it calls, not for hundreds of handlers.
const STACK_BYTES: usize = 128 << 10;
const REPEATED: usize = 60;
const INSTRUCTIONS: u64 = 40_000;

/// Instructions in their encoded form; RDI and RSI point to data, RCX is 1.
const FORMS: &[(&str, &[u8])] = &[
    ("add rax, rbx", &[0x48, 0x01, 0xd8]),
    ("add [rdi], eax", &[0x01, 0x07]),
    ("adc al, [rdi]", &[0x12, 0x07]),
    ("lock xadd [rdi], eax", &[0xf0, 0x0f, 0xc1, 0x07]),
    ("lock cmpxchg [rdi], ebx", &[0xf0, 0x0f, 0xb1, 0x1f]),
    ("xchg [rdi], eax", &[0x87, 0x07]),
    ("bts [rdi], eax", &[0x0f, 0xab, 0x07]),
    ("shl [rdi], 3", &[0xc1, 0x27, 0x03]),
    ("ror eax, cl", &[0xd3, 0xc8]),
    ("shld eax, ebx, 4", &[0x0f, 0xa4, 0xd8, 0x04]),
    ("imul rax, rbx", &[0x48, 0x0f, 0xaf, 0xc3]),
    ("mul ecx", &[0xf7, 0xe1]),
    ("xor edx, edx; div ecx", &[0x31, 0xd2, 0xf7, 0xf1]),
    ("popcnt eax, ebx", &[0xf3, 0x0f, 0xb8, 0xc3]),
    ("crc32 eax, bl", &[0xf2, 0x0f, 0x38, 0xf0, 0xc3]),
    ("setz al", &[0x0f, 0x94, 0xc0]),
    ("cmovz eax, [rdi]", &[0x0f, 0x44, 0x07]),
    ("push rax; pop rbx", &[0x50, 0x5b]),
    ("pushfq; popfq", &[0x9c, 0x9d]),
    ("cld", &[0xfc]),
    ("cli", &[0xfa]),
    ("lodsb; dec rsi", &[0xac, 0x48, 0xff, 0xce]),
    ("bswap eax", &[0x0f, 0xc8]),
    ("cpuid; mov ecx, 1", &[0x0f, 0xa2, 0xb9, 1, 0, 0, 0]),
    ("rdtsc", &[0x0f, 0x31]),
    ("mfence", &[0x0f, 0xae, 0xf0]),
    ("mov rax, cr0", &[0x0f, 0x20, 0xc0]),
    ("jz next", &[0x74, 0x00]),
    ("movups xmm0, [rdi]", &[0x0f, 0x10, 0x07]),
    ("movups [rdi], xmm0", &[0x0f, 0x11, 0x07]),
    ("movd eax, xmm0", &[0x66, 0x0f, 0x7e, 0xc0]),
    ("pxor xmm0, xmm1", &[0x66, 0x0f, 0xef, 0xc1]),
    ("pmaddwd xmm0, xmm1", &[0x66, 0x0f, 0xf5, 0xc1]),
    ("pmaddwd xmm0, [rdi]", &[0x66, 0x0f, 0xf5, 0x07]),
    ("addsd xmm0, xmm1", &[0xf2, 0x0f, 0x58, 0xc1]),
    ("sqrtsd xmm0, [rdi]", &[0xf2, 0x0f, 0x51, 0x07]),
    ("mulps xmm0, [rdi]", &[0x0f, 0x59, 0x07]),
    ("comisd xmm0, [rdi]", &[0x66, 0x0f, 0x2f, 0x07]),
    ("cvtsi2sd xmm0, eax", &[0xf2, 0x0f, 0x2a, 0xc0]),
    ("cvttsd2si eax, [rdi]", &[0xf2, 0x0f, 0x2c, 0x07]),
    (
        "pextrd [rdi], xmm0, 1",
        &[0x66, 0x0f, 0x3a, 0x16, 0x07, 0x01],
    ),
    ("movhps [rdi], xmm0", &[0x0f, 0x17, 0x07]),
    (
        "pcmpistri xmm0, xmm1, 0",
        &[0x66, 0x0f, 0x3a, 0x63, 0xc1, 0x00],
    ),
    (
        "stmxcsr [rdi]; ldmxcsr [rdi]",
        &[0x0f, 0xae, 0x1f, 0x0f, 0xae, 0x17],
    ),
    ("paddb mm0, mm1; emms", &[0x0f, 0xfc, 0xc1, 0x0f, 0x77]),
    ("fninit", &[0xdb, 0xe3]),
    ("fld1; fstp st0", &[0xd9, 0xe8, 0xdd, 0xd8]),
    ("fld m64; fstp m64", &[0xdd, 0x07, 0xdd, 0x1f]),
    ("fld m80; fstp m80", &[0xdb, 0x2f, 0xdb, 0x3f]),
    ("fild m32; fistp m32", &[0xdb, 0x07, 0xdb, 0x1f]),
    (
        "fldpi; fsin; fstp st0",
        &[0xd9, 0xeb, 0xd9, 0xfe, 0xdd, 0xd8],
    ),
    ("fnstcw [rdi]; fldcw [rdi]", &[0xd9, 0x3f, 0xd9, 0x2f]),
    ("fnstsw ax", &[0xdf, 0xe0]),
    ("fxsave [rdi]", &[0x0f, 0xae, 0x07]),
];

fn repeat(mut machine: Box<Machine>, form: &[u8]) {
    let mut code = form.repeat(REPEATED);
    let back = -(code.len() as i32 + 5);
    code.push(0xe9);
    code.extend(back.to_le_bytes());
    machine.write(CODE, &code);
    machine.write(DATA + 0x100, &1.5f64.to_le_bytes());
    machine.cpu.general[1] = 1;
    machine.cpu.general[6] = DATA;
    machine.cpu.general[7] = DATA + 0x100;
    let mut left = INSTRUCTIONS;
    while left > 0 {
        let piece = left.min(20_000);
        machine.cpu.run(&mut Nothing, piece);
        left -= piece;
    }
    assert!(machine.cpu.rip >= CODE && machine.cpu.rip < CODE + code.len() as u64);
}

#[test]
fn handlers_leave_no_frames_behind() {
    for (name, form) in FORMS {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let thread = thread.name((*name).to_owned());
        // A machine is made of large values that are moved: on this thread's stack.
        let machine = Box::new(Machine::new());
        let thread = thread.spawn(|| repeat(machine, form)).expect("a thread");
        // An overflow ends the whole process, with the thread's name.
        thread
            .join()
            .unwrap_or_else(|_| panic!("{name} left its code"));
    }
}

/// Comparisons whose branches lead to another page, and back.
#[test]
fn branches_between_pages_leave_no_frames_behind() {
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    let mut machine = Box::new(Machine::new());
    let thread = thread.spawn(move || {
        for (at, target) in [(CODE, CODE + 0x1000), (CODE + 0x1000, CODE)] {
            // TEST EDI, EDI; JZ to the next page; CMP BYTE PTR [RDI], 1; JNE to it.
            let mut code = vec![0x85, 0xff, 0x0f, 0x84, 0, 0, 0, 0];
            code.extend([0x80, 0x3f, 0x01, 0x0f, 0x85, 0, 0, 0, 0]);
            for end in [8, 17] {
                let distance = target.wrapping_sub(at + end as u64) as u32;
                code[end - 4..end].copy_from_slice(&distance.to_le_bytes());
            }
            machine.write(at, &code);
        }
        machine.cpu.general[7] = DATA;
        for _ in 0..INSTRUCTIONS / 20_000 {
            machine.cpu.run(&mut Nothing, 20_000);
        }
        assert!((CODE..CODE + 0x1011).contains(&machine.cpu.rip));
    });
    thread.expect("a thread").join().expect("it stays there");
}
