//! Direct kernel boot: puts a kernel, its command line, its initial RAM disk, ACPI and
//! SMBIOS tables into guest RAM and says with which registers the boot CPU starts.
//!
//! It knows no engine and opens no file. Kernel files, initial RAM disks and command lines are
//! untrusted input: each bad one is an error that names the field and the remedy.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod acpi;
mod bzimage;
mod cpu;
mod elf;
mod kernel;
pub mod layout;
mod linux;
mod load;
mod memory_map;
mod payload;
mod pvh;
mod smbios;
mod state;

pub use kernel::{KERNEL_BYTES_MAX, Kernel, KernelError, KernelKind};
pub use load::{BootError, BootRequest, Initrd, Platform, load};
pub use payload::PayloadError;
pub use smbios::{MachineFacts, adopt_uuid};
pub use state::{BootState, DescriptorTable, EntryMode, InitialRegisters, Segment};

/// Returns the vmlinux (an ELF file) that a bzImage carries compressed; an ELF file is returned
/// as it is.
pub fn extract_vmlinux(file: &[u8]) -> Result<Vec<u8>, KernelError> {
    if elf::is_elf(file) {
        return Ok(file.to_vec());
    }
    if !bzimage::is_bzimage(file) {
        return Err(KernelError::UnknownFormat);
    }
    bzimage::BzImage::parse(file)?.extract(file)
}
