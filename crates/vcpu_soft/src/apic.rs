//! The local APIC (SDM 3A 11): xAPIC page and x2APIC registers, priorities, timer, inter-processor
//! interrupts.
//!
//! The processor's own thread owns [`LocalApic`]; what others leave for it lies in its [`Inbox`].

mod inbox;
mod routing;
mod saved;
#[cfg(test)]
mod tests;
mod timer;

use std::sync::Arc;

use vcpu::GuestIo;

use inbox::{Addressing, Inbox, highest_of};
pub(crate) use routing::{Apics, Message};
use routing::{Delivery, Destination};
use timer::{Mode, Timer};

/// Physical address of the register page after a reset.
const BASE_RESET: u64 = 0xfee0_0000;
/// Bits of the base register: boot processor, x2APIC, enabled.
const BASE_BOOT: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
/// Bits of the base register that can be set: address up to 2^40.
const BASE_BITS: u64 = 0xff_ffff_f000 | BASE_BOOT | BASE_X2APIC | BASE_ENABLED;

/// Version 0x14 with 6 local vectors.
const VERSION: u32 = 0x0005_0014;
const SPURIOUS_ENABLED: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
/// Errors: a vector below 16 was sent, was received, a register that does not exist.
const ESR_SENT_ILLEGAL_VECTOR: u32 = 1 << 5;
const ESR_RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// Registers by their number: offset in the page / 16, number of the MSR - 0x800.
mod register {
    pub(super) const ID: u32 = 0x02;
    pub(super) const VERSION: u32 = 0x03;
    pub(super) const TASK_PRIORITY: u32 = 0x08;
    pub(super) const ARBITRATION: u32 = 0x09;
    pub(super) const PROCESSOR_PRIORITY: u32 = 0x0a;
    pub(super) const END_OF_INTERRUPT: u32 = 0x0b;
    pub(super) const LOGICAL: u32 = 0x0d;
    pub(super) const FORMAT: u32 = 0x0e;
    pub(super) const SPURIOUS: u32 = 0x0f;
    pub(super) const IN_SERVICE: u32 = 0x10;
    pub(super) const LEVEL: u32 = 0x18;
    pub(super) const REQUESTED: u32 = 0x20;
    pub(super) const ERROR_STATUS: u32 = 0x28;
    pub(super) const COMMAND: u32 = 0x30;
    pub(super) const COMMAND_HIGH: u32 = 0x31;
    pub(super) const LVT_TIMER: u32 = 0x32;
    pub(super) const LVT_ERROR: u32 = 0x37;
    pub(super) const INITIAL_COUNT: u32 = 0x38;
    pub(super) const CURRENT_COUNT: u32 = 0x39;
    pub(super) const DIVIDE: u32 = 0x3e;
    pub(super) const SELF: u32 = 0x3f;
}

/// LVT entries: timer, thermal, performance, LINT0, LINT1, error.
const LVT_ENTRIES: usize = 6;
const LVT_WRITABLE: [u32; LVT_ENTRIES] = [
    0x0007_00ff,
    0x0001_07ff,
    0x0001_07ff,
    0x0001_a7ff,
    0x0001_a7ff,
    0x0001_00ff,
];

/// First MSR of x2APIC mode; the last is 0x8ff.
const X2APIC_FIRST: u32 = 0x800;

/// The local APIC of one processor, its own thread's side.
#[derive(Debug)]
pub(crate) struct LocalApic {
    apics: Arc<Apics>,
    index: u8,
    base: u64,
    task_priority: u8,
    in_service: [u64; 4],
    logical: u32,
    format: u32,
    spurious: u32,
    errors: u32,
    errors_shown: u32,
    command: u64,
    lvt: [u32; LVT_ENTRIES],
    timer: Timer,
    /// An interrupt that was taken before a save and not delivered yet.
    taken: Option<u8>,
}

impl LocalApic {
    /// An APIC after power-up; it belongs to processor `index` of `apics`.
    pub(crate) fn new(apics: Arc<Apics>, index: u8) -> Self {
        let boot = if index == 0 { BASE_BOOT } else { 0 };
        let mut apic = Self {
            apics,
            index,
            base: BASE_RESET | BASE_ENABLED | boot,
            task_priority: 0,
            in_service: [0; 4],
            logical: 0,
            format: 0,
            spurious: 0,
            errors: 0,
            errors_shown: 0,
            command: 0,
            lvt: [0; LVT_ENTRIES],
            timer: Timer::default(),
            taken: None,
        };
        apic.reset();
        apic
    }

    /// INIT: everything but the base register and the id.
    pub(crate) fn reset(&mut self) {
        self.task_priority = 0;
        self.in_service = [0; 4];
        self.logical = 0;
        self.format = u32::MAX;
        self.spurious = 0xff;
        self.errors = 0;
        self.errors_shown = 0;
        self.command = 0;
        self.lvt = [LVT_MASKED; LVT_ENTRIES];
        self.timer = Timer::default();
        self.taken = None;
        self.inbox().requested.load([0; 8]);
        self.inbox().level.load([0; 8]);
        self.publish();
    }

    /// What other threads leave for this processor.
    pub(crate) fn inbox(&self) -> &Inbox {
        self.apics.inbox(self.index)
    }

    fn is_enabled(&self) -> bool {
        self.base & BASE_ENABLED != 0
    }

    fn is_x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    fn accepts(&self) -> bool {
        self.is_enabled() && self.spurious & SPURIOUS_ENABLED != 0
    }

    /// Tells the other side how this APIC is addressed now.
    fn publish(&self) {
        self.inbox().set_addressing(Addressing {
            enabled: self.is_enabled(),
            accepts: self.accepts(),
            x2apic: self.is_x2apic(),
            flat: self.format >> 28 == 15,
            logical: (self.logical >> 24) as u8,
        });
    }

    /// Logical id in x2APIC mode, which follows from the id (SDM 3A 11.12.10.2).
    fn x2apic_logical(&self) -> u32 {
        let id = u32::from(self.index);
        (id >> 4) << 16 | 1 << (id & 15)
    }

    // ---- base register

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Takes a write to the base register; `false` where the manual has a #GP (SDM 3A 11.12.5).
    pub(crate) fn set_base(&mut self, value: u64) -> bool {
        let modes = |base: u64| (base & BASE_ENABLED != 0, base & BASE_X2APIC != 0);
        let legal = value & !BASE_BITS == 0
            && match (modes(self.base), modes(value)) {
                (_, (false, true)) => false,
                // From x2APIC mode only off, from off only to xAPIC mode.
                ((true, true), (true, false)) | ((false, _), (true, true)) => false,
                _ => true,
            };
        if !legal {
            return false;
        }
        let was_enabled = self.is_enabled();
        self.base = value;
        if was_enabled && !self.is_enabled() {
            self.reset();
        }
        self.publish();
        true
    }

    /// Sets the base register to a saved value, from whatever it was; `false` where it cannot be.
    pub(crate) fn load_base(&mut self, value: u64) -> bool {
        let off = self.base & !(BASE_ENABLED | BASE_X2APIC);
        self.base = off;
        let modes = [value & !BASE_X2APIC, value];
        modes.into_iter().all(|step| self.set_base(step))
    }

    /// Returns the register that physical `address` belongs to where the page is there.
    pub(crate) fn register_at(&self, address: u64) -> Option<u32> {
        let page = self.base & 0xff_ffff_f000;
        let here = self.is_enabled() && !self.is_x2apic() && address & !0xfff == page;
        here.then_some((address & 0xfff) as u32)
    }

    // ---- interrupts

    fn in_service_priority(&self) -> u8 {
        highest_of(|word| self.in_service[word]).unwrap_or(0) & 0xf0
    }

    fn processor_priority(&self) -> u8 {
        let serving = self.in_service_priority();
        if self.task_priority & 0xf0 >= serving {
            self.task_priority
        } else {
            serving
        }
    }

    /// The vector that can be delivered now, if the processor takes interrupts.
    pub(crate) fn deliverable(&self) -> Option<u8> {
        if self.taken.is_some() {
            return self.taken;
        }
        let vector = self.inbox().requested.highest()?;
        let can = self.is_enabled() && vector & 0xf0 > self.processor_priority() & 0xf0;
        can.then_some(vector)
    }

    /// Hands over the interrupt to deliver; it is in service then.
    pub(crate) fn take(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        if self.taken.take().is_none() {
            self.inbox().requested.set(vector, false);
            self.in_service[usize::from(vector >> 6)] |= 1 << (vector & 63);
        }
        Some(vector)
    }

    /// Goes on with an interrupt that was in service already and not delivered.
    pub(crate) fn deliver_again(&mut self, vector: u8) {
        self.taken = Some(vector);
    }

    /// An interrupt that is in service and not delivered yet.
    pub(crate) fn taken(&self) -> Option<u8> {
        self.taken
    }

    pub(crate) fn task_priority(&self) -> u8 {
        self.task_priority
    }

    pub(crate) fn set_task_priority(&mut self, value: u8) {
        self.task_priority = value;
        self.look_again();
    }

    /// Makes the processor ask for interrupts where a change has made one deliverable.
    fn look_again(&self) {
        if self.deliverable().is_some() {
            self.inbox().attention.call();
        }
    }

    fn end_of_interrupt(&mut self, io: &dyn GuestIo) {
        let Some(vector) = highest_of(|word| self.in_service[word]) else {
            return;
        };
        self.in_service[usize::from(vector >> 6)] &= !(1 << (vector & 63));
        if self.inbox().level.contains(vector) {
            io.end_of_interrupt(vector);
        }
        self.look_again();
    }

    /// Delivers the interrupt of an LVT entry to this processor.
    fn local_interrupt(&self, entry: u32) {
        if entry & LVT_MASKED != 0 {
            return;
        }
        match Delivery::of_bits(entry) {
            Delivery::Fixed => drop(self.inbox().request(entry as u8, false)),
            Delivery::Nmi => self.inbox().request_nmi(),
            _ => {}
        }
    }

    fn error(&mut self, bits: u32) {
        let new = bits & !self.errors;
        self.errors |= bits;
        if new != 0 {
            self.local_interrupt(self.lvt[5]);
        }
    }

    // ---- time

    /// Lets the timer and errors of other threads take effect.
    pub(crate) fn poll(&mut self, now_ns: u64) {
        if self.timer.poll(Mode::of_entry(self.lvt[0]), now_ns) {
            self.local_interrupt(self.lvt[0] & !0x700);
        }
        let errors = self.inbox().take_errors();
        if errors != 0 {
            self.error(errors);
        }
    }

    /// When the timer will interrupt.
    pub(crate) fn fires_ns(&self) -> Option<u64> {
        self.timer
            .fires_ns
            .filter(|_| self.lvt[0] & LVT_MASKED == 0)
    }

    pub(crate) fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline
    }

    /// Takes a write to the TSC-deadline register; `fires_ns` is the same in host time.
    pub(crate) fn set_tsc_deadline(&mut self, tsc: u64, fires_ns: u64) {
        if Mode::of_entry(self.lvt[0]) == Mode::TscDeadline {
            self.timer.set_deadline(tsc, fires_ns);
            self.inbox().attention.call();
        }
    }

    // ---- registers

    /// Reads from the register page; `offset` is below 4096.
    pub(crate) fn page_read(&mut self, offset: u32, data: &mut [u8], now_ns: u64) {
        let word = self.read(offset >> 4, now_ns);
        let bytes = word.unwrap_or(0).to_le_bytes();
        if word.is_none() {
            self.error(ESR_ILLEGAL_REGISTER);
        }
        let from = offset as usize & 15;
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(from + index).copied().unwrap_or(0);
        }
    }

    /// Writes to the register page: aligned words only.
    pub(crate) fn page_write(&mut self, offset: u32, data: &[u8], now_ns: u64, io: &dyn GuestIo) {
        let Some(word) = data.first_chunk().filter(|_| offset & 15 == 0) else {
            return;
        };
        let value = u32::from_le_bytes(*word);
        let known = match offset >> 4 {
            register::COMMAND => {
                self.command = self.command & !0xffff_ffff | u64::from(value & !(1 << 12));
                self.send_command();
                true
            }
            register::COMMAND_HIGH => {
                self.command = self.command & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                true
            }
            register::LOGICAL => {
                self.logical = value & 0xff00_0000;
                self.publish();
                true
            }
            register::FORMAT => {
                self.format = value | 0x0fff_ffff;
                self.publish();
                true
            }
            // Fixed here, as on many processors.
            register::ID | register::ARBITRATION => true,
            register::SELF => false,
            other => self.write(other, value, now_ns, io),
        };
        if !known {
            self.error(ESR_ILLEGAL_REGISTER);
        }
    }

    /// Reads an MSR of x2APIC mode; `None` is a #GP.
    pub(crate) fn msr_read(&self, index: u32, now_ns: u64) -> Option<u64> {
        if !self.is_x2apic() {
            return None;
        }
        match index.checked_sub(X2APIC_FIRST)? {
            register::COMMAND => Some(self.command),
            register::FORMAT
            | register::COMMAND_HIGH
            | register::ARBITRATION
            | register::END_OF_INTERRUPT
            | register::SELF => None,
            other => self.read(other, now_ns).map(u64::from),
        }
    }

    /// Writes one; `false` is a #GP.
    pub(crate) fn msr_write(
        &mut self,
        index: u32,
        value: u64,
        now_ns: u64,
        io: &dyn GuestIo,
    ) -> bool {
        let number = match index.checked_sub(X2APIC_FIRST) {
            Some(number) if self.is_x2apic() => number,
            _ => return false,
        };
        if number == register::COMMAND {
            self.command = value & !(1 << 12);
            self.send_command();
            return true;
        }
        let Ok(word) = u32::try_from(value) else {
            return false;
        };
        match number {
            register::SELF => {
                if word > 0xff {
                    return false;
                }
                self.send(Message {
                    destination: Destination::Only(self.index.into()),
                    delivery: Delivery::Fixed,
                    vector: word as u8,
                    level: false,
                });
                true
            }
            register::END_OF_INTERRUPT | register::ERROR_STATUS if word != 0 => false,
            register::LOGICAL | register::FORMAT | register::COMMAND_HIGH => false,
            register::TASK_PRIORITY if word > 0xff => false,
            other => self.write(other, word, now_ns, io),
        }
    }

    fn read(&self, number: u32, now_ns: u64) -> Option<u32> {
        use register as r;
        let inbox = self.inbox();
        Some(match number {
            r::ID if self.is_x2apic() => self.index.into(),
            r::ID => u32::from(self.index) << 24,
            r::VERSION => VERSION,
            r::TASK_PRIORITY => self.task_priority.into(),
            r::ARBITRATION | r::PROCESSOR_PRIORITY => self.processor_priority().into(),
            r::END_OF_INTERRUPT => 0,
            r::LOGICAL if self.is_x2apic() => self.x2apic_logical(),
            r::LOGICAL => self.logical,
            r::FORMAT => self.format,
            r::SPURIOUS => self.spurious,
            r::IN_SERVICE..=0x17 => {
                let index = (number - r::IN_SERVICE) as usize;
                (self.in_service[index / 2] >> (index % 2 * 32)) as u32
            }
            r::LEVEL..=0x1f => inbox.level.word((number - r::LEVEL) as usize),
            r::REQUESTED..=0x27 => inbox.requested.word((number - r::REQUESTED) as usize),
            r::ERROR_STATUS => self.errors_shown,
            r::COMMAND => self.command as u32,
            r::COMMAND_HIGH => (self.command >> 32) as u32,
            r::LVT_TIMER..=r::LVT_ERROR => self.lvt[(number - r::LVT_TIMER) as usize],
            r::INITIAL_COUNT => self.timer.initial,
            r::CURRENT_COUNT => self.timer.current(now_ns),
            r::DIVIDE => self.timer.divide,
            _ => return None,
        })
    }

    /// Writes a register that both modes have; returns whether there is such a one.
    fn write(&mut self, number: u32, value: u32, now_ns: u64, io: &dyn GuestIo) -> bool {
        use register as r;
        match number {
            r::TASK_PRIORITY => self.set_task_priority(value as u8),
            r::END_OF_INTERRUPT => self.end_of_interrupt(io),
            r::SPURIOUS => {
                self.spurious = value & 0x1ff;
                if self.spurious & SPURIOUS_ENABLED == 0 {
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
                self.publish();
            }
            r::ERROR_STATUS => {
                self.errors_shown = self.errors;
                self.errors = 0;
            }
            r::LVT_TIMER..=r::LVT_ERROR => {
                // A count that is over is over in the mode that it was begun in.
                self.poll(now_ns);
                self.write_lvt((number - r::LVT_TIMER) as usize, value);
            }
            r::INITIAL_COUNT => {
                let mode = Mode::of_entry(self.lvt[0]);
                self.timer.start(value, mode, now_ns);
                // The processor's budget follows the next deadline.
                self.inbox().attention.call();
            }
            r::DIVIDE => {
                self.timer.set_divide(value, now_ns);
                self.inbox().attention.call();
            }
            _ => return false,
        }
        true
    }

    fn write_lvt(&mut self, index: usize, value: u32) {
        let mut entry = value & LVT_WRITABLE[index];
        if self.spurious & SPURIOUS_ENABLED == 0 {
            entry |= LVT_MASKED;
        }
        if index == 0 && Mode::of_entry(entry) != Mode::of_entry(self.lvt[0]) {
            let counts = |entry| matches!(Mode::of_entry(entry), Mode::OneShot | Mode::Periodic);
            if !(counts(entry) && counts(self.lvt[0])) {
                self.timer.stop();
            }
        }
        self.lvt[index] = entry;
        if index == 0 {
            self.inbox().attention.call();
        }
    }

    /// Sends what the command register says (SDM 3A 11.6.1).
    fn send_command(&mut self) {
        let low = self.command as u32;
        let high = (self.command >> 32) as u32;
        let wide = self.is_x2apic();
        let id = if wide { high } else { high >> 24 };
        let own = usize::from(self.index);
        let destination = match low >> 18 & 3 {
            0 if low & 1 << 11 != 0 => Destination::Logical { mask: id, wide },
            0 => Destination::Physical { id, wide },
            1 => Destination::Only(own),
            2 => Destination::Everybody,
            _ => Destination::EverybodyBut(own),
        };
        let delivery = Delivery::of_bits(low);
        let level = low & 1 << 15 != 0;
        // The end of an INIT signal: only ancient APICs act on it.
        if delivery == Delivery::Init && level && low & 1 << 14 == 0 {
            return;
        }
        self.send(Message {
            destination,
            delivery,
            vector: low as u8,
            level: false,
        });
    }

    fn send(&mut self, message: Message) {
        let vectored = matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority);
        if vectored && message.vector < 16 {
            self.error(ESR_SENT_ILLEGAL_VECTOR);
            return;
        }
        self.apics.send(message);
    }
}
