//! Micro-ops and how one leads to the next.
//!
//! A block is an array of [`Slot`]s: one op for each instruction (none for those that do nothing and
//! for jumps that the block goes on behind), a terminator, and the links of the terminator. Running code waits for its ops, so a block
//! has nothing else: what it belongs to is kept apart, by number. An op that is always executed from
//! its decoded form has that form behind it; for others it is decoded again. A handler ends by
//! calling the next op's handler; the optimiser makes a jump of that, and the budget bounds the
//! depth where it does not.

#![expect(
    unsafe_code,
    reason = "ops are reached by pointer, registers by offset"
)]

use std::mem::{MaybeUninit, offset_of};

use iced_x86::Instruction;
use x86_fp::FpOperation;

use crate::mmu::Value;
use crate::{Cpu, Environment};

/// Runs an op and all that follow it; returns what is left of the budget.
pub(super) type Handler = fn(&mut Cpu, &mut &mut dyn Environment, At, i64) -> i64;

/// One micro-op.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Op {
    pub(super) run: Handler,
    /// Immediate; of a terminator the offset that its first link leads to.
    pub(super) immediate: u64,
    /// Of a terminator the offset that its second link leads to.
    pub(super) displacement: i32,
    /// First register, as a byte offset in the register file.
    pub(super) a: u8,
    /// Second register.
    pub(super) b: u8,
    /// Registers of the address: base, index, segment base.
    pub(super) first: u8,
    pub(super) index: u8,
    pub(super) segment: u8,
    /// log2 of the index's scale.
    pub(super) scale: u8,
    /// Length of the instruction, bytes.
    pub(super) len: u8,
    /// Number of the instruction in its block.
    pub(super) number: u8,
    /// Offset of the instruction in its page.
    pub(super) start: u16,
    /// Where it comes from, for the cache.
    pub(super) place: Place,
}

/// Number of a page, or of two that an instruction straddles, in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Place(pub(super) u16);

/// Where a direct branch to another page goes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Link {
    /// The block, or null.
    pub(super) entry: At,
    /// The RIP it was made for, with the mode in it.
    pub(super) tag: u64,
    /// Generation of translations it was made in.
    pub(super) generation: u64,
    /// Target: distance to `code_base`.
    pub(super) offset: u64,
}

/// Where a direct branch within a page goes. The offset is the terminator's.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Tie {
    /// The block, or null.
    entry: At,
    /// The handler of the block's first op, which is known sooner so than by way of the block.
    run: Handler,
}

/// What is kept of a block apart from it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Header {
    /// By which it is found.
    pub(super) key: u64,
    /// That of the page's block that was added before, or [`HeaderAt::NULL`].
    pub(super) before: HeaderAt,
}

/// A pointer to the header of a live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct HeaderAt(*const Slot);

impl HeaderAt {
    pub(super) const NULL: Self = Self(std::ptr::null());

    /// `slot` holds a header.
    pub(super) fn new(slot: *const Slot) -> Self {
        Self(slot)
    }

    /// The header itself; none behind the last.
    pub(super) fn get(self) -> Option<Header> {
        // SAFETY: the cache put a header here, which lives as long as the block.
        (!self.0.is_null()).then(|| unsafe { (*self.0).header })
    }
}

/// Slots that a decoded instruction takes.
pub(super) const INSTRUCTION_SLOTS: usize = size_of::<Instruction>().div_ceil(size_of::<Slot>());

/// A place in a block.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Slot {
    pub(super) op: Op,
    pub(super) link: Link,
    pub(super) ties: [Tie; 2],
    pub(super) header: Header,
    pub(super) operation: FpOperation,
    /// A part of a decoded instruction.
    pub(super) part: [MaybeUninit<u64>; 4],
}

const _: () = assert!(size_of::<Slot>() == 32);
const _: () = assert!(align_of::<Instruction>() <= align_of::<Slot>());
const _: () = assert!(offset_of!(Cpu, general) == 0 && offset_of!(Cpu, extra) == 128);

/// A pointer to an op of a live block.
///
/// Blocks are freed by the dispatcher only, while no handler runs. Links to freed blocks are not
/// followed: those within a page are of blocks that went with it, for others the generation has
/// changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct At(*mut Slot);

impl At {
    pub(super) const NULL: Self = Self(std::ptr::null_mut());

    pub(super) fn new(slot: *mut Slot) -> Self {
        Self(slot)
    }

    #[inline(always)]
    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The op itself.
    #[inline(always)]
    pub(super) fn op<'a>(self) -> &'a Op {
        // SAFETY: see the type; the translator put an op here, and ops do not change.
        unsafe { &(*self.0).op }
    }

    /// The op after it; there is one, since a block ends with a terminator that never asks.
    #[inline(always)]
    pub(super) fn next(self) -> Self {
        // SAFETY: inside the same block.
        Self(unsafe { self.0.add(1) })
    }

    /// Link `number`, from 1, of a terminator with a link that leads beyond its page.
    #[inline(always)]
    pub(super) fn link(self, number: usize) -> LinkAt {
        // SAFETY: inside the same block: the translator puts that many links after such a terminator.
        LinkAt(unsafe { &raw mut (*self.0.add(number)).link })
    }

    /// Link `number`, 1 or 2, of a terminator whose links are all within the page.
    #[inline(always)]
    pub(super) fn tie(self, number: usize) -> TieAt {
        // SAFETY: inside the same block: the translator puts two ties after such a terminator.
        TieAt(unsafe {
            (&raw mut (*self.0.add(1)).ties)
                .cast::<Tie>()
                .add(number - 1)
        })
    }

    /// The operation behind the op.
    #[inline(always)]
    pub(super) fn operation<'a>(self) -> &'a FpOperation {
        // SAFETY: the translator puts an operation behind each op of a handler that asks for it.
        unsafe { &(*self.0.add(1)).operation }
    }

    /// The decoded instruction, `behind` slots after the op.
    #[inline(always)]
    pub(super) fn instruction<'a>(self, behind: usize) -> &'a Instruction {
        // SAFETY: the translator puts the instruction there for handlers that ask for it.
        unsafe { &*self.0.add(behind).cast::<Instruction>() }
    }

    /// The place `slots` further on.
    #[inline(always)]
    pub(super) fn after(self, slots: usize) -> Self {
        // SAFETY: inside the same block, as in `next`.
        Self(unsafe { self.0.add(slots) })
    }
}

/// A decoded instruction as slots.
pub(super) fn instruction_slots(instruction: Instruction) -> [Slot; INSTRUCTION_SLOTS] {
    let none = Slot {
        part: [MaybeUninit::uninit(); 4],
    };
    let mut slots = [none; INSTRUCTION_SLOTS];
    // SAFETY: the slots are as large and as aligned as an instruction.
    unsafe { slots.as_mut_ptr().cast::<Instruction>().write(instruction) };
    slots
}

/// A pointer to a link of a live block to another page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkAt(*mut Link);

impl LinkAt {
    #[inline(always)]
    pub(super) fn get(self) -> Link {
        // SAFETY: see `At`: the block lives.
        unsafe { *self.0 }
    }

    pub(super) fn tie(self, entry: At, tag: u64, generation: u64) {
        // SAFETY: see `At`; blocks belong to one processor, whose thread this is.
        unsafe {
            (*self.0).entry = entry;
            (*self.0).tag = tag;
            (*self.0).generation = generation;
        }
    }
}

impl Tie {
    /// One that leads nowhere yet.
    pub(super) fn open() -> Self {
        Self {
            entry: At::NULL,
            run: super::fast::generic,
        }
    }
}

/// A pointer to a link of a live block within its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TieAt(*mut Tie);

impl TieAt {
    /// The block that it leads to, and the handler of that one's first op.
    #[inline(always)]
    pub(super) fn get(self) -> Option<(At, Handler)> {
        // SAFETY: see `At`: the block lives.
        let tie = unsafe { *self.0 };
        (!tie.entry.is_null()).then_some((tie.entry, tie.run))
    }

    pub(super) fn tie(self, entry: At) {
        let run = entry.op().run;
        // SAFETY: as in `LinkAt::tie`.
        unsafe { *self.0 = Tie { entry, run } };
    }
}

/// An operand's type.
pub(super) trait Size: Value {
    fn wide(self) -> u64;
    fn cut(value: u64) -> Self;
    /// Sign-extended.
    fn signed(self) -> i64;
    /// log2 of its bytes.
    const LOG: u8;
    const BITS: u32 = 8 << Self::LOG;
    /// Whether writing it to a register zeroes the upper half.
    const ZEROES: bool = false;
}

impl Size for u8 {
    #[inline(always)]
    fn wide(self) -> u64 {
        self.into()
    }
    #[inline(always)]
    fn cut(value: u64) -> Self {
        value as Self
    }
    #[inline(always)]
    fn signed(self) -> i64 {
        (self as i8).into()
    }
    const LOG: u8 = 0;
}

impl Size for u16 {
    #[inline(always)]
    fn wide(self) -> u64 {
        self.into()
    }
    #[inline(always)]
    fn cut(value: u64) -> Self {
        value as Self
    }
    #[inline(always)]
    fn signed(self) -> i64 {
        (self as i16).into()
    }
    const LOG: u8 = 1;
}

impl Size for u32 {
    #[inline(always)]
    fn wide(self) -> u64 {
        self.into()
    }
    #[inline(always)]
    fn cut(value: u64) -> Self {
        value as Self
    }
    #[inline(always)]
    fn signed(self) -> i64 {
        (self as i32).into()
    }
    const LOG: u8 = 2;
    const ZEROES: bool = true;
}

impl Size for u64 {
    #[inline(always)]
    fn wide(self) -> u64 {
        self
    }
    #[inline(always)]
    fn cut(value: u64) -> Self {
        value
    }
    #[inline(always)]
    fn signed(self) -> i64 {
        self as i64
    }
    const LOG: u8 = 3;
}

impl Cpu {
    /// Reads a register or an extra operand by its byte offset.
    #[inline(always)]
    pub(super) fn get<T: Size>(&self, offset: u8) -> T {
        let file = std::ptr::from_ref(self).cast::<u8>();
        // SAFETY: `general` and `extra` are the first 264 bytes of the structure, so eight bytes at
        // any offset below 256 are inside; the access may be unaligned.
        unsafe { file.add(offset.into()).cast::<T>().read_unaligned() }
    }

    /// Writes a register by its byte offset; 32 bits zero the upper half.
    #[inline(always)]
    pub(super) fn set<T: Size>(&mut self, offset: u8, value: T) {
        let file = std::ptr::from_mut(self).cast::<u8>();
        // SAFETY: as in `get`.
        unsafe {
            if T::ZEROES {
                let whole = file.add(offset.into()).cast::<u64>();
                whole.write_unaligned(value.wide());
            } else {
                file.add(offset.into()).cast::<T>().write_unaligned(value);
            }
        }
    }
}
