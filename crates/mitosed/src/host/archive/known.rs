//! Layers that an archive leaves out and this host has.

use std::fs::File;

use archives::{Layer, Manifest, digest};

use super::describe::format_from;
use super::{Host, TaskContext, refuse, watch};
use crate::error::{OpError, OpResult};
use crate::inventory::{ArchiveRecord, LayerId, LayerRow};

impl Host {
    /// Finds a layer that is not in the archive: one that an earlier export or import had, or a
    /// file that the daemon did not make with the same content.
    pub(super) fn find_known(
        &self,
        manifest: &Manifest,
        layer: &Layer,
        task: &TaskContext,
    ) -> OpResult<LayerRow> {
        let recorded = self
            .recorded_ids(layer)
            .into_iter()
            .find_map(|id| self.layers().get(&id).cloned());
        if let Some(row) = recorded.filter(|row| fits(row, layer)) {
            return Ok(row);
        }
        for row in self.given_layers(layer)? {
            let Ok(file) = File::open(&row.path) else {
                continue;
            };
            if file.metadata().is_ok_and(|m| m.len() != layer.file.bytes) {
                continue;
            }
            let mut report = watch(task, layer.file.bytes, "looking for layers that are here");
            let found = digest(&layer.id, &file, &mut report).map_err(refuse)?;
            if found == layer.file {
                return Ok(row);
            }
        }
        let remedy = match &manifest.since {
            Some(since) => format!("import the export {since} first, or export without --since"),
            None => "give this host the same image, or export without --without-base".to_owned(),
        };
        Err(OpError::conflict(format!(
            "path: the archive leaves the layer {} out, and this host has no file with its \
             SHA-256 {}; {remedy}",
            layer.id, layer.file.sha256
        ))
        .about("path"))
    }

    fn recorded_ids(&self, layer: &Layer) -> Vec<LayerId> {
        let mut ids = Vec::new();
        for record in self.objects::<ArchiveRecord>() {
            let same = record
                .doc
                .layers
                .into_iter()
                .filter(|known| known.sha256 == layer.file.sha256);
            ids.extend(same.map(|known| known.layer));
        }
        ids
    }

    /// Layers of users and of images that could be the one that is looked for.
    fn given_layers(&self, layer: &Layer) -> OpResult<Vec<LayerRow>> {
        if layer.parent.is_some() {
            return Ok(Vec::new());
        }
        let mut rows = self.layers().given();
        let store = crate::image::store(&self.config.home)?;
        let images = store.list().map_err(crate::image::refuse)?;
        for path in images.iter().filter_map(images::Image::disk) {
            if rows.iter().all(|row| row.path != path) {
                rows.extend(self.layers_at(&path)?);
            }
        }
        rows.retain(|row| row.parent.is_none() && fits(row, layer));
        Ok(rows)
    }
}

fn fits(row: &LayerRow, layer: &Layer) -> bool {
    row.size_bytes == layer.disk_bytes && row.format == format_from(layer.format)
}
