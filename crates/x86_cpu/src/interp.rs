//! The interpreter: decoded blocks of micro-ops, run by threaded dispatch.
//!
//! Decoded code knows its place within its page only: [`Cpu::code_base`] plus an offset in the page
//! is a value of RIP. So one translation serves all addresses a page is mapped at. Whatever has no
//! handler of its own, and every access that memory does not answer at once, is executed from its
//! decoded form (`generic`).

mod arena;
mod blocks;
mod cache;
mod copies;
mod decode;
mod dispatch;
mod fast;
mod flags;
mod generic;
mod op;
mod operand;
mod piece;
mod select;
mod sheet;
mod span;
mod translate;

pub(crate) use flags::LazyFlags;

use x86_fp::{MEMORY_OPERAND_MAX, Operand};

use crate::{Cpu, Environment, Stop};
use cache::Cache;
use dispatch::{BLOCK_MAX, Exit};

/// Translated code and what running it needs.
#[derive(Debug)]
pub(crate) struct Interp {
    /// RIP of the instruction that is executed in its decoded form.
    instruction_rip: u64,
    /// What RIP has of its 64 bits.
    rip_mask: u64,
    /// Tells RIPs of privilege levels apart.
    mode_tag: u64,
    /// SSE instructions are allowed, x87 and MMX too.
    fp_ready: bool,
    /// Instructions that [`Cpu::run`] may still execute; brought up to date between blocks.
    left: i64,
    /// So many of them may stay undone.
    spare: i64,
    /// Iterations that a repeated string instruction may do.
    budget: i64,
    exit: Exit,
    /// An interrupt may be possible at the end of the block.
    look: bool,
    /// Part of the budget that handlers gave up to make the block's end come back.
    withheld: i64,
    /// PAUSEs in a row.
    pauses: u32,
    /// `left` at the latest of them.
    pause_left: i64,
    cache: Cache,
    /// Memory operand of floating-point instructions.
    operand: Operand,
}

impl Default for Interp {
    fn default() -> Self {
        Self {
            instruction_rip: 0,
            rip_mask: u64::MAX,
            mode_tag: 0,
            fp_ready: false,
            left: 0,
            spare: 0,
            budget: 0,
            exit: Exit::default(),
            look: false,
            withheld: 0,
            pauses: 0,
            pause_left: 0,
            cache: Cache::new(),
            operand: Operand([0; MEMORY_OPERAND_MAX]),
        }
    }
}

impl Cpu {
    /// Runs guest instructions until `budget` of them are executed or something else stops it.
    ///
    /// Interrupts that `env` has are taken when it starts and whenever the guest makes itself ready
    /// for them. A budget of n executes exactly n instructions unless it stops for another reason;
    /// each iteration of a repeated string instruction and each delivered exception counts as one.
    pub fn run(&mut self, env: &mut dyn Environment, budget: u64) -> Stop {
        self.interp.spare = 0;
        self.run_budget(env, budget)
    }

    /// [`run`](Self::run) that may leave some of the budget: a block that does not fit into it would
    /// have to be executed instruction by instruction, from their decoded forms.
    pub fn run_about(&mut self, env: &mut dyn Environment, budget: u64) -> Stop {
        self.interp.spare = BLOCK_MAX as i64;
        self.run_budget(env, budget.max(2 * BLOCK_MAX as u64))
    }

    fn run_budget(&mut self, env: &mut dyn Environment, budget: u64) -> Stop {
        self.begin_slice();
        self.mirror_segments();
        self.interp.left = budget.min(i64::MAX as u64) as i64;
        let stop = self.run_slice(env).unwrap_or(Stop::TripleFault);
        self.settle_flags();
        self.end_slice();
        stop
    }
}

#[cfg(all(test, not(debug_assertions)))]
mod frames;
#[cfg(test)]
mod tests;
