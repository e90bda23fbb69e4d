//! Instructions that load and store segment registers.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::operands::segment_name;
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, SegmentName};

impl Cpu {
    /// MOV to and from a segment register.
    pub(super) fn move_segment(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let loads = instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_segment_register();
        if !loads {
            let from = segment_name(instruction.op1_register()).ok_or(Fault::UNDEFINED)?;
            let selector = self.segment(from).selector;
            self.set_operand(env, instruction, 0, selector.into(), 2)?;
            return Ok(Flow::Next);
        }
        let to = segment_name(instruction.op0_register()).ok_or(Fault::UNDEFINED)?;
        if to == SegmentName::Cs {
            return Err(Fault::UNDEFINED);
        }
        let selector = self.operand(env, instruction, 1, 2)? as u16;
        self.load_segment(env, to, selector)?;
        Ok(self.segment_loaded(to))
    }

    /// SS brings its shadow: neither interrupts nor traps before the next instruction.
    fn segment_loaded(&mut self, name: SegmentName) -> Flow {
        if name == SegmentName::Ss {
            self.interrupt_shadow = true;
            self.system.stack_segment_loaded = self.stepping();
        }
        Flow::Leave
    }

    /// PUSH of a segment register.
    pub(super) fn push_segment(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let name = segment_name(instruction.op0_register()).ok_or(Fault::UNDEFINED)?;
        let mut stack = self.stack();
        let size = stack_size(instruction.code());
        self.push_on(env, &mut stack, self.segment(name).selector.into(), size)?;
        self.use_stack(&stack);
        Ok(Flow::Next)
    }

    /// POP of a segment register.
    pub(super) fn pop_segment(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let name = segment_name(instruction.op0_register()).ok_or(Fault::UNDEFINED)?;
        let mut stack = self.stack();
        let size = stack_size(instruction.code());
        let selector = self.pop_from(env, &mut stack, size)? as u16;
        // The new SS decides nothing about this pop's stack pointer.
        let popped = stack;
        self.load_segment(env, name, selector)?;
        self.use_stack(&popped);
        Ok(self.segment_loaded(name))
    }

    /// LDS, LES, LFS, LGS, LSS.
    pub(super) fn load_far_pointer(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let name = match instruction.mnemonic() {
            Mnemonic::Lds => SegmentName::Ds,
            Mnemonic::Les => SegmentName::Es,
            Mnemonic::Lfs => SegmentName::Fs,
            Mnemonic::Lgs => SegmentName::Gs,
            _ => SegmentName::Ss,
        };
        let size = instruction.op0_register().size() as u64;
        let offset = self.load_memory(env, instruction, 0, size)?;
        let selector = self.load_memory(env, instruction, size, 2)? as u16;
        self.load_segment(env, name, selector)?;
        self.set_named_register(instruction.op0_register(), offset);
        // LSS has no shadow of its own: it sets both halves of the stack.
        Ok(Flow::Leave)
    }
}

fn stack_size(code: Code) -> u64 {
    match code {
        Code::Pushw_FS
        | Code::Pushw_GS
        | Code::Pushw_ES
        | Code::Pushw_CS
        | Code::Pushw_SS
        | Code::Pushw_DS
        | Code::Popw_FS
        | Code::Popw_GS
        | Code::Popw_ES
        | Code::Popw_CS
        | Code::Popw_SS
        | Code::Popw_DS => 2,
        Code::Pushq_FS | Code::Pushq_GS | Code::Popq_FS | Code::Popq_GS => 8,
        _ => 4,
    }
}
