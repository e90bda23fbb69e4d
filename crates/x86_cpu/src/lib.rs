//! An x86-64 processor in software: memory in, exits out.
//!
//! [`Cpu`] holds the architectural state and runs guest instructions over [`Ram`]; what is outside
//! the processor (ports, devices, the local APIC, CPUID values, time) it asks of an [`Environment`].

mod environment;
mod fault;
mod ram;
mod state;

pub use environment::Environment;
pub use fault::Fault;
pub use ram::{Ram, RamSlot};
pub use state::{Attention, Cpu, Segment, SegmentName, Stop, TableRegister};
