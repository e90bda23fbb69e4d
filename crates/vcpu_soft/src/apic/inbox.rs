//! The part of a local APIC that other threads reach: requested interrupts and how it is addressed.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use x86_cpu::Attention;

use super::ESR_RECEIVED_ILLEGAL_VECTOR;
use crate::bell::Bell;

/// A set of vectors that many threads change.
#[derive(Debug, Default)]
pub(crate) struct VectorSet([AtomicU64; 4]);

impl VectorSet {
    fn place(vector: u8) -> (usize, u64) {
        (usize::from(vector >> 6), 1 << (vector & 63))
    }

    pub(crate) fn set(&self, vector: u8, on: bool) {
        let (word, bit) = Self::place(vector);
        if on {
            self.0[word].fetch_or(bit, Ordering::SeqCst);
        } else if self.0[word].load(Ordering::SeqCst) & bit != 0 {
            self.0[word].fetch_and(!bit, Ordering::SeqCst);
        }
    }

    pub(crate) fn contains(&self, vector: u8) -> bool {
        let (word, bit) = Self::place(vector);
        self.0[word].load(Ordering::SeqCst) & bit != 0
    }

    /// The highest vector in the set.
    pub(crate) fn highest(&self) -> Option<u8> {
        highest_of(|word| self.0[word].load(Ordering::SeqCst))
    }

    /// Vectors as 32-bit word `index` of an APIC register block shows them.
    pub(crate) fn word(&self, index: usize) -> u32 {
        let word = self.0[index / 2].load(Ordering::SeqCst);
        (word >> (index % 2 * 32)) as u32
    }

    /// Replaces the set by eight 32-bit words.
    pub(crate) fn load(&self, words: [u32; 8]) {
        let (pairs, _) = words.as_chunks::<2>();
        for (to, [low, high]) in self.0.iter().zip(pairs) {
            to.store(u64::from(*low) | u64::from(*high) << 32, Ordering::SeqCst);
        }
    }
}

/// The highest bit of four words.
pub(crate) fn highest_of(word: impl Fn(usize) -> u64) -> Option<u8> {
    (0..4).rev().find_map(|index| {
        let top = word(index).checked_ilog2()?;
        u8::try_from(index as u32 * 64 + top).ok()
    })
}

/// How a local APIC is addressed and whether it takes interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addressing {
    /// Enabled by the base register.
    pub(crate) enabled: bool,
    /// Enabled by the spurious-interrupt register: takes interrupts with vectors.
    pub(crate) accepts: bool,
    /// In x2APIC mode.
    pub(crate) x2apic: bool,
    /// The destination format is flat, otherwise cluster.
    pub(crate) flat: bool,
    /// Logical id of xAPIC mode.
    pub(crate) logical: u8,
}

impl Addressing {
    fn to_word(self) -> u32 {
        u32::from(self.logical)
            | u32::from(self.enabled) << 8
            | u32::from(self.accepts) << 9
            | u32::from(self.x2apic) << 10
            | u32::from(self.flat) << 11
    }

    fn of_word(word: u32) -> Self {
        let bit = |n: u32| word >> n & 1 != 0;
        Self {
            enabled: bit(8),
            accepts: bit(9),
            x2apic: bit(10),
            flat: bit(11),
            logical: word as u8,
        }
    }
}

/// INIT and start-up requests that were taken at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StartSignals {
    pub(crate) init: bool,
    /// Vector of a start-up request that came after it.
    pub(crate) startup: Option<u8>,
}

const SIGNAL_INIT: u32 = 1 << 8;
const SIGNAL_STARTUP: u32 = 1 << 9;

/// What other threads leave for one processor.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// APIC id, the processor's number.
    pub(crate) id: u8,
    pub(crate) requested: VectorSet,
    /// Those of `requested` and of the in-service vectors that are level-triggered.
    pub(crate) level: VectorSet,
    addressing: AtomicU32,
    nmi: AtomicBool,
    signals: AtomicU32,
    errors: AtomicU32,
    pub(crate) attention: Attention,
    pub(crate) bell: Bell,
}

impl Inbox {
    pub(crate) fn new(id: u8) -> Self {
        Self {
            id,
            requested: VectorSet::default(),
            level: VectorSet::default(),
            addressing: AtomicU32::new(Addressing::default().to_word()),
            nmi: AtomicBool::new(false),
            signals: AtomicU32::new(0),
            errors: AtomicU32::new(0),
            attention: Attention::default(),
            bell: Bell::default(),
        }
    }

    pub(crate) fn addressing(&self) -> Addressing {
        Addressing::of_word(self.addressing.load(Ordering::SeqCst))
    }

    pub(crate) fn set_addressing(&self, to: Addressing) {
        self.addressing.store(to.to_word(), Ordering::SeqCst);
    }

    /// Makes the processor look at what was left.
    pub(crate) fn notify(&self) {
        self.attention.call();
        self.bell.ring();
    }

    /// Requests interrupt `vector`; returns whether the APIC takes it.
    pub(crate) fn request(&self, vector: u8, level: bool) -> bool {
        let state = self.addressing();
        if !state.enabled || !state.accepts {
            return false;
        }
        if vector < 16 {
            self.note_error(ESR_RECEIVED_ILLEGAL_VECTOR);
            return true;
        }
        self.level.set(vector, level);
        self.requested.set(vector, true);
        self.notify();
        true
    }

    pub(crate) fn request_nmi(&self) {
        self.nmi.store(true, Ordering::SeqCst);
        self.notify();
    }

    pub(crate) fn nmi_waits(&self) -> bool {
        self.nmi.load(Ordering::SeqCst)
    }

    pub(crate) fn take_nmi(&self) -> bool {
        self.nmi_waits() && self.nmi.swap(false, Ordering::SeqCst)
    }

    /// INIT: forgets a start-up request that came before it.
    pub(crate) fn request_init(&self) {
        self.signals.store(SIGNAL_INIT, Ordering::SeqCst);
        self.notify();
    }

    pub(crate) fn request_startup(&self, vector: u8) {
        let add = |old: u32| Some(old & SIGNAL_INIT | SIGNAL_STARTUP | u32::from(vector));
        let _ = self
            .signals
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, add);
        self.notify();
    }

    pub(crate) fn signals_wait(&self) -> bool {
        self.signals.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn take_signals(&self) -> StartSignals {
        let word = self.signals.swap(0, Ordering::SeqCst);
        StartSignals {
            init: word & SIGNAL_INIT != 0,
            startup: (word & SIGNAL_STARTUP != 0).then_some(word as u8),
        }
    }

    pub(crate) fn note_error(&self, bit: u32) {
        self.errors.fetch_or(bit, Ordering::SeqCst);
        self.notify();
    }

    /// Returns errors noted since the last call.
    pub(crate) fn take_errors(&self) -> u32 {
        match self.errors.load(Ordering::SeqCst) {
            0 => 0,
            _ => self.errors.swap(0, Ordering::SeqCst),
        }
    }
}
