//! What an archive leaves out and this host has.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;

use archives::{Blob, Layer, Watch, digest};

use super::describe::format_from;
use super::{Host, refuse};
use crate::error::OpResult;
use crate::inventory::{ArchiveRecord, LayerId, LayerRow};

/// Layers that are here, which stay until an import's own disks hold them.
pub(super) struct Found<'a> {
    host: &'a Host,
    layers: Vec<LayerId>,
}

impl<'a> Found<'a> {
    /// None yet.
    pub fn new(host: &'a Host) -> Self {
        Self {
            host,
            layers: Vec::new(),
        }
    }

    /// Counts one more user of a layer, where it is there.
    fn hold(&mut self, id: &str) -> Option<LayerRow> {
        let mut layers = self.host.layers();
        let row = layers.get(id).cloned()?;
        layers.hold(id);
        self.layers.push(id.to_owned());
        Some(row)
    }
}

impl Drop for Found<'_> {
    fn drop(&mut self) {
        self.host.drop_layers(&self.layers);
    }
}

impl Host {
    /// Layers that are here with the same content, down to the base: those that an earlier export or
    /// import had, or a file that the daemon did not make. `parents` are those found for the layer
    /// that it stands on.
    ///
    /// The bytes of a layer do not say what it stands on: an empty one of another disk has the same.
    pub(super) fn find_layers(
        &self,
        layer: &Layer,
        parents: &[LayerRow],
        held: &mut Found<'_>,
        report: &mut Watch<'_>,
    ) -> OpResult<Vec<LayerRow>> {
        let stands = |row: &LayerRow| match (&layer.parent, &row.parent) {
            (None, None) => true,
            (Some(_), Some(id)) => parents.iter().any(|parent| parent.id == *id),
            _ => false,
        };
        let ids = self.recorded_ids(layer);
        let rows = ids.iter().filter_map(|id| held.hold(id));
        let rows: Vec<_> = rows.filter(|row| fits(row, layer) && stands(row)).collect();
        if !rows.is_empty() || layer.included {
            return Ok(rows);
        }
        for row in self.given_layers(layer)? {
            let Ok(file) = File::open(&row.path) else {
                continue;
            };
            if file.metadata().is_ok_and(|m| m.len() != layer.file.bytes) {
                continue;
            }
            let found = digest(&layer.id, &file, report).map_err(refuse)?;
            if found == layer.file {
                // A base image that no disk stands on yet is no layer, and is not removed.
                return Ok(vec![held.hold(&row.id).unwrap_or(row)]);
            }
        }
        Ok(Vec::new())
    }

    /// An open file that is this kernel or initial RAM disk: one that an earlier export or import had,
    /// or an image's.
    pub(super) fn find_boot(
        &self,
        wanted: &Blob,
        report: &mut Watch<'_>,
    ) -> OpResult<Option<File>> {
        let records = self.objects::<ArchiveRecord>().into_iter();
        let had = records.flat_map(|record| record.doc.boot);
        let had = had.filter(|file| file.sha256 == wanted.sha256);
        let mut files: BTreeSet<PathBuf> = had.map(|file| file.file).collect();
        let store = crate::image::store(&self.config.home)?;
        for image in store.list().map_err(crate::image::refuse)? {
            files.insert(image.kernel());
            files.extend(image.initrd());
        }
        find_file(files, wanted, report)
    }

    /// An open file with this guest RAM, which an earlier export or import had.
    pub(super) fn find_ram(&self, wanted: &Blob, report: &mut Watch<'_>) -> OpResult<Option<File>> {
        let records = self.objects::<ArchiveRecord>().into_iter();
        let memory = records.filter_map(|record| record.doc.memory);
        let had = memory.filter(|memory| memory.sha256 == wanted.sha256);
        // Each file once: a VM may have been exported often.
        let files: BTreeSet<PathBuf> = had.filter_map(|memory| memory.file).collect();
        find_file(files, wanted, report)
    }

    fn recorded_ids(&self, layer: &Layer) -> BTreeSet<LayerId> {
        let mut ids = BTreeSet::new();
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

/// Opens the first of these files that has this content.
fn find_file(
    files: BTreeSet<PathBuf>,
    wanted: &Blob,
    report: &mut Watch<'_>,
) -> OpResult<Option<File>> {
    for path in files {
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if file.metadata().is_ok_and(|m| m.len() != wanted.bytes) {
            continue;
        }
        // Another file may be in its place.
        let name = path.display().to_string();
        if digest(&name, &file, report).map_err(refuse)? == *wanted {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn fits(row: &LayerRow, layer: &Layer) -> bool {
    row.size_bytes == layer.disk_bytes && row.format == format_from(layer.format)
}
