//! Other layers below a top that stays: how a stack in use becomes shorter.
//!
//! What is below a top never changes, so layers with the same content can take the place of the
//! present ones at any moment between two requests. They are opened and checked ahead; the swap
//! itself is one small write to the top's header and an exchange in memory.

use super::DiskStack;
use crate::MAX_LAYERS;
use crate::error::{OpenDiskError, ReplaceBelowError};
use crate::layer::{DiskFormat, Kind, Layer, LayerFile};
use crate::qcow2::backing;
use crate::storage::Storage;

/// Layers that take the place of those below a top; opened and checked.
#[derive(Debug)]
pub struct PreparedBelow {
    /// Nearest to the top last, as in the stack.
    layers: Vec<Layer>,
    nearest: DiskFormat,
}

/// Layers that a stack no longer uses. Dropping them closes their files and frees their tables,
/// which is better done when nobody waits.
#[derive(Debug)]
pub struct Replaced {
    _layers: Vec<Layer>,
}

impl PreparedBelow {
    /// Opens layers, nearest to the top first. Needs no stack, so it can be done while the disk is
    /// in use.
    pub fn open(below: Vec<LayerFile>) -> Result<PreparedBelow, OpenDiskError> {
        let files = below
            .into_iter()
            .map(|layer| (Box::new(layer.file) as Box<dyn Storage>, layer.format));
        Self::open_storages(files.collect())
    }

    pub(crate) fn open_storages(
        files: Vec<(Box<dyn Storage>, DiskFormat)>,
    ) -> Result<PreparedBelow, OpenDiskError> {
        let Some(&(_, nearest)) = files.first() else {
            return Err(OpenDiskError::Empty);
        };
        if files.len() >= MAX_LAYERS {
            return Err(OpenDiskError::TooDeep {
                layers: files.len() + 1,
                max: MAX_LAYERS,
            });
        }
        let layers = open_layers(files, 1, false)?;
        Ok(PreparedBelow { layers, nearest })
    }
}

/// Opens layers, nearest to the top first, of which the first is at place `first` of the stack,
/// counted from the top. Returns them in the order of a stack, numbered from its bottom.
pub(super) fn open_layers(
    files: Vec<(Box<dyn Storage>, DiskFormat)>,
    first: usize,
    top_writable: bool,
) -> Result<Vec<Layer>, OpenDiskError> {
    let count = files.len();
    let mut layers = Vec::with_capacity(count + 1);
    for (index, (storage, format)) in files.into_iter().enumerate() {
        let (at, below) = (first + index, count - 1 - index);
        let writable = index == 0 && top_writable;
        let layer = Layer::open(below as u32, storage, format, writable)
            .map_err(|source| OpenDiskError::Layer { layer: at, source })?;
        if matches!(layer.kind, Kind::Raw) && below > 0 {
            return Err(OpenDiskError::RawOverlay { layer: at, below });
        }
        let named = layer.names_backing();
        if named != (below > 0) {
            return Err(OpenDiskError::BackingMismatch { layer: at, named });
        }
        layers.push(layer);
    }
    layers.reverse();
    Ok(layers)
}

impl DiskStack {
    /// Puts `below`, which must show the same content, in the place of all layers below the top,
    /// and writes `backing_name`, the name of the nearest of them, into the top's header. Takes
    /// microseconds: one write of a sector, and memory.
    ///
    /// On return the old layers are not used any more, but the new name is not durable: until the
    /// top's file is synced (by anybody, also through another descriptor), a host crash can bring
    /// the old name back, so the old files stay until then. Requests before and after see the same
    /// bytes. On failure nothing has changed.
    pub fn replace_below(
        &mut self,
        below: PreparedBelow,
        backing_name: &str,
    ) -> Result<Replaced, ReplaceBelowError> {
        if self.read_only {
            return Err(ReplaceBelowError::ReadOnly);
        }
        let PreparedBelow {
            layers: mut new,
            nearest,
        } = below;
        let count = self.layers.len();
        let [.., old, top] = self.layers.as_mut_slice() else {
            return Err(ReplaceBelowError::NoLayerBelow);
        };
        let new_bytes = new.last().map_or(0, |layer| layer.size);
        if new_bytes != old.size {
            return Err(ReplaceBelowError::SizeMismatch {
                new_bytes,
                old_bytes: old.size,
            });
        }
        let Kind::Qcow2(image) = &mut top.kind else {
            return Err(ReplaceBelowError::NoLayerBelow);
        };
        let named = backing::rewrite(top.storage.as_ref(), backing_name, nearest)
            .map_err(ReplaceBelowError::Header)?;
        image.header.backing = Some(named);
        top.unsynced = true;

        for layer in &mut new {
            layer.id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
        }
        let top_id = top.id;
        let old: Vec<Layer> = self.layers.splice(..count - 1, new).collect();
        self.cache.keep_only(top_id);
        self.unpacked = None;
        Ok(Replaced { _layers: old })
    }
}
