//! Which pages of RAM hold translated code, and who must hear of a change to them.
//!
//! One word for each page: the low half has a bit for each processor that holds translations of the
//! page, the high half a bit for each that was told of a change and has not looked yet. A processor
//! fills no write tag for a page whose word is not zero, so its stores there take the slow path,
//! which stores first and looks at the word after ([`CodePages::changed`]); a translator marks first
//! and reads the bytes after. Whichever comes second sees the other.
//!
//! A page that newly gets code may still have write tags in other processors. They lose them when
//! they next look at the epoch (at the latest at the end of a run's slice). Until every processor
//! has looked, the page is *unsettled* for its translator, which compares the page with the copy it
//! translated from whenever it looks. So the window in which a processor runs old code after another
//! one's store ends with its next serialising instruction, as the architecture asks of
//! cross-modifying code (SDM 3A 9.1.3).

#![expect(unsafe_code, reason = "lazily zeroed atomics")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Ram;

/// Highest number of processors that share a RAM.
pub const PROCESSORS_MAX: usize = 32;
const TOLD_SHIFT: u32 = 32;
/// Bits of the processors that hold translations of a page.
const HOLDERS: u64 = u32::MAX as u64;
const AWAY: u64 = u64::MAX;

/// The shared record, one for each VM.
#[derive(Debug)]
pub(crate) struct CodePages {
    words: Box<[AtomicU64]>,
    /// Number of times that a page became a code page.
    epoch: AtomicU64,
    /// Somebody has marked processors as told and not yet filled all their inboxes.
    telling: AtomicBool,
    members: Mutex<[Option<Arc<Inbox>>; PROCESSORS_MAX]>,
}

/// What one processor hears from the others.
#[derive(Debug)]
struct Inbox {
    /// Whether `pages` has something.
    any: AtomicBool,
    pages: Mutex<Vec<u64>>,
    /// Epoch up to which this processor has no write tag of a code page; [`AWAY`] while it does not
    /// run.
    epoch: AtomicU64,
}

/// One processor's place in the record.
#[derive(Debug)]
pub(crate) struct Member {
    ram: Ram,
    number: usize,
    inbox: Arc<Inbox>,
    /// Pages with this processor's code that it or another changed.
    stale: Vec<u64>,
    /// Pages marked lately, with the epoch all others must reach.
    unsettled: Vec<(u64, u64)>,
    epoch_seen: u64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CodePages {
    pub(crate) fn new(pages: usize) -> Self {
        // Zeroed memory that the host gives lazily: the words of untouched RAM cost nothing.
        let zeros = Box::into_raw(vec![0u64; pages].into_boxed_slice());
        Self {
            // SAFETY: the pointer comes from `Box::into_raw`, and `AtomicU64` has the size, the
            // alignment and the valid values of `u64`.
            words: unsafe { Box::from_raw(zeros as *mut [AtomicU64]) },
            epoch: AtomicU64::new(0),
            telling: AtomicBool::new(false),
            members: Mutex::default(),
        }
    }

    /// Returns whether any processor holds translations of page `number`.
    pub(crate) fn has_code(&self, number: usize) -> bool {
        let word = self.words.get(number);
        word.is_some_and(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Tells every processor with code in the page at `gpa` that it was stored to; called after the
    /// store.
    fn changed(&self, number: usize, gpa: u64) {
        let Some(word) = self.words.get(number) else {
            return;
        };
        std::sync::atomic::fence(Ordering::SeqCst);
        let seen = word.load(Ordering::SeqCst);
        if untold(seen) != 0 {
            self.tell(number, gpa);
        } else if seen & HOLDERS != 0 && self.telling.load(Ordering::SeqCst) {
            // Who told them may not have got to their inboxes yet, and this store is as if told.
            drop(locked(&self.members));
        }
    }

    /// Tells every processor with code in the page at `gpa` that has not heard of it.
    pub(super) fn tell(&self, number: usize, gpa: u64) {
        let Some(word) = self.words.get(number) else {
            return;
        };
        let members = locked(&self.members);
        self.telling.store(true, Ordering::SeqCst);
        // Only who holds code in this very moment: one that gave it up since the look at the word would
        // keep the mark that it was told, with nothing in its inbox, and never hear of a store again.
        let mark = |word| Some(word | untold(word) << TOLD_SHIFT);
        let before = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, mark);
        let mut mine = untold(before.unwrap_or_default());
        while mine != 0 {
            let index = mine.trailing_zeros() as usize;
            mine &= mine - 1;
            if let Some(inbox) = &members[index] {
                locked(&inbox.pages).push(gpa);
                inbox.any.store(true, Ordering::SeqCst);
            }
        }
        self.telling.store(false, Ordering::SeqCst);
    }
}

/// Processors of a page's word that hold code and were not told of a change.
fn untold(word: u64) -> u64 {
    word & !(word >> TOLD_SHIFT) & HOLDERS
}

impl Member {
    /// Joins the processors of `ram`.
    ///
    /// # Panics
    ///
    /// When there are already [`PROCESSORS_MAX`].
    pub(crate) fn new(ram: &Ram) -> Self {
        let inbox = Arc::new(Inbox {
            any: AtomicBool::new(false),
            pages: Mutex::default(),
            epoch: AtomicU64::new(AWAY),
        });
        let mut members = locked(&ram.code().members);
        let free = members.iter().position(Option::is_none);
        let number = free.expect("no more processors share RAM than PROCESSORS_MAX");
        members[number] = Some(Arc::clone(&inbox));
        drop(members);
        Self {
            ram: ram.clone(),
            number,
            inbox,
            stale: vec![],
            unsettled: vec![],
            epoch_seen: 0,
        }
    }

    /// Records that this processor is about to translate code in the page at `gpa`.
    pub(crate) fn mark(&mut self, gpa: u64) {
        let gpa = gpa & !0xfff;
        let code = self.ram.code();
        let Some(word) = self.ram.page_number(gpa).map(|page| &code.words[page]) else {
            return;
        };
        let mine = 1u64 << self.number;
        if word.load(Ordering::Relaxed) & mine != 0 {
            return;
        }
        word.fetch_or(mine, Ordering::SeqCst);
        let epoch = code.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        std::sync::atomic::fence(Ordering::SeqCst);
        if locked(&code.members).iter().flatten().count() > 1 {
            self.unsettled.push((gpa, epoch));
        }
    }

    /// Records a store to the page at `gpa`, after it; returns whether a processor had code there.
    pub(crate) fn stored(&mut self, gpa: u64) -> bool {
        let Some(number) = self.ram.page_number(gpa) else {
            return false;
        };
        let code = self.ram.code();
        if !code.has_code(number) {
            return false;
        }
        code.changed(number, gpa & !0xfff);
        true
    }

    /// Returns whether [`take`](Self::take) has something to give.
    #[inline(always)]
    pub(crate) fn any(&self) -> bool {
        self.inbox.any.load(Ordering::Acquire) || !self.unsettled.is_empty()
    }

    /// Returns whether a page with code of this processor was stored to.
    #[inline(always)]
    pub(crate) fn changed(&self) -> bool {
        self.inbox.any.load(Ordering::Acquire)
    }

    /// Moves the pages whose translations must go into `stale`, and those whose content must be
    /// compared with what was translated into `compare`.
    pub(crate) fn take(&mut self, stale: &mut Vec<u64>, compare: &mut Vec<u64>) {
        if self.inbox.any.swap(false, Ordering::SeqCst) {
            self.stale.append(&mut locked(&self.inbox.pages));
        }
        let mine = (1 | 1 << TOLD_SHIFT) << self.number;
        for gpa in self.stale.drain(..) {
            if let Some(page) = self.ram.page_number(gpa) {
                self.ram.code().words[page].fetch_and(!mine, Ordering::SeqCst);
            }
            stale.push(gpa);
        }
        if !self.unsettled.is_empty() {
            let settled = self.settled();
            compare.extend(self.unsettled.iter().map(|(gpa, _)| gpa));
            self.unsettled.retain(|(_, epoch)| *epoch > settled);
        }
    }

    /// Records that this processor holds no more translations of the page at `gpa`.
    pub(crate) fn unmark(&mut self, gpa: u64) {
        if let Some(page) = self.ram.page_number(gpa) {
            self.ram.code().words[page].fetch_and(!(1u64 << self.number), Ordering::SeqCst);
        }
    }

    /// Epoch that every other processor has reached.
    fn settled(&self) -> u64 {
        let members = locked(&self.ram.code().members);
        let others = members.iter().enumerate();
        let others = others.filter(|(number, _)| *number != self.number);
        let epochs = others.filter_map(|(_, inbox)| inbox.as_ref());
        let epochs = epochs.map(|inbox| inbox.epoch.load(Ordering::SeqCst));
        epochs.min().unwrap_or(AWAY)
    }

    /// Returns whether pages became code pages since the last call, so that write tags must go.
    /// [`caught_up`](Self::caught_up) follows when they are gone.
    #[inline(always)]
    pub(crate) fn behind(&self) -> bool {
        self.ram.code().epoch.load(Ordering::Acquire) != self.epoch_seen
    }

    /// Returns the epoch to give to [`caught_up`](Self::caught_up); read before the tags go.
    pub(crate) fn epoch(&self) -> u64 {
        self.ram.code().epoch.load(Ordering::SeqCst)
    }

    /// Records that no write tag is left of pages that became code pages up to `epoch`.
    pub(crate) fn caught_up(&mut self, epoch: u64) {
        self.epoch_seen = epoch;
        self.inbox.epoch.store(epoch, Ordering::SeqCst);
    }

    /// Records that the processor is about to run; the write tags must be looked at then.
    pub(crate) fn enter(&self) {
        self.inbox.epoch.store(self.epoch_seen, Ordering::SeqCst);
    }

    /// Records that the processor stores nothing until [`enter`](Self::enter).
    pub(crate) fn leave(&self) {
        self.inbox.epoch.store(AWAY, Ordering::SeqCst);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let code = self.ram.code();
        let mut members = locked(&code.members);
        members[self.number] = None;
        if members.iter().any(Option::is_some) {
            let mine = (1 | 1 << TOLD_SHIFT) << self.number;
            for word in &code.words {
                if word.load(Ordering::Relaxed) & mine != 0 {
                    word.fetch_and(!mine, Ordering::SeqCst);
                }
            }
        }
    }
}
