//! MOVS, STOS, LODS, CMPS, SCAS with REP, REPE, REPNE.
//!
//! A repeated instruction commits after each iteration, so that it goes on where a fault or the end
//! of the budget stopped it.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::interp::flags::{DF, ZF, mask, of_difference};
use crate::interp::operand::{RAX, RCX, RDI, RSI, segment};
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, SegmentName};

const ES: usize = SegmentName::Es as usize;

/// A string instruction, taken apart.
#[derive(Clone, Copy, Debug)]
struct Walk {
    operation: Operation,
    /// Length of an element, bytes.
    size: u32,
    /// Length of the address registers, bytes.
    address: u32,
    /// Segment of the source.
    segment: usize,
    /// Distance from one element to the next.
    step: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Move,
    Store,
    Load,
    Compare,
    Scan,
}

impl Walk {
    /// `None` for INS and OUTS.
    fn of(instruction: &Instruction, backwards: bool) -> Option<Self> {
        let operation = match instruction.mnemonic() {
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
                Operation::Move
            }
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
                Operation::Store
            }
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
                Operation::Load
            }
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
                Operation::Compare
            }
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
                Operation::Scan
            }
            _ => return None,
        };
        let size = instruction.memory_size().size() as u32;
        let kinds = [instruction.op0_kind(), instruction.op1_kind()];
        let address = kinds.iter().find_map(|kind| match kind {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(2),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(4),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(8),
            _ => None,
        })?;
        let forward = u64::from(size);
        Some(Self {
            operation,
            size,
            address,
            segment: segment(instruction.memory_segment()).unwrap_or(3),
            step: if backwards {
                forward.wrapping_neg()
            } else {
                forward
            },
        })
    }
}

impl Cpu {
    pub(super) fn string(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let Some(walk) = Walk::of(instruction, self.rflags & DF != 0) else {
            return self.execute_system(env, instruction);
        };
        let (equal, unequal) = (instruction.has_rep_prefix(), instruction.has_repne_prefix());
        if !equal && !unequal {
            self.string_once(env, &walk)?;
            return Ok(Flow::Next);
        }
        let compares = matches!(walk.operation, Operation::Compare | Operation::Scan);
        let mut begun = false;
        loop {
            let count = self.register(RCX, walk.address);
            if count == 0 {
                return Ok(Flow::Next);
            }
            // As any instruction of a block it is begun without a look at the budget: behind STI there
            // is none, and no interrupt comes before it.
            if std::mem::replace(&mut begun, true) && self.interp.budget <= 0 {
                self.rip = self.interp.instruction_rip;
                return Ok(Flow::Leave);
            }
            let mut done = self.string_span(env, &walk, count)?;
            if done == 0 {
                self.string_once(env, &walk)?;
                done = 1;
            }
            self.set_register(RCX, walk.address, count.wrapping_sub(done));
            self.interp.budget -= done as i64;
            if compares && (self.rflags & ZF != 0) != equal {
                return Ok(Flow::Next);
            }
            // The bytes just written may be this very instruction's neighbours.
            if self.code_changed() && count != done {
                self.rip = self.interp.instruction_rip;
                return Ok(Flow::Leave);
            }
        }
    }

    fn advance(&mut self, register: usize, walk: &Walk, count: u64) {
        let value = self.general[register & 15].wrapping_add(walk.step.wrapping_mul(count));
        self.set_register(register, walk.address, value);
    }

    fn source(&self, walk: &Walk) -> Result<u64, Fault> {
        let offset = self.register(RSI, walk.address);
        self.linear(walk.segment, offset, walk.size, false)
    }

    fn target(&self, walk: &Walk, write: bool) -> Result<u64, Fault> {
        self.linear(ES, self.register(RDI, walk.address), walk.size, write)
    }

    fn string_once(&mut self, env: &mut dyn Environment, walk: &Walk) -> Result<(), Fault> {
        let size = walk.size;
        match walk.operation {
            Operation::Move => {
                let source = self.source(walk)?;
                let value = self.load_sized(env, source, size)?;
                let target = self.target(walk, true)?;
                self.store_sized(env, target, size, value)?;
                self.advance(RSI, walk, 1);
                self.advance(RDI, walk, 1);
            }
            Operation::Store => {
                let target = self.target(walk, true)?;
                self.store_sized(env, target, size, self.general[RAX])?;
                self.advance(RDI, walk, 1);
            }
            Operation::Load => {
                let source = self.source(walk)?;
                let value = self.load_sized(env, source, size)?;
                self.set_register(RAX, size, value);
                self.advance(RSI, walk, 1);
            }
            Operation::Compare => {
                // AMD's processors load what RDI points to first; where both fault, it shows.
                let target = self.target(walk, false)?;
                let b = self.load_sized(env, target, size)?;
                let source = self.source(walk)?;
                let a = self.load_sized(env, source, size)?;
                self.set_difference(a, b, size);
                self.advance(RSI, walk, 1);
                self.advance(RDI, walk, 1);
            }
            Operation::Scan => {
                let target = self.target(walk, false)?;
                let b = self.load_sized(env, target, size)?;
                self.set_difference(self.register(RAX, size), b, size);
                self.advance(RDI, walk, 1);
            }
        }
        Ok(())
    }

    fn set_difference(&mut self, a: u64, b: u64, size: u32) {
        let result = a.wrapping_sub(b) & mask(size);
        self.set_status(of_difference(a, b, result, size));
    }

    /// Does up to `count` iterations of an upward MOVS or STOS within one page each; returns how many.
    fn string_span(
        &mut self,
        env: &mut dyn Environment,
        walk: &Walk,
        count: u64,
    ) -> Result<u64, Fault> {
        let size = u64::from(walk.size);
        let moves = walk.operation == Operation::Move;
        let simple = moves || walk.operation == Operation::Store;
        // 64-bit addresses only: no segment limits, no wrapping within the registers.
        if !simple || walk.step != size || walk.address != 8 || count < 8 {
            return Ok(0);
        }
        let most = count.min(self.interp.budget.max(0) as u64).min(4096) * size;
        // The source is looked at first: where both fault, it is the one that does.
        let from = if moves {
            let source = self.source(walk)?;
            match self.page_span(env, source, most, false)? {
                Some(from) if from.len >= size => Some(from),
                _ => return Ok(0),
            }
        } else {
            None
        };
        let target = self.target(walk, true)?;
        let Some(to) = self.page_span(env, target, most, true)? else {
            return Ok(0);
        };
        let mut len = to.len;
        if let Some(from) = from {
            len = len.min(from.len) / size * size;
            if len == 0 {
                return Ok(0);
            }
            super::super::span::copy(from.host, to.host, len, size);
            self.advance(RSI, walk, len / size);
        } else {
            len = len / size * size;
            super::super::span::fill(to.host, len, size, self.general[RAX]);
        }
        self.advance(RDI, walk, len / size);
        Ok(len / size)
    }
}
