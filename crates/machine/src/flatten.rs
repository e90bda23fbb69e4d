//! Putting the guest RAM of a VM that was forked on a layer that has all of it, see
//! [`guest_memory::GuestRam::flatten`]: a stun in which nothing is written to any file.

use std::fs::File;
use std::time::{Duration, Instant};

use crate::clock::{monotonic_ns, us_between};
use crate::machine::{Machine, lock_ram};

/// What the RAM is put on.
#[derive(Debug)]
pub struct FlattenPlan {
    /// Has the RAM of the instant of the last fork.
    pub layer: File,
    /// Page map of this process.
    pub pagemap: File,
    /// Number of that fork, see [`crate::ForkReport::number`].
    pub fork: u64,
    /// Longest wait for requests in flight, milliseconds.
    pub drain_ms_max: u32,
}

/// What it took.
#[derive(Clone, Copy, Debug)]
pub struct Flattened {
    /// First vCPU kicked to last one re-entered, microseconds; 0 where they stood still.
    pub stun_us: u64,
    /// Pages that were written since the fork and copied.
    pub pages: u64,
}

/// The RAM is where it was.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// Pages written since the fork cannot be told from others any more.
    #[error("the VM was forked again since: the layer has fork {named}, the last one is {last}")]
    ForkedAgain {
        /// The one that was named.
        named: u64,
        /// The last one.
        last: u64,
    },
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
    /// Puts guest RAM on another layer; see [`Machine::after_fork`] for what is left to do.
    pub fn flatten(&mut self, plan: FlattenPlan) -> Result<Flattened, FlattenError> {
        let (named, last) = (plan.fork, self.forks);
        if named != last || last == 0 {
            return Err(FlattenError::ForkedAgain { named, last });
        }
        lock_ram(&self.ram)
            .prepare_seal()
            .map_err(guest_memory::FlattenError::Map)?;
        let finishing = self.finishing.clone();
        let quiet = finishing.quiet();
        self.platform
            .disks
            .iter()
            .for_each(|disk| disk.worker.gate());
        let result = self.flatten_gated(plan);
        if self.begun {
            self.platform
                .disks
                .iter()
                .for_each(|disk| disk.worker.ungate());
        }
        drop(quiet);
        let (pages, stun_from) = result?;
        let stun_us = stun_from.map_or(0, |from| us_between(from, self.vcpus.wait_entered().1));
        Ok(Flattened { stun_us, pages })
    }

    /// With disk queues gated: waits, stops, swaps and lets the vCPUs run again. Returns the number
    /// of pages that were copied and when the stun began, where the vCPUs ran.
    fn flatten_gated(&mut self, plan: FlattenPlan) -> Result<(u64, Option<u64>), FlattenError> {
        let ms = plan.drain_ms_max;
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
        let flattened = lock_ram(&self.ram).flatten(plan.layer, &plan.pagemap);
        if was_running {
            self.vcpus.run();
        }
        drop((disks, shared));
        let (old, pages) = flattened?;
        self.finishing.leave(old);
        Ok((pages, stun_from))
    }
}
