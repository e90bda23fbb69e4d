//! System instructions, exceptions and interrupts.

/// What the system instructions keep besides the architectural state.
#[derive(Debug, Default)]
pub(crate) struct System {}

use iced_x86::Instruction;

use crate::state::Flow;
use crate::{Cpu, Environment, Fault};

/// Executes an instruction that the interpreter does not; RIP is already after it.
pub(crate) fn execute(
    _cpu: &mut Cpu,
    _env: &mut dyn Environment,
    _instruction: &Instruction,
) -> Result<Flow, Fault> {
    Err(Fault::UNDEFINED)
}
