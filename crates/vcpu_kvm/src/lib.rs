//! The KVM engine: local APICs in the kernel, everything else of the platform in user space
//! (split irqchip).
//!
//! Order of calls decides a clone's latency: split irqchip first, then memory slots, then vCPUs;
//! nothing is registered on KVM's I/O buses, since a registration makes later memory-slot changes
//! and the end of the VM wait for a grace period.

#![expect(
    unsafe_code,
    reason = "KVM ioctls over guest memory, kvm_run and thread signals"
)]

mod convert;
mod cpuid;
mod engine;
mod kick;
mod state;
mod time;
mod vcpu;

pub use engine::KvmEngine;

use std::io;

use ::vcpu::EngineError;

/// Turns the error of KVM call `call` into the seam's.
fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> EngineError {
    move |error| EngineError::Call {
        call,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}
