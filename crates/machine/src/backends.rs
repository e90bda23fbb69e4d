//! What the host provides to one VM, as open files.

use std::fmt;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use disk_layers::LayerFile;

/// Back end of one disk.
#[derive(Debug)]
pub struct DiskFiles {
    /// The writable top; opened read-only for a read-only disk.
    pub top: LayerFile,
    /// What lies below it, nearest first.
    pub below: Vec<LayerFile>,
}

/// Takes the output of a serial port; see [`chipset::Serial::set_output`].
pub struct SerialSink(pub Box<dyn Write + Send>);

impl fmt::Debug for SerialSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SerialSink")
    }
}

/// Everything that devices need of the host.
#[derive(Debug)]
pub struct Backends {
    /// `/dev/kvm`, for the KVM engine.
    pub kvm: Option<OwnedFd>,
    /// One for each disk of the description; none for an empty slot.
    pub disks: Vec<Option<DiskFiles>>,
    /// One for each NIC of the description; none where nothing is plugged in.
    pub taps: Vec<Option<OwnedFd>>,
    /// One for each serial port, COM1 first; ports without one discard their output.
    pub serial: Vec<SerialSink>,
    /// Host side of the guest's vsock ports.
    pub vsock: UnixListener,
}
