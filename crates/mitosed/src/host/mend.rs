//! Disks of a VM whose process did not end by itself.
//!
//! A process that is killed leaves clusters of its tops that are counted and not used; the host's end
//! can also leave used clusters uncounted, which a writer could give away. Both are put right before
//! the VM counts as powered off: nobody else opens its tops earlier.

use std::fs::File;

use anyhow::Context;
use disk_layers::{DiskFormat, RefcountReport, repair_refcounts};

use super::{Host, Vm};
use crate::inventory::LayerRow;
use crate::layers::{disk_format, open_layer};

impl Host {
    /// Corrects the tops of a VM without a process. What cannot be is told in the log: the disk can
    /// be read all the same.
    pub(super) fn mend_disks(&self, vm: &Vm) {
        let row = vm.row();
        if self.stores.is_lost(&row.datastore) {
            return;
        }
        let writable = row.disks.iter().zip(&row.spec.disks);
        for (disk, _) in writable.filter(|(_, spec)| !spec.read_only) {
            for id in disk.held() {
                let Some(layer) = self.layers().get(id).cloned() else {
                    continue;
                };
                if !layer.owned || disk_format(layer.format) != DiskFormat::Qcow2 {
                    continue;
                }
                let path = layer.path.display();
                match mend(&layer) {
                    Ok(report) if report.is_clean() => {}
                    Ok(report) => tracing::info!(
                        vm = &*row.name,
                        %path,
                        leaked = report.leaked,
                        uncounted = report.uncounted,
                        "refcounts of a disk were put right"
                    ),
                    Err(error) => {
                        tracing::warn!(vm = &*row.name, %path, "cannot check a disk: {error:#}");
                    }
                }
            }
        }
    }
}

fn mend(layer: &LayerRow) -> anyhow::Result<RefcountReport> {
    let file = open_layer(layer, true)?.file;
    let file = File::from(file.try_clone().context("cannot share a descriptor")?);
    Ok(repair_refcounts(&file)?)
}
