//! A case before its addresses are known: pieces that can be left out.

use std::fmt;

use iced_x86::{
    Code, Encoder, IcedError, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
    RflagsBits,
};

use crate::layout::{CODE, CODE_PAGES, EXIT, PAGE};
use crate::{Case, State, Step};

/// What an instruction's branch target or RIP-relative address points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// What it says itself.
    Fixed,
    /// The start of the piece so many pieces further on.
    Piece(usize),
}

/// An instruction of a piece.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// The instruction, without address.
    pub instruction: Instruction,
    /// Where it points to.
    pub target: Target,
}

/// Instructions that belong together, the last one being what is tested.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// The instructions.
    pub planned: Vec<Planned>,
}

impl Piece {
    /// Adds an instruction.
    pub fn add(&mut self, instruction: Instruction) {
        self.add_to(instruction, Target::Fixed);
    }

    /// Adds an instruction that points to `target`.
    pub fn add_to(&mut self, instruction: Instruction, target: Target) {
        self.planned.push(Planned {
            instruction,
            target,
        });
    }
}

/// Where the code lies in its pages.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// At this address.
    At(u64),
    /// So that as many bytes of the code do not fit any more.
    Beyond(u64),
}

/// A case before its addresses are known.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Seed that makes it again.
    pub seed: u64,
    /// What it consists of.
    pub pieces: Vec<Piece>,
    /// Where the code lies.
    pub place: Place,
    /// Registers at the start.
    pub state: State,
    /// Content of the data pages and of the high page at the start.
    pub memory: Vec<u8>,
}

const ALL_STATUS_FLAGS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// Says whether `instruction` may leave the flags alone that it is said to write.
fn may_keep_flags(instruction: &Instruction) -> bool {
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let by_cl = (0..instruction.op_count())
        .skip(1)
        .any(|operand| instruction.op_register(operand) == Register::CL);
    let shift = matches!(
        instruction.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shld
            | Mnemonic::Shrd
    );
    repeated || (by_cl && shift)
}

/// Returns which flags are undefined after `instruction`, `before` being undefined before it.
fn undefined_after(instruction: &Instruction, before: u32) -> u32 {
    let undefined = instruction.rflags_undefined() & ALL_STATUS_FLAGS;
    let written =
        instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set();
    if may_keep_flags(instruction) {
        before | undefined
    } else {
        (before & !written) | undefined
    }
}

/// What runs before a piece that would read undefined flags.
fn define_flags() -> Instruction {
    Instruction::with2(Code::Cmp_rm32_r32, Register::EBX, Register::ECX).expect("CMP EBX, ECX")
}

impl Draft {
    /// Puts the pieces together, with a jump to the end behind them.
    pub fn assemble(&self) -> Result<Case, IcedError> {
        let pieces = self.with_defined_flags();
        let exit = Instruction::with_branch(Code::Jmp_rel32_64, EXIT)?;
        let mut planned: Vec<Planned> = Vec::new();
        let mut starts = Vec::new();
        for piece in &pieces {
            starts.push(planned.len());
            planned.extend(&piece.planned);
        }
        starts.push(planned.len());
        planned.push(Planned {
            instruction: exit,
            target: Target::Fixed,
        });
        // Lengths do not depend on addresses, so a first pass with targets close by finds them.
        let mut lengths = Vec::new();
        for one in &planned {
            let mut instruction = one.instruction;
            point_to(&mut instruction, one.target, CODE);
            lengths.push(Encoder::new(64).encode(&instruction, CODE)? as u64);
        }
        let total: u64 = lengths.iter().sum();
        let code_end = CODE + CODE_PAGES * PAGE;
        let start = match self.place {
            Place::At(start) => start.min(code_end - total),
            Place::Beyond(bytes) => code_end - total + bytes.min(total - 1),
        };
        let mut addresses = vec![start];
        for length in &lengths {
            addresses.push(addresses.last().expect("not empty") + length);
        }
        let (mut code, mut steps) = (Vec::new(), Vec::new());
        let mut index = 0;
        for (number, piece) in pieces.iter().enumerate() {
            for one in &piece.planned {
                let mut instruction = one.instruction;
                if let Target::Piece(count) = one.target {
                    let piece = starts[(number + count).min(pieces.len())];
                    point_to(&mut instruction, one.target, addresses[piece]);
                }
                let address = addresses[index];
                push(&mut code, &mut steps, instruction, address)?;
                index += 1;
            }
        }
        push(&mut code, &mut steps, exit, addresses[index])?;
        code.truncate((code_end - start) as usize);
        track_undefined(&mut steps);
        let mut state = self.state.clone();
        state.rip = start;
        Ok(Case {
            seed: self.seed,
            code,
            steps,
            state,
            memory: self.memory.clone(),
        })
    }

    /// Returns the pieces, with the flags set before each one that would read undefined ones.
    fn with_defined_flags(&self) -> Vec<Piece> {
        let mut pieces = self.pieces.clone();
        let mut arriving = vec![0; pieces.len() + 1];
        let mut undefined = 0;
        for number in 0..pieces.len() {
            undefined |= arriving[number];
            let (reads, after) = walk(&pieces[number], number, undefined, &mut arriving);
            undefined = after;
            if reads {
                let planned = Planned {
                    instruction: define_flags(),
                    target: Target::Fixed,
                };
                pieces[number].planned.insert(0, planned);
                undefined = walk(&pieces[number], number, 0, &mut arriving).1;
            }
        }
        pieces
    }

    /// Leaves out what is not needed for `differs` to stay true.
    pub fn shrink(&self, mut differs: impl FnMut(&Case) -> bool) -> Self {
        let mut best = self.clone();
        let mut index = best.pieces.len();
        while index > 0 {
            index -= 1;
            let mut smaller = best.clone();
            smaller.pieces.remove(index);
            if smaller.assemble().is_ok_and(|case| differs(&case)) {
                best = smaller;
            }
        }
        best
    }
}

/// Follows the undefined flags through a piece; returns whether it reads some and what is undefined
/// after it.
fn walk(piece: &Piece, number: usize, before: u32, arriving: &mut [u32]) -> (bool, u32) {
    let (mut undefined, mut reads) = (before, false);
    for one in &piece.planned {
        reads |= one.instruction.rflags_read() & undefined != 0;
        undefined = undefined_after(&one.instruction, undefined);
        if let Target::Piece(count) = one.target {
            let last = arriving.len() - 1;
            arriving[(number + count).min(last)] |= undefined;
        }
    }
    (reads, undefined)
}

/// Notes before each step what is undefined, jumps considered.
fn track_undefined(steps: &mut [Step]) {
    let mut arriving: Vec<(u64, u32)> = Vec::new();
    let mut undefined = 0;
    for step in steps {
        let address = step.instruction.ip();
        let jumps = arriving.iter().filter(|(target, _)| *target == address);
        undefined |= jumps.fold(0, |all, (_, flags)| all | flags);
        step.undefined = undefined;
        undefined = undefined_after(&step.instruction, undefined);
        if let Some(target) = target_of(&step.instruction) {
            arriving.push((target, undefined));
        }
    }
}

/// Returns where a branch, or the address that a later one takes, leads to.
fn target_of(instruction: &Instruction) -> Option<u64> {
    if instruction.is_ip_rel_memory_operand() && instruction.mnemonic() == Mnemonic::Lea {
        return Some(instruction.memory_displacement64());
    }
    (instruction.op0_kind() == OpKind::NearBranch64).then(|| instruction.near_branch64())
}

fn point_to(instruction: &mut Instruction, target: Target, address: u64) {
    if target == Target::Fixed {
        return;
    }
    if instruction.op0_kind() == OpKind::NearBranch64 {
        instruction.set_near_branch64(address);
    } else {
        instruction.set_memory_displacement64(address);
    }
}

fn push(
    code: &mut Vec<u8>,
    steps: &mut Vec<Step>,
    mut instruction: Instruction,
    address: u64,
) -> Result<(), IcedError> {
    let mut encoder = Encoder::new(64);
    let length = encoder.encode(&instruction, address)?;
    code.extend(encoder.take_buffer());
    instruction.set_len(length);
    instruction.set_ip(address);
    steps.push(Step {
        instruction,
        undefined: 0,
    });
    Ok(())
}

/// Returns the 64-bit general registers that `instruction` writes.
pub fn written(factory: &mut InstructionInfoFactory, instruction: &Instruction) -> Vec<Register> {
    let used = factory.info(instruction).used_registers();
    used.iter()
        .filter(|used| {
            use iced_x86::OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
            matches!(used.access(), Write | ReadWrite | CondWrite | ReadCondWrite)
        })
        .map(|used| used.register().full_register())
        .filter(|register| register.is_gpr())
        .collect()
}

/// Prints the code as a listing and the registers that it starts from.
impl fmt::Display for Case {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        use iced_x86::Formatter;
        let mut formatter = iced_x86::IntelFormatter::new();
        writeln!(to, "seed {:#x}", self.seed)?;
        for step in &self.steps {
            let instruction = &step.instruction;
            let mut text = String::new();
            formatter.format(instruction, &mut text);
            let start = (instruction.ip() - self.state.rip) as usize;
            let end = (start + instruction.len()).min(self.code.len());
            let bytes = self.code.get(start..end).unwrap_or(&[]);
            let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let code = instruction.code();
            writeln!(to, "  {:x} {bytes:20} {text}  [{code:?}]", instruction.ip())?;
        }
        for (index, value) in self.state.general.iter().enumerate() {
            let name = crate::compare::GENERAL[index];
            write!(to, "  {name}={value:x}")?;
        }
        let extended = &self.state.extended;
        writeln!(
            to,
            "\n  rflags={:x} mxcsr={:x} fcw={:x} fsw={:x} tags={:x}",
            self.state.rflags, extended.mxcsr, extended.control, extended.status, extended.tags
        )?;
        let used = |wanted: fn(Register) -> bool| {
            let mut factory = InstructionInfoFactory::new();
            self.steps.iter().any(|step| {
                let used = factory.info(&step.instruction).used_registers();
                used.iter().any(|used| wanted(used.register()))
            })
        };
        if used(|register| register.is_mm() || register.is_st()) {
            for (index, value) in extended.stack.iter().enumerate() {
                write!(to, "  st{index}={value:020x}")?;
            }
            writeln!(to)?;
        }
        if used(Register::is_xmm) {
            for (index, value) in extended.xmm.iter().enumerate() {
                write!(to, "  xmm{index}={value:032x}")?;
            }
        }
        Ok(())
    }
}
