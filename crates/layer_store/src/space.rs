//! Space of the datastore: what the file system has free, less what is promised.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::StoreError;
use crate::store::{LayerStore, io_error};

/// Space that reservations leave to the file system and to running guests.
const MARGIN_BYTES: u64 = 16 << 20;

/// Space of a datastore, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub capacity_bytes: u64,
    /// What the file system offers to this user.
    pub free_bytes: u64,
    /// Part of it that is promised to operations under way.
    pub reserved_bytes: u64,
}

/// A promise of space, kept until it is dropped. It holds within this process and against other
/// reservations; guests that write take space without asking.
#[derive(Debug)]
pub struct Reservation {
    reserved: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.reserved.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl LayerStore {
    /// The datastore's space.
    pub fn space(&self) -> Result<Space, StoreError> {
        let stat = rustix::fs::statvfs(self.root())
            .map_err(|err| io_error("measure", self.root(), err.into()))?;
        Ok(Space {
            capacity_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            reserved_bytes: self.reserved.load(Ordering::Acquire),
        })
    }

    /// Promises space to an operation, so that it fails here and not half-way.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, StoreError> {
        let before = self.reserved.fetch_add(bytes, Ordering::AcqRel);
        let reservation = Reservation {
            reserved: Arc::clone(&self.reserved),
            bytes,
        };
        let space = self.space()?;
        let needed = bytes.saturating_add(before).saturating_add(MARGIN_BYTES);
        if needed > space.free_bytes {
            return Err(StoreError::NoSpace {
                path: self.root().to_owned(),
                needed_bytes: bytes.saturating_add(MARGIN_BYTES),
                free_bytes: space.free_bytes,
                reserved_bytes: before,
            });
        }
        Ok(reservation)
    }
}
