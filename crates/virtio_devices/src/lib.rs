//! virtio devices (virtio 1.2): the MMIO transport, the worker thread that runs devices, and
//! block, network, socket, entropy and balloon devices.
//!
//! A [`WorkerBuilder`] collects devices, new or restored, and gives a [`MmioTransport`] for each,
//! which goes on the memory bus. The [`Worker`] runs them on one thread; its module doc tells how
//! to quiesce, save and fork. Devices get their descriptors, memory and interrupt lines handed in
//! and look up nothing.
//!
//! The guest is hostile: chains are checked before a device sees them, sizes are bounded, and a
//! driver that breaks the rules gets a device that needs a reset.

#![forbid(unsafe_code)]

mod balloon;
mod block;
mod config_space;
mod device;
mod gate;
mod interrupt;
mod net;
mod queue;
mod rng;
mod saved;
mod slot;
pub mod testing;
mod transport;
mod vsock;
mod worker;

pub use balloon::{Balloon, ReclaimRam};
pub use block::{
    Block, BlockBackend, BlockConfig, BlockCounters, BlockEvent, BlockEventSink, BlockOp,
    InsertError, MemoryBackend,
};
pub use config_space::ConfigSpace;
pub use device::{DeviceIo, DeviceKind, Poller, Progress, Readiness, VirtioDevice};
pub use interrupt::Interrupt;
pub use net::{Net, NetConfig, NetCounters};
pub use queue::{Broken, Chain, GuestRam, Segment};
pub use rng::Rng;
pub use saved::{
    RestoreError, SavedBalloon, SavedBlock, SavedDevice, SavedNet, SavedQueue, SavedRng,
    SavedTransport, SavedVsock,
};
pub use transport::{MMIO_WINDOW_BYTES, MmioTransport, regs};
pub use vsock::{GUEST_CID, GuestConnectSink, HOST_CID, Vsock, VsockConfig};
pub use worker::{WaitingThread, Worker, WorkerBuilder, WorkerGuard};
