//! The seam between the transport with its worker and one kind of device.

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;

use crate::config_space::ConfigSpace;
use crate::gate::Gate;
use crate::interrupt::Interrupt;
use crate::queue::{Broken, Chain, GuestRam, VirtQueue};
use crate::saved::{RestoreError, SavedDevice};

/// Kind of device, with the numbers of virtio 1.2 §5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Network interface.
    Net,
    /// Block device.
    Block,
    /// Entropy source.
    Rng,
    /// Memory balloon.
    Balloon,
    /// Socket device.
    Vsock,
}

impl DeviceKind {
    /// The device ID register's value.
    pub fn id(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Rng => 4,
            Self::Balloon => 5,
            Self::Vsock => 19,
        }
    }
}

/// Whether a device has work left that no event will announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything possible is done; the next kick or host event brings more.
    Idle,
    /// The budget of this turn is used up: call again after the other devices.
    More,
}

/// What a host descriptor became ready for. Edges, not levels: remember them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// Data, a connection or an end of file can be read.
    pub readable: bool,
    /// A write that could not go on may.
    pub writable: bool,
    /// The other side is gone for both directions, or the descriptor failed.
    pub hangup: bool,
}

/// A device behind [`crate::MmioTransport`]. All calls happen under the worker's mutex.
pub trait VirtioDevice: Send + Debug {
    /// Returns the kind of device.
    fn kind(&self) -> DeviceKind;

    /// Returns the largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Returns the device-specific feature bits on offer; the transport adds its own.
    fn features(&self) -> u64;

    /// Returns the configuration space, shared with the transport.
    fn config(&self) -> Arc<ConfigSpace>;

    /// Hands over the poller, once, before the worker runs; the device adds its descriptors.
    fn attach(&mut self, poller: Poller) -> io::Result<()> {
        drop(poller);
        Ok(())
    }

    /// Notes that a descriptor became ready. Touches neither guest memory nor queues, because it
    /// is also called while the gate is shut.
    fn note_ready(&mut self, token: u32, readiness: Readiness) {
        let _ = (token, readiness);
    }

    /// Does what can be done, in bounded time. `kicked` has a bit for each queue that the driver
    /// notified; a set bit may also be a guess.
    fn process(&mut self, kicked: u64, io: &mut DeviceIo<'_>) -> Result<Progress, Broken>;

    /// Forgets everything about the driver's session.
    fn reset(&mut self);

    /// Completes what the device holds of the guest's data outside of guest memory: after it the
    /// back end's files have everything that the guest was told is written.
    fn quiesce(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Returns the device's own state; queues and registers are saved by the transport.
    fn save(&self) -> SavedDevice;

    /// Takes over a saved state, which is not trusted. `active` tells whether the driver runs.
    fn restore(&mut self, saved: &SavedDevice, active: bool) -> Result<(), RestoreError>;

    /// For access to the concrete type.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// Puts a device's descriptors under the worker's epoll instance, edge-triggered.
#[derive(Clone, Debug)]
pub struct Poller {
    epoll: Arc<OwnedFd>,
    slot: u32,
}

impl Poller {
    pub(crate) fn new(epoll: Arc<OwnedFd>, slot: u32) -> Self {
        Self { epoll, slot }
    }

    /// Watches `fd` for reading, writing and hang-up; events come with `token`.
    pub fn add(&self, fd: impl AsFd, token: u32) -> io::Result<()> {
        let data = epoll::EventData::new_u64(u64::from(self.slot) << 32 | u64::from(token));
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, data, flags)?)
    }

    /// Stops watching `fd`.
    pub fn remove(&self, fd: impl AsFd) {
        // Fails only when the descriptor was never added, and then nothing is left to undo.
        let _ = epoll::delete(&self.epoll, fd);
    }
}

/// What a device works with during one [`VirtioDevice::process`].
#[derive(Debug)]
pub struct DeviceIo<'a> {
    pub(crate) mem: &'a GuestRam,
    pub(crate) queues: &'a mut [VirtQueue],
    pub(crate) interrupt: &'a Interrupt,
    pub(crate) gate: &'a Gate,
    pub(crate) features: u64,
}

impl<'a> DeviceIo<'a> {
    /// Guest memory.
    pub fn mem(&self) -> &'a GuestRam {
        self.mem
    }

    /// Says whether the driver accepted feature bit `bit`.
    pub fn has_feature(&self, bit: u32) -> bool {
        self.features & (1_u64 << bit) != 0
    }

    /// Says whether the driver set up queue `queue`.
    pub fn queue_ready(&self, queue: usize) -> bool {
        self.queues.get(queue).is_some_and(VirtQueue::ready)
    }

    /// Says whether no new descriptor may be taken: the gate is shut, or someone wants the devices.
    pub fn gated(&self) -> bool {
        self.gate.is_shut()
    }

    /// Takes the next chain of `queue`; `Ok(false)` when there is none or the gate is shut.
    pub fn pop(
        &mut self,
        queue: usize,
        chain: &mut Chain,
        max_segments: usize,
    ) -> Result<bool, Broken> {
        if self.gated() {
            return Ok(false);
        }
        self.queues[queue].pop(self.mem, chain, max_segments)
    }

    /// Puts back the chain of `queue` that was taken last and not completed.
    pub fn unpop(&mut self, queue: usize) {
        self.queues[queue].unpop();
    }

    /// Returns how many chains of `queue` wait, and has the driver notify about the next one that
    /// it adds, which is otherwise asked for only when none waits.
    pub fn watch(&mut self, queue: usize) -> Result<u16, Broken> {
        self.queues[queue].watch(self.mem)
    }

    /// Gives a chain back to the driver, with `written` bytes of its writable part filled.
    pub fn complete(&mut self, queue: usize, head: u16, written: u32) -> Result<(), Broken> {
        self.queues[queue].push_used(self.mem, head, written)
    }

    /// Tells the driver that the configuration changed.
    pub fn signal_config(&mut self) {
        self.interrupt.signal_config();
    }

    /// Interrupts the driver if it wants to hear of what was completed. Called by the worker after
    /// `process`; a device with slow requests calls it after each.
    pub fn signal_used(&mut self) -> Result<(), Broken> {
        let mut wanted = false;
        for queue in self.queues.iter_mut() {
            wanted |= queue.take_interrupt_wish(self.mem)?;
        }
        if wanted {
            self.interrupt.signal_queue();
        }
        Ok(())
    }
}
