//! Every instruction of the interpreter, executed from its decoded form.
//!
//! This is the reference: micro-ops with handlers of their own are the fast way for the hot forms,
//! and fall back to this one where memory does not answer at once.

mod arithmetic;
mod atomic;
mod bit;
mod branch;
mod decimal;
mod float;
mod multiply;
mod shift;
mod stack;
mod string;

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::flags::{AF, CF, DF, PF, SF, ZF, condition_of, mask, sign_extend};
use super::operand::{RAX, RBX, RDX, operand_size, segment};
use crate::state::Flow;
use crate::{Cpu, Environment, Fault, system};

pub(crate) use float::float;

/// Executes `instruction`; RFLAGS is settled and RIP is after it.
pub(crate) fn execute(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    instruction: &Instruction,
) -> Result<Flow, Fault> {
    if instruction.is_string_instruction() {
        return cpu.string(env, instruction);
    }
    match instruction.mnemonic() {
        Mnemonic::Add
        | Mnemonic::Or
        | Mnemonic::Adc
        | Mnemonic::Sbb
        | Mnemonic::And
        | Mnemonic::Sub
        | Mnemonic::Xor => cpu.arithmetic(env, instruction),
        Mnemonic::Cmp | Mnemonic::Test => cpu.compare(env, instruction),
        Mnemonic::Inc | Mnemonic::Dec | Mnemonic::Neg | Mnemonic::Not => {
            cpu.arithmetic_unary(env, instruction)
        }
        Mnemonic::Mov | Mnemonic::Movnti => cpu.mov(env, instruction),
        Mnemonic::Movzx => {
            let size = operand_size(instruction, 1);
            let value = cpu.read_operand(env, instruction, 1)? & mask(size);
            cpu.write_operand(env, instruction, 0, value)?;
            Ok(Flow::Next)
        }
        Mnemonic::Movsx | Mnemonic::Movsxd => {
            let size = operand_size(instruction, 1);
            let value = sign_extend(cpu.read_operand(env, instruction, 1)?, size);
            cpu.write_operand(env, instruction, 0, value)?;
            Ok(Flow::Next)
        }
        Mnemonic::Lea => {
            let address = cpu.effective_address(instruction);
            cpu.write_operand(env, instruction, 0, address)?;
            Ok(Flow::Next)
        }
        Mnemonic::Xchg => cpu.exchange(env, instruction),
        Mnemonic::Xadd => cpu.exchange_add(env, instruction),
        Mnemonic::Cmpxchg => cpu.compare_exchange(env, instruction),
        Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => cpu.compare_exchange_pair(env, instruction),
        Mnemonic::Push => cpu.push_operand(env, instruction),
        Mnemonic::Pop => cpu.pop_operand(env, instruction),
        Mnemonic::Pusha | Mnemonic::Pushad => cpu.push_all(env, instruction),
        Mnemonic::Popa | Mnemonic::Popad => cpu.pop_all(env, instruction),
        Mnemonic::Enter => cpu.enter(env, instruction),
        Mnemonic::Leave => cpu.leave(env, instruction),
        Mnemonic::Call | Mnemonic::Jmp if is_near(instruction) => cpu.jump(env, instruction),
        Mnemonic::Ret => cpu.near_return(env, instruction),
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => Ok(cpu.loop_branch(instruction)?),
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => Ok(cpu.jump_if_zero(instruction)?),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => {
            cpu.bit_test(env, instruction)
        }
        Mnemonic::Bsf | Mnemonic::Bsr | Mnemonic::Popcnt => cpu.bit_count(env, instruction),
        Mnemonic::Bswap => cpu.byte_swap(env, instruction),
        Mnemonic::Crc32 => cpu.crc32(env, instruction),
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar => {
            cpu.shift(env, instruction)
        }
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr => {
            cpu.rotate(env, instruction)
        }
        Mnemonic::Shld | Mnemonic::Shrd => cpu.double_shift(env, instruction),
        Mnemonic::Mul => cpu.multiply(env, instruction, false),
        Mnemonic::Imul => cpu.signed_multiply(env, instruction),
        Mnemonic::Div => cpu.divide(env, instruction, false),
        Mnemonic::Idiv => cpu.divide(env, instruction, true),
        Mnemonic::Cbw
        | Mnemonic::Cwde
        | Mnemonic::Cdqe
        | Mnemonic::Cwd
        | Mnemonic::Cdq
        | Mnemonic::Cqo => Ok(cpu.extend_accumulator(instruction.mnemonic())),
        Mnemonic::Aaa
        | Mnemonic::Aas
        | Mnemonic::Daa
        | Mnemonic::Das
        | Mnemonic::Aam
        | Mnemonic::Aad
        | Mnemonic::Salc => cpu.decimal(instruction),
        Mnemonic::Bound => cpu.bound(env, instruction),
        Mnemonic::Xlatb => cpu.translate_byte(env, instruction),
        Mnemonic::Lahf | Mnemonic::Sahf => Ok(cpu.flags_and_ah(instruction.mnemonic())),
        Mnemonic::Clc => Ok(cpu.change_flags(CF, 0)),
        Mnemonic::Stc => Ok(cpu.change_flags(CF, CF)),
        Mnemonic::Cmc => Ok(cpu.change_flags(CF, !cpu.rflags & CF)),
        Mnemonic::Cld => Ok(cpu.change_flags(DF, 0)),
        Mnemonic::Std => Ok(cpu.change_flags(DF, DF)),
        mnemonic if is_hint(mnemonic) => Ok(Flow::Next),
        Mnemonic::Pause => Ok(cpu.pause()),
        Mnemonic::Mfence | Mnemonic::Lfence | Mnemonic::Sfence => {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            Ok(Flow::Next)
        }
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::INVALID => Err(Fault::UNDEFINED),
        _ => cpu.execute_other(env, instruction),
    }
}

/// Whether it does nothing here. Hints are no-operations for a processor that does not know them.
fn is_hint(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Nop
            | Mnemonic::Reservednop
            | Mnemonic::Cldemote
            | Mnemonic::Prefetchit0
            | Mnemonic::Prefetchit1
            | Mnemonic::Endbr32
            | Mnemonic::Endbr64
            | Mnemonic::Rdsspd
            | Mnemonic::Rdsspq
            | Mnemonic::Prefetch
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetchwt1
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
    )
}

fn is_near(instruction: &Instruction) -> bool {
    !matches!(
        instruction.op0_kind(),
        OpKind::FarBranch16 | OpKind::FarBranch32
    ) && !matches!(
        instruction.code(),
        Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
            | Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
    )
}

impl Cpu {
    fn execute_other(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        if let Some(condition) = super::translate::condition_code(instruction) {
            return self.conditional(env, instruction, condition);
        }
        match x86_fp::resolve(instruction) {
            Some(operation) => float(self, env, instruction, &operation),
            None => self.execute_system(env, instruction),
        }
    }

    /// Hands an instruction on, with real addresses: decoded code knows only its place in a page.
    pub(super) fn execute_system(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let mut placed = *instruction;
        placed.set_next_ip(self.rip);
        if instruction.is_ip_rel_memory_operand() {
            let address = self.effective_address(instruction);
            placed.set_memory_base(Register::None);
            placed.set_memory_index(Register::None);
            placed.set_memory_displacement64(address);
        }
        let flow = system::execute(self, env, &placed)?;
        self.mirror_segments();
        Ok(flow)
    }

    fn conditional(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
        condition: u8,
    ) -> Result<Flow, Fault> {
        let holds = condition_of(self.rflags, condition);
        if instruction.is_jcc_short_or_near() {
            return match holds {
                true => self.branch(instruction),
                false => Ok(Flow::Next),
            };
        }
        if instruction.op_count() == 1 {
            self.write_operand(env, instruction, 0, holds.into())?;
            return Ok(Flow::Next);
        }
        // CMOVcc loads and zero-extends whether the condition holds or not.
        let mut value = self.read_operand(env, instruction, 1)?;
        if !holds {
            value = self.read_operand(env, instruction, 0)?;
        }
        self.write_operand(env, instruction, 0, value)?;
        Ok(Flow::Next)
    }

    fn mov(&mut self, env: &mut dyn Environment, instruction: &Instruction) -> Result<Flow, Fault> {
        let special = |number| {
            let register = instruction.op_register(number);
            register.is_cr() || register.is_dr() || register.is_tr()
        };
        if special(0) || special(1) || segment(instruction.op0_register()).is_some() {
            return self.execute_system(env, instruction);
        }
        let value = self.read_operand(env, instruction, 1)?;
        self.write_operand(env, instruction, 0, value)?;
        Ok(Flow::Next)
    }

    fn extend_accumulator(&mut self, mnemonic: Mnemonic) -> Flow {
        let accumulator = self.general[RAX];
        let sign = |size| sign_extend(accumulator, size);
        match mnemonic {
            Mnemonic::Cbw => self.set_register(RAX, 2, sign(1)),
            Mnemonic::Cwde => self.set_register(RAX, 4, sign(2)),
            Mnemonic::Cdqe => self.set_register(RAX, 8, sign(4)),
            Mnemonic::Cwd => self.set_register(RDX, 2, (sign(2) as i64 >> 63) as u64),
            Mnemonic::Cdq => self.set_register(RDX, 4, (sign(4) as i64 >> 63) as u64),
            _ => self.set_register(RDX, 8, (accumulator as i64 >> 63) as u64),
        }
        Flow::Next
    }

    fn flags_and_ah(&mut self, mnemonic: Mnemonic) -> Flow {
        let low = CF | PF | AF | ZF | SF;
        if mnemonic == Mnemonic::Lahf {
            let flags = (self.rflags & low) | 2;
            self.general[RAX] = (self.general[RAX] & !0xff00) | flags << 8;
        } else {
            let flags = self.general[RAX] >> 8 & low;
            self.rflags = (self.rflags & !low) | flags;
        }
        Flow::Next
    }

    fn change_flags(&mut self, which: u64, to: u64) -> Flow {
        self.rflags = (self.rflags & !which) | to;
        Flow::Next
    }

    fn translate_byte(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = instruction.memory_base().size() as u32;
        let offset = self.general[RBX].wrapping_add(self.general[RAX] & 0xff) & mask(size);
        let segment = segment(instruction.memory_segment()).unwrap_or(3);
        let linear = self.linear(segment, offset, 1, false)?;
        let value = self.load::<u8>(env, linear)?;
        self.set_register(RAX, 1, value.into());
        Ok(Flow::Next)
    }

    fn bound(
        &mut self,
        env: &mut dyn Environment,
        instruction: &Instruction,
    ) -> Result<Flow, Fault> {
        let size = operand_size(instruction, 0);
        let index = sign_extend(self.read_operand(env, instruction, 0)?, size) as i64;
        let linear = self.place(instruction, size * 2, false)?;
        let lower = sign_extend(self.load_sized(env, linear, size)?, size) as i64;
        let upper_at = linear.wrapping_add(size.into()) & mask(4);
        let upper = sign_extend(self.load_sized(env, upper_at, size)?, size) as i64;
        match (lower..=upper).contains(&index) {
            true => Ok(Flow::Next),
            false => Err(Fault::plain(5)),
        }
    }
}
