//! Micro-ops and how one leads to the next.
//!
//! A block is an array of [`Slot`]s: a header, then one op for each instruction (fewer where an
//! instruction does nothing), a terminator, and the links of the terminator. An op that is always
//! executed from its decoded form has that form behind it; for others it is decoded again. A handler ends by
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
    /// Immediate, or the offset that a branch goes to.
    pub(super) immediate: u64,
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
    /// Number of the slot after the header.
    pub(super) slot: u8,
    /// Offset of the instruction in its page.
    pub(super) start: u16,
    /// Number of the instruction in its block.
    pub(super) number: u16,
}

/// Where a direct branch goes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Link {
    /// The block, or null.
    pub(super) entry: At,
    pub(super) target: Target,
    /// Generation of translations it was made in; not used within a page.
    pub(super) generation: u64,
    /// Target: distance to `code_base`.
    pub(super) offset: u64,
}

/// What a link keeps of its target besides the block.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Target {
    /// Beyond the page: the RIP it was made for, with the mode in it.
    pub(super) tag: u64,
    /// Within the page: the handler of the block's first op, which is known sooner so than by way of
    /// the block.
    run: Handler,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Target")
    }
}

/// What a block begins with.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Header {
    /// Guest-physical page.
    pub(super) gpa: u64,
    /// The page in which its only instruction ends, or [`NO_PAGE`].
    pub(super) second: u64,
    /// By which it is found.
    pub(super) key: u64,
    /// The block of the page that was added before, or [`At::NULL`].
    pub(super) before: At,
}

/// No page's address.
pub(super) const NO_PAGE: u64 = u64::MAX;

/// Slots that a decoded instruction takes.
pub(super) const INSTRUCTION_SLOTS: usize = size_of::<Instruction>().div_ceil(size_of::<Slot>());

/// A place in a block.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Slot {
    pub(super) op: Op,
    pub(super) link: Link,
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
/// Blocks are freed by the dispatcher only, while no handler runs; links to freed blocks are not
/// followed, because the generation has changed then.
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

    /// The link in slot `number` after the terminator.
    #[inline(always)]
    pub(super) fn link(self, number: usize) -> LinkAt {
        // SAFETY: inside the same block: the translator puts two links after a terminator.
        LinkAt(unsafe { &raw mut (*self.0.add(number)).link })
    }

    /// The operation behind the op.
    #[inline(always)]
    pub(super) fn operation<'a>(self) -> &'a FpOperation {
        // SAFETY: the translator puts an operation behind each op of a handler that asks for it.
        unsafe { &(*self.0.add(1)).operation }
    }

    fn header(self) -> *const Slot {
        // SAFETY: an op knows its distance to the header of its block.
        unsafe { self.0.sub(usize::from(self.op().slot) + 1) }
    }

    /// The decoded instruction, `behind` slots after the op.
    #[inline(always)]
    pub(super) fn instruction<'a>(self, behind: usize) -> &'a Instruction {
        // SAFETY: the translator puts the instruction there for handlers that ask for it.
        unsafe { &*self.0.add(behind).cast::<Instruction>() }
    }

    /// Guest-physical page of the block.
    pub(super) fn gpa(self) -> u64 {
        self.pages().0
    }

    /// Guest-physical page of the block, and the one its only instruction ends in or [`NO_PAGE`].
    pub(super) fn pages(self) -> (u64, u64) {
        // SAFETY: the header is the first slot of the block.
        let header = unsafe { (*self.header()).header };
        (header.gpa, header.second)
    }

    /// The key of a block, given its first op, and the block of its page that was added before.
    pub(super) fn key_and_before(self) -> (u64, Self) {
        // SAFETY: as in `pages`.
        let header = unsafe { (*self.header()).header };
        (header.key, header.before)
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

/// A pointer to a link of a live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkAt(*mut Link);

impl LinkAt {
    #[inline(always)]
    pub(super) fn get(self) -> Link {
        // SAFETY: see `At`: the block lives.
        unsafe { *self.0 }
    }

    /// The block in the same page that it leads to and the handler of that one's first op; for links
    /// within a page.
    #[inline(always)]
    pub(super) fn within(self) -> Option<(At, Handler)> {
        let link = self.get();
        if link.entry.is_null() {
            return None;
        }
        // SAFETY: `tie_within` put the handler there with the block, and nothing else ties such links.
        Some((link.entry, unsafe { link.target.run }))
    }

    /// The RIP it was made for, with the mode in it; for links beyond their page.
    #[inline(always)]
    pub(super) fn tag(self) -> u64 {
        // SAFETY: such a link is made with a tag and gets no other target than a tag.
        unsafe { self.get().target.tag }
    }

    /// Ties one within a page.
    pub(super) fn tie_within(self, entry: At) {
        let run = entry.op().run;
        // SAFETY: see `At`; blocks belong to one processor, whose thread this is.
        unsafe {
            (*self.0).target = Target { run };
            (*self.0).entry = entry;
        }
    }

    /// Ties one beyond its page.
    pub(super) fn tie_beyond(self, entry: At, tag: u64, generation: u64) {
        // SAFETY: as in `tie_within`.
        unsafe {
            (*self.0).entry = entry;
            (*self.0).target = Target { tag };
            (*self.0).generation = generation;
        }
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
