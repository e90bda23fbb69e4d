//! The serial port's saved state and its validation.

use serde::{Deserialize, Serialize};

use super::{IER_BITS, INPUT_BYTES_MAX, MCR_BITS, Registers};
use crate::RestoreError;

/// Registers and unread input of a serial port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSerial {
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Line control register.
    pub line_control: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Baud rate divisor.
    pub divisor: u16,
    /// Whether the FIFO is enabled.
    pub fifo: bool,
    /// Whether the empty transmitter has not been reported yet.
    pub output_pending: bool,
    /// Input that the guest has not read, at most 64 bytes.
    pub input: Vec<u8>,
}

impl From<&Registers> for SavedSerial {
    fn from(registers: &Registers) -> Self {
        Self {
            interrupt_enable: registers.interrupt_enable,
            line_control: registers.line_control,
            modem_control: registers.modem_control,
            scratch: registers.scratch,
            divisor: registers.divisor,
            fifo: registers.fifo,
            output_pending: registers.output_pending,
            input: registers.input.iter().copied().collect(),
        }
    }
}

impl TryFrom<&SavedSerial> for Registers {
    type Error = RestoreError;

    fn try_from(saved: &SavedSerial) -> Result<Self, RestoreError> {
        let refuse = |field, value| {
            Err(RestoreError {
                device: "serial port",
                field,
                value,
            })
        };
        if saved.interrupt_enable & !IER_BITS != 0 {
            return refuse("interrupt_enable", saved.interrupt_enable.into());
        }
        if saved.modem_control & !MCR_BITS != 0 {
            return refuse("modem_control", saved.modem_control.into());
        }
        if saved.input.len() > INPUT_BYTES_MAX {
            return refuse("input", saved.input.len() as u64);
        }
        Ok(Self {
            interrupt_enable: saved.interrupt_enable,
            line_control: saved.line_control,
            modem_control: saved.modem_control,
            scratch: saved.scratch,
            divisor: saved.divisor,
            fifo: saved.fifo,
            output_pending: saved.output_pending,
            output_seen: false,
            input: saved.input.iter().copied().collect(),
            refused: false,
        })
    }
}
