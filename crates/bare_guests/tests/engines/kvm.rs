//! Runs each mode of the guest on the host's KVM, where there is one: proves the guest, the boot
//! crate's entry states and the chipset's serial port and IOAPIC together.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod modes;
mod pc;

use std::fs::OpenOptions;

use vcpu::Engine;
use vcpu_kvm::KvmEngine;

/// Returns `None`, saying so, where the host has no KVM.
fn engine() -> Option<Box<dyn Engine>> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(device) => Some(Box::new(KvmEngine::new(device.into()).unwrap())),
        Err(error) => {
            eprintln!("skipped: /dev/kvm cannot be opened: {error}");
            None
        }
    }
}
