//! System instructions, exceptions and interrupts.
//!
//! What the interpreter calls:
//! - [`execute`] for every instruction that it does not run itself;
//! - [`Cpu::deliver_fault`] when an instruction (or a fetch) raised a [`Fault`], with RIP set back to
//!   the instruction; [`Cpu::deliver_interrupt`] and [`Cpu::deliver_nmi`] between instructions;
//! - [`Cpu::stepping`]: while true, instructions run one by one, each between
//!   [`Cpu::before_step`] and [`Cpu::after_step`] (single step, breakpoints);
//! - [`Cpu::fp_allowed`] before each instruction of `x86_fp`, [`Cpu::fp_fault`] for what it returned;
//! - [`Cpu::linear_address`] for accesses outside 64-bit mode, where segments have limits.

use iced_x86::Instruction;

use crate::state::Flow;
use crate::{Cpu, Environment, Fault};

/// What the system instructions keep besides the architectural state.
#[derive(Debug, Default)]
pub(crate) struct System {}

/// An exception while a double fault was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TripleFault;

/// Executes an instruction that the interpreter does not; RIP is already after it.
pub(crate) fn execute(
    _cpu: &mut Cpu,
    _env: &mut dyn Environment,
    _instruction: &Instruction,
) -> Result<Flow, Fault> {
    Err(Fault::UNDEFINED)
}

impl Cpu {
    /// Delivers `fault`; RIP is the instruction that raised it (after it for a trap, which is a #DB
    /// of [`after_step`](Self::after_step)).
    pub(crate) fn deliver_fault(
        &mut self,
        _env: &mut dyn Environment,
        _fault: Fault,
    ) -> Result<(), TripleFault> {
        Err(TripleFault)
    }

    /// Delivers an interrupt of the local APIC.
    pub(crate) fn deliver_interrupt(
        &mut self,
        _env: &mut dyn Environment,
        _vector: u8,
    ) -> Result<(), TripleFault> {
        Err(TripleFault)
    }

    /// Delivers a non-maskable interrupt; further ones are blocked until IRET.
    pub(crate) fn deliver_nmi(&mut self, _env: &mut dyn Environment) -> Result<(), TripleFault> {
        Err(TripleFault)
    }
}
