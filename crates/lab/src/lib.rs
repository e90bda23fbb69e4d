//! The lab: a small Debian machine under QEMU's software CPU that has a real `/dev/kvm`.
//!
//! QEMU emulates AMD's SVM with nested paging, so a stock Debian kernel with `kvm-amd` runs real
//! virtual machines in it on any host, without hardware virtualization. The whole system is run in
//! it for function; its timings mean nothing.
//!
//! - [`Lab::ensure`] builds (once) or opens the cached root disk, kernel and initramfs.
//! - [`Lab::run`] boots it, runs one command with files copied in and out, and returns the
//!   command's exit code. Runs never change the cached files and may run in parallel.
//! - [`probe_kvm`] says whether the machine it runs on has a KVM worth using.

mod build;
mod cpio;
mod error;
mod kernel;
mod probe;
mod qemu;
mod recipe;
mod run;
mod run_dir;
mod shell;
mod spec;
mod tools;
mod transfer;

pub use build::Lab;
pub use error::{BuildError, RunError, SpecError};
pub use probe::{KvmProbe, probe_kvm};
pub use recipe::{DEFAULT_SUITE, Recipe, default_directory};
pub use run::{Outcome, Timings};
pub use spec::{CopyIn, CopyOut, Output, RunSpec, parse_size};
