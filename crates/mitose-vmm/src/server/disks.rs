//! Changes of disks while the VM runs or stands still.

use std::os::fd::OwnedFd;

use anyhow::Context;
use machine::Machine;
use vmm_protocol::{InsertMedium, Outcome, Rebase};

use super::Server;
use crate::become_vm::Descriptors;

impl Server {
    fn vm(&mut self) -> anyhow::Result<&mut Machine> {
        self.machine.as_mut().context("this process runs no VM yet")
    }

    /// Shortens a disk's stack.
    pub(super) fn rebase(&mut self, order: &Rebase, fds: Vec<OwnedFd>) -> anyhow::Result<Outcome> {
        let machine = self.vm()?;
        let below = Descriptors::new(fds).layers(&order.below)?;
        let layers = below.len() + 1;
        let held_us = machine.rebase(order.disk, below, &order.backing)?;
        tracing::info!(
            disk = order.disk,
            layers,
            held_us,
            "a disk's stack was replaced"
        );
        Ok(Outcome::Rebased { held_us })
    }

    /// Fills an empty slot.
    pub(super) fn insert_medium(
        &mut self,
        order: &InsertMedium,
        fds: Vec<OwnedFd>,
    ) -> anyhow::Result<Outcome> {
        let machine = self.vm()?;
        let files = Descriptors::new(fds).disk(&order.backend)?;
        let files = files.context("layers: a medium has at least one layer")?;
        machine.insert_medium(order.disk, files)?;
        Ok(Outcome::Done)
    }
}
