//! An x86-64 processor in software: memory in, exits out.
//!
//! [`Cpu`] holds the architectural state and runs guest instructions over [`Ram`]; what is outside
//! the processor (ports, devices, the local APIC, CPUID values, time) it asks of an [`Environment`].
//!
//! Three parts work on the one [`Cpu`]:
//! - `interp` decodes guest code to micro-ops, caches them by physical page and runs them; it
//!   executes all user-mode integer instructions itself;
//! - `mmu` translates linear addresses and reaches guest memory;
//! - `system` delivers exceptions and interrupts and executes everything else.
//!
//! While `mmu` or `system` run, `Cpu::rflags` holds all flags and `Cpu::rip` the address of the
//! instruction *after* the one being executed. An instruction that returns a [`Fault`] has changed
//! nothing; the interpreter then sets RIP back to the instruction and has the fault delivered.

mod environment;
mod fault;
mod interp;
mod mmu;
mod ram;
mod state;
mod system;

pub use environment::Environment;
pub use fault::Fault;
pub use mmu::PROCESSORS_MAX;
pub use ram::{Ram, RamSlot};
pub use state::{Attention, Cpu, Segment, SegmentName, Stop, TableRegister};
