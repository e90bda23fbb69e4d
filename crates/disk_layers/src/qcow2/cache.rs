//! A bounded cache of table slices, shared by all layers of a stack.
//!
//! A slice is a page of an L2 table or of a refcount block, kept as the bytes of the file. Dirty
//! slices are never thrown out: the stack writes them in the order that crash safety needs before
//! their number reaches the limit.

use std::collections::HashMap;
use std::io;

use crate::storage::Storage;

/// Address of a slice: a layer of the stack and an offset in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SliceKey {
    pub layer: u32,
    pub offset: u64,
}

/// What a slice is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    L2,
    Refcount,
}

#[derive(Debug)]
struct Slot {
    key: SliceKey,
    class: Class,
    dirty: bool,
    /// Touched since the clock hand passed.
    used: bool,
    bytes: Box<[u8]>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct SliceCache {
    slots: Vec<Slot>,
    index: HashMap<SliceKey, usize>,
    hand: usize,
    capacity: usize,
    dirty: usize,
}

impl SliceCache {
    /// `capacity` is in slices.
    pub fn new(capacity: usize) -> Self {
        SliceCache {
            slots: Vec::new(),
            index: HashMap::new(),
            hand: 0,
            capacity: capacity.max(16),
            dirty: 0,
        }
    }

    /// Returns a slice, read from `file` where it is not held yet.
    pub fn get(
        &mut self,
        key: SliceKey,
        class: Class,
        bytes: u64,
        file: &dyn Storage,
    ) -> io::Result<&[u8]> {
        let slot = self.find(key, class, bytes, file)?;
        Ok(&self.slots[slot].bytes)
    }

    /// Returns a slice to change; it is dirty from here on.
    pub fn get_mut(
        &mut self,
        key: SliceKey,
        class: Class,
        bytes: u64,
        file: &dyn Storage,
    ) -> io::Result<&mut [u8]> {
        let slot = self.find(key, class, bytes, file)?;
        let slot = &mut self.slots[slot];
        if !slot.dirty {
            slot.dirty = true;
            self.dirty += 1;
        }
        Ok(&mut slot.bytes)
    }

    /// Whether the dirty slices must be written before more become dirty.
    pub fn is_crowded(&self) -> bool {
        self.dirty * 4 >= self.capacity * 3
    }

    pub fn has_dirty(&self) -> bool {
        self.dirty > 0
    }

    /// Keys of the dirty slices of a class, in file order.
    pub fn dirty_keys(&self, class: Class) -> Vec<SliceKey> {
        if self.dirty == 0 {
            return Vec::new();
        }
        let mut keys: Vec<SliceKey> = self
            .slots
            .iter()
            .filter(|slot| slot.dirty && slot.class == class)
            .map(|slot| slot.key)
            .collect();
        keys.sort_unstable();
        keys
    }

    /// Writes one dirty slice to `file`.
    pub fn write_back(&mut self, key: SliceKey, file: &dyn Storage) -> io::Result<()> {
        let Some(&slot) = self.index.get(&key) else {
            return Ok(());
        };
        let slot = &mut self.slots[slot];
        if slot.dirty {
            file.write_at(key.offset, &slot.bytes)?;
            slot.dirty = false;
            self.dirty -= 1;
        }
        Ok(())
    }

    /// Drops what is held of a layer.
    pub fn forget(&mut self, layer: u32) {
        self.retain(|other| other != layer);
    }

    /// Drops what is held of all layers but one.
    pub fn keep_only(&mut self, layer: u32) {
        self.retain(|other| other == layer);
    }

    fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.slots.retain(|slot| keep(slot.key.layer));
        self.dirty = self.slots.iter().filter(|slot| slot.dirty).count();
        self.index = self
            .slots
            .iter()
            .enumerate()
            .map(|(at, slot)| (slot.key, at))
            .collect();
        self.hand = 0;
    }

    fn find(
        &mut self,
        key: SliceKey,
        class: Class,
        bytes: u64,
        file: &dyn Storage,
    ) -> io::Result<usize> {
        if let Some(&at) = self.index.get(&key) {
            let slot = &mut self.slots[at];
            slot.used = true;
            // A table that is freed and allocated again for the other purpose keeps its address.
            slot.class = class;
            return Ok(at);
        }
        let mut data = vec![0u8; bytes as usize].into_boxed_slice();
        file.read_at(key.offset, &mut data)?;
        let slot = Slot {
            key,
            class,
            dirty: false,
            used: true,
            bytes: data,
        };
        let at = match self.victim() {
            Some(at) => {
                self.index.remove(&self.slots[at].key);
                self.slots[at] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.index.insert(key, at);
        Ok(at)
    }

    /// A clean slot to reuse, by the clock algorithm; `None` while there is room, or when all
    /// slots are dirty.
    fn victim(&mut self) -> Option<usize> {
        if self.slots.len() < self.capacity {
            return None;
        }
        for _ in 0..self.slots.len() * 2 {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[at];
            if slot.dirty {
                continue;
            }
            if !slot.used {
                return Some(at);
            }
            slot.used = false;
        }
        None
    }
}
