//! Fresh randomness: without it, siblings would draw the same "random" numbers.

use std::fs::OpenOptions;

use anyhow::{Context, Result};

use crate::linux;

/// Mixes bytes from the host into the kernel's generator and reseeds it at once.
pub(super) fn mix_in(bytes: &[u8]) -> Result<()> {
    let random = OpenOptions::new()
        .write(true)
        .open("/dev/urandom")
        .context("cannot open /dev/urandom")?;
    linux::add_entropy(&random, bytes).context("cannot reseed the kernel's random generator")
}
