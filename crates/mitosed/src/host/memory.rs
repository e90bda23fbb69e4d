//! The host's memory, and whether a call leaves enough of it.

use std::fs::File;
use std::io::Read;

use anyhow::Context;
use vm_spec::format_size;

use super::Host;
use crate::error::{OpError, OpResult};

/// What a clone takes before its guest writes: pages, page tables and kernel objects, bytes.
pub(super) const CLONE_COST_BYTES: u64 = 4 << 20;

/// More than `/proc/meminfo` has, bytes.
const MEMINFO_BYTES: usize = 8 << 10;

/// Figures of `/proc/meminfo`, bytes.
#[derive(Clone, Copy, Debug)]
pub struct HostMemory {
    /// All of it.
    pub total_bytes: u64,
    /// What can be had without swapping.
    pub available_bytes: u64,
}

/// Reads the host's memory.
pub fn host_memory() -> anyhow::Result<HostMemory> {
    // Read at once, not in pieces that grow.
    let mut text = String::with_capacity(MEMINFO_BYTES);
    File::open("/proc/meminfo")
        .and_then(|mut file| file.read_to_string(&mut text))
        .context("cannot read /proc/meminfo")?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB"))
            .and_then(|value| value.trim().parse::<u64>().ok())
            .map(|kib| kib << 10)
            .with_context(|| format!("/proc/meminfo has no {name}"))
    };
    Ok(HostMemory {
        total_bytes: field("MemTotal:")?,
        available_bytes: field("MemAvailable:")?,
    })
}

impl Host {
    /// Refuses a call that takes `needed_bytes` when that would leave less than the reserve.
    pub(super) fn check_memory(&self, what: &str, needed_bytes: u64) -> OpResult<()> {
        let memory = host_memory()?;
        let reserve = self.config.memory_reserve_bytes;
        if needed_bytes > memory.total_bytes {
            return Err(OpError::invalid(format!(
                "memory: {what} needs {}, the host has {}; give less with --memory",
                format_size(needed_bytes),
                format_size(memory.total_bytes)
            )));
        }
        if needed_bytes.saturating_add(reserve) > memory.available_bytes {
            return Err(OpError::unavailable(format!(
                "memory: {what} needs {}, the host has {} available and keeps {} in reserve; \
                 stop other VMs or give less",
                format_size(needed_bytes),
                format_size(memory.available_bytes),
                format_size(reserve)
            )));
        }
        Ok(())
    }
}
