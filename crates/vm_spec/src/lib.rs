//! The validated description of one virtual machine, shared by the daemon and the VM process.
//!
//! It holds what the guest can see (processors, memory, slots of devices), never how the host
//! provides it: files and sockets travel beside it as descriptors.

#![forbid(unsafe_code)]

mod mac;
mod size;

use serde::{Deserialize, Serialize};

pub use mac::{MacAddr, ParseMacError};
pub use size::{ParseSizeError, format_exact, format_size, parse_size};

/// Most vCPUs of one VM.
pub const MAX_CPUS: u8 = 8;
/// Least guest memory, bytes.
pub const MIN_MEMORY_BYTES: u64 = 16 << 20;
/// Most guest memory, bytes; hosts usually have less, which the daemon checks.
pub const MAX_MEMORY_BYTES: u64 = 512 << 30;
/// Guest memory is a multiple of this, bytes.
pub const MEMORY_GRANULE_BYTES: u64 = 1 << 20;
/// Most virtio devices of one VM.
pub const MAX_VIRTIO_DEVICES: usize = 14;
/// Most serial ports of one VM.
pub const MAX_SERIAL_PORTS: u8 = 4;
/// Longest kernel command line, bytes.
pub const MAX_CMDLINE_BYTES: usize = 2048;

/// Which engine executes the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The best that a probe finds usable.
    #[default]
    Auto,
    /// Linux KVM.
    Kvm,
    /// The software CPU.
    Soft,
}

/// One block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// What the guest reads as the device's serial number; at most 20 bytes.
    pub serial: String,
    /// The guest cannot write.
    pub read_only: bool,
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// Hardware address in the device's configuration.
    pub mac: MacAddr,
    /// A clone keeps the source's address and link instead of starting with the link down.
    #[serde(default)]
    pub keep_mac: bool,
}

/// The machine as its guest sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Number of vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Guest RAM, bytes, a multiple of [`MEMORY_GRANULE_BYTES`].
    pub memory_bytes: u64,
    /// Kernel command line (Linux) or parameter text (other ELF).
    pub cmdline: String,
    /// Entry address that overrides the kernel file's own.
    #[serde(default)]
    pub entry: Option<u64>,
    /// Block devices in slot order.
    pub disks: Vec<DiskSpec>,
    /// Network interfaces in slot order.
    pub nics: Vec<NicSpec>,
    /// Number of serial ports, 1 to [`MAX_SERIAL_PORTS`]: COM1 and those after it.
    #[serde(default = "one")]
    pub serial_ports: u8,
}

fn one() -> u8 {
    1
}

/// A field of a [`VmSpec`] is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// `cpus` is not 1 to [`MAX_CPUS`].
    #[error("cpus: {0} is not between 1 and {MAX_CPUS}")]
    Cpus(u32),
    /// `memory` is out of range or not a multiple of the granule.
    #[error("memory: {0} bytes is not a multiple of 1 MiB between 16 MiB and 512 GiB")]
    Memory(u64),
    /// `cmdline` is longer than [`MAX_CMDLINE_BYTES`] or has a NUL.
    #[error("cmdline: at most {MAX_CMDLINE_BYTES} bytes without NUL, got {0} bytes")]
    Cmdline(usize),
    /// More devices than slots.
    #[error(
        "devices: at most {MAX_VIRTIO_DEVICES} virtio devices, got {0}; use fewer disks, \
         spare disk slots or NICs"
    )]
    Devices(usize),
    /// A disk's serial is too long or not printable ASCII.
    #[error("serial: a VM has 1 to {MAX_SERIAL_PORTS} serial ports, got {0}")]
    SerialPorts(u8),
    /// Serial number of a disk.
    #[error("disk serial: at most 20 printable ASCII bytes, got {0:?}")]
    DiskSerial(String),
}

/// Virtio devices that every VM has beside disks and NICs: vsock, entropy, balloon.
pub const FIXED_VIRTIO_DEVICES: usize = 3;

impl VmSpec {
    /// Checks every field against its range.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(SpecError::Cpus(self.cpus.into()));
        }
        if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&self.memory_bytes)
            || !self.memory_bytes.is_multiple_of(MEMORY_GRANULE_BYTES)
        {
            return Err(SpecError::Memory(self.memory_bytes));
        }
        if self.cmdline.len() > MAX_CMDLINE_BYTES || self.cmdline.contains('\0') {
            return Err(SpecError::Cmdline(self.cmdline.len()));
        }
        let devices = self.disks.len() + self.nics.len() + FIXED_VIRTIO_DEVICES;
        if devices > MAX_VIRTIO_DEVICES {
            return Err(SpecError::Devices(devices));
        }
        if !(1..=MAX_SERIAL_PORTS).contains(&self.serial_ports) {
            return Err(SpecError::SerialPorts(self.serial_ports));
        }
        for disk in &self.disks {
            let printable = disk.serial.bytes().all(|b| b.is_ascii_graphic());
            if disk.serial.len() > 20 || !printable {
                return Err(SpecError::DiskSerial(disk.serial.clone()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
