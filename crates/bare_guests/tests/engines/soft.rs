//! Runs each mode of the guest on the software engine: the same tests as on KVM.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod modes;
mod pc;

use vcpu::Engine;
use vcpu_soft::SoftEngine;

fn engine() -> Option<Box<dyn Engine>> {
    Some(Box::new(SoftEngine))
}
