//! Runs cases on the host CPU, in a child process of its own.
//!
//! The pages of a case and a block of registers are shared between this process and the child. The
//! child loads the registers, jumps into the code and comes back either through the exit page or
//! through a signal handler. Whatever the code does, only the child suffers from it.

#![expect(
    unsafe_code,
    reason = "random machine code runs in a child process with its own signal handlers"
)]

use std::io;
use std::mem;
use std::ptr;

use iced_x86::code_asm::{CodeAssembler, gpr64, ptr as memory, qword_ptr};
use iced_x86::code_asm::{ds, dword_ptr, eax, es, gs};

use crate::layout::{CODE, CODE_PAGES, CONTROL, DATA, DATA_PAGES, EXIT, HIGH, PAGE, READ_ONLY};
use crate::state::{Extended, IMAGE_BYTES};
use crate::{Case, Outcome, State, Trap};

/// Why a case has no native outcome.
#[derive(Debug)]
pub enum NativeError {
    /// A call to the host failed while the child was set up.
    Setup(&'static str, io::Error),
    /// The code does not fit the code pages.
    Code,
    /// The child did not come back in time; it was ended.
    Hang,
    /// The child ended with this wait status.
    Died(i32),
}

impl std::fmt::Display for NativeError {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Setup(call, error) => write!(to, "{call} failed: {error}"),
            Self::Code => write!(to, "the code does not fit its pages"),
            Self::Hang => write!(to, "the native run does not end"),
            Self::Died(status) => write!(to, "the native runner died, wait status {status:#x}"),
        }
    }
}

impl std::error::Error for NativeError {}

/// Registers that travel between this process and the child, at [`CONTROL`] there.
#[repr(C, align(64))]
struct Control {
    general: [u64; 16],
    rflags: u64,
    rip: u64,
    vector: u64,
    error: u64,
    cr2: u64,
    host_stack: u64,
    abort: u64,
    mxcsr: u64,
    image: [u8; IMAGE_BYTES],
}

/// `vector` of a case that ran to its end.
const DONE: u64 = u64::MAX;
const MXCSR_AT_REST: u64 = 0x1f80;

// Pages of the shared memory, in this order.
const CONTROL_PAGE: u64 = 0;
const EXIT_PAGE: u64 = 1;
const CODE_PAGE: u64 = 2;
const DATA_PAGE: u64 = CODE_PAGE + CODE_PAGES;
const HIGH_PAGE: u64 = DATA_PAGE + DATA_PAGES;
const SHARED_PAGES: u64 = HIGH_PAGE + 1;

/// How long a case may take before it counts as hanging.
const PATIENCE_MS: i32 = 20_000;

/// The host CPU, ready to run cases.
#[derive(Debug)]
pub struct Native {
    shared: *mut u8,
    child: libc::pid_t,
    socket: i32,
}

impl Native {
    /// Starts the child.
    pub fn new() -> Result<Self, NativeError> {
        let failed = |call| NativeError::Setup(call, io::Error::last_os_error());
        let stubs = Stubs::assemble();
        let length = (SHARED_PAGES * PAGE) as usize;
        // SAFETY: a new anonymous file, mapped at a place of the kernel's choice.
        let (file, shared) = unsafe {
            let file = libc::memfd_create(c"x86_judge".as_ptr(), libc::MFD_CLOEXEC);
            if file < 0 || libc::ftruncate(file, length as libc::off_t) != 0 {
                return Err(failed("memfd_create"));
            }
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let shared = libc::mmap(ptr::null_mut(), length, access, libc::MAP_SHARED, file, 0);
            if shared == libc::MAP_FAILED {
                return Err(failed("mmap"));
            }
            (file, shared.cast::<u8>())
        };
        let mut sockets = [0; 2];
        // SAFETY: the stub bytes fit the exit page; `sockets` has room for both descriptors. The
        // child makes only system calls and runs the stubs, so it needs none of the locks that
        // other threads may hold at the fork.
        let child = unsafe {
            let exit_page = shared.add((EXIT_PAGE * PAGE) as usize);
            ptr::copy_nonoverlapping(stubs.code.as_ptr(), exit_page, stubs.code.len());
            let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
            if libc::socketpair(libc::AF_UNIX, kind, 0, sockets.as_mut_ptr()) != 0 {
                return Err(failed("socketpair"));
            }
            let child = libc::fork();
            if child == 0 {
                libc::close(sockets[0]);
                serve(file, sockets[1], &stubs);
            }
            libc::close(file);
            libc::close(sockets[1]);
            child
        };
        let native = Self {
            shared,
            child,
            socket: sockets[0],
        };
        if child < 0 {
            return Err(failed("fork"));
        }
        native.wait()?;
        Ok(native)
    }

    /// Runs `case`.
    pub fn run(&mut self, case: &Case) -> Result<Outcome, NativeError> {
        let start = case.state.rip.wrapping_sub(CODE);
        let room = (CODE_PAGES * PAGE).checked_sub(start);
        if room.is_none_or(|room| (case.code.len() as u64) > room)
            || case.memory.len() as u64 != (DATA_PAGES + 1) * PAGE
        {
            return Err(NativeError::Code);
        }
        let mut control = Control::of(&case.state);
        // SAFETY: the shared pages are mapped as long as `self` lives, the lengths were checked, and
        // the child touches them only between the request and its answer.
        unsafe {
            let code = self.page(CODE_PAGE).add(start as usize);
            ptr::copy_nonoverlapping(case.code.as_ptr(), code, case.code.len());
            let data = self.page(DATA_PAGE);
            ptr::copy_nonoverlapping(case.memory.as_ptr(), data, case.memory.len());
            let place = self.page(CONTROL_PAGE).cast::<Control>();
            let kept = &*place;
            (control.host_stack, control.abort) = (kept.host_stack, kept.abort);
            ptr::write(place, control);
            if libc::send(self.socket, [0_u8].as_ptr().cast(), 1, libc::MSG_NOSIGNAL) != 1 {
                return Err(self.end_child());
            }
        }
        self.wait()?;
        let mut memory = vec![0; case.memory.len()];
        // SAFETY: as above; the child has answered.
        let control = unsafe {
            ptr::copy_nonoverlapping(self.page(DATA_PAGE), memory.as_mut_ptr(), memory.len());
            ptr::read(self.page(CONTROL_PAGE).cast::<Control>())
        };
        Ok(control.outcome(memory))
    }

    fn page(&self, index: u64) -> *mut u8 {
        self.shared.wrapping_add((index * PAGE) as usize)
    }

    /// Waits for the child's answer.
    fn wait(&self) -> Result<(), NativeError> {
        let mut poll = libc::pollfd {
            fd: self.socket,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut byte = [0_u8];
        // SAFETY: one descriptor of ours and a buffer of one byte.
        let count = unsafe {
            if libc::poll(&raw mut poll, 1, PATIENCE_MS) == 0 {
                self.end_child();
                return Err(NativeError::Hang);
            }
            libc::recv(self.socket, byte.as_mut_ptr().cast(), 1, 0)
        };
        if count == 1 {
            Ok(())
        } else {
            Err(self.end_child())
        }
    }

    fn end_child(&self) -> NativeError {
        let mut status = 0;
        // SAFETY: the child is ours and was not waited for where the call finds it.
        unsafe {
            libc::kill(self.child, libc::SIGKILL);
            libc::waitpid(self.child, &raw mut status, 0);
        }
        NativeError::Died(status)
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.end_child();
        // SAFETY: both are this value's own and nobody uses them after it.
        unsafe {
            libc::close(self.socket);
            libc::munmap(self.shared.cast(), (SHARED_PAGES * PAGE) as usize);
        }
    }
}

impl Control {
    fn of(state: &State) -> Self {
        Self {
            general: state.general,
            rflags: state.rflags,
            rip: state.rip,
            vector: DONE,
            error: 0,
            cr2: 0,
            host_stack: 0,
            abort: 0,
            mxcsr: MXCSR_AT_REST,
            image: state.extended.to_image(),
        }
    }

    fn outcome(&self, memory: Vec<u8>) -> Outcome {
        let trap = (self.vector != DONE).then_some(Trap {
            vector: self.vector as u8,
            error: self.error as u32,
            address: if self.vector == 14 { self.cr2 } else { 0 },
        });
        Outcome {
            state: State {
                general: self.general,
                rip: if trap.is_some() { self.rip } else { EXIT },
                rflags: self.rflags,
                extended: Extended::from_image(&self.image),
            },
            memory,
            trap,
        }
    }
}

/// Machine code around a case.
struct Stubs {
    code: Vec<u8>,
    enter: u64,
    abort: u64,
}

impl Stubs {
    fn assemble() -> Self {
        Self::try_assemble().expect("the stubs are fixed and encodable")
    }

    fn try_assemble() -> Result<Self, iced_x86::IcedError> {
        use gpr64::*;
        let field = |offset: usize| qword_ptr(CONTROL as i32 + offset as i32);
        let general = mem::offset_of!(Control, general);
        let host_stack = mem::offset_of!(Control, host_stack);
        let image = mem::offset_of!(Control, image);
        let rflags = mem::offset_of!(Control, rflags);
        let registers = [
            rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
        ];
        let number = |index: usize| if index < 4 { index } else { index + 1 };
        let saved = [rbx, rbp, r12, r13, r14, r15];

        let mut asm = CodeAssembler::new(64)?;
        let (mut abort, mut enter) = (asm.create_label(), asm.create_label());
        for (index, register) in registers.into_iter().enumerate() {
            asm.mov(field(general + 8 * number(index)), register)?;
        }
        asm.mov(field(general + 8 * 4), rsp)?;
        asm.mov(rsp, field(host_stack))?;
        asm.pushfq()?;
        asm.pop(field(rflags))?;
        asm.cld()?;
        asm.fxsave64(memory(CONTROL as i32 + image as i32))?;
        asm.set_label(&mut abort)?;
        asm.fninit()?;
        asm.ldmxcsr(dword_ptr(
            CONTROL as i32 + mem::offset_of!(Control, mxcsr) as i32,
        ))?;
        for register in saved.into_iter().rev() {
            asm.pop(register)?;
        }
        asm.ret()?;

        asm.set_label(&mut enter)?;
        for register in saved {
            asm.push(register)?;
        }
        asm.mov(field(host_stack), rsp)?;
        asm.fxrstor64(memory(CONTROL as i32 + image as i32))?;
        // Whatever the last case left in the segment registers.
        asm.xor(eax, eax)?;
        asm.mov(ds, eax)?;
        asm.mov(es, eax)?;
        asm.mov(gs, eax)?;
        asm.push(field(rflags))?;
        asm.popfq()?;
        for (index, register) in registers.into_iter().enumerate() {
            asm.mov(register, field(general + 8 * number(index)))?;
        }
        asm.mov(rsp, field(general + 8 * 4))?;
        asm.jmp(field(mem::offset_of!(Control, rip)))?;

        let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = asm.assemble_options(EXIT, options)?;
        Ok(Self {
            enter: result.label_ip(&enter)?,
            abort: result.label_ip(&abort)?,
            code: result.inner.code_buffer,
        })
    }
}

/// The child: maps the pages where a case expects them and runs what is asked until it is killed.
///
/// # Safety
/// Only in a child process after `fork`; it never returns.
unsafe fn serve(file: i32, socket: i32, stubs: &Stubs) -> ! {
    const STACK_BYTES: usize = 256 * 1024;
    let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    let pages = [
        (CONTROL, CONTROL_PAGE, 1, read | write),
        (EXIT, EXIT_PAGE, 1, read | execute),
        (CODE, CODE_PAGE, CODE_PAGES, read | execute),
        (DATA, DATA_PAGE, DATA_PAGES - 1, read | write),
        (READ_ONLY, DATA_PAGE + DATA_PAGES - 1, 1, read),
        (HIGH, HIGH_PAGE, 1, read | write),
    ];
    // SAFETY: this process has one thread and does nothing else any more; the fixed addresses are
    // below everything that the loader maps, which MAP_FIXED_NOREPLACE asserts.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        for (address, page, count, access) in pages {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
            let length = (count * PAGE) as usize;
            let offset = (page * PAGE) as libc::off_t;
            let place = address as *mut libc::c_void;
            if libc::mmap(place, length, access, flags, file, offset) != place {
                libc::_exit(101);
            }
            for index in 0..count {
                ptr::read_volatile((address + index * PAGE) as *const u8);
            }
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let stack = libc::mmap(ptr::null_mut(), STACK_BYTES, read | write, flags, -1, 0);
        let alternate = libc::stack_t {
            ss_sp: stack,
            ss_flags: 0,
            ss_size: STACK_BYTES,
        };
        libc::sigaltstack(&raw const alternate, ptr::null_mut());
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = caught as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
        ] {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
        let control = CONTROL as *mut Control;
        (*control).abort = stubs.abort;
        let enter: extern "C" fn() = mem::transmute(stubs.enter as usize);
        let mut byte = [0_u8];
        loop {
            if libc::send(socket, byte.as_ptr().cast(), 1, libc::MSG_NOSIGNAL) != 1
                || libc::recv(socket, byte.as_mut_ptr().cast(), 1, 0) != 1
            {
                libc::_exit(0);
            }
            (*control).vector = DONE;
            enter();
            (*control).host_stack = 0;
        }
    }
}

/// Takes the registers of a case that faulted and makes the child go on behind it.
extern "C" fn caught(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    const NUMBERS: [i32; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    /// RFLAGS of the child itself.
    const RFLAGS_AT_REST: i64 = 0x202;
    // SAFETY: the kernel gives a valid context; the control block is mapped in the child, the only
    // process that installs this handler.
    unsafe {
        let context = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let control = &mut *(CONTROL as *mut Control);
        if control.host_stack == 0 {
            libc::_exit(102);
        }
        let registers = &mut context.gregs;
        for (value, number) in control.general.iter_mut().zip(NUMBERS) {
            *value = registers[number as usize] as u64;
        }
        control.rip = registers[libc::REG_RIP as usize] as u64;
        control.rflags = registers[libc::REG_EFL as usize] as u64;
        control.vector = registers[libc::REG_TRAPNO as usize] as u64;
        control.error = registers[libc::REG_ERR as usize] as u64;
        control.cr2 = registers[libc::REG_CR2 as usize] as u64;
        let image = context.fpregs.cast::<u8>();
        ptr::copy_nonoverlapping(image, control.image.as_mut_ptr(), IMAGE_BYTES);
        registers[libc::REG_RIP as usize] = control.abort as i64;
        registers[libc::REG_RSP as usize] = control.host_stack as i64;
        registers[libc::REG_EFL as usize] = RFLAGS_AT_REST;
    }
}
