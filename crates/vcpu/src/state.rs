//! Engine-neutral state of one vCPU, plain data.
//!
//! Field meanings follow the Intel SDM: registers 1 3.4, system registers 3A 2, segment descriptor
//! bits 3A 3.4.5, local APIC page 3A 11.4.1 (1 KiB of it), XSAVE area 1 13.4.

use serde::{Deserialize, Serialize};

use crate::packed;

/// General registers in encoding order (RAX RCX RDX RBX RSP RBP RSI RDI R8–R15), RIP, RFLAGS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub general: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Base address.
    pub base: u64,
    /// Limit, bytes (granularity applied).
    pub limit: u32,
    /// Selector.
    pub selector: u16,
    /// Access rights as in a VMCS (SDM 3C 25.4.1): type 0–3, S 4, DPL 5–6, P 7, AVL 12, L 13,
    /// D/B 14, G 15, unusable 16.
    pub access: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear address.
    pub base: u64,
    /// Limit, bytes.
    pub limit: u16,
}

/// Segments, descriptor tables, control registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemRegisters {
    /// CS, DS, ES, FS, GS, SS, TR, LDTR.
    pub segments: [Segment; 8],
    /// GDTR.
    pub gdt: DescriptorTable,
    /// IDTR.
    pub idt: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8 (task priority).
    pub cr8: u64,
    /// EFER.
    pub efer: u64,
    /// Local APIC base.
    pub apic_base: u64,
    /// External interrupt accepted but not yet delivered.
    pub interrupt_bitmap: [u64; 4],
}

/// DR0–DR3, DR6, DR7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub address: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
}

/// Exceptions and interrupts on their way into the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvents {
    /// An exception was injected and not yet delivered: vector, error code.
    pub exception_injected: Option<(u8, Option<u32>)>,
    /// An exception is pending: vector, error code, payload.
    pub exception_pending: Option<(u8, Option<u32>, Option<u64>)>,
    /// An interrupt was injected and not yet delivered: vector, whether by software.
    pub interrupt: Option<(u8, bool)>,
    /// Bits of the interrupt shadow (1 STI, 2 MOV SS).
    pub interrupt_shadow: u8,
    /// NMI injected, pending, masked.
    pub nmi: (bool, bool, bool),
    /// Vector of a start-up IPI, where one arrived.
    pub sipi_vector: u32,
    /// A triple fault is pending.
    pub triple_fault: bool,
}

/// What a vCPU does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// Executes instructions.
    #[default]
    Runnable,
    /// Halted, waits for an interrupt.
    Halted,
    /// Waits for INIT (not started).
    Uninitialized,
    /// Got INIT, waits for a start-up IPI.
    InitReceived,
    /// Got a start-up IPI.
    SipiReceived,
}

/// One model-specific register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msr {
    /// Number.
    pub index: u32,
    /// Content.
    pub value: u64,
}

/// One CPUID leaf as the guest sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuidLeaf {
    /// EAX in.
    pub function: u32,
    /// ECX in.
    pub index: u32,
    /// Whether the index matters.
    pub indexed: bool,
    /// EAX, EBX, ECX, EDX out.
    pub result: [u32; 4],
}

/// Everything of one vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// General registers.
    pub registers: Registers,
    /// System registers.
    pub system: SystemRegisters,
    /// XSAVE area in the standard format.
    #[serde(with = "serde_bytes")]
    pub xsave: Vec<u8>,
    /// XCR0 where the CPU has XSAVE.
    pub xcr0: Option<u64>,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// Local APIC registers, 1 KiB.
    #[serde(with = "serde_bytes")]
    pub lapic: Vec<u8>,
    /// Events under way.
    pub events: PendingEvents,
    /// What it does.
    pub run_state: RunState,
    /// Model-specific registers.
    #[serde(with = "packed::list")]
    pub msrs: Vec<Msr>,
    /// CPUID.
    #[serde(with = "packed::list")]
    pub cpuid: Vec<CpuidLeaf>,
    /// Frequency of the guest's time-stamp counter, kHz, where known.
    pub tsc_khz: Option<u32>,
}

/// The paravirtual clock of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmClock {
    /// Nanoseconds since the guest's boot.
    pub ns: u64,
}
