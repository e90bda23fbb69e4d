//! What whole-system tests share: driving VM processes without a daemon, finding programs.

#![forbid(unsafe_code)]

mod cli;
mod programs;
mod vmm;

pub use cli::Cli;
pub use programs::program;
pub use vmm::{Clone, Disk, ForkOptions, SpawnOptions, VmProcess, kvm_present, memory_file};
