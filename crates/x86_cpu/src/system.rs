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

mod calls;
mod control;
mod debug;
mod delivery;
mod descriptors;
mod far;
mod flags;
mod fp;
mod identity;
mod iret;
mod moves;
mod msr;
mod operands;
mod ports;
mod reset;
mod segments;
mod stack;
mod tables;

#[cfg(test)]
mod tests;

use iced_x86::{Code, Instruction, Mnemonic, Register};

use crate::state::Flow;
use crate::{Cpu, Environment, Fault, Stop};

/// What the system instructions keep besides the architectural state.
#[derive(Debug, Default)]
pub(crate) struct System {
    /// The last instruction loaded SS: no debug trap before the next one.
    stack_segment_loaded: bool,
    /// Data breakpoints that wait for that, as bits of DR6.
    held_hits: u64,
    /// Whether the trap flag counts as the instruction left it (SYSCALL, SYSRET).
    steps_by_result: bool,
    /// A step that SYSRET turned on is due before the next instruction.
    step_due: bool,
}

/// An exception while a double fault was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TripleFault;

/// Executes an instruction that the interpreter does not; RIP is already after it. What it does not
/// know is #UD.
pub(crate) fn execute(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    instruction: &Instruction,
) -> Result<Flow, Fault> {
    let op = instruction;
    match op.mnemonic() {
        Mnemonic::Mov if touches_segment(op) => cpu.move_segment(env, op),
        Mnemonic::Mov => cpu.move_special(env, op),
        Mnemonic::Push => cpu.push_segment(env, op),
        Mnemonic::Pop => cpu.pop_segment(env, op),
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
            cpu.load_far_pointer(env, op)
        }
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => cpu.push_flags(env, op),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => cpu.pop_flags(env, op),
        Mnemonic::Cli => cpu.clear_interrupts(),
        Mnemonic::Sti => cpu.set_interrupts(),
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => cpu.interrupt_return(env, op),
        Mnemonic::Jmp => cpu.far_branch(env, op, false),
        Mnemonic::Call => cpu.far_branch(env, op, true),
        Mnemonic::Retf => cpu.far_return(env, op),
        Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 | Mnemonic::Into => interrupt(cpu, env, op),
        Mnemonic::Syscall => cpu.system_call(),
        Mnemonic::Sysret | Mnemonic::Sysretq => cpu.system_return(env, op),
        Mnemonic::Sysenter => cpu.system_enter(env),
        Mnemonic::Sysexit | Mnemonic::Sysexitq => cpu.system_exit(env, op),
        Mnemonic::Swapgs => cpu.swap_gs(),
        Mnemonic::In | Mnemonic::Out => cpu.port(env, op),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => cpu.port_string(env, op),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => cpu.port_string(env, op),
        Mnemonic::Hlt => halt(cpu),
        Mnemonic::Rdmsr => cpu.read_msr(env),
        Mnemonic::Wrmsr => cpu.write_msr(env),
        Mnemonic::Cpuid => Ok(cpu.identify(env)),
        Mnemonic::Rdtsc => cpu.time_stamp(env, false),
        Mnemonic::Rdtscp => cpu.time_stamp(env, true),
        Mnemonic::Rdpid => cpu.processor_id(env, op),
        // There are no counters.
        Mnemonic::Rdpmc => Err(Fault::protection(0)),
        Mnemonic::Rdrand | Mnemonic::Rdseed => cpu.random(env, op),
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase => cpu.segment_base(env, op),
        Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => cpu.segment_base(env, op),
        Mnemonic::Sgdt | Mnemonic::Sidt => cpu.store_table(env, op),
        Mnemonic::Lgdt | Mnemonic::Lidt => cpu.load_table(env, op),
        Mnemonic::Sldt | Mnemonic::Str => cpu.store_selector(env, op),
        Mnemonic::Lldt => cpu.load_local_table(env, op),
        Mnemonic::Ltr => cpu.load_task(env, op),
        Mnemonic::Lar | Mnemonic::Lsl => cpu.inspect(env, op),
        Mnemonic::Verr | Mnemonic::Verw => cpu.verify(env, op),
        Mnemonic::Arpl => cpu.adjust_rpl(env, op),
        Mnemonic::Clts => cpu.clear_task_switched(),
        Mnemonic::Lmsw => cpu.load_status_word(env, op),
        Mnemonic::Smsw => cpu.store_status_word(env, op),
        Mnemonic::Invlpg => invalidate_page(cpu, op),
        Mnemonic::Invd | Mnemonic::Wbinvd => cpu.require_supervisor().map(|()| Flow::Leave),
        Mnemonic::Clflush => flush_line(cpu, env, op),
        Mnemonic::Vmcall | Mnemonic::Vmmcall => call_hypervisor(cpu, env),
        _ => Err(Fault::UNDEFINED),
    }
}

fn touches_segment(instruction: &Instruction) -> bool {
    instruction.op0_register().is_segment_register()
        || instruction.op1_register().is_segment_register()
}

/// INT n, INT3, INTO, INT1.
fn interrupt(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    instruction: &Instruction,
) -> Result<Flow, Fault> {
    const OVERFLOW: u64 = 1 << 11;
    let (vector, checked) = match instruction.code() {
        Code::Int3 => (3, true),
        Code::Int1 => (1, false),
        Code::Into if cpu.rflags & OVERFLOW == 0 => return Ok(Flow::Next),
        Code::Into => (4, true),
        _ => (instruction.immediate8(), true),
    };
    cpu.software_interrupt(env, vector, checked)?;
    cpu.entered_by_instruction(checked);
    Ok(Flow::Leave)
}

fn halt(cpu: &Cpu) -> Result<Flow, Fault> {
    cpu.require_supervisor()?;
    Ok(Flow::Stop(Stop::Halted))
}

fn invalidate_page(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Fault> {
    cpu.require_supervisor()?;
    let offset = cpu.offset(instruction);
    let linear = if cpu.long_code() {
        match instruction.memory_segment() {
            Register::FS => cpu.segments[4].base.wrapping_add(offset),
            Register::GS => cpu.segments[5].base.wrapping_add(offset),
            _ => offset,
        }
    } else {
        let name = operands::segment_name(instruction.memory_segment());
        let base = name.map_or(0, |name| cpu.segments[name as usize].base);
        base.wrapping_add(offset) & 0xffff_ffff
    };
    cpu.flush_page(linear);
    Ok(Flow::Leave)
}

fn call_hypervisor(cpu: &mut Cpu, env: &mut dyn Environment) -> Result<Flow, Fault> {
    let is_supervisor = cpu.require_supervisor().is_ok();
    let answer = env.hypercall(is_supervisor).ok_or(Fault::UNDEFINED)?;
    let wide = if cpu.long_code() {
        u64::MAX
    } else {
        u64::from(u32::MAX)
    };
    cpu.general[0] = answer & wide;
    Ok(Flow::Next)
}

/// CLFLUSH: there are no caches, but the byte must be readable.
fn flush_line(
    cpu: &mut Cpu,
    env: &mut dyn Environment,
    instruction: &Instruction,
) -> Result<Flow, Fault> {
    cpu.load_memory(env, instruction, 0, 1)?;
    Ok(Flow::Next)
}
