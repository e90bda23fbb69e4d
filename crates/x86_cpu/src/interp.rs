//! The interpreter: decoded blocks of micro-ops, run by threaded dispatch.

use crate::{Cpu, Environment, Stop};

/// Translated code and what running it needs.
#[derive(Debug, Default)]
pub(crate) struct Interp {}

impl Cpu {
    /// Runs guest instructions until `budget` of them are executed or something else stops it.
    ///
    /// Interrupts that `env` has are taken when it starts and whenever the guest makes itself ready
    /// for them. A budget of n executes exactly n instructions unless it stops for another reason;
    /// each iteration of a repeated string instruction counts as one.
    pub fn run(&mut self, _env: &mut dyn Environment, _budget: u64) -> Stop {
        Stop::Budget
    }
}
