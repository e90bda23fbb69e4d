//! The entropy device.

use std::any::Any;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};

use crate::config_space::ConfigSpace;
use crate::device::{DeviceIo, DeviceKind, Progress, VirtioDevice};
use crate::queue::{Broken, Chain};
use crate::saved::{RestoreError, SavedDevice};

use super::saved::SavedRng;

const QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 64;
const MAX_SEGMENTS: usize = 64;
/// Most bytes given for one request; a driver that wants more asks again.
const REQUEST_BYTES_MAX: usize = 4096;
const REQUESTS_PER_TURN: usize = 16;

/// An entropy source fed by the host's random number generator.
#[derive(Debug)]
pub struct Rng {
    config: Arc<ConfigSpace>,
    chain: Chain,
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl Rng {
    /// Returns a device.
    pub fn new() -> Self {
        Self {
            config: Arc::new(ConfigSpace::new(Vec::new(), 0..0)),
            chain: Chain::default(),
        }
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.config.clone()
    }

    fn process(&mut self, _kicked: u64, io: &mut DeviceIo<'_>) -> Result<Progress, Broken> {
        let mut bytes = [0; REQUEST_BYTES_MAX];
        for _ in 0..REQUESTS_PER_TURN {
            if !io.pop(QUEUE, &mut self.chain, MAX_SEGMENTS)? {
                return Ok(Progress::Idle);
            }
            let room = usize::try_from(self.chain.writable_len()).unwrap_or(usize::MAX);
            let wanted = room.min(REQUEST_BYTES_MAX);
            // Fails only when interrupted, and then the driver asks again.
            let len = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or(0);
            self.chain.write(io.mem(), 0, &bytes[..len])?;
            io.complete(QUEUE, self.chain.head(), u32::try_from(len).unwrap_or(0))?;
        }
        Ok(Progress::More)
    }

    fn reset(&mut self) {}

    fn save(&self) -> SavedDevice {
        SavedDevice::Rng(SavedRng {})
    }

    fn restore(&mut self, saved: &SavedDevice, _active: bool) -> Result<(), RestoreError> {
        match saved {
            SavedDevice::Rng(SavedRng {}) => Ok(()),
            _ => {
                let device_id = self.kind().id();
                Err(RestoreError::Field {
                    device_id,
                    field: "device",
                    value: 0,
                })
            }
        }
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
