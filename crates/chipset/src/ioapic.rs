//! The I/O interrupt controller (82093AA, version 0x20 with its EOI register): turns line changes
//! into interrupt messages for local APICs, which the engine holds.
//!
//! Messages are sent after the lock is released: a message in flight while the guest masks its
//! pin exists on real buses too. A masked pin remembers an edge and delivers it when unmasked.

mod saved;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::lock::lock;
use crate::{BusDevice, InterruptLine, MsiMessage, MsiSink, RestoreError};

pub use saved::SavedIoApic;

/// Number of interrupt inputs.
pub const PINS: u8 = 24;

const SELECT_OFFSET: u64 = 0x00;
const WINDOW_OFFSET: u64 = 0x10;
const EOI_OFFSET: u64 = 0x40;

const REGISTER_ID: u8 = 0;
const REGISTER_VERSION: u8 = 1;
const REGISTER_ARBITRATION: u8 = 2;
const REGISTER_REDIRECTION: u8 = 0x10;
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;
const ID_BITS: u32 = 0x0f00_0000;

const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
/// Vector, modes, polarity, trigger, mask; destination in the top byte.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
const DELIVERY_EXTINT: u64 = 7;

/// The I/O interrupt controller.
pub struct IoApic {
    registers: Mutex<Registers>,
    sink: Arc<dyn MsiSink>,
}

impl IoApic {
    /// Returns a controller after reset: every pin masked.
    pub fn new(sink: Arc<dyn MsiSink>) -> Arc<Self> {
        let registers = Registers {
            id: 0,
            select: 0,
            entries: [MASKED; PINS as usize],
            levels: 0,
            latched: 0,
        };
        Arc::new(Self {
            registers: Mutex::new(registers),
            sink,
        })
    }

    /// Returns a controller that goes on from `saved` and sends to `sink`.
    pub fn restore(sink: Arc<dyn MsiSink>, saved: &SavedIoApic) -> Result<Arc<Self>, RestoreError> {
        let registers = Registers::try_from(saved)?;
        Ok(Arc::new(Self {
            registers: Mutex::new(registers),
            sink,
        }))
    }

    /// Returns the state of all registers and inputs.
    pub fn save(&self) -> SavedIoApic {
        (&*lock(&self.registers)).into()
    }

    /// Returns input `pin` as a line for a device.
    ///
    /// # Panics
    /// Panics when `pin` is not below [`PINS`]: wiring is the machine's own, not input.
    pub fn line(self: &Arc<Self>, pin: u8) -> Arc<dyn InterruptLine> {
        assert!(pin < PINS, "the IOAPIC has no pin {pin}");
        Arc::new(Pin {
            ioapic: Arc::clone(self),
            pin,
        })
    }

    /// Sets the level of input `pin`; a pin out of range is ignored.
    pub fn set_level(&self, pin: u8, high: bool) {
        if pin < PINS {
            self.deliver(|registers| registers.set_level(pin, high));
        }
    }

    /// Takes the end-of-interrupt broadcast of a local APIC for `vector`.
    pub fn eoi(&self, vector: u8) {
        for pin in 0..PINS {
            self.deliver(|registers| registers.eoi(pin, vector));
        }
    }

    fn deliver(&self, change: impl FnOnce(&mut Registers) -> Option<MsiMessage>) {
        let message = change(&mut lock(&self.registers));
        if let Some(message) = message {
            self.sink.signal_msi(message);
        }
    }
}

impl fmt::Debug for IoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoApic").finish_non_exhaustive()
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = lock(&self.registers);
        let value = match offset {
            SELECT_OFFSET => u32::from(registers.select),
            WINDOW_OFFSET => registers.read(),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        match offset {
            SELECT_OFFSET => lock(&self.registers).select = bytes[0],
            WINDOW_OFFSET => self.deliver(|registers| registers.write(value)),
            EOI_OFFSET => self.eoi(bytes[0]),
            _ => {}
        }
    }
}

/// One input of the controller.
#[derive(Debug)]
struct Pin {
    ioapic: Arc<IoApic>,
    pin: u8,
}

impl InterruptLine for Pin {
    fn trigger(&self) {
        self.ioapic.deliver(|registers| registers.edge(self.pin));
    }
}

#[derive(Debug)]
struct Registers {
    id: u32,
    select: u8,
    entries: [u64; PINS as usize],
    /// Inputs that are high.
    levels: u32,
    /// Edges that no local APIC has been told of.
    latched: u32,
}

impl Registers {
    fn read(&self) -> u32 {
        match self.select {
            REGISTER_ID | REGISTER_ARBITRATION => self.id,
            REGISTER_VERSION => VERSION,
            select => match redirection(select) {
                Some((pin, false)) => self.entries[pin] as u32,
                Some((pin, true)) => (self.entries[pin] >> 32) as u32,
                None => 0,
            },
        }
    }

    fn write(&mut self, value: u32) -> Option<MsiMessage> {
        if self.select == REGISTER_ID {
            self.id = value & ID_BITS;
        }
        let (pin, high_half) = redirection(self.select)?;
        let entry = self.entries[pin];
        let wanted = if high_half {
            entry & 0xffff_ffff | u64::from(value) << 32
        } else {
            entry & !0xffff_ffff | u64::from(value)
        };
        let mut entry = wanted & WRITABLE | entry & READ_ONLY;
        if entry & LEVEL == 0 {
            // Switching a pin to edge and back is how old kernels acknowledge without EOI.
            entry &= !REMOTE_IRR;
        }
        self.entries[pin] = entry;
        self.fire(pin)
    }

    fn edge(&mut self, pin: u8) -> Option<MsiMessage> {
        self.latched |= 1 << pin;
        self.fire(usize::from(pin))
    }

    fn set_level(&mut self, pin: u8, high: bool) -> Option<MsiMessage> {
        let bit = 1 << pin;
        let rose = high && self.levels & bit == 0;
        if high {
            self.levels |= bit;
        } else {
            self.levels &= !bit;
        }
        if rose && self.entries[usize::from(pin)] & LEVEL == 0 {
            self.latched |= bit;
        }
        self.fire(usize::from(pin))
    }

    fn eoi(&mut self, pin: u8, vector: u8) -> Option<MsiMessage> {
        let entry = &mut self.entries[usize::from(pin)];
        if *entry & REMOTE_IRR == 0 || *entry as u8 != vector {
            return None;
        }
        *entry &= !REMOTE_IRR;
        self.fire(usize::from(pin))
    }

    /// Takes what pin `pin` has to send, if it may send.
    fn fire(&mut self, pin: usize) -> Option<MsiMessage> {
        let entry = self.entries[pin];
        let bit = 1u32 << pin;
        let level = entry & LEVEL != 0;
        let wanted = self.latched & bit != 0 || level && self.levels & bit != 0;
        if !wanted || entry & MASKED != 0 || entry & REMOTE_IRR != 0 {
            return None;
        }
        self.latched &= !bit;
        // A pulse is over by now, also on a pin that the guest wired as level-triggered: nothing is held
        // until an end of interrupt, of which KVM tells only those who give it routes.
        if level && self.levels & bit != 0 {
            self.entries[pin] |= REMOTE_IRR;
        }
        message(entry)
    }
}

/// Returns the pin and the half of its entry that register `select` shows.
fn redirection(select: u8) -> Option<(usize, bool)> {
    let index = select.checked_sub(REGISTER_REDIRECTION)?;
    (index / 2 < PINS).then_some((usize::from(index / 2), index % 2 == 1))
}

/// Returns the message a redirection entry stands for (SDM 3A 11.11); external interrupts have
/// no controller to ask and are dropped.
fn message(entry: u64) -> Option<MsiMessage> {
    let delivery = entry >> 8 & 7;
    if delivery == DELIVERY_EXTINT {
        return None;
    }
    let destination = entry >> 56;
    let logical = entry >> 11 & 1;
    let level = entry & LEVEL != 0;
    let data =
        (entry & 0xff) as u32 | (delivery as u32) << 8 | if level { 1 << 15 | 1 << 14 } else { 0 };
    Some(MsiMessage {
        address: 0xfee0_0000 | destination << 12 | logical << 2,
        data,
    })
}
