//! Blocks by key: a hash table with open addressing, in memory that a `fork()` does not copy.
//!
//! A guest that does a lot has some hundred thousand blocks. Their table would be copied page table by
//! page table while the guest stands still, and kept for nothing by every clone.

use super::op::At;
use super::sheet::Sheet;

/// Slots of the first table.
const SLOTS_MIN: usize = 256;
/// No block's key.
const FREE: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    entry: At,
}

const EMPTY: Slot = Slot {
    key: FREE,
    entry: At::NULL,
};

/// See the module. Empty until something is added.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// A power of two of them, or none; a block is in the first free one from its own place on.
    slots: Sheet<Slot>,
    used: usize,
}

impl Blocks {
    /// Where a key belongs, with `slots` not empty.
    fn place(&self, key: u64) -> usize {
        let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32 ^ mixed) as usize & (self.slots.len() - 1)
    }

    fn after(&self, place: usize) -> usize {
        (place + 1) & (self.slots.len() - 1)
    }

    /// Finds the slot of a key, or the free one where it would be.
    fn find(&self, key: u64) -> usize {
        let mut place = self.place(key);
        while self.slots[place].key != key && self.slots[place].key != FREE {
            place = self.after(place);
        }
        place
    }

    pub(super) fn get(&self, key: u64) -> Option<At> {
        if self.slots.is_empty() {
            return None;
        }
        let slot = self.slots[self.find(key)];
        (slot.key == key).then_some(slot.entry)
    }

    /// Adds a block, in place of one of the same key.
    pub(super) fn insert(&mut self, key: u64, entry: At) {
        // A third stays free, so that searches are short.
        if 3 * (self.used + 1) > 2 * self.slots.len() {
            self.grow();
        }
        let place = self.find(key);
        self.used += usize::from(self.slots[place].key == FREE);
        self.slots[place] = Slot { key, entry };
    }

    fn grow(&mut self) {
        let len = (2 * self.slots.len()).max(SLOTS_MIN);
        let before = std::mem::replace(&mut self.slots, Sheet::new(len, EMPTY));
        for slot in before.iter().filter(|slot| slot.key != FREE) {
            let place = self.find(slot.key);
            self.slots[place] = *slot;
        }
    }

    /// Takes a block out, if it is there.
    pub(super) fn remove(&mut self, key: u64) {
        if self.slots.is_empty() {
            return;
        }
        let mut hole = self.find(key);
        if self.slots[hole].key != key {
            return;
        }
        self.used -= 1;
        // What follows moves up as long as it is not before its own place then.
        let mask = self.slots.len() - 1;
        let mut next = self.after(hole);
        while self.slots[next].key != FREE {
            let own = self.place(self.slots[next].key);
            if next.wrapping_sub(own) & mask >= next.wrapping_sub(hole) & mask {
                self.slots[hole] = self.slots[next];
                hole = next;
            }
            next = self.after(next);
        }
        self.slots[hole] = EMPTY;
    }

    /// Frees everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A great many changes with keys that often share a place: as a map of the standard library.
    #[test]
    fn it_does_what_a_map_does() {
        let mut blocks = Blocks::default();
        let mut model = HashMap::new();
        let mut random = 1_u64;
        for step in 0..200_000_u64 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let key = random >> 33 & 0xfff | (random >> 62) << 62;
            let entry = At::new(std::ptr::without_provenance_mut(32 * (step as usize + 1)));
            // More come than go at first, later fewer.
            if (random >> 50) % 100 < (if step < 100_000 { 60 } else { 40 }) {
                blocks.insert(key, entry);
                model.insert(key, entry);
            } else {
                blocks.remove(key);
                model.remove(&key);
            }
            assert_eq!(blocks.get(key), model.get(&key).copied());
            assert_eq!(blocks.used, model.len());
        }
        assert!(!model.is_empty());
        for key in (0..=0xfff).flat_map(|low| (0..4).map(move |high| low | high << 62)) {
            assert_eq!(blocks.get(key), model.get(&key).copied());
        }
        blocks.clear();
        assert_eq!((blocks.get(1), blocks.used), (None, 0));
    }
}
