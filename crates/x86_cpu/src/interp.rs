//! The interpreter: decoded blocks of micro-ops, run by threaded dispatch.
//!
//! Decoded code knows its place within its page only: [`Interp::code_base`] plus an offset in the
//! page is a value of RIP. Whatever is executed in its decoded form goes through `generic`.

mod decode;
mod flags;
mod generic;
mod operand;
mod span;
mod translate;

pub(crate) use flags::LazyFlags;

use x86_fp::{MEMORY_OPERAND_MAX, Operand};

use crate::state::Flow;
use crate::system::TripleFault;
use crate::{Cpu, Environment, Stop};
use flags::IF;
use operand::Width;

/// PAUSEs without another stop in between that make a processor yield.
const PAUSES_MAX: u32 = 16;

/// Translated code and what running it needs.
#[derive(Debug)]
pub(crate) struct Interp {
    /// RIP of the first byte of the page that code runs in.
    code_base: u64,
    /// RIP of the instruction that is executed in its decoded form.
    instruction_rip: u64,
    /// Iterations that a repeated string instruction may do.
    budget: i64,
    /// PAUSEs lately.
    pauses: u32,
    /// Memory operand of floating-point instructions.
    operand: Operand,
}

impl Default for Interp {
    fn default() -> Self {
        Self {
            code_base: 0,
            instruction_rip: 0,
            budget: 0,
            pauses: 0,
            operand: Operand([0; MEMORY_OPERAND_MAX]),
        }
    }
}

impl Cpu {
    /// Runs guest instructions until `budget` of them are executed or something else stops it.
    ///
    /// Interrupts that `env` has are taken when it starts and whenever the guest makes itself ready
    /// for them. A budget of n executes exactly n instructions unless it stops for another reason;
    /// each iteration of a repeated string instruction counts as one.
    pub fn run(&mut self, env: &mut dyn Environment, budget: u64) -> Stop {
        self.begin_slice();
        self.mirror_segments();
        self.interp.budget = budget.min(i64::MAX as u64) as i64;
        let stop = self.run_slice(env).unwrap_or(Stop::TripleFault);
        self.settle_flags();
        self.end_slice();
        stop
    }

    fn run_slice(&mut self, env: &mut dyn Environment) -> Result<Stop, TripleFault> {
        let mut look = true;
        loop {
            if self.attention.take() {
                return Ok(Stop::Budget);
            }
            if look && !self.interrupt_shadow {
                self.take_events(env)?;
                look = false;
            }
            if self.interp.budget <= 0 {
                return Ok(Stop::Budget);
            }
            match self.step(env)? {
                Flow::Next => {}
                Flow::Leave => look = true,
                Flow::Stop(stop) => return Ok(stop),
            }
        }
    }

    /// Delivers the interrupt that waits, if one does and can be taken.
    fn take_events(&mut self, env: &mut dyn Environment) -> Result<(), TripleFault> {
        if !self.nmi_blocked && env.take_nmi() {
            self.deliver_nmi(env)?;
            self.mirror_segments();
        }
        if self.rflags & IF != 0
            && let Some(vector) = env.take_interrupt()
        {
            self.deliver_interrupt(env, vector)?;
            self.mirror_segments();
        }
        Ok(())
    }

    /// Executes one instruction in its decoded form.
    fn step(&mut self, env: &mut dyn Environment) -> Result<Flow, TripleFault> {
        let start = self.rip;
        self.settle_flags();
        self.interrupt_shadow = false;
        let before = self.interp.budget;
        self.interp.instruction_rip = start;
        let done = self.decode_here(env).and_then(|instruction| {
            let next = self.interp.code_base.wrapping_add(instruction.next_ip());
            self.rip = self.wrap_rip(next);
            generic::execute(self, env, &instruction)
        });
        if self.interp.budget == before {
            self.interp.budget -= 1;
        }
        match done {
            Ok(flow) => Ok(flow),
            Err(fault) => {
                self.rip = start;
                self.deliver_fault(env, fault)?;
                self.mirror_segments();
                Ok(Flow::Leave)
            }
        }
    }

    /// Cuts an instruction address to what the mode has.
    fn wrap_rip(&self, rip: u64) -> u64 {
        match self.width() {
            Width::Bits64 => rip,
            _ => rip & flags::mask(4),
        }
    }

    /// Copies what micro-ops need of the segments to where they look; after each change of them.
    pub(crate) fn mirror_segments(&mut self) {
        let long = self.width() == Width::Bits64;
        for (number, segment) in self.segments.iter().enumerate() {
            let used = !long || number >= crate::SegmentName::Fs as usize;
            self.extra[1 + number] = if used { segment.base } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests;
