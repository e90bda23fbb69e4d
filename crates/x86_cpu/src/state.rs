//! Architectural state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use x86_fp::FpState;

use crate::Ram;

/// Segment registers in encoding order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SegmentName {
    /// ES.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit, bytes (granularity applied).
    pub limit: u32,
    /// Access rights as in a VMCS (SDM 3C 25.4.1): type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13,
    /// D/B 14, G 15, unusable 16.
    pub access: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear address.
    pub base: u64,
    /// Limit, bytes.
    pub limit: u16,
}

/// Why [`Cpu::run`] returned. The state is at an instruction boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its budget of instructions is used up, or [`Attention`] was called.
    Budget,
    /// HLT: wait until an interrupt can be taken (IF is set) or an NMI waits.
    Halted,
    /// PAUSE in a loop: another processor may use the host CPU.
    Yield,
    /// An exception while delivering a double fault: the machine resets.
    TripleFault,
}

/// Makes a running processor look up soon, from any thread: an interrupt waits, or it is to stop.
#[derive(Clone, Debug, Default)]
pub struct Attention(Arc<AtomicBool>);

impl Attention {
    /// Calls for it.
    pub fn call(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Returns whether it was called, and forgets it.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

/// One processor.
#[derive(Debug)]
pub struct Cpu {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub general: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// RFLAGS (reserved bits as the manual has them).
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS: see [`SegmentName`].
    pub segments: [Segment; 6],
    /// Task register.
    pub tr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// GDTR.
    pub gdt: TableRegister,
    /// IDTR.
    pub idt: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP.
    pub sysenter: [u64; 3],
    /// PAT.
    pub pat: u64,
    /// TSC_AUX.
    pub tsc_aux: u64,
    /// DR0 to DR3.
    pub debug_address: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Interrupts are not taken before the next instruction (after STI, MOV SS).
    pub interrupt_shadow: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// XMM, MXCSR, x87.
    pub fp: FpState,
    /// Guest RAM.
    pub(crate) ram: Ram,
    /// Calls from other threads.
    pub(crate) attention: Attention,
}
