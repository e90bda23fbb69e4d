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
    /// Where `old` is given, the new fork point is called otherwise until it is whole, and then takes its
    /// name.
    pub(super) fn import_point(
        self: &Arc<Self>,
        intake: &Intake<'_>,
        old: Option<&Object<ForkPoint>>,
    ) -> OpResult<Imported> {
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
            imported: true,
        };
        let succession = old.map(|old| self.successions.begin(&old.id, intake.boot()));
        let _succession = succession.transpose()?;
        let name = match old {
            Some(_) => &intake.import,
            None => intake.name,
        };
        let point = self.make_object(None, name, doc, None)?;
        let mut staged = Staged::default();
        let made = self.take_files(intake, &mut staged).and_then(|taken| {
            self.record_point(intake, &point.id, &taken, old)?;
            Ok(taken)
        });
        match made {
            Ok(taken) => {
                staged.keep();
                Ok(imported(intake, &point.id, &taken, old.is_some()))
            }
            Err(error) => {
                self.end_point(&point, None);
                Err(error)
            }
        }
    }

    /// Puts the fork point's disks and memory on record, with the archive.
    fn record_point(
        self: &Arc<Self>,
        intake: &Intake<'_>,
        id: &str,
        taken: &Taken,
        old: Option<&Object<ForkPoint>>,
    ) -> OpResult<()> {
        sync_directory(&self.store(&intake.datastore).layers())
            .context("cannot sync the datastore")?;
        let tops = tops_of(intake, taken)?;
        {
            let mut layers = self.layers();
            layers.insert(taken.rows.values().cloned());
            tops.iter().flatten().for_each(|top| layers.hold(top));
        }
        let recorded = self.commit_point(intake, id, taken, &tops, old);
        let old = recorded.inspect_err(|_| self.drop_layers(tops.iter().flatten()))?;
        if let Some(old) = &old {
            self.release_children(&old.id);
            self.let_point_go(old);
        }
        Ok(())
    }

    /// Returns the fork point whose place it took.
    fn commit_point(
        &self,
        intake: &Intake<'_>,
        id: &str,
        taken: &Taken,
        tops: &[Option<LayerId>],
        old: Option<&Object<ForkPoint>>,
    ) -> OpResult<Option<Object<ForkPoint>>> {
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
        let old = match old {
            Some(old) => Some(self.object::<ForkPoint>(&old.id)?),
            None => None,
        };
        if let Some(old) = &old {
            self.check_standby_point(old)?;
            point.name.clone_from(&old.name);
            point.doc.labels.clone_from(&old.doc.labels);
        }
        let message = format!("imported from {}", intake.request.path.display());
        let told = serde_json::json!(imported(intake, id, taken, old.is_some()));
        let told = event(&point.name, "forkpoint.imported", message).with(told);
        let changes = Changes {
            removed_objects: old.iter().map(|old| old.id.clone()).collect(),
            objects: vec![crate::host::row_of(&point)?, crate::host::row_of(&record)?],
            events: vec![told.about(id)],
            layers: taken.rows.values().cloned().collect(),
            ..Changes::default()
        };
        self.commit(&[], changes)?;
        let synced = self.inventory.sync().context("cannot sync the inventory");
        if let (Err(_), Some(old)) = (&synced, &old) {
            let back = Changes {
                removed_objects: vec![id.to_owned()],
                objects: vec![crate::host::row_of(old)?],
                ..Changes::default()
            };
            self.commit_logged(&[], back);
        }
        synced?;
        Ok(old)
    }
}

fn imported(intake: &Intake<'_>, id: &str, taken: &Taken, replaced: bool) -> Imported {
    Imported {
        export: intake.manifest().id.clone(),
        kind: ImportAs::Forkpoint,
        name: intake.name.to_owned(),
        vm_id: None,
        fork_point_id: Some(id.to_owned()),
        state: "kept".to_owned(),
        layers: taken.new.len(),
        layers_found: taken.found,
        replaced,
    }
}

/// Immutable top layer of each disk, none of an empty slot.
pub(super) fn tops_of(intake: &Intake<'_>, taken: &Taken) -> OpResult<Vec<Option<LayerId>>> {
    let disks = intake.manifest().machine.disks.iter();
    let tops = disks.map(|top| {
        let Some(top) = top else { return Ok(None) };
        let row = taken.rows.get(top);
        let row = row.with_context(|| format!("the disk layer {top} is missing"))?;
        Ok(Some(row.id.clone()))
    });
    tops.collect()
}
