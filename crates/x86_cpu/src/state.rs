//! Architectural state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use x86_fp::FpState;

use crate::Ram;
use crate::interp::{Interp, LazyFlags};
use crate::mmu::Mmu;
use crate::system::System;

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

    /// Returns whether it was called.
    pub(crate) fn waits(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns whether it was called, and forgets it.
    pub fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::AcqRel)
    }
}

/// How an instruction went on, as [`execute`](crate::system::execute) returns it. RIP, flags and
/// everything else are in [`Cpu`] then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// On with the following instruction; nothing changed that decoding or translation depend on.
    Next,
    /// RIP, mode, privilege, translation, or whether an interrupt can be taken has changed.
    Leave,
    /// The instruction is complete and [`Cpu::run`] returns.
    Stop(Stop),
}

/// One processor.
#[repr(C)]
#[derive(Debug)]
pub struct Cpu {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub general: [u64; 16],
    /// The interpreter's operands that follow the registers in memory.
    pub(crate) extra: [u64; 17],
    /// Status flags that are not in `rflags`; within the interpreter only.
    pub(crate) lazy: LazyFlags,
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
    /// Paging, TLBs.
    pub(crate) mmu: Mmu,
    /// What else the system instructions keep.
    pub(crate) system: System,
    /// Translated code.
    pub(crate) interp: Interp,
}

impl Cpu {
    /// Makes a processor in its state after power-up (SDM 3A 10.1.1), to run over `ram`.
    pub fn new(ram: Ram, attention: Attention) -> Self {
        let segment = |access| Segment {
            selector: 0,
            base: 0,
            limit: 0xffff,
            access,
        };
        let (data, code) = (
            segment(0x93),
            Segment {
                selector: 0xf000,
                base: 0xffff_0000,
                ..segment(0x9b)
            },
        );
        let table = TableRegister {
            base: 0,
            limit: 0xffff,
        };
        let mmu = Mmu::new(&ram);
        Self {
            general: [0, 0, 0x600, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            extra: [0; 17],
            lazy: LazyFlags::default(),
            rip: 0xfff0,
            rflags: 2,
            segments: [data, code, data, data, data, data],
            tr: segment(0x8b),
            ldtr: segment(0x82),
            gdt: table,
            idt: table,
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter: [0; 3],
            pat: 0x0007_0406_0007_0406,
            tsc_aux: 0,
            debug_address: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            interrupt_shadow: false,
            nmi_blocked: false,
            fp: FpState::new(),
            ram,
            attention,
            mmu,
            system: System::default(),
            interp: Interp::default(),
        }
    }

    /// Returns the current privilege level, 0 to 3.
    pub(crate) fn cpl(&self) -> u8 {
        (self.segments[SegmentName::Ss as usize].access >> 5 & 3) as u8
    }

    /// Returns the call box other threads use.
    pub fn attention(&self) -> Attention {
        self.attention.clone()
    }
}
