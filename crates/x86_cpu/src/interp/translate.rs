//! Pages of code to blocks of micro-ops.

use iced_x86::{ConditionCode, DecoderError, FlowControl, Instruction, Mnemonic, OpKind};

use super::cache::Cache;
use super::decode::{INSTRUCTION_MAX, decoder};
use super::dispatch::BLOCK_MAX;
use super::fast::pairs::{self, Kind};
use super::fast::{self, stack};
use super::op::{At, Link, Op, Place, Slot, Tie, instruction_slots};
use super::operand::Width;
use super::select::{self, Choice};

const PAGE: u64 = 4096;
/// Where an instruction begins that may reach beyond its page, at the earliest.
const STRADDLES: u64 = PAGE - INSTRUCTION_MAX as u64 + 1;
/// Jumps that a block goes on behind: what they lead to is translated once for each way there.
const JUMPS_MAX: u32 = 4;

/// Translates the block at `offset` of the page at `gpa`, which the cache has; `None` where its
/// first instruction goes on in the next page.
pub(super) fn translate(cache: &mut Cache, gpa: u64, offset: u64, width: Width) -> Option<At> {
    let code = cache.copy_of(gpa)?;
    let mut decoder = decoder(&code[offset as usize..], width, offset);
    let mut block = Builder::new(width, cache.place_of(gpa)?);
    while block.instructions.len() < BLOCK_MAX && decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        block.end = instruction.next_ip();
        if let Some(target) = block.goes_on_at(&instruction) {
            block.instructions.push(instruction);
            block.end = target;
            block.jumps += 1;
            decoder = self::decoder(&code[target as usize..], width, target);
        } else if block.add(instruction) {
            break;
        }
    }
    if block.instructions.is_empty() {
        return None;
    }
    block.finish();
    cache.add_block(gpa, offset, width, &block.slots)
}

/// Translates the instruction at `offset` of the page at `gpa` that ends in the page at `second`; the
/// cache has both. `None` where it is none. For 64-bit code.
pub(super) fn translate_straddler(
    cache: &mut Cache,
    (gpa, second): (u64, u64),
    offset: u64,
) -> Option<At> {
    let bytes = cache.joined(gpa, second, offset)?;
    let instruction = decoder(&bytes, Width::Bits64, offset).decode();
    if instruction.is_invalid() {
        return None;
    }
    let place = cache.add_place(gpa, second)?;
    let mut block = Builder::new(Width::Bits64, place);
    block.end = instruction.next_ip();
    block.straddles = true;
    block.add(instruction);
    block.finish();
    cache.add_straddler(place, offset, &block.slots)
}

/// A block that is being made.
struct Builder {
    width: Width,
    /// What its ops bear.
    place: Place,
    slots: Vec<Slot>,
    instructions: Vec<Instruction>,
    /// Places and kinds of the ops.
    kinds: Vec<(usize, Kind)>,
    /// Offset of what is executed after the last instruction.
    end: u64,
    /// The last op is a terminator with its links.
    closed: bool,
    /// Its only instruction ends in the next page.
    straddles: bool,
    /// Jumps that it goes on behind.
    jumps: u32,
}

impl Builder {
    fn new(width: Width, place: Place) -> Self {
        Self {
            width,
            place,
            // Room for a usual block.
            slots: Vec::with_capacity(24),
            instructions: Vec::with_capacity(16),
            kinds: Vec::with_capacity(16),
            end: 0,
            closed: false,
            straddles: false,
            jumps: 0,
        }
    }

    /// Whether code at a distance to `code_base` lives and dies with the block's page. Links to a
    /// place where an instruction may straddle are looked at before they are followed.
    fn within(&self, offset: u64) -> bool {
        offset < STRADDLES && !self.straddles
    }

    /// Where the block goes on if the instruction is a jump that needs no op: one to a fixed place of
    /// the page, in 64-bit code, which alone has links.
    fn goes_on_at(&self, instruction: &Instruction) -> Option<u64> {
        let target = instruction.near_branch64();
        let goes_on = self.width == Width::Bits64
            && instruction.mnemonic() == Mnemonic::Jmp
            && instruction.op0_kind() == OpKind::NearBranch64
            && self.within(target)
            && self.jumps < JUMPS_MAX
            && !self.is_in_shadow();
        goes_on.then_some(target)
    }

    /// Whether the next instruction is the one after STI, behind which interrupts are looked for.
    fn is_in_shadow(&self) -> bool {
        let last = self.instructions.last();
        last.is_some_and(|last| last.mnemonic() == Mnemonic::Sti)
    }

    /// Adds an instruction; returns whether the block ends with it.
    fn add(&mut self, instruction: Instruction) -> bool {
        let choice = match self.width {
            Width::Bits64 => select::select(&instruction),
            _ => select::select_between_registers(&instruction),
        };
        let mut op = select::operands(&instruction);
        const { assert!(BLOCK_MAX <= u8::MAX as usize) };
        op.number = self.instructions.len() as u8;
        // Interrupts are looked for at the ends of blocks: after POPF, and one instruction after STI.
        let enabled = instruction.mnemonic() == Mnemonic::Popfq || self.is_in_shadow();
        self.instructions.push(instruction);
        let target = instruction.near_branch64();
        if self.width == Width::Bits64 {
            let kind = match choice {
                Choice::Nothing => None,
                Choice::Decoded | Choice::Operation(..) => Some(Kind::Other),
                _ => Some(select::kind(&instruction, self.within(target))),
            };
            self.kinds.extend(kind.map(|kind| (self.slots.len(), kind)));
        }
        match choice {
            Choice::Nothing => {}
            Choice::Op(run) => self.push(Op { run, ..op }),
            Choice::Decoded => {
                let run = fast::inlined;
                self.push(Op { run, ..op });
                self.slots.extend(instruction_slots(instruction));
            }
            Choice::Operation(Some(run), operation) => {
                self.push(Op { run, ..op });
                self.slots.push(Slot { operation });
            }
            Choice::Operation(None, operation) => {
                let run = fast::float::inlined;
                self.push(Op { run, ..op });
                self.slots.push(Slot { operation });
                self.slots.extend(instruction_slots(instruction));
            }
            Choice::Closing(run) => {
                self.push(Op { run, ..op });
                self.closed = true;
            }
            Choice::Direct(near, far) => {
                let run = if self.within(target) { near } else { far };
                self.close(Op { run, ..op }, &[target], self.within(target));
            }
            Choice::Branch(condition) => self.branch(op, condition, target),
        }
        self.closed || enabled || instruction.flow_control() != FlowControl::Next
    }

    /// Adds Jcc; an odd condition is its even one with the links exchanged.
    fn branch(&mut self, op: Op, condition: u8, target: u64) {
        let near = self.within(target) && self.within(self.end);
        let links = match condition & 1 {
            0 => [target, self.end],
            _ => [self.end, target],
        };
        let run = match near {
            true => fast::flow::by_condition::<fast::flow::Branch<true>>(condition),
            false => fast::flow::by_condition::<fast::flow::Branch<false>>(condition),
        };
        let fused = self.fuse(&op, condition, near);
        if let Some(last) = self.kinds.last_mut() {
            last.1 = Kind::Branch {
                condition,
                within: near,
            };
        }
        if fused {
            self.kinds.pop();
            if let (Some(last), [.., compare, _]) = (self.kinds.last_mut(), &*self.instructions) {
                last.1 = match near {
                    true => select::fused_kind(compare, condition),
                    false => Kind::Other,
                };
            }
        }
        self.close(Op { run, ..op }, &links, near);
    }

    /// Lets the comparison before a branch decide it; returns whether it does.
    fn fuse(&mut self, branch: &Op, condition: u8, within: bool) -> bool {
        let Some(before) = branch.number.checked_sub(1) else {
            return false;
        };
        let Some(instruction) = self.instructions.get(usize::from(before)) else {
            return false;
        };
        let Some(run) = select::fused(instruction, condition, within) else {
            return false;
        };
        let Some(last) = self.slots.last_mut() else {
            return false;
        };
        let op = *At::new(last).op();
        if op.number != before {
            return false;
        }
        *last = Slot {
            op: Op { run, ..op },
        };
        true
    }

    /// Lets the first of ops that often follow one another do the work of all of them.
    fn join(&mut self) {
        let kinds = std::mem::take(&mut self.kinds);
        let mut rest = &*kinds;
        while !rest.is_empty() {
            let taken = self.join_run(rest).or_else(|| self.join_pair(rest));
            rest = &rest[taken.unwrap_or(1)..];
        }
    }

    /// Joins pushes, or pops and the return behind them; returns how many ops.
    fn join_run(&mut self, kinds: &[(usize, Kind)]) -> Option<usize> {
        let (place, first) = *kinds.first()?;
        let same = kinds.iter().take_while(|(_, kind)| *kind == first);
        let count = same.count().min(stack::RUN_MAX);
        let (run, taken) = match first {
            Kind::Push => (stack::pushes_of(count)?, count),
            Kind::Pop => {
                let returns = matches!(kinds.get(count), Some((_, Kind::Ret)));
                let taken = count + usize::from(returns);
                (stack::pops_of(count, returns)?, taken)
            }
            _ => return None,
        };
        let registers: Vec<u8> = (place..place + count)
            .map(|place| self.op(place).a)
            .collect();
        let mut op = Op {
            run,
            ..self.op(place)
        };
        stack::set_run_registers(&mut op, &registers);
        self.slots[place] = Slot { op };
        Some(taken)
    }

    /// Joins two ops; returns how many.
    fn join_pair(&mut self, kinds: &[(usize, Kind)]) -> Option<usize> {
        let [(place, first), (beside, second), ..] = *kinds else {
            return None;
        };
        let run = pairs::pair_of(first, second)?;
        debug_assert_eq!(beside, place + 1, "the first has nothing behind its op");
        let op = self.op(place);
        self.slots[place] = Slot {
            op: Op { run, ..op },
        };
        Some(2)
    }

    fn op(&mut self, place: usize) -> Op {
        *At::new(&mut self.slots[place]).op()
    }

    fn push(&mut self, op: Op) {
        let place = self.place;
        self.slots.push(Slot {
            op: Op { place, ..op },
        });
    }

    /// Adds the terminator and its links, to one or two offsets, `within` the page or not.
    fn close(&mut self, op: Op, offsets: &[u64], within: bool) {
        self.push(Op {
            immediate: offsets[0],
            displacement: offsets.get(1).map_or(0, |offset| *offset as i32),
            ..op
        });
        if within {
            let ties = [Tie::open(); 2];
            self.slots.push(Slot { ties });
        } else {
            let open = |offset| Link {
                entry: At::NULL,
                tag: 1,
                generation: u64::MAX,
                offset,
            };
            let links = offsets.iter().map(|offset| open(*offset));
            self.slots.extend(links.map(|link| Slot { link }));
        }
        self.closed = true;
    }

    /// Closes a block that ends without a branch of its own.
    fn finish(&mut self) {
        self.join();
        if self.closed {
            return;
        }
        // The next instruction is of another block, so the dispatcher has to know of the shadow.
        if self.width == Width::Bits64
            && self.is_in_shadow()
            && let Some(last) = self.slots.last_mut()
        {
            let op = *At::new(last).op();
            *last = Slot {
                op: Op {
                    run: fast::generic,
                    ..op
                },
            };
        }
        let within = self.within(self.end);
        let run = match (self.width, within) {
            (Width::Bits64, true) => fast::flow::end::<true>,
            (Width::Bits64, false) => fast::flow::end::<false>,
            _ => fast::flow::end_unlinked,
        };
        let op = Op {
            run,
            number: self.instructions.len() as u8,
            start: (self.end & 0xfff) as u16,
            ..select::nothing()
        };
        self.close(op, &[self.end], within);
    }
}

/// Returns the condition (low four bits of the opcode) of Jcc, SETcc and CMOVcc.
pub(super) fn condition_code(instruction: &Instruction) -> Option<u8> {
    // LOOP and its kin have conditions of their own.
    if instruction.mnemonic() == Mnemonic::Loope || instruction.mnemonic() == Mnemonic::Loopne {
        return None;
    }
    Some(match instruction.condition_code() {
        ConditionCode::None => return None,
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    })
}
