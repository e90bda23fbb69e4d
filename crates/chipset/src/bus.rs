//! The seam between guest accesses and devices: address ranges, the device trait and
//! interrupt lines. It knows no engine and no device.

use std::fmt::Debug;
use std::sync::Arc;

/// A part that answers guest accesses in a range of port or memory addresses.
///
/// Methods take `&self`: several vCPUs may call at once, and each device decides what it locks.
/// `offset` counts from the start of the range the device was inserted at. `data` is 1, 2, 4 or
/// 8 bytes for well-behaved guests, and any length from 1 to 8 for hostile ones.
pub trait BusDevice: Send + Sync + Debug {
    /// Fills `data` with what the guest reads at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest wrote at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// One interrupt input of the interrupt controller.
pub trait InterruptLine: Send + Sync + Debug {
    /// Raises one edge: the line goes up and down again.
    fn trigger(&self);
}

/// A message-signalled interrupt as the local APICs take it (SDM 3A 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address register: destination and its mode.
    pub address: u64,
    /// Data register: vector, delivery mode, trigger mode.
    pub data: u32,
}

/// Whoever delivers message-signalled interrupts to local APICs (the engine).
pub trait MsiSink: Send + Sync + Debug {
    /// Delivers `message`; a message that no local APIC takes is dropped.
    fn signal_msi(&self, message: MsiMessage);
}

/// Two ranges of a [`Bus`] overlap, or a range is empty or wraps.
#[derive(Debug, thiserror::Error)]
#[error("address range {base:#x}+{len:#x} is empty, wraps or overlaps another device")]
pub struct RangeTaken {
    /// Start of the refused range.
    pub base: u64,
    /// Length of the refused range, bytes.
    pub len: u64,
}

/// Routes accesses by address. Ports and memory use one `Bus` each.
#[derive(Debug, Default, Clone)]
pub struct Bus {
    ranges: Vec<(u64, u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Returns a bus with no device.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base..base + len`.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), RangeTaken> {
        let end = base
            .checked_add(len)
            .filter(|_| len > 0)
            .ok_or(RangeTaken { base, len })?;
        if self.ranges.iter().any(|(b, l, _)| base < b + l && *b < end) {
            return Err(RangeTaken { base, len });
        }
        let at = self.ranges.partition_point(|(b, _, _)| *b < base);
        self.ranges.insert(at, (base, len, device));
        Ok(())
    }

    fn find(&self, address: u64) -> Option<(u64, &dyn BusDevice)> {
        let at = self
            .ranges
            .partition_point(|(base, _, _)| *base <= address)
            .checked_sub(1)?;
        let (base, len, device) = &self.ranges[at];
        (address - base < *len).then(|| (address - base, device.as_ref()))
    }

    /// Reads at `address`; where no device answers the guest sees all ones, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes at `address`; where no device answers the write is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            device.write(offset, data);
        }
    }
}
