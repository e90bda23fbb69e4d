//! virtio-vsock (virtio 1.2 §5.10) in user space: stream sockets between the guest and the host.
//!
//! The guest always has CID 3. A host program connects to the VM's unix socket, says
//! `CONNECT <port>\n`, is answered `OK <host port>\n` and then talks to the guest's port; a
//! refusal closes the connection. The guest reaches only the service ports of the configuration,
//! which are answered inside the VM process.
//!
//! Connections do not survive a restore: they belong to the process that had them. A restored
//! device tells the driver so by a transport reset event and holds back everything else until the
//! driver has dealt with it, because the driver's reset would also hit connections made meanwhile.

mod conn;
mod device;
mod greeting;
mod packet;
mod regs;
mod saved;
mod table;
#[cfg(test)]
mod tests;

pub use device::{GuestConnectSink, Vsock, VsockConfig};
pub use regs::{GUEST_CID, HOST_CID};
pub use saved::SavedVsock;
