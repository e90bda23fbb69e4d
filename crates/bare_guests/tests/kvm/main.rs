//! Runs each mode of the guest on the host's KVM, where there is one: proves the guest, the boot
//! crate's entry states and the chipset's serial port and IOAPIC together.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod modes;
mod pc;
