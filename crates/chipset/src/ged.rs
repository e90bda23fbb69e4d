//! The generic event device of hardware-reduced ACPI (ACPI 5.6.9): an event register with an
//! interrupt, and the sleep and reset registers that the FADT points to.
//!
//! | offset | register | access |
//! | --- | --- | --- |
//! | 0x00 | events: bit 0 power button, bit 1 generation id changed | read clears |
//! | 0x10 | sleep control: SLP_TYP 4:2, SLP_EN 5 (ACPI 4.8.3.7) | write |
//! | 0x14 | sleep status | reads 0 |
//! | 0x18 | reset: 0x42 resets | write |

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use crate::{BusDevice, InterruptLine, RestoreError};

const EVENT_OFFSET: u64 = 0x00;
const SLEEP_CONTROL_OFFSET: u64 = 0x10;
const RESET_OFFSET: u64 = 0x18;

const EVENT_POWER_BUTTON: u32 = 1 << 0;
const EVENT_GENERATION: u32 = 1 << 1;
const EVENTS: u32 = EVENT_POWER_BUTTON | EVENT_GENERATION;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_S5: u8 = 5;
const SLEEP_BITS: u8 = SLEEP_ENABLE | 7 << 2;
const RESET_VALUE: u8 = 0x42;

/// Whoever turns the machine off or resets it. Called on a vCPU's thread, which goes on: the
/// callee only takes note and stops the vCPUs from elsewhere.
pub trait PowerControl: Send + Sync + Debug {
    /// The guest turned the machine off.
    fn power_off(&self);
    /// The guest asked for a reset.
    fn reset(&self);
}

/// The event device.
#[derive(Debug)]
pub struct Ged {
    events: AtomicU32,
    line: Arc<dyn InterruptLine>,
    power: Arc<dyn PowerControl>,
}

/// State of the event device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedGed {
    /// Events the guest has not read yet.
    pub events: u32,
}

impl Ged {
    /// Returns an event device without events.
    pub fn new(line: Arc<dyn InterruptLine>, power: Arc<dyn PowerControl>) -> Self {
        Self {
            events: AtomicU32::new(0),
            line,
            power,
        }
    }

    /// Returns an event device that goes on from `saved`.
    pub fn restore(
        line: Arc<dyn InterruptLine>,
        power: Arc<dyn PowerControl>,
        saved: &SavedGed,
    ) -> Result<Self, RestoreError> {
        if saved.events & !EVENTS != 0 {
            let value = saved.events.into();
            return Err(RestoreError {
                device: "event device",
                field: "events",
                value,
            });
        }
        Ok(Self {
            events: AtomicU32::new(saved.events),
            line,
            power,
        })
    }

    /// Returns the events that wait for the guest.
    pub fn save(&self) -> SavedGed {
        SavedGed {
            events: self.events.load(Ordering::SeqCst),
        }
    }

    /// Tells the guest that its power button was pressed.
    pub fn press_power_button(&self) {
        self.raise(EVENT_POWER_BUTTON);
    }

    /// Tells the guest that its generation id (in RAM, already changed) is a new one.
    pub fn generation_changed(&self) {
        self.raise(EVENT_GENERATION);
    }

    fn raise(&self, event: u32) {
        self.events.fetch_or(event, Ordering::SeqCst);
        self.line.trigger();
    }
}

impl BusDevice for Ged {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == EVENT_OFFSET {
            let events = self.events.swap(0, Ordering::SeqCst);
            for (to, from) in data.iter_mut().zip(events.to_le_bytes()) {
                *to = from;
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        match offset {
            SLEEP_CONTROL_OFFSET if value & SLEEP_BITS == SLEEP_ENABLE | SLEEP_TYPE_S5 << 2 => {
                self.power.power_off();
            }
            RESET_OFFSET if value == RESET_VALUE => self.power.reset(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_lines::{CountingLine, RecordedPower};

    fn ged() -> (Ged, Arc<CountingLine>, Arc<RecordedPower>) {
        let line = Arc::new(CountingLine::default());
        let power = Arc::new(RecordedPower::default());
        (Ged::new(line.clone(), power.clone()), line, power)
    }

    fn events(ged: &Ged) -> u32 {
        let mut data = [0; 4];
        ged.read(EVENT_OFFSET, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn events_interrupt_and_reading_clears_them() {
        let (ged, line, _) = ged();
        ged.press_power_button();
        ged.generation_changed();
        assert_eq!(line.take(), 2);
        assert_eq!(events(&ged), 3);
        assert_eq!(events(&ged), 0);
    }

    #[test]
    fn only_s5_with_enable_powers_off() {
        let (ged, _, power) = ged();
        for value in [0, 5 << 2, 0x20, 0x20 | 3 << 2] {
            ged.write(SLEEP_CONTROL_OFFSET, &[value]);
        }
        ged.write(SLEEP_CONTROL_OFFSET, &[]);
        assert_eq!(power.take(), (0, 0));
        ged.write(SLEEP_CONTROL_OFFSET, &[0x20 | 5 << 2]);
        assert_eq!(power.take(), (1, 0));
    }

    #[test]
    fn only_the_reset_value_resets() {
        let (ged, _, power) = ged();
        ged.write(RESET_OFFSET, &[1]);
        ged.write(RESET_OFFSET + 1, &[RESET_VALUE]);
        assert_eq!(power.take(), (0, 0));
        ged.write(RESET_OFFSET, &[RESET_VALUE, 0, 0, 0]);
        assert_eq!(power.take(), (0, 1));
    }

    #[test]
    fn restored_device_keeps_unread_events() {
        let (ged, line, power) = ged();
        ged.press_power_button();
        let saved = ged.save();
        let restored = Ged::restore(line.clone(), power.clone(), &saved).unwrap();
        assert_eq!(restored.save(), saved);
        assert_eq!(events(&restored), 1);
        let bad = SavedGed { events: 4 };
        assert_eq!(Ged::restore(line, power, &bad).unwrap_err().field, "events");
    }
}
