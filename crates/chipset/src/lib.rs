//! The platform devices of a minimal PC: buses, IOAPIC, serial ports, real-time clock and the
//! ACPI event device. Engine-neutral: interrupts leave as [`MsiMessage`]s through [`MsiSink`].

#![forbid(unsafe_code)]

mod bus;

pub use bus::{Bus, BusDevice, InterruptLine, MsiMessage, MsiSink, RangeTaken};
