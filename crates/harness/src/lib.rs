//! What whole-system tests share: driving VM processes without a daemon, finding programs.

#![forbid(unsafe_code)]

mod cli;
pub mod guest_log;
mod programs;
mod vmm;

/// Says whether the long versions of tests are asked for (`MITOSE_TEST_FULL=1`).
pub fn full() -> bool {
    std::env::var("MITOSE_TEST_FULL").is_ok_and(|value| value == "1")
}

pub use cli::Cli;
pub use programs::program;
pub use vmm::{
    Clone, Disk, ForkOptions, InstantFiles, SpawnOptions, StartOptions, VmProcess, kvm_present,
    memory_file,
};
