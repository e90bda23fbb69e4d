//! Breakpoints and single step (SDM 3B 18.2, 18.3).
//!
//! While any of them is enabled the interpreter runs one instruction at a time. I/O breakpoints are
//! not supported.

use super::flags::{RF, TF};
use crate::{Cpu, Fault, SegmentName};

/// DR6.BD.
pub(super) const BREAK_ON_ACCESS: u64 = 1 << 13;
const BREAK_ON_STEP: u64 = 1 << 14;
/// DR7.GD.
pub(super) const DR7_DETECT: u64 = 1 << 13;
const DR7_ENABLES: u64 = 0xff;
/// DR6.B0 to B3: those of the last #DB only.
const BREAKPOINTS: u64 = 0xf;

impl Cpu {
    /// Whether each instruction must run alone, between [`before_step`](Self::before_step) and
    /// [`after_step`](Self::after_step).
    #[inline(always)]
    pub(crate) fn stepping(&self) -> bool {
        self.rflags & TF != 0 || self.dr7 & DR7_ENABLES != 0
    }

    /// Looks for an instruction breakpoint at RIP. A fault is delivered instead of running the
    /// instruction.
    ///
    /// Returns what [`after_step`](Self::after_step) has to be given.
    pub(crate) fn before_step(&mut self) -> Result<bool, Fault> {
        self.take_watch_hits();
        if std::mem::take(&mut self.system.step_due) {
            return Err(Fault::debug(BREAK_ON_STEP));
        }
        self.system.stack_segment_loaded = false;
        if self.rflags & RF == 0 {
            let hits = self.code_breakpoints();
            if hits != 0 {
                return Err(Fault::debug(hits));
            }
        }
        self.rflags &= !RF;
        self.system.steps_by_result = false;
        Ok(self.rflags & TF != 0)
    }

    /// Returns the #DB trap of the instruction that just completed; `stepped` is what
    /// [`before_step`](Self::before_step) returned. After MOV SS and POP SS data breakpoints wait for
    /// the next instruction, and there is no step; instruction breakpoints come, as on AMD's
    /// processors.
    pub(crate) fn after_step(&mut self, stepped: bool) -> Option<Fault> {
        let mut status = self.take_watch_hits() | std::mem::take(&mut self.system.held_hits);
        if self.system.stack_segment_loaded {
            self.system.held_hits = status;
            return None;
        }
        let by_result = self.system.steps_by_result;
        self.system.step_due = false;
        if by_result && self.rflags & TF != 0 || !by_result && stepped {
            status |= BREAK_ON_STEP;
        }
        (status != 0).then(|| Fault::debug(status))
    }

    /// INT n, INT3, INTO and INT1 clear TF on their way, so no step ends with them (SDM 3B 18.3.1.4).
    /// What waits since MOV SS comes with the #DB of INT1, the one that is not `checked`.
    pub(super) fn entered_by_instruction(&mut self, checked: bool) {
        self.system.steps_by_result = true;
        if !checked && self.system.held_hits != 0 {
            let held = std::mem::take(&mut self.system.held_hits);
            self.note_debug(held);
        }
    }

    /// Lets a repeated instruction whose iterations are not all done go on although a breakpoint is
    /// on it (SDM 3B 18.3.1.1).
    pub(crate) fn resume_past_breakpoint(&mut self) {
        self.rflags |= RF;
    }

    fn code_breakpoints(&self) -> u64 {
        let rip = if self.long_code() {
            self.rip
        } else {
            let base = self.segment(SegmentName::Cs).base;
            base.wrapping_add(self.rip) & 0xffff_ffff
        };
        let hit = |number: &usize| {
            let enabled = self.dr7 >> (2 * number) & 3 != 0;
            let kind = self.dr7 >> (16 + 4 * number) & 3;
            enabled && kind == 0 && self.debug_address[*number] == rip
        };
        (0..4).filter(hit).map(|number| 1 << number).sum()
    }

    /// What a #DB leaves in the debug registers.
    pub(super) fn note_debug(&mut self, status: u64) {
        self.dr6 = self.dr6 & !BREAKPOINTS | status;
        self.dr7 &= !DR7_DETECT;
    }
}
