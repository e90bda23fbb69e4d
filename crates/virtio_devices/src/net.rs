//! virtio-net (virtio 1.2 §5.1) over a TAP device that was opened and set up outside.
//!
//! The TAP carries the 12-byte virtio header (`IFF_VNET_HDR`, header size 12). Nothing is offered
//! for receiving that would need the TAP's offloads to match the driver's choice.
//!
//! A clone has its source's address in the driver's memory until someone inside sets the new one:
//! after [`Net::adopt`] the link is down and frames from any other address are dropped.

mod device;
mod regs;
mod saved;
#[cfg(test)]
mod tests;

pub use device::{Net, NetConfig, NetCounters};
pub use saved::SavedNet;
