//! What a processor asks of the world around it.

/// The world around one processor. All calls come from the thread that runs it.
pub trait Environment {
    /// Reads a port; `size` is 1, 2 or 4 bytes.
    fn port_read(&mut self, port: u16, size: u8) -> u32;
    /// Writes a port.
    fn port_write(&mut self, port: u16, size: u8, value: u32);
    /// Reads guest-physical memory that is no RAM (devices, the local APIC's page).
    fn mmio_read(&mut self, address: u64, data: &mut [u8]);
    /// Writes guest-physical memory that is no RAM.
    fn mmio_write(&mut self, address: u64, data: &[u8]);
    /// Reads a model-specific register that the processor does not hold itself (APIC base, x2APIC,
    /// TSC deadline, paravirtual clock, ...); `None` is a #GP(0).
    fn msr_read(&mut self, index: u32) -> Option<u64>;
    /// Writes one; `false` is a #GP(0).
    fn msr_write(&mut self, index: u32, value: u64) -> bool;
    /// Answers CPUID (EAX, EBX, ECX, EDX). OSXSAVE and other bits that follow control registers are
    /// the processor's business.
    fn cpuid(&mut self, leaf: u32, index: u32) -> [u32; 4];
    /// The time-stamp counter, TSC_ADJUST included.
    fn tsc(&mut self) -> u64;
    /// A random number for RDRAND and RDSEED.
    fn random(&mut self) -> u64;
    /// Takes the interrupt that the local APIC wants delivered now (it becomes in-service); asked
    /// only when the processor can take it: IF is set and nothing shadows it.
    fn take_interrupt(&mut self) -> Option<u8>;
    /// Whether a non-maskable interrupt waits; taking it clears it.
    fn take_nmi(&mut self) -> bool;
    /// Answers VMCALL and VMMCALL with what RAX then holds; `None` is a #UD: there is no hypervisor
    /// to call.
    fn hypercall(&mut self, _is_supervisor: bool) -> Option<u64> {
        None
    }
    /// Task priority, bits 3 to 0 of CR8.
    fn task_priority(&mut self) -> u8;
    /// Sets the task priority.
    fn set_task_priority(&mut self, value: u8);
}
