//! A virtio driver in host code, to test devices with, and entry points for fuzz targets.
//!
//! A [`Bench`] runs devices on the caller's thread, step by step, so that tests are deterministic;
//! with a real [`crate::Worker`] the same [`Driver`] works too.

mod bench;
mod driver;
mod fuzz;
#[cfg(test)]
mod tests;

pub use bench::{Bench, test_ram};
pub use driver::{Driver, Piece, TestLine, Used};
pub use fuzz::{HostileRegisters, fuzz_register_writes, fuzz_restore, fuzz_rings};

/// Returns a configuration of `count` cases, or of as many as `PROPTEST_CASES` says.
#[cfg(test)]
pub(crate) fn cases(count: u32) -> proptest::prelude::ProptestConfig {
    let mut config = proptest::prelude::ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = count;
    }
    config
}
