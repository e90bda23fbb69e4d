//! Moving the guest RAM of a VM that was forked onto a new layer, see
//! [`guest_memory::GuestRam::begin_flatten`]: a short stun for each piece.

use std::time::{Duration, Instant};

use guest_memory::{Displaced, NewLayer, Piece};

use crate::clock::{monotonic_ns, us_between};
use crate::machine::{Machine, lock_ram};

/// What moving a piece took.
#[derive(Clone, Copy, Debug)]
pub struct Flattened {
    /// First vCPU kicked to last one re-entered, microseconds; 0 where they stood still.
    pub stun_us: u64,
    /// Bytes that were moved.
    pub bytes: u64,
}

/// The RAM is where it was.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// Requests in flight took too long.
    #[error("disk {index} did not finish its requests within {ms} ms")]
    Busy {
        /// Index of the disk.
        index: usize,
        /// Limit, milliseconds.
        ms: u32,
    },
    /// The RAM cannot be put on the layer.
    #[error(transparent)]
    Ram(#[from] guest_memory::FlattenError),
}

impl Machine {
    /// Begins to move guest RAM onto a new layer.
    pub fn begin_flatten(&mut self, new: NewLayer) -> Result<(), FlattenError> {
        lock_ram(&self.ram).begin_flatten(new)?;
        Ok(())
    }

    /// Moves the next piece; requests in flight may take `drain_ms_max` milliseconds. Returns none
    /// where nothing is left to be moved.
    pub fn flatten_next(&mut self, drain_ms_max: u32) -> Result<Option<Flattened>, FlattenError> {
        let Some(piece) = lock_ram(&self.ram).next_piece()? else {
            return Ok(None);
        };
        let finishing = self.finishing.clone();
        let quiet = finishing.quiet();
        self.platform
            .disks
            .iter()
            .for_each(|disk| disk.worker.gate());
        let result = self.flatten_gated(&piece, drain_ms_max);
        if self.begun {
            self.platform
                .disks
                .iter()
                .for_each(|disk| disk.worker.ungate());
        }
        drop(quiet);
        let (displaced, stun_from) = result?;
        let stun_us = stun_from.map_or(0, |from| us_between(from, self.vcpus.wait_entered().1));
        // The last user of a layer gives its memory back here, while the guest runs.
        drop(displaced);
        let bytes = piece.len();
        Ok(Some(Flattened { stun_us, bytes }))
    }

    /// With disk queues gated: waits, stops, switches and lets the vCPUs run again. Returns when the
    /// stun began, where the vCPUs ran, and what the view no longer shows.
    fn flatten_gated(
        &mut self,
        piece: &Piece,
        ms: u32,
    ) -> Result<(Displaced, Option<u64>), FlattenError> {
        let deadline = Instant::now() + Duration::from_millis(ms.into());
        for (index, disk) in self.platform.disks.iter().enumerate() {
            let guard = disk.worker.lock_until(deadline);
            drop(guard.ok_or(FlattenError::Busy { index, ms })?);
        }
        let was_running = self.vcpus.is_running();
        let stun_from = was_running.then(monotonic_ns);
        if was_running {
            self.vcpus.park();
        }
        // Only now: a vCPU that resets a device wants the same locks before it can stand still.
        let disks = self.platform.disks.iter();
        let disks: Vec<_> = disks.map(|disk| disk.worker.lock()).collect();
        let shared = self.platform.shared.lock();
        let switched = lock_ram(&self.ram).switch_piece(piece);
        if was_running {
            self.vcpus.run();
        }
        drop((disks, shared));
        Ok((switched?, stun_from))
    }
}
