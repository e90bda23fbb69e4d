//! What a process does ahead of time, so that a machine is built sooner in it.

use std::os::fd::OwnedFd;
use std::sync::Barrier;

use saved_state::Kind;
use vcpu::{CpuidLeaf, EmptyVm, Engine, Msr, VcpuState};
use vcpu_kvm::KvmEngine;

use crate::error::BuildError;

/// Threads of a machine with a vCPU and a disk, and the size of the largest of their stacks, bytes.
const THREADS: usize = 3;
const STACK_BYTES: usize = 256 << 10;

/// A VM without memory and devices.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) engine: &'static str,
    pub(crate) vm: Box<dyn EmptyVm>,
}

impl Prepared {
    /// Makes it on the engine that is given.
    pub fn new(kvm: Option<OwnedFd>) -> Result<Self, BuildError> {
        let engine = KvmEngine::new(kvm.ok_or(BuildError::NoEngine)?)?;
        Ok(Self {
            engine: engine.name(),
            vm: engine.create_vm()?,
        })
    }
}

/// Goes through what building a machine will do, so that code, allocator and threads' stacks are
/// there when somebody waits. No thread of it is left.
pub fn rehearse() {
    let together = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            // All at a time, so that each has a stack of its own, which libc then keeps.
            let started = thread.spawn_scoped(scope, || together.wait());
            if started.is_err() {
                // The others wait for it in vain; a process without threads ends anyway.
                std::process::abort();
            }
        }
    });
    let kind = Kind {
        tag: *b"NONE",
        version: 0,
    };
    let state = VcpuState {
        xsave: vec![0; 4096],
        lapic: vec![0; 1024],
        msrs: vec![Msr::default(); 64],
        cpuid: vec![CpuidLeaf::default(); 64],
        ..VcpuState::default()
    };
    let read = saved_state::encode(kind, &state)
        .map(|bytes| saved_state::decode::<VcpuState>(kind, &bytes).is_ok());
    debug_assert!(matches!(read, Ok(true)), "a state reads back");
}
