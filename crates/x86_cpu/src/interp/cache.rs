//! Translated blocks: found by physical address, dropped by page.

#![expect(unsafe_code, reason = "blocks are reached by pointer")]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use iced_x86::Instruction;

use super::op::{At, Header, LinkAt, Slot};
use super::operand::Width;

/// Entries of the jump cache.
const JUMPS: usize = 4096;
/// Memory for blocks and copies of pages, bytes; beyond it everything is dropped.
const BYTES_MAX: usize = 96 << 20;
const PAGE: usize = 4096;

/// Where a RIP leads.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Jump {
    tag: u64,
    generation: u64,
    entry: At,
}

/// A block: slots and instructions, reached by raw pointers while it lives.
#[derive(Debug)]
struct Block {
    key: u64,
    slots: *mut [Slot],
    instructions: *mut [Instruction],
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: both came from `Box::into_raw` and are given back once.
        unsafe {
            drop(Box::from_raw(self.slots));
            drop(Box::from_raw(self.instructions));
        }
    }
}

/// A page with translated code.
#[derive(Debug)]
struct Page {
    /// Its bytes when code of it was first translated.
    copy: Box<[u8; PAGE]>,
    blocks: Vec<Block>,
}

/// Multiplicative hash of one integer.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

type Map<T> = HashMap<u64, T, BuildHasherDefault<KeyHasher>>;

/// See the module. Empty until code runs.
#[derive(Debug, Default)]
pub(super) struct Cache {
    pages: Map<Page>,
    blocks: Map<At>,
    jumps: Vec<Jump>,
    bytes: usize,
    /// Number of the present set of virtual translations; entries of others are void.
    pub(super) generation: u64,
    /// Link to tie to the block that is looked up next.
    pub(super) open_link: Option<OpenLink>,
}

/// A link that was followed before it led anywhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenLink {
    pub(super) link: LinkAt,
    pub(super) rip: u64,
    /// Guest-physical page the target must lie in, for links within a page.
    pub(super) gpa: Option<u64>,
}

// SAFETY: the pointers lead to blocks that this structure owns.
unsafe impl Send for Cache {}

fn key(gpa: u64, width: Width) -> u64 {
    gpa | (width as u64) << 62
}

fn place(tag: u64) -> usize {
    ((tag ^ tag >> 12) as usize) & (JUMPS - 1)
}

impl Cache {
    /// Makes all virtual translations void.
    pub(super) fn forget_addresses(&mut self) {
        self.generation += 1;
        self.open_link = None;
    }

    /// Finds the block for a tagged RIP.
    #[inline(always)]
    pub(super) fn jump(&self, tag: u64) -> Option<At> {
        let jump = self.jumps.get(place(tag))?;
        (jump.tag == tag && jump.generation == self.generation).then_some(jump.entry)
    }

    /// Enters a block for a tagged RIP.
    pub(super) fn set_jump(&mut self, tag: u64, entry: At) {
        if self.jumps.is_empty() {
            let nowhere = Jump {
                tag: 1,
                generation: u64::MAX,
                entry: At::NULL,
            };
            self.jumps = vec![nowhere; JUMPS];
        }
        self.jumps[place(tag)] = Jump {
            tag,
            generation: self.generation,
            entry,
        };
    }

    /// Finds the block at a guest-physical address.
    pub(super) fn block(&self, gpa: u64, width: Width) -> Option<At> {
        self.blocks.get(&key(gpa, width)).copied()
    }

    /// The copy of the page at `gpa`, where code of it is translated.
    pub(super) fn copy_of(&self, gpa: u64) -> Option<&[u8; PAGE]> {
        self.pages.get(&gpa).map(|page| &*page.copy)
    }

    /// Whether nothing more should be added before all is dropped.
    pub(super) fn is_full(&self) -> bool {
        self.bytes > BYTES_MAX
    }

    /// Adds a page.
    pub(super) fn add_page(&mut self, gpa: u64, copy: Box<[u8; PAGE]>) {
        self.bytes += PAGE + 128;
        let blocks = Vec::new();
        self.pages.insert(gpa, Page { copy, blocks });
    }

    /// Adds a block of the page at `gpa`, which is there; the first slot becomes its header.
    pub(super) fn add_block(
        &mut self,
        gpa: u64,
        offset: u64,
        width: Width,
        mut slots: Vec<Slot>,
        instructions: Vec<Instruction>,
    ) -> Option<At> {
        let page = self.pages.get_mut(&gpa)?;
        let key = key(gpa | offset, width);
        self.bytes += slots.len() * size_of::<Slot>()
            + instructions.len() * size_of::<Instruction>()
            + 2 * size_of::<Block>();
        let instructions = Box::into_raw(instructions.into_boxed_slice());
        *slots.first_mut()? = Slot {
            header: Header {
                instructions: instructions.cast_const().cast(),
                gpa,
                unused: [0; 2],
            },
        };
        let slots = Box::into_raw(slots.into_boxed_slice());
        page.blocks.push(Block {
            key,
            slots,
            instructions,
        });
        // SAFETY: a block has more slots than its header.
        let entry = At::new(unsafe { slots.cast::<Slot>().add(1) });
        self.blocks.insert(key, entry);
        Some(entry)
    }

    /// Drops a page's blocks; returns whether it had any. No handler runs.
    pub(super) fn drop_page(&mut self, gpa: u64) -> bool {
        let Some(page) = self.pages.remove(&gpa) else {
            return false;
        };
        self.forget_addresses();
        self.bytes = self.bytes.saturating_sub(PAGE + 128);
        for block in &page.blocks {
            self.blocks.remove(&block.key);
            let lens = (block.slots.len(), block.instructions.len());
            let bytes = lens.0 * size_of::<Slot>() + lens.1 * size_of::<Instruction>();
            self.bytes = self.bytes.saturating_sub(bytes + 2 * size_of::<Block>());
        }
        true
    }

    /// Drops everything; returns the pages that had code. No handler runs.
    pub(super) fn clear(&mut self) -> Vec<u64> {
        self.forget_addresses();
        self.blocks.clear();
        self.bytes = 0;
        let gone = self.pages.keys().copied().collect();
        self.pages.clear();
        gone
    }
}
