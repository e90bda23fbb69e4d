//! The real-time clock with its CMOS RAM (MC146818) at ports 0x70 and 0x71. It shows the host's
//! UTC time plus an offset that the guest sets by writing the time; it has no interrupt, counts
//! in BCD and 24 hours, and never says that an update is in progress.

mod calendar;
mod saved;
#[cfg(test)]
mod tests;

use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::lock::lock;
use crate::{BusDevice, RestoreError};
use calendar::{Fields, TIME_REGISTERS};

pub use saved::SavedRtc;

const INDEX_OFFSET: u64 = 0;
const DATA_OFFSET: u64 = 1;
/// Bytes of CMOS RAM, clock registers included.
pub(crate) const RAM_BYTES: usize = 128;

const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// 32.768 kHz time base, 1024 Hz rate.
const A_RESET: u8 = 0x26;
const A_BITS: u8 = 0x7f;
const B_SET: u8 = 1 << 7;
const B_24_HOURS: u8 = 1 << 1;
const D_VALID: u8 = 1 << 7;

/// Tells host time, seconds since 1970-01-01 UTC.
type HostClock = fn() -> i64;

/// The real-time clock.
#[derive(Debug)]
pub struct Rtc {
    registers: Mutex<Registers>,
    host_clock: HostClock,
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl Rtc {
    /// Returns a clock that shows the host's time.
    pub fn new() -> Self {
        Self::with_clock(host_seconds, Registers::new())
    }

    /// Returns a clock that goes on from `saved`: the guest's offset to the host's time is kept,
    /// so the clock of a clone is right however old its state is.
    pub fn restore(saved: &SavedRtc) -> Result<Self, RestoreError> {
        Ok(Self::with_clock(host_seconds, saved.try_into()?))
    }

    /// Returns all registers and the offset.
    pub fn save(&self) -> SavedRtc {
        (&*lock(&self.registers)).into()
    }

    fn with_clock(host_clock: HostClock, registers: Registers) -> Self {
        Self {
            registers: Mutex::new(registers),
            host_clock,
        }
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (DATA_OFFSET, Some(first)) = (offset, data.first_mut()) {
            *first = lock(&self.registers).read((self.host_clock)());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let mut registers = lock(&self.registers);
        match offset {
            // Bit 7 of the index is the NMI mask of old PCs.
            INDEX_OFFSET => registers.index = value & 0x7f,
            DATA_OFFSET => registers.write(value, (self.host_clock)()),
            _ => {}
        }
    }
}

fn host_seconds() -> i64 {
    let seconds = |elapsed: std::time::Duration| i64::try_from(elapsed.as_secs()).unwrap_or(0);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(elapsed) => seconds(elapsed),
        Err(before) => -seconds(before.duration()),
    }
}

#[derive(Debug)]
struct Registers {
    index: u8,
    a: u8,
    b: u8,
    /// Guest time minus host time, seconds.
    offset_seconds: i64,
    /// Time registers while the guest sets them (register B, SET).
    staged: Option<Fields>,
    ram: [u8; RAM_BYTES],
}

impl Registers {
    fn new() -> Self {
        Self {
            index: 0,
            a: A_RESET,
            b: B_24_HOURS,
            offset_seconds: 0,
            staged: None,
            ram: [0; RAM_BYTES],
        }
    }

    fn fields(&self, host_seconds: i64) -> Fields {
        self.staged.unwrap_or_else(|| {
            Fields::from_seconds(host_seconds.saturating_add(self.offset_seconds))
        })
    }

    fn read(&self, host_seconds: i64) -> u8 {
        if let Some(field) = time_field(self.index) {
            return self.fields(host_seconds).0[field];
        }
        match self.index {
            REGISTER_A => self.a,
            REGISTER_B => self.b,
            REGISTER_C => 0,
            REGISTER_D => D_VALID,
            index => self.ram[usize::from(index)],
        }
    }

    fn write(&mut self, value: u8, host_seconds: i64) {
        if let Some(field) = time_field(self.index) {
            let mut fields = self.fields(host_seconds);
            fields.0[field] = value;
            if self.staged.is_some() {
                self.staged = Some(fields);
            } else {
                self.set_time(fields, host_seconds);
            }
            return;
        }
        match self.index {
            REGISTER_A => self.a = value & A_BITS,
            REGISTER_B => self.write_b(value, host_seconds),
            REGISTER_C | REGISTER_D => {}
            index => self.ram[usize::from(index)] = value,
        }
    }

    fn write_b(&mut self, value: u8, host_seconds: i64) {
        self.b = value & B_SET | B_24_HOURS;
        if value & B_SET != 0 {
            self.staged = Some(self.fields(host_seconds));
        } else if let Some(fields) = self.staged.take() {
            self.set_time(fields, host_seconds);
        }
    }

    /// Takes the time the guest wrote; a time that no calendar has is ignored.
    fn set_time(&mut self, fields: Fields, host_seconds: i64) {
        if let Some(seconds) = fields.to_seconds() {
            self.offset_seconds = seconds.saturating_sub(host_seconds);
        }
    }
}

/// Returns which time field register `index` shows.
fn time_field(index: u8) -> Option<usize> {
    TIME_REGISTERS
        .iter()
        .position(|register| *register == index)
}
