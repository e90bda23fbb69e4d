//! Whole disks into new standalone layers: imports, flattened chains, full copies.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use disk_layers::{LayerFile, Progress, create_full, flatten};
use rustix::fs::FlockOperation;

use crate::error::StoreError;
use crate::id::LayerId;
use crate::store::{Access, LayerStore, io_error};

type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

impl LayerStore {
    /// Copies the disk that a chain (top first) shows into a new sealed, standalone layer `id`,
    /// which is durable on return. A single image is a chain of one; it must not name a backing
    /// file.
    pub fn import(
        &self,
        id: LayerId,
        chain: Vec<LayerFile>,
        progress: OnProgress<'_>,
    ) -> Result<(), StoreError> {
        self.publish(id, |file| {
            flatten(chain, file, progress).map_err(|source| StoreError::Copy { id, source })
        })?;
        self.seal(id)
    }

    /// Makes a standalone copy `id` of what layer `source` and those below it show, to be
    /// written to. Where the file system can share blocks between files and `source` stands
    /// alone, that takes no time and no space.
    pub fn full_copy(
        &self,
        id: LayerId,
        source: LayerId,
        progress: OnProgress<'_>,
    ) -> Result<(), StoreError> {
        let chain = self.open_chain(source, Access::ReadOnly)?;
        self.publish(id, |file| {
            if let [only] = chain.as_slice()
                && rustix::fs::ioctl_ficlone(&file, &only.layer.file).is_ok()
            {
                return file
                    .sync_all()
                    .map_err(|source| io_error("sync", &self.layer_path(id), source));
            }
            let chain = chain.into_iter().map(|found| found.layer).collect();
            flatten(chain, file, progress).map_err(|source| StoreError::Copy { id, source })
        })
    }

    /// Makes an empty standalone layer of `size_bytes`, to be written to; durable on return.
    pub fn create_empty(&self, id: LayerId, size_bytes: u64) -> Result<(), StoreError> {
        self.publish(id, |file| {
            create_full(&file, size_bytes).map_err(|source| StoreError::Create { id, source })?;
            file.sync_all()
                .map_err(|source| io_error("sync", &self.layer_path(id), source))
        })
    }

    /// Lets `fill` write a temporary file, which then appears as layer `id`, complete.
    fn publish(
        &self,
        id: LayerId,
        fill: impl FnOnce(File) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let path = self.layer_path(id);
        if path.exists() {
            return Err(StoreError::Exists { id });
        }
        let temporary = Temporary {
            path: self.layers_path().join(id.temporary_name()),
        };
        // The lock of `file` tells a store that is opened meanwhile that this import is alive.
        let file = self.create_file(&temporary.path, id)?;
        let writer = file
            .try_clone()
            .map_err(|source| io_error("open", &temporary.path, source))?;
        fill(writer)?;
        fs::rename(&temporary.path, &path).map_err(|source| io_error("create", &path, source))?;
        self.sync_directory()
    }

    /// Removes temporary files that nobody writes to.
    pub(crate) fn remove_dead_imports(&self) -> Result<(), StoreError> {
        for name in self.file_names()? {
            if !(name.starts_with('.') && name.ends_with(".tmp")) {
                continue;
            }
            let path = self.layers_path().join(name);
            if is_dead(&path) {
                fs::remove_file(&path).map_err(|source| io_error("remove", &path, source))?;
            }
        }
        Ok(())
    }
}

fn is_dead(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
    })
}

/// Removes the file, unless it was renamed away.
struct Temporary {
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
