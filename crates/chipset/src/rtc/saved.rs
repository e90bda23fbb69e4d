//! The real-time clock's saved state and its validation.

use serde::{Deserialize, Serialize};

use super::calendar::Fields;
use super::{A_BITS, B_24_HOURS, B_SET, RAM_BYTES, Registers};
use crate::RestoreError;

/// Registers of a real-time clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRtc {
    /// Selected register.
    pub index: u8,
    /// Register A.
    pub a: u8,
    /// Register B.
    pub b: u8,
    /// Guest time minus host time, seconds.
    pub offset_seconds: i64,
    /// Time registers while the guest sets them: second, minute, hour, weekday, day, month,
    /// year, century; BCD.
    pub staged: Option<[u8; 8]>,
    /// CMOS RAM, 128 bytes; those of clock registers are unused.
    pub ram: Vec<u8>,
}

impl From<&Registers> for SavedRtc {
    fn from(registers: &Registers) -> Self {
        Self {
            index: registers.index,
            a: registers.a,
            b: registers.b,
            offset_seconds: registers.offset_seconds,
            staged: registers.staged.map(|fields| fields.0),
            ram: registers.ram.to_vec(),
        }
    }
}

impl TryFrom<&SavedRtc> for Registers {
    type Error = RestoreError;

    fn try_from(saved: &SavedRtc) -> Result<Self, RestoreError> {
        let refuse = |field, value| RestoreError {
            device: "real-time clock",
            field,
            value,
        };
        if usize::from(saved.index) >= RAM_BYTES {
            return Err(refuse("index", saved.index.into()));
        }
        if saved.a & !A_BITS != 0 {
            return Err(refuse("a", saved.a.into()));
        }
        let set = saved.b == B_SET | B_24_HOURS;
        if !set && saved.b != B_24_HOURS || set != saved.staged.is_some() {
            return Err(refuse("b", saved.b.into()));
        }
        let ram = <[u8; RAM_BYTES]>::try_from(saved.ram.as_slice())
            .map_err(|_| refuse("ram", saved.ram.len() as u64))?;
        Ok(Self {
            index: saved.index,
            a: saved.a,
            b: saved.b,
            offset_seconds: saved.offset_seconds,
            staged: saved.staged.map(Fields),
            ram,
        })
    }
}
