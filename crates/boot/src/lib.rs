//! Direct kernel boot: puts a kernel, its command line, its initial RAM disk and the ACPI tables
//! into guest RAM and says with which registers the boot CPU starts.
//!
//! It knows no engine and opens no file. Kernel files, initial RAM disks and command lines are
//! untrusted input: each bad one is an error that names the field and the remedy.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod layout;
mod state;

pub use state::{BootState, DescriptorTable, EntryMode, InitialRegisters, Segment};
