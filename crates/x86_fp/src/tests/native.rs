//! Runs one instruction on the host: generated code that loads a state, executes and stores it.

use core::cell::Cell;
use core::ptr::null_mut;
use std::sync::Once;

use iced_x86::code_asm::{
    CodeAssembler, ptr, qword_ptr, r9, r14, r15, rax, rbp, rbx, rcx, rdi, rdx,
};
use iced_x86::{Encoder, Instruction, Mnemonic, OpKind};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Length of the page of generated code.
const CODE_LEN: usize = 4096;

/// What an instruction runs on.
#[repr(C, align(16))]
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// FXSAVE64 image.
    pub image: [u8; 512],
    /// The memory operand.
    pub memory: [u8; 512],
    /// General registers; only RAX, RCX, RDX and R9 are loaded.
    pub general: [u64; 16],
    /// RFLAGS.
    pub flags: u64,
    /// Default MXCSR.
    host_mxcsr: u64,
}

const MEMORY: i32 = 512;
const GENERAL: i32 = 1024;
const FLAGS: i32 = GENERAL + 128;
const HOST_MXCSR: i32 = FLAGS + 8;

impl Frame {
    pub fn new() -> Self {
        Self {
            image: [0; 512],
            memory: [0; 512],
            general: [0; 16],
            flags: 2,
            host_mxcsr: 0x1f80,
        }
    }

    /// Clears what is not compared: where the last x87 instruction and operand were, and the mask of
    /// MXCSR, in the image and in what was stored.
    pub fn forget_pointers(&mut self, instruction: &Instruction) {
        self.image[6..24].fill(0);
        self.image[28..32].fill(0);
        self.image[416..].fill(0);
        match instruction.mnemonic() {
            Mnemonic::Fxsave | Mnemonic::Fxsave64 => {
                self.memory[6..24].fill(0);
                self.memory[28..32].fill(0);
            }
            // Processors differ in whether these clear C1.
            Mnemonic::Fcomi | Mnemonic::Fcomip | Mnemonic::Fucomi | Mnemonic::Fucomip => {
                self.image[3] &= !2;
            }
            // With memory, processors differ in whether it enters the MMX state.
            Mnemonic::Cvtpi2ps if instruction.op1_kind() == OpKind::Memory => {
                self.image[..160].fill(0);
            }
            Mnemonic::Fnstenv | Mnemonic::Fstenv | Mnemonic::Fnsave | Mnemonic::Fsave => {
                let wide = matches!(instruction.memory_size().size(), 28 | 108);
                self.memory[if wide { 12..26 } else { 6..14 }].fill(0);
            }
            _ => {}
        }
    }

    /// Names the fields that differ.
    pub fn difference(&self, other: &Self) -> String {
        let bytes = |name: &str, one: &[u8], two: &[u8]| {
            (0..one.len() / 16)
                .map(|slot| slot * 16..slot * 16 + 16)
                .filter(|at| one[at.clone()] != two[at.clone()])
                .map(|at| {
                    format!(
                        "{name}+{}: {:02x?} / {:02x?}\n",
                        at.start,
                        &one[at.clone()],
                        &two[at.clone()]
                    )
                })
                .collect::<String>()
        };
        format!(
            "{}{}general {:x?} / {:x?}\nflags {:x} / {:x}",
            bytes("image", &self.image, &other.image),
            bytes("memory", &self.memory, &other.memory),
            self.general,
            other.general,
            self.flags,
            other.flags,
        )
    }
}

impl core::fmt::Debug for Frame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "fcw {:02x?} fsw {:02x?} tags {:02x} mxcsr {:02x?} ",
            &self.image[0..2],
            &self.image[2..4],
            self.image[4],
            &self.image[24..28]
        )?;
        for (number, slot) in self.image[32..416].chunks(16).enumerate() {
            write!(
                f,
                "{}{}={:02x?} ",
                if number < 8 { "st" } else { "xmm" },
                if number < 8 { number } else { number - 8 },
                slot
            )?;
        }
        write!(
            f,
            "memory {:02x?} general {:x?} flags {:x}",
            &self.memory[..32],
            self.general,
            self.flags
        )
    }
}

/// A page for code.
pub struct Native {
    page: *mut u8,
}

/// Code for one instruction, valid until the next is prepared.
pub struct Runner<'a> {
    code: &'a Native,
    /// Offset of what follows the instruction.
    epilogue: usize,
}

impl Native {
    pub fn new() -> Self {
        let prot = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
        // SAFETY: a new mapping somewhere takes nothing from anybody.
        let page = unsafe { mmap_anonymous(null_mut(), CODE_LEN, prot, MapFlags::PRIVATE) };
        Self {
            page: page.expect("a page of memory").cast(),
        }
    }

    /// Makes code for `instruction`; `None` where it cannot be encoded for 64-bit mode.
    pub fn prepare(&self, instruction: &Instruction) -> Option<Runner<'_>> {
        let mut before = CodeAssembler::new(64).expect("64-bit mode");
        let mut after = CodeAssembler::new(64).expect("64-bit mode");
        prologue(&mut before).expect("it assembles");
        epilogue(&mut after).expect("it assembles");
        let mut code = before.assemble(0).expect("it assembles");
        let mut encoder = Encoder::new(64);
        encoder.encode(instruction, 0).ok()?;
        code.extend(encoder.take_buffer());
        let epilogue = code.len();
        code.extend(after.assemble(0).expect("it assembles"));
        assert!(code.len() <= CODE_LEN);
        // SAFETY: the page is writable and that long, and nobody runs it: a `Runner` borrows `self`
        // only within one test.
        unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), self.page, code.len()) };
        Some(Runner {
            code: self,
            epilogue,
        })
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: it is the mapping that `new` made.
        unsafe { munmap(self.page.cast(), CODE_LEN) }.expect("the page is mapped");
    }
}

impl Runner<'_> {
    /// Runs it; returns whether it raised #XM or #MF.
    pub fn run(&self, frame: &mut Frame) -> bool {
        catch_faults();
        RECOVERY.set(self.code.page as usize + self.epilogue);
        // SAFETY: the page holds a function of this signature: `prepare` wrote it.
        let run: extern "C" fn(*mut Frame) = unsafe { core::mem::transmute(self.code.page) };
        run(frame);
        RECOVERY.take() == 0
    }
}

thread_local! {
    /// Where a fault goes on; zero once it did.
    static RECOVERY: Cell<usize> = const { Cell::new(0) };
}

/// Makes an arithmetic fault in generated code go on at its epilogue.
fn catch_faults() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all-zero bytes are a valid `sigaction`; the handler has the signature that
        // SA_SIGINFO asks for and touches only its context and a thread-local without destructor.
        let outcome = unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = recover as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGFPE, &raw const action, null_mut())
        };
        assert_eq!(outcome, 0);
    });
}

extern "C" fn recover(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let at = RECOVERY.replace(0);
    if at == 0 {
        std::process::abort();
    }
    // SAFETY: the kernel passes a valid context to a handler with SA_SIGINFO.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    context.uc_mcontext.gregs[libc::REG_RIP as usize] = at as i64;
}

/// Saves the caller's registers and loads the frame at RDI.
fn prologue(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    for register in [rbx, rbp, r14, r15] {
        a.push(register)?;
    }
    a.mov(r14, rdi)?;
    a.lea(r15, ptr(r14 + MEMORY))?;
    a.mov(rdi, r15)?;
    a.fxrstor64(ptr(r14))?;
    a.push(qword_ptr(r14 + FLAGS))?;
    a.popfq()?;
    for (number, register) in [(0, rax), (1, rcx), (2, rdx), (9, r9)] {
        a.mov(register, qword_ptr(r14 + GENERAL + 8 * number))?;
    }
    Ok(())
}

/// Stores the frame and returns; none of it waits for x87 exceptions.
fn epilogue(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    for (number, register) in [(0, rax), (1, rcx), (2, rdx), (9, r9)] {
        a.mov(qword_ptr(r14 + GENERAL + 8 * number), register)?;
    }
    a.pushfq()?;
    a.pop(qword_ptr(r14 + FLAGS))?;
    a.fxsave64(ptr(r14))?;
    a.fninit()?;
    a.ldmxcsr(ptr(r14 + HOST_MXCSR))?;
    for register in [r15, r14, rbp, rbx] {
        a.pop(register)?;
    }
    a.ret()
}
