//! Whether a machine can be brought to life, as far as files tell: asked before the one that runs is
//! ended for it.

use std::io::Read;
use std::path::Path;

use super::Host;
use super::backends::open_given;
use crate::error::{OpError, OpResult};
use crate::inventory::{LayerId, MemoryFiles, Object, Snapshot, SnapshotMemory, VmRow};
use crate::layers::open_layer;

impl Host {
    /// Refuses to boot a VM, or to return it to its fork point, without what that needs.
    pub(super) fn check_boots(&self, row: &VmRow) -> OpResult<()> {
        self.check_stores_of(row)?;
        if row.returns_to_point() {
            let point = self.point_of(row)?;
            self.open_point(&point)?;
            return self.check_layers(point.doc.tops.iter().flatten());
        }
        self.open_engine(&row.engine)?;
        open_given("kernel", &row.boot.kernel)?;
        if let Some(initrd) = &row.boot.initrd {
            open_given("initrd", initrd)?;
        }
        self.check_layers(row.disks.iter().filter_map(|disk| disk.top.as_ref()))
    }

    /// Refuses to return to a snapshot whose files are gone or damaged.
    pub(super) fn check_snapshot_files(&self, snapshot: &Object<Snapshot>) -> OpResult<()> {
        self.check_layers(snapshot.doc.tops.iter().flatten())?;
        match &snapshot.doc.memory {
            SnapshotMemory::Files(files) => {
                check_memory_files(files, snapshot.doc.row.spec.memory_bytes).map_err(|found| {
                    OpError::failed(format!(
                        "snapshot {:?}: its memory cannot be loaded: {found}; revert to another \
                         snapshot, or clone its disks with --mode linked",
                        snapshot.name
                    ))
                })
            }
            _ => Ok(()),
        }
    }

    fn check_layers<'a>(&self, tops: impl Iterator<Item = &'a LayerId>) -> OpResult<()> {
        for top in tops {
            let chain = self.layers().chain(top)?;
            for layer in chain {
                open_layer(&layer, false)?;
            }
        }
        Ok(())
    }
}

/// Says what is wrong with RAM and checkpoint of a machine of `memory_bytes`.
fn check_memory_files(files: &MemoryFiles, memory_bytes: u64) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let ram = std::fs::metadata(&files.ram).map_err(|error| failed(&files.ram, error))?;
    if ram.len() != memory_bytes {
        return Err(format!(
            "{} has {} bytes, not the {memory_bytes} of the machine",
            files.ram.display(),
            ram.len()
        ));
    }
    let path = &files.checkpoint;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| {
            file.take(saved_state::MAX_BYTES as u64 + 1)
                .read_to_end(&mut bytes)
        })
        .map_err(|error| failed(path, error))?;
    saved_state::check(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}
