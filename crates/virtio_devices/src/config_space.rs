//! Device-specific configuration bytes (virtio 1.2 §4.2.2, offset 0x100), shared between vCPUs
//! and the device so that reading them never waits for the worker.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The configuration space of one device. Fields are little-endian bytes at fixed offsets.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Mutex<Vec<u8>>,
    driver_writable: Range<usize>,
    generation: AtomicU32,
}

impl ConfigSpace {
    /// Returns a space with these bytes, of which the driver may write `driver_writable`.
    pub fn new(bytes: Vec<u8>, driver_writable: Range<usize>) -> Self {
        Self {
            bytes: Mutex::new(bytes),
            driver_writable,
            generation: AtomicU32::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads as the driver does: what lies beyond the space is zero.
    pub(crate) fn driver_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let bytes = self.lock();
        let Some(rest) = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)) else {
            return;
        };
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    /// Writes as the driver does: only a write wholly inside the writable range is taken.
    pub(crate) fn driver_write(&self, offset: u64, data: &[u8]) -> bool {
        let Ok(start) = usize::try_from(offset) else {
            return false;
        };
        let Some(end) = start.checked_add(data.len()) else {
            return false;
        };
        if data.is_empty() || start < self.driver_writable.start || end > self.driver_writable.end {
            return false;
        }
        self.lock()[start..end].copy_from_slice(data);
        true
    }

    /// Returns `N` bytes at `offset`.
    ///
    /// # Panics
    ///
    /// When the field does not lie inside the space: offsets are constants of the device.
    pub(crate) fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.lock()[offset..offset + N]);
        out
    }

    /// Sets a field on the device's behalf and moves the generation on when it changed.
    pub(crate) fn set_field(&self, offset: usize, value: &[u8]) -> bool {
        let mut bytes = self.lock();
        let field = &mut bytes[offset..offset + value.len()];
        if field == value {
            return false;
        }
        field.copy_from_slice(value);
        self.generation.fetch_add(1, Ordering::SeqCst);
        true
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(crate) fn set_generation(&self, generation: u32) {
        self.generation.store(generation, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_past_the_end_are_zero() {
        let space = ConfigSpace::new(vec![1, 2, 3], 0..0);
        let mut data = [9; 4];
        space.driver_read(2, &mut data);
        assert_eq!(data, [3, 0, 0, 0]);
        space.driver_read(u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn the_driver_writes_only_its_range() {
        let space = ConfigSpace::new(vec![0; 8], 4..8);
        assert!(space.driver_write(4, &[1, 2, 3, 4]));
        assert!(!space.driver_write(3, &[1, 2]));
        assert!(!space.driver_write(7, &[1, 2]));
        assert!(!space.driver_write(u64::MAX, &[1]));
        assert_eq!(space.field::<8>(0), [0, 0, 0, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn generation_moves_only_on_change() {
        let space = ConfigSpace::new(vec![0; 2], 0..0);
        assert!(!space.set_field(0, &[0, 0]));
        assert!(space.set_field(0, &[1, 0]));
        assert_eq!(space.generation(), 1);
    }
}
