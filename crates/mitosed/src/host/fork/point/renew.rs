//! A child going back to its fork point: fresh disks in the place of those that it wrote to.

use std::sync::Arc;

use anyhow::Context;

use super::super::Held;
use crate::error::{OpError, OpResult};
use crate::host::{Host, Vm};
use crate::inventory::{
    Changes, DiskRow, ForkPoint, LayerId, LayerRow, Object, VmRow, sync_directory,
};
use crate::layers::{make_top, remove_files};

/// A disk of a child as it was at the fork.
struct Fresh {
    index: usize,
    row: DiskRow,
    /// Its top and what that stands on; none of an empty slot.
    top: Option<(LayerRow, Option<LayerRow>)>,
    /// Rows of layers below it that the record may not have.
    below: Vec<LayerRow>,
}

impl Host {
    /// Gives a child that has run the disks that it had at its fork point. The caller has its turn.
    pub(super) fn renew_child(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        point: &Object<ForkPoint>,
    ) -> OpResult<()> {
        let row = vm.row();
        let has_run = row.child.as_ref().is_some_and(|child| child.started);
        let lacks = |disk: &DiskRow| disk.extra.is_some() && disk.top.is_none();
        if !has_run && !row.disks.iter().any(lacks) {
            return Ok(());
        }
        // Somebody may end the fork point meanwhile.
        let _held = Held::new(self, &point.doc.tops);
        let mut next = row.clone();
        let fresh = self.plan_fresh(&mut next, &point.doc.tops)?;
        // Numbers of tops are used once, whatever comes of it.
        vm.update(|live| live.row.next_layer = next.next_layer);
        let made = self.make_fresh(&row, &fresh);
        made.inspect_err(|_| {
            let tops = fresh.iter().filter_map(|disk| disk.top.as_ref());
            remove_files(&tops.map(|(top, _)| top.clone()).collect::<Vec<_>>());
        })?;
        let (old, changes) = self.take_fresh(vm, fresh);
        self.commit(&[vm], changes)?;
        self.drop_layers(&old);
        self.link_tops(&vm.row());
        Ok(())
    }

    /// Names the disks that a child gets.
    fn plan_fresh(&self, row: &mut VmRow, tops: &[Option<LayerId>]) -> OpResult<Vec<Fresh>> {
        let mut fresh = Vec::new();
        for (index, top) in tops.iter().enumerate() {
            let (Some(spec), Some(disk)) = (row.spec.disks.get(index), row.disks.get(index)) else {
                continue;
            };
            if spec.read_only {
                continue;
            }
            let extra = disk.extra.clone();
            let (parent, size_bytes, below) = match (top, &extra) {
                (Some(top), _) => {
                    let parent = self.layers().get(top).cloned();
                    let parent = parent.context("a layer of the fork point is gone")?;
                    let size_bytes = parent.size_bytes;
                    (Some(parent), size_bytes, Vec::new())
                }
                (None, Some(medium)) => {
                    let medium = self.medium_again(medium)?;
                    let size_bytes = medium.size_bytes();
                    (medium.parent().cloned(), size_bytes, medium.below)
                }
                (None, None) => {
                    fresh.push(Fresh {
                        index,
                        row: DiskRow::default(),
                        top: None,
                        below: Vec::new(),
                    });
                    continue;
                }
            };
            let own = self.next_top(row, index, parent.as_ref(), size_bytes);
            fresh.push(Fresh {
                index,
                row: DiskRow {
                    extra,
                    ..DiskRow::of(Some(own.id.clone()))
                },
                top: Some((own, parent)),
                below,
            });
        }
        Ok(fresh)
    }

    /// Makes the files; whoever finds them without a record removes them.
    fn make_fresh(&self, row: &VmRow, fresh: &[Fresh]) -> OpResult<()> {
        for (top, parent) in fresh.iter().filter_map(|disk| disk.top.as_ref()) {
            make_top(top, parent.as_ref())?;
        }
        sync_directory(&self.store(&row.datastore).layers())
            .context("cannot sync the datastore")
            .map_err(OpError::from)
    }

    /// Puts fresh disks into a child's row; returns the layers that it had.
    fn take_fresh(&self, vm: &Vm, fresh: Vec<Fresh>) -> (Vec<LayerId>, Changes) {
        let mut changes = Changes::default();
        let mut old = Vec::new();
        vm.update(|live| {
            let mut layers = self.layers();
            for disk in fresh {
                let rows = disk.below.into_iter().chain(disk.top.map(|(top, _)| top));
                for row in rows
                    .filter(|row| layers.get(&row.id).is_none())
                    .collect::<Vec<_>>()
                {
                    layers.insert([row.clone()]);
                    changes.layers.push(row);
                }
                disk.row.held().for_each(|top| layers.hold(top));
                let before = std::mem::replace(&mut live.row.disks[disk.index], disk.row);
                old.extend(before.held().cloned());
            }
            if let Some(child) = live.row.child.as_mut() {
                child.used |= child.started;
                child.started = false;
            }
        });
        (old, changes)
    }
}
