//! The software engine: `x86_cpu` behind the seam `vcpu`, with local APICs, time and CPU model.
//!
//! A vCPU runs on the thread that calls [`vcpu::Vcpu::run`]; the engine has no thread of its own.
//! Timers of the guest are looked at between stretches of instructions, and while a vCPU is halted
//! its thread sleeps until the next one. Other threads leave interrupts in an inbox without a lock.

#![forbid(unsafe_code)]

mod apic;
mod bell;
mod clock;
mod cpuid;
mod engine;
mod mtrr;
mod platform;
mod registers;
mod starved;
mod state;
#[cfg(test)]
mod tests;
mod time_page;
mod vcpu;

pub use engine::SoftEngine;
