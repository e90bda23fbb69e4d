//! Devices without a thread: the caller makes each turn.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::Timespec;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::driver::{Driver, TestLine};
use crate::device::VirtioDevice;
use crate::queue::GuestRam;
use crate::saved::{RestoreError, SavedTransport};
use crate::transport::MmioTransport;
use crate::worker::{Worker, WorkerBuilder, WorkerGuard, WorkerShared};

/// Low RAM of the tests, bytes.
const LOW_BYTES: usize = 4 << 20;
/// High RAM, beyond a hole: start and bytes.
const HIGH: (GuestAddress, usize) = (GuestAddress(1 << 32), 1 << 20);
/// Turns after which a device that always has more to do is left alone.
const TURNS_MAX: usize = 256;

/// Returns 4 MiB of guest RAM at 0 and 1 MiB at 4 GiB.
///
/// # Panics
///
/// When the host has no memory.
pub fn test_ram() -> Arc<GuestRam> {
    let ranges = [(GuestAddress(0), LOW_BYTES), HIGH];
    Arc::new(GuestRam::from_ranges(&ranges).expect("the host has memory for a test guest"))
}

/// A worker's devices, run on the caller's thread.
#[derive(Debug)]
pub struct Bench {
    builder: WorkerBuilder,
    shared: Arc<WorkerShared>,
    mem: Arc<GuestRam>,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new(test_ram())
    }
}

impl Bench {
    /// Returns a bench without devices.
    ///
    /// # Panics
    ///
    /// When the host has no descriptors.
    pub fn new(mem: Arc<GuestRam>) -> Self {
        let builder = Worker::builder("bench", mem.clone()).expect("the host has descriptors");
        let shared = builder.shared();
        shared.set_gate(false);
        Self {
            builder,
            shared,
            mem,
        }
    }

    /// The window of device `index`.
    ///
    /// # Panics
    ///
    /// When there is no such device.
    pub fn transport(&self, index: usize) -> Arc<MmioTransport> {
        Arc::new(self.shared.transport(index))
    }

    /// Guest RAM.
    pub fn mem(&self) -> &Arc<GuestRam> {
        &self.mem
    }

    /// Adds a device and returns a driver for it, which has done nothing yet.
    ///
    /// # Panics
    ///
    /// When the device cannot be attached.
    pub fn add(&mut self, device: impl VirtioDevice + 'static) -> Driver {
        let line = Arc::new(TestLine::default());
        let transport = self
            .builder
            .add(Box::new(device), line.clone())
            .expect("attach");
        Driver::new(self.mem.clone(), transport, line)
    }

    /// Adds a device in a saved state, with a driver that goes on where `driver` stands.
    pub fn add_restored(
        &mut self,
        device: impl VirtioDevice + 'static,
        saved: &SavedTransport,
        driver: &Driver,
    ) -> Result<Driver, RestoreError> {
        let line = Arc::new(TestLine::default());
        let transport = self
            .builder
            .add_restored(Box::new(device), line.clone(), saved)?;
        Ok(driver.carry_over(self.mem.clone(), transport, line))
    }

    /// Shuts or opens the gate.
    pub fn set_gate(&self, shut: bool) {
        self.shared.set_gate(shut);
    }

    /// Lets the devices work until none has anything to do.
    pub fn run(&self) {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        for _ in 0..TURNS_MAX {
            let (events, more) = self.shared.step(Some(&now));
            if events == 0 && !more && !self.shared.has_pending() {
                return;
            }
        }
    }

    /// Locks the devices.
    pub fn lock(&self) -> WorkerGuard<'_> {
        self.shared.guard()
    }

    /// Returns another guest's RAM with the same content.
    ///
    /// # Panics
    ///
    /// When the host has no memory.
    pub fn copy_ram(&self) -> Arc<GuestRam> {
        let copy = test_ram();
        for region in self.mem.iter() {
            let len = usize::try_from(region.len()).expect("test RAM is small");
            let mut bytes = vec![0; len];
            self.mem
                .read_slice(&mut bytes, region.start_addr())
                .expect("inside RAM");
            copy.write_slice(&bytes, region.start_addr())
                .expect("inside RAM");
        }
        std::sync::atomic::fence(Ordering::SeqCst);
        copy
    }
}
