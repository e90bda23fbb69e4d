//! Sealing the disks of one instant: the queues of all disks wait for it, and nothing else does. The
//! vCPUs run on, and RAM stays as it is.

use disk_layers::PreparedTop;

use super::{ForkReport, Steps, drain, swap_tops};
use crate::clock::{monotonic_ns, us_between};
use crate::error::ForkError;
use crate::machine::Machine;
use vmm_protocol::ForkStep;

impl Machine {
    /// Puts the next tops on. A failure leaves every disk as it was.
    pub(super) fn seal_disks(
        &mut self,
        tops: Vec<(usize, PreparedTop)>,
        drain_ms_max: u32,
        mut steps: Steps,
    ) -> Result<ForkReport, ForkError> {
        steps.done(ForkStep::PrepareTops)?;
        let held_from = monotonic_ns();
        let disks = &self.platform.disks;
        disks.iter().for_each(|disk| disk.worker.gate());
        let swapped = drain(disks, drain_ms_max, &mut steps).and_then(|()| {
            // With all of them no write is between the tops of two disks.
            let mut guards: Vec<_> = disks.iter().map(|disk| disk.worker.lock()).collect();
            swap_tops(&mut guards, tops, &self.durability, &mut steps)
        });
        if self.begun {
            disks.iter().for_each(|disk| disk.worker.ungate());
        }
        swapped?;
        let io_held_us = match disks.is_empty() {
            true => 0,
            false => us_between(held_from, monotonic_ns()),
        };
        steps.done(ForkStep::Publish)?;
        Ok(ForkReport {
            stun_us: 0,
            io_held_us,
            layer: None,
            holder: None,
            steps_us: steps.us,
            number: self.forks,
        })
    }
}
