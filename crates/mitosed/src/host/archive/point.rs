//! Making a kept fork point of an archive: what was one, and any other instant with memory.
//!
//! The object is on record as `sealing` before anything is written: a daemon that finds it like this
//! takes it back, and the files it boots are not swept away meanwhile. Its VM is no object here.

use std::sync::Arc;

use anyhow::Context;
use api_types::{ImportAs, Imported};

use super::Host;
use super::files::Staged;
use super::import::{Intake, Taken};
use crate::error::OpResult;
use crate::host::event;
use crate::inventory::{
    Changes, DiskRow, ForkPoint, LayerId, Object, PointMemory, PowerState, sync_directory,
};

impl Host {
    pub(super) fn import_point(self: &Arc<Self>, intake: &Intake<'_>) -> OpResult<Imported> {
        let manifest = intake.manifest();
        let mut row = intake.row(self.new_id("vm")?, manifest.machine.name.clone());
        row.state = PowerState::Running;
        let doc = ForkPoint {
            labels: Default::default(),
            row: Box::new(row),
            tops: Vec::new(),
            memory: PointMemory::Sealing,
            quiesced: manifest.point.as_ref().is_some_and(|point| point.quiesced),
            created_at_ms: manifest.created_at_ms,
            stun_us: 0,
            io_held_us: 0,
        };
        let point = self.make_object(None, intake.name, doc, None)?;
        let mut staged = Staged::default();
        let made = self.take_files(intake, &mut staged).and_then(|taken| {
            self.record_point(intake, &point.id, &taken)?;
            Ok(taken)
        });
        match made {
            Ok(taken) => {
                staged.keep();
                Ok(Imported {
                    export: manifest.id.clone(),
                    kind: ImportAs::Forkpoint,
                    name: point.name,
                    vm_id: None,
                    fork_point_id: Some(point.id),
                    state: "kept".to_owned(),
                    layers: taken.new.len(),
                    layers_found: taken.found,
                })
            }
            Err(error) => {
                self.end_point(&point, None);
                Err(error)
            }
        }
    }

    /// Puts the fork point's disks and memory on record, with the archive.
    fn record_point(&self, intake: &Intake<'_>, id: &str, taken: &Taken) -> OpResult<()> {
        sync_directory(&self.store(&intake.datastore).layers())
            .context("cannot sync the datastore")?;
        let tops = tops_of(intake, taken)?;
        {
            let mut layers = self.layers();
            layers.insert(taken.rows.values().cloned());
            tops.iter().flatten().for_each(|top| layers.hold(top));
        }
        let recorded = self.commit_point(intake, id, taken, &tops);
        if recorded.is_err() {
            self.drop_layers(tops.iter().flatten());
        }
        recorded
    }

    fn commit_point(
        &self,
        intake: &Intake<'_>,
        id: &str,
        taken: &Taken,
        tops: &[Option<LayerId>],
    ) -> OpResult<()> {
        let _turn = self.objects_turn();
        // Somebody may have removed it.
        let mut point: Object<ForkPoint> = self.object(id)?;
        point.version += 1;
        let disks = tops.iter().map(|top| DiskRow::of(top.clone()));
        point.doc.row.disks = disks.collect();
        point.doc.tops = tops.to_vec();
        let files = intake.places.memory.clone();
        point.doc.memory = PointMemory::Files {
            ram: files.ram,
            checkpoint: files.checkpoint,
        };
        let record = intake.record(&point.doc.row.id, taken);
        let message = format!("imported from {}", intake.request.path.display());
        let changes = Changes {
            objects: vec![crate::host::row_of(&point)?, crate::host::row_of(&record)?],
            events: vec![event(&point.name, "forkpoint.imported", message).about(id)],
            layers: taken.rows.values().cloned().collect(),
            ..Changes::default()
        };
        self.commit(&[], changes)?;
        self.inventory.sync().context("cannot sync the inventory")?;
        Ok(())
    }
}

/// Immutable top layer of each disk, none of an empty slot.
fn tops_of(intake: &Intake<'_>, taken: &Taken) -> OpResult<Vec<Option<LayerId>>> {
    let disks = intake.manifest().machine.disks.iter();
    let tops = disks.map(|top| {
        let Some(top) = top else { return Ok(None) };
        let row = taken.rows.get(top);
        let row = row.with_context(|| format!("the disk layer {top} is missing"))?;
        Ok(Some(row.id.clone()))
    });
    tops.collect()
}
