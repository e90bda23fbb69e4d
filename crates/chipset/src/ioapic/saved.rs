//! The IOAPIC's saved state and its validation.

use serde::{Deserialize, Serialize};

use super::{ID_BITS, LEVEL, PINS, READ_ONLY, REMOTE_IRR, Registers, WRITABLE};
use crate::RestoreError;

/// Registers and inputs of an IOAPIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedIoApic {
    /// ID register.
    pub id: u32,
    /// Selected register.
    pub select: u8,
    /// Redirection entries, pin 0 first.
    pub entries: [u64; PINS as usize],
    /// Bit per input that is high.
    pub levels: u32,
    /// Bit per input with an edge not yet delivered.
    pub latched: u32,
}

impl From<&Registers> for SavedIoApic {
    fn from(registers: &Registers) -> Self {
        let Registers {
            id,
            select,
            entries,
            levels,
            latched,
        } = *registers;
        Self {
            id,
            select,
            entries,
            levels,
            latched,
        }
    }
}

impl TryFrom<&SavedIoApic> for Registers {
    type Error = RestoreError;

    fn try_from(saved: &SavedIoApic) -> Result<Self, RestoreError> {
        let SavedIoApic {
            id,
            select,
            entries,
            levels,
            latched,
        } = *saved;
        let refuse = |field, value| {
            Err(RestoreError {
                device: "IOAPIC",
                field,
                value,
            })
        };
        let pins = (1u32 << PINS) - 1;
        if id & !ID_BITS != 0 {
            return refuse("id", id.into());
        }
        if levels & !pins != 0 {
            return refuse("levels", levels.into());
        }
        if latched & !pins != 0 {
            return refuse("latched", latched.into());
        }
        for entry in entries {
            let remote_irr_of_edge = entry & REMOTE_IRR != 0 && entry & LEVEL == 0;
            if entry & !(WRITABLE | READ_ONLY) != 0 || remote_irr_of_edge {
                return refuse("entries", entry);
            }
        }
        Ok(Self {
            id,
            select,
            entries,
            levels,
            latched,
        })
    }
}
