//! New tops for disks on layers that never change.

use std::sync::Arc;

use anyhow::Context;
use vm_spec::DiskSpec;

use super::{Host, Vm};
use crate::error::{OpError, OpResult};
use crate::inventory::{Changes, DiskRow, LayerId, LayerRow, VmRow, sync_directory};
use crate::layers::make_delta;

/// Tops that no row names yet. The caller names them, or lets go of what is held.
#[derive(Debug, Default)]
pub(in crate::host) struct Tops {
    /// One for each disk.
    pub disks: Vec<DiskRow>,
    /// Layers that are held for it.
    pub held: Vec<LayerId>,
}

impl Host {
    /// Makes a new top on each of `below` where its disk can be written to, durably. The caller has
    /// the VM's turn.
    pub(in crate::host) fn make_tops_on(
        &self,
        vm: &Arc<Vm>,
        below: &[Option<LayerId>],
        specs: &[DiskSpec],
    ) -> OpResult<Tops> {
        let mut deltas = Vec::new();
        let mut tops = Tops::default();
        vm.update(|live| -> anyhow::Result<()> {
            let mut layers = self.layers();
            for (index, (top, spec)) in below.iter().zip(specs).enumerate() {
                // A child that returns to its fork point later has its extra disks again.
                let extra = live
                    .row
                    .disks
                    .get(index)
                    .and_then(|disk| disk.extra.clone());
                let Some(top) = top else {
                    tops.disks.push(DiskRow {
                        extra,
                        ..DiskRow::default()
                    });
                    continue;
                };
                let chain = layers.chain(top)?;
                let top = if spec.read_only {
                    top.clone()
                } else {
                    let delta = self.next_delta(&mut live.row, index, &chain[0]);
                    let id = delta.id.clone();
                    deltas.push((delta, chain[0].clone()));
                    id
                };
                tops.disks.push(DiskRow {
                    extra,
                    ..DiskRow::of(Some(top))
                });
            }
            layers.insert(deltas.iter().map(|(delta, _)| delta.clone()));
            tops.held = tops
                .disks
                .iter()
                .filter_map(|disk| disk.top.clone())
                .collect();
            tops.held.iter().for_each(|top| layers.hold(top));
            Ok(())
        })?;
        if let Err(error) = self.make_top_files(vm, &deltas) {
            self.drop_layers(&tops.held);
            return Err(error);
        }
        Ok(tops)
    }

    fn make_top_files(&self, vm: &Arc<Vm>, deltas: &[(LayerRow, LayerRow)]) -> OpResult<()> {
        // Numbers of deltas are used once, and recovery removes layers that no VM uses.
        let changes = Changes {
            layers: deltas.iter().map(|(delta, _)| delta.clone()).collect(),
            ..Changes::default()
        };
        self.commit(&[vm], changes)?;
        for (delta, parent) in deltas {
            make_delta(delta, parent)?;
        }
        sync_directory(&self.store(&vm.row().datastore).layers())
            .context("cannot sync the datastore")
            .map_err(OpError::from)
    }

    /// What the disks of a suspended VM show: its tops are empty, so it is what lies below them.
    pub(in crate::host) fn below_empty_tops(&self, row: &VmRow) -> OpResult<Vec<Option<LayerId>>> {
        let layers = self.layers();
        let below = row.disks.iter().zip(&row.spec.disks).map(|(disk, spec)| {
            let Some(top) = &disk.top else {
                return Ok(None);
            };
            let chain = layers.chain(top)?;
            let index = usize::from(!spec.read_only && chain.len() > 1);
            Ok(Some(chain[index].id.clone()))
        });
        below.collect()
    }
}
