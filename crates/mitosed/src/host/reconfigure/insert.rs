//! Putting disks into empty slots of a VM, whether it runs or not.
//!
//! ```text
//! record the top as pending ─ make its file, sync ─ tell the process ─ record it as the top
//! ```
//!
//! A daemon that finds a pending top in an empty slot gives it to the VM's process once more, which
//! refuses what it has already.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use serde_json::json;
use vmm_protocol::{Command, DiskBackend, InsertMedium, LayerFd};

use super::CHANGE_TIMEOUT;
use crate::error::{OpError, OpResult};
use crate::host::backends::FdList;
use crate::host::events::with_event;
use crate::host::media::{Media, Medium};
use crate::host::{Host, Vm, vm_event};
use crate::inventory::{Changes, LayerRow, sync_directory};
use crate::layers::{make_top, open_layer};
use crate::vmm::{Link, LinkError};

impl Host {
    /// Puts media into a VM's empty slots. The caller has its turn.
    pub(super) fn insert_media(&self, vm: &Arc<Vm>, media: &Media) -> OpResult<()> {
        let disks = vm.row().disks;
        let empty = disks
            .iter()
            .enumerate()
            .filter(|(_, disk)| disk.top.is_none());
        let slots: Vec<usize> = empty.map(|(slot, _)| slot).collect();
        for (slot, medium) in slots.into_iter().zip(media.iter()) {
            let top = self.record_medium(vm, slot, medium)?;
            let made = self.make_medium(vm, &top, medium.parent());
            let inserted = made.and_then(|file| match vm.link() {
                Some(link) => self.send_medium(vm, &link, slot, file),
                None => Ok(()),
            });
            if let Err(error) = inserted {
                self.end_pending(vm, false);
                return Err(error);
            }
            let size_bytes = top.size_bytes;
            vm.update(|live| live.row.version += 1);
            self.take_pending_tops(vm);
            let message = format!("disk {slot}: a medium of {size_bytes} bytes was inserted");
            let told = vm_event(vm, "vm.reconfigured", message)
                .with(json!({ "changed": ["disks"], "disk": slot, "size_bytes": size_bytes }));
            self.commit(&[vm], with_event(told))?;
            self.inventory.sync().context("cannot sync the inventory")?;
            self.link_tops(&vm.row());
        }
        Ok(())
    }

    /// Records a medium's top as pending.
    fn record_medium(&self, vm: &Arc<Vm>, slot: usize, medium: &Medium) -> OpResult<LayerRow> {
        let mut changes = Changes::default();
        let top = vm.update(|live| {
            let top = medium.top(self, &mut live.row, slot);
            let mut layers = self.layers();
            let rows = medium.below.iter().chain([&top]);
            changes.layers = rows
                .filter(|row| layers.get(&row.id).is_none())
                .cloned()
                .collect();
            layers.insert(changes.layers.iter().cloned());
            layers.hold(&top.id);
            live.row.disks[slot].pending = Some(top.id.clone());
            live.row.standby = false;
            top
        });
        let recorded = self.commit(&[vm], changes);
        recorded.inspect_err(|_| self.end_pending(vm, false))?;
        Ok(top)
    }

    fn make_medium(&self, vm: &Vm, top: &LayerRow, parent: Option<&LayerRow>) -> OpResult<OwnedFd> {
        let file = make_top(top, parent)?;
        file.sync_all().context("cannot sync a disk")?;
        sync_directory(&self.store(&vm.row().datastore).layers())
            .context("cannot sync the datastore")?;
        Ok(file.into())
    }

    fn send_medium(&self, vm: &Vm, link: &Arc<Link>, slot: usize, top: OwnedFd) -> OpResult<()> {
        let row = vm.row();
        let pending = row.disks[slot].held().next().context("the slot is empty")?;
        let chain = self.layers().chain(pending)?;
        let mut fds = FdList::default();
        let mut layers = vec![LayerFd {
            fd: fds.add(top),
            format: chain[0].format,
        }];
        for below in &chain[1..] {
            let open = open_layer(below, false)?;
            layers.push(LayerFd {
                fd: fds.add(open.file),
                format: open.format,
            });
        }
        let order = Command::InsertMedium(InsertMedium {
            disk: slot,
            backend: DiskBackend { layers },
        });
        match link.call(order, &fds.borrowed(), CHANGE_TIMEOUT) {
            Ok(_) => Ok(()),
            Err(error @ LinkError::Refused { .. }) => Err(OpError::conflict(format!(
                "insert_disks: {}: {error}",
                row.name
            ))),
            Err(error) => {
                // It has the medium, or ends and has it at its next start.
                tracing::warn!(vm = row.name, slot, %error, "no answer about a new medium");
                Ok(())
            }
        }
    }

    /// After the death of a daemon: gives a VM's process the media that it may not have got.
    pub(in crate::host) fn send_again(&self, vm: &Vm, slots: &[usize]) {
        let Some(link) = vm.link() else { return };
        let row = vm.row();
        for slot in slots {
            let top = row.disks[*slot].top.as_ref();
            let Some(layer) = top.and_then(|top| self.layers().get(top).cloned()) else {
                continue;
            };
            // A process that has the medium has its top locked.
            let open = open_layer(&layer, true).and_then(|open| {
                let file = open.file.try_clone();
                file.context("cannot share a descriptor")
            });
            let sent = open.map_err(OpError::from);
            let sent = sent.and_then(|file| self.send_medium(vm, &link, *slot, file));
            if let Err(error) = sent {
                tracing::info!(vm = row.name, slot, "not sent again: {}", error.message());
            }
        }
    }
}
