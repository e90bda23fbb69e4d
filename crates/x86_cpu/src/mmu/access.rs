//! Loads, stores and atomic changes of guest memory.

#![expect(unsafe_code, reason = "guest RAM is reached by host address")]

use std::sync::{Mutex, PoisonError};

use super::{Access, Bank, Place, Value};
use crate::{Cpu, Environment, Fault};

/// Longest run of bytes that one instruction moves.
const BYTES_MAX: usize = 4096;

/// Locked changes that straddle two pages or reach a device: only they exclude one another.
static STRADDLES: Mutex<()> = Mutex::new(());

#[inline(always)]
fn last_page<T: Value>(linear: u64) -> u64 {
    linear.wrapping_add(T::SIZE - 1) & !0xfff
}

impl Cpu {
    /// Loads without the environment: `None` where the slow path must.
    #[inline(always)]
    pub(crate) fn load_fast<T: Value>(&self, linear: u64) -> Option<T> {
        let entry = self.mmu.tlb.entry(linear, self.mmu.bank);
        if entry.read != last_page::<T>(linear) {
            return None;
        }
        // SAFETY: a read tag is only given with the host address of a page of RAM, and the tag of
        // the first byte's page equals that of the last byte, so the access stays in the page.
        Some(unsafe { T::load(linear.wrapping_add(entry.addend)) })
    }

    /// Stores without the environment; `false` where the slow path must.
    #[inline(always)]
    pub(crate) fn store_fast<T: Value>(&mut self, linear: u64, value: T) -> bool {
        let entry = self.mmu.tlb.entry(linear, self.mmu.bank);
        if entry.write != last_page::<T>(linear) {
            return false;
        }
        // SAFETY: as in `load_fast`, with the write tag.
        unsafe { value.store(linear.wrapping_add(entry.addend)) };
        true
    }

    /// Stores words upwards from `linear`, the last one first, without the environment; `false` where
    /// the slow path must: nothing is stored then.
    #[inline(always)]
    pub(crate) fn store_words_fast<const N: usize>(
        &mut self,
        linear: u64,
        words: [u64; N],
    ) -> bool {
        let entry = self.mmu.tlb.entry(linear, self.mmu.bank);
        if entry.write != linear.wrapping_add(8 * N as u64 - 1) & !0xfff {
            return false;
        }
        let host = linear.wrapping_add(entry.addend);
        for (number, word) in words.into_iter().enumerate().rev() {
            // SAFETY: as in `load_fast`, with the write tag; the last byte of the last word was looked
            // at, so all words are in the page.
            unsafe { word.store(host.wrapping_add(8 * number as u64)) };
        }
        true
    }

    /// Loads words upwards from `linear`, the first one first, without the environment.
    #[inline(always)]
    pub(crate) fn load_words_fast<const N: usize>(&self, linear: u64) -> Option<[u64; N]> {
        let entry = self.mmu.tlb.entry(linear, self.mmu.bank);
        if entry.read != linear.wrapping_add(8 * N as u64 - 1) & !0xfff {
            return None;
        }
        let host = linear.wrapping_add(entry.addend);
        // SAFETY: as in `load_fast`; the last byte of the last word was looked at, so all words are in
        // the page.
        Some(std::array::from_fn(|number| unsafe {
            u64::load(host.wrapping_add(8 * number as u64))
        }))
    }

    /// Whether [`store_fast`](Self::store_fast) will store.
    #[inline(always)]
    pub(crate) fn stores_fast<T: Value>(&self, linear: u64) -> bool {
        self.mmu.tlb.entry(linear, self.mmu.bank).write == last_page::<T>(linear)
    }

    /// Looks up the page of an access that the fast path refused; returns whether it will not be
    /// refused again. It is otherwise where it leaves its page, faults, or has to be looked at.
    pub(crate) fn refill<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        access: Access,
    ) -> bool {
        let (bank, page) = (self.mmu.bank, last_page::<T>(linear));
        let knows = |cpu: &Self| {
            let entry = cpu.mmu.tlb.entry(linear, bank);
            page == if access == Access::Write {
                entry.write
            } else {
                entry.read
            }
        };
        if page != linear & !0xfff || knows(self) {
            return false;
        }
        if access == Access::Write && self.mmu.tlb.code_page(linear, bank).is_some() {
            return false;
        }
        self.mmu.tlb.recall(linear, bank);
        knows(self) || self.translate(env, linear, access, bank).is_ok() && knows(self)
    }

    /// Loads a value at `linear`.
    #[inline(always)]
    pub(crate) fn load<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
    ) -> Result<T, Fault> {
        match self.load_fast(linear) {
            Some(value) => Ok(value),
            None => self.load_slow(env, linear),
        }
    }

    /// Stores a value at `linear`.
    ///
    /// A store to a page with translated code makes [`code_changed`](Self::code_changed) true.
    #[inline(always)]
    pub(crate) fn store<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        value: T,
    ) -> Result<(), Fault> {
        if self.store_fast(linear, value) {
            return Ok(());
        }
        self.store_slow(env, linear, value)
    }

    /// Loads a value that the same instruction will store: all of it must be writable, and a fault
    /// says that it was a write (SDM 3A 4.7).
    #[inline(always)]
    pub(crate) fn load_to_change<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
    ) -> Result<T, Fault> {
        let entry = self.mmu.tlb.entry(linear, self.mmu.bank);
        if entry.write == last_page::<T>(linear) {
            // SAFETY: as in `load_fast`, with the write tag.
            return Ok(unsafe { T::load(linear.wrapping_add(entry.addend)) });
        }
        self.load_to_change_slow(env, linear)
    }

    /// Changes the value at `linear` as one step for all processors (LOCK): stores what `change`
    /// makes of it, nothing for `None`, and returns the old value. `change` may be called again when
    /// another processor is faster. 16-byte values must be aligned.
    #[inline(always)]
    pub(crate) fn change<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        mut change: impl FnMut(T) -> Option<T>,
    ) -> Result<T, Fault> {
        let entry = self.mmu.tlb.entry(linear, self.mmu.bank);
        let unaligned_pair = T::SIZE == 16 && linear & 15 != 0;
        if entry.write == last_page::<T>(linear) && !unaligned_pair {
            let host = linear.wrapping_add(entry.addend);
            // SAFETY: as in `load_fast`, with the write tag; 16-byte values were seen to be aligned.
            return Ok(unsafe { exchange(host, &mut change) });
        }
        self.change_slow(env, linear, &mut change)
    }

    /// [`change`](Self::change) without the environment, always storing: `None` where the slow path
    /// must. 16-byte values must be aligned.
    #[inline(always)]
    pub(crate) fn change_fast<T: Value>(&self, linear: u64, change: impl Fn(T) -> T) -> Option<T> {
        let entry = self.mmu.tlb.entry(linear, self.mmu.bank);
        debug_assert!(T::SIZE < 16 || linear & 15 == 0);
        if entry.write != last_page::<T>(linear) {
            return None;
        }
        let host = linear.wrapping_add(entry.addend);
        // SAFETY: as in `load_fast`, with the write tag; 16-byte values are aligned.
        Some(unsafe { exchange(host, |old| Some(change(old))) })
    }

    /// Sets bits of a byte with the supervisor's rights, as one step for all processors: accessed
    /// and busy bits of descriptors.
    pub(crate) fn set_bits_system(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        bits: u8,
    ) -> Result<(), Fault> {
        let mut set = |byte: u8| (byte & bits != bits).then_some(byte | bits);
        self.change_in(env, linear, &mut set, Bank::Supervisor)?;
        Ok(())
    }

    /// The slow half of [`load`](Self::load).
    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
    ) -> Result<T, Fault> {
        self.load_in(env, linear, self.mmu.bank)
    }

    /// Loads with the supervisor's rights, whatever CPL is: descriptor tables, task segments.
    pub(crate) fn load_system<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
    ) -> Result<T, Fault> {
        self.load_in(env, linear, Bank::Supervisor)
    }

    /// Loads with the rights of `bank`.
    pub(crate) fn load_in<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        bank: Bank,
    ) -> Result<T, Fault> {
        let entry = self.mmu.tlb.entry(linear, bank);
        if entry.read == last_page::<T>(linear) {
            // SAFETY: as in `load_fast`.
            return Ok(unsafe { T::load(linear.wrapping_add(entry.addend)) });
        }
        self.check_alignment(linear, T::SIZE, bank)?;
        if linear & 0xfff > 0x1000 - T::SIZE {
            let mut bytes = [0; 16];
            self.read_in(env, linear, &mut bytes[..T::SIZE as usize], bank)?;
            return Ok(T::from_bytes(&bytes));
        }
        let place = self.translate(env, linear, Access::Read, bank)?;
        self.touch(linear, T::SIZE, Access::Read);
        Ok(self.load_from(env, place))
    }

    fn load_from<T: Value>(&mut self, env: &mut dyn Environment, place: Place) -> T {
        match place {
            // SAFETY: `translate` gave the host address of a page of RAM, and the caller saw that
            // the value does not leave it.
            Place::Ram { host, .. } => unsafe { T::load(host) },
            Place::Device { gpa } => {
                let mut bytes = [0; 16];
                env.mmio_read(gpa, &mut bytes[..T::SIZE as usize]);
                T::from_bytes(&bytes)
            }
        }
    }

    /// The slow half of [`store`](Self::store).
    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        value: T,
    ) -> Result<(), Fault> {
        self.store_in(env, linear, value, self.mmu.bank)
    }

    /// Stores with the rights of `bank`.
    pub(crate) fn store_in<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        value: T,
        bank: Bank,
    ) -> Result<(), Fault> {
        let entry = self.mmu.tlb.entry(linear, bank);
        if entry.write == last_page::<T>(linear) {
            // SAFETY: as in `load_fast`, with the write tag.
            unsafe { value.store(linear.wrapping_add(entry.addend)) };
            return Ok(());
        }
        self.check_alignment(linear, T::SIZE, bank)?;
        if linear & 0xfff > 0x1000 - T::SIZE {
            return self.write_in(env, linear, &value.bytes()[..T::SIZE as usize], bank);
        }
        let place = self.place_to_write(env, linear, bank)?;
        self.touch(linear, T::SIZE, Access::Write);
        self.store_to(env, place, value);
        Ok(())
    }

    fn store_to<T: Value>(&mut self, env: &mut dyn Environment, place: Place, value: T) {
        match place {
            Place::Ram { host, gpa } => {
                // SAFETY: as in `load_from`.
                unsafe { value.store(host) };
                self.mmu.member.stored(gpa);
            }
            Place::Device { gpa } => env.mmio_write(gpa, &value.bytes()[..T::SIZE as usize]),
        }
    }

    /// Translates for a store; stores to pages with code find their translation without a walk.
    fn place_to_write(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        bank: Bank,
    ) -> Result<Place, Fault> {
        if let Some((gpa, host)) = self.mmu.tlb.code_page(linear, bank) {
            let number = self.ram.page_number(gpa);
            if number.is_some_and(|number| self.ram.code().has_code(number)) {
                return Ok(Place::Ram { host, gpa });
            }
        }
        self.translate(env, linear, Access::Write, bank)
    }

    #[cold]
    #[inline(never)]
    fn load_to_change_slow<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
    ) -> Result<T, Fault> {
        self.load_to_change_in(env, linear, self.mmu.bank)
    }

    fn load_to_change_in<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        bank: Bank,
    ) -> Result<T, Fault> {
        self.check_alignment(linear, T::SIZE, bank)?;
        if linear & 0xfff > 0x1000 - T::SIZE {
            self.check_write_in(env, linear, T::SIZE, bank)?;
            return self.load_in(env, linear, bank);
        }
        let place = self.place_to_write(env, linear, bank)?;
        self.touch(linear, T::SIZE, Access::Read);
        Ok(self.load_from(env, place))
    }

    /// Checks that `len` bytes (at most a page) at `linear` may be written, without writing.
    pub(crate) fn check_write(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        len: u64,
    ) -> Result<(), Fault> {
        self.check_write_in(env, linear, len, self.mmu.bank)
    }

    fn check_write_in(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        len: u64,
        bank: Bank,
    ) -> Result<(), Fault> {
        let last = self.linear_after(linear, len - 1);
        if self.mmu.tlb.entry(linear, bank).write == last & !0xfff {
            return Ok(());
        }
        self.place_to_write(env, linear, bank)?;
        if (linear ^ last) & !0xfff != 0 {
            self.place_to_write(env, last & !0xfff, bank)?;
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn change_slow<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        change: &mut dyn FnMut(T) -> Option<T>,
    ) -> Result<T, Fault> {
        self.change_in(env, linear, change, self.mmu.bank)
    }

    fn change_in<T: Value>(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        change: &mut dyn FnMut(T) -> Option<T>,
        bank: Bank,
    ) -> Result<T, Fault> {
        if T::SIZE == 16 && linear & 15 != 0 {
            return Err(Fault::protection(0));
        }
        self.check_alignment(linear, T::SIZE, bank)?;
        let straddles = linear & 0xfff > 0x1000 - T::SIZE;
        if !straddles {
            let place = self.place_to_write(env, linear, bank)?;
            if let Place::Ram { host, gpa } = place {
                self.touch(linear, T::SIZE, Access::Write);
                // SAFETY: as in `load_from`; 16-byte values were seen to be aligned.
                let old = unsafe { exchange(host, &mut *change) };
                self.mmu.member.stored(gpa);
                return Ok(old);
            }
        }
        let _others_wait = STRADDLES.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.load_to_change_in(env, linear, bank)?;
        if let Some(new) = change(old) {
            self.store_in(env, linear, new, bank)?;
        }
        Ok(old)
    }

    /// Reads `bytes.len()` bytes, at most a page, at `linear`.
    pub(crate) fn read_bytes(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        bytes: &mut [u8],
    ) -> Result<(), Fault> {
        self.read_in(env, linear, bytes, self.mmu.bank)
    }

    /// Writes `bytes`, at most a page, at `linear`; nothing is written if a part cannot be.
    pub(crate) fn write_bytes(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        self.write_in(env, linear, bytes, self.mmu.bank)
    }

    /// Lengths of the parts of `len` bytes at `linear` in its page and the next.
    fn parts(linear: u64, len: usize) -> (usize, usize) {
        debug_assert!(len <= BYTES_MAX);
        let first = len.min(0x1000 - (linear & 0xfff) as usize);
        (first, len - first)
    }

    fn read_in(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        bytes: &mut [u8],
        bank: Bank,
    ) -> Result<(), Fault> {
        let (first, second) = Self::parts(linear, bytes.len());
        let low = self.translate(env, linear, Access::Read, bank)?;
        let high = match second {
            0 => None,
            _ => {
                let next = self.linear_after(linear, first as u64);
                Some(self.translate(env, next, Access::Read, bank)?)
            }
        };
        self.touch(linear, bytes.len() as u64, Access::Read);
        let (head, tail) = bytes.split_at_mut(first);
        copy_out(env, low, head);
        if let Some(place) = high {
            copy_out(env, place, tail);
        }
        Ok(())
    }

    fn write_in(
        &mut self,
        env: &mut dyn Environment,
        linear: u64,
        bytes: &[u8],
        bank: Bank,
    ) -> Result<(), Fault> {
        let (first, second) = Self::parts(linear, bytes.len());
        let low = self.translate(env, linear, Access::Write, bank)?;
        let high = match second {
            0 => None,
            _ => {
                let next = self.linear_after(linear, first as u64);
                Some(self.translate(env, next, Access::Write, bank)?)
            }
        };
        self.touch(linear, bytes.len() as u64, Access::Write);
        let (head, tail) = bytes.split_at(first);
        self.copy_in(env, low, head);
        if let Some(place) = high {
            self.copy_in(env, place, tail);
        }
        Ok(())
    }

    fn copy_in(&mut self, env: &mut dyn Environment, place: Place, bytes: &[u8]) {
        match place {
            Place::Ram { host, gpa } => {
                let (words, rest) = bytes.as_chunks::<8>();
                for (at, word) in (host..).step_by(8).zip(words) {
                    // SAFETY: `translate` gave a page of RAM, and `parts` keeps to it.
                    unsafe { u64::from_le_bytes(*word).store(at) };
                }
                for (at, byte) in (host + 8 * words.len() as u64..).zip(rest) {
                    // SAFETY: as above.
                    unsafe { byte.store(at) };
                }
                self.mmu.member.stored(gpa);
            }
            Place::Device { gpa } => env.mmio_write(gpa, bytes),
        }
    }

    /// #AC where alignment is checked (SDM 3A 6.15) and `linear` is no multiple of `size`.
    #[inline]
    fn check_alignment(&self, linear: u64, size: u64, bank: Bank) -> Result<(), Fault> {
        if bank == Bank::Checked && linear & (size - 1) != 0 {
            return Err(Fault::ALIGNMENT);
        }
        Ok(())
    }
}

/// Reads a part that does not leave its page.
fn copy_out(env: &mut dyn Environment, place: Place, bytes: &mut [u8]) {
    match place {
        Place::Ram { host, .. } => {
            let whole = bytes.len() as u64 & !7;
            let (words, rest) = bytes.as_chunks_mut::<8>();
            for (at, word) in (host..).step_by(8).zip(words) {
                // SAFETY: `translate` gave a page of RAM, and the caller keeps to it.
                *word = unsafe { u64::load(at) }.to_le_bytes();
            }
            for (at, byte) in (host + whole..).zip(rest) {
                // SAFETY: as above.
                *byte = unsafe { u8::load(at) };
            }
        }
        Place::Device { gpa } => env.mmio_read(gpa, bytes),
    }
}

/// Makes `change` of the value at `host`, atomically.
///
/// # Safety
///
/// As for [`Value::exchange`].
#[inline(always)]
unsafe fn exchange<T: Value>(host: u64, mut change: impl FnMut(T) -> Option<T>) -> T {
    // SAFETY: the caller vouches for the memory.
    let mut old = unsafe { T::load(host) };
    loop {
        let Some(new) = change(old) else {
            // A locked instruction is a barrier also where it stores nothing new.
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            return old;
        };
        // SAFETY: the caller vouches for the memory.
        match unsafe { T::exchange(host, old, new) } {
            Ok(()) => return old,
            Err(found) => old = found,
        }
    }
}
