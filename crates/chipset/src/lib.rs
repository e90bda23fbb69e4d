//! The platform devices of a minimal PC: buses, IOAPIC, serial ports, real-time clock and the
//! ACPI event device. Engine-neutral: interrupts leave as [`MsiMessage`]s through [`MsiSink`].
//!
//! Each device locks only its own small mutex, so that a vCPU never waits for anything longer
//! than a register access. `save` takes the same mutex and is meant for a paused machine;
//! `restore` treats its input as untrusted.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod bus;
mod ged;
mod ioapic;
mod keyboard;
mod lock;
mod pci;
mod port_b;
mod restore;
mod rtc;
mod serial;
#[cfg(test)]
mod test_lines;

pub use bus::{Bus, BusDevice, InterruptLine, MsiMessage, MsiSink, RangeTaken};
pub use ged::{Ged, PowerControl, SavedGed};
pub use ioapic::{IoApic, PINS, SavedIoApic};
pub use keyboard::KeyboardController;
pub use pci::PciAddress;
pub use port_b::PortB;
pub use restore::RestoreError;
pub use rtc::{Rtc, SavedRtc};
pub use serial::{SavedSerial, Serial};
