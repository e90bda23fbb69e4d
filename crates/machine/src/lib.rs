//! One virtual machine in one process: assembly from parts, run loop, fork, restore.
//!
//! It is the only crate that names engines. It opens nothing: files and sockets come as
//! [`Backends`]. It does not speak to the daemon either; the program `mitose-vmm` does.
//!
//! **Lock order**: disk workers by index, then the shared worker, then guest RAM. Nobody waits for
//! a vCPU while holding a lock that a vCPU can want: devices' registers have small locks of their
//! own.

#![deny(unsafe_code)]

mod backends;
mod checkpoint;
mod clock;
mod disks;
mod durability;
mod error;
mod flatten;
mod fork;
mod machine;
mod platform;
mod prepared;
mod vcpus;

pub use backends::{Backends, DiskFiles, SerialSink};
pub use checkpoint::{CHECKPOINT_BYTES_MAX, Checkpoint, CheckpointError};
pub use clock::monotonic_ns;
pub use disks::DiskChangeError;
pub use error::{BuildError, ForkCause, ForkError};
pub use flatten::{FlattenError, Flattened};
pub use fork::{ForkOutcome, ForkPlan, ForkReport, Held};
pub use machine::{BootFiles, CloneOrigin, Machine, MachineEvent, OnEvent};
pub use platform::{AGENT_PORT, PlatformEvent, SavedPlatform};
pub use prepared::Prepared;
