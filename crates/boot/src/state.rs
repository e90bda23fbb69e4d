//! What the boot CPU starts with, in plain numbers that any engine can load.

/// How the guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryMode {
    /// Long mode with the first 4 GiB identity-mapped, RSI = `boot_params`
    /// (Linux 64-bit boot protocol, also used for ELF files without a PVH note).
    Long64,
    /// 32-bit protected mode without paging, EBX = `hvm_start_info` (PVH).
    Pvh32,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit, bytes (already expanded where the granularity bit is set).
    pub limit: u32,
    /// Access rights as in the VMCS (SDM 3C 24.4.1): type in bits 3:0, S 4, DPL 6:5, P 7,
    /// AVL 12, L 13, D/B 14, G 15, unusable 16 (never set for a usable segment).
    pub access: u32,
}

/// A descriptor table register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Guest address of the table.
    pub base: u64,
    /// Last valid offset.
    pub limit: u16,
}

/// Registers of the boot CPU; every register not named here keeps its value after reset,
/// general registers are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitialRegisters {
    /// First instruction.
    pub rip: u64,
    /// Stack pointer, 16-byte aligned (0 for PVH, which promises no stack).
    pub rsp: u64,
    /// Start info address for PVH, else 0.
    pub rbx: u64,
    /// `boot_params` address for long mode, else 0.
    pub rsi: u64,
    /// Flags: only the reserved bit 1 is set, interrupts are off.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Page table root, 0 for PVH.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// DS, ES, FS, GS and SS.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register (unusable).
    pub ldtr: Segment,
    /// Global descriptor table.
    pub gdt: DescriptorTable,
    /// Interrupt descriptor table: empty, the first exception shuts the CPU down.
    pub idt: DescriptorTable,
}

/// A guest that is ready to run: RAM is filled, the boot CPU loads `registers`.
/// The other CPUs stay in their state after reset and wait for INIT and SIPI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootState {
    /// How the guest is entered.
    pub entry: EntryMode,
    /// Registers of the boot CPU.
    pub registers: InitialRegisters,
    /// Guest address of the ACPI root pointer.
    pub rsdp: u64,
    /// Guest address of the 16-byte VM generation id.
    pub generation_id: u64,
}
