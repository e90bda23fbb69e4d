//! The store: making, opening and sealing layers.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use disk_layers::chain::{ChainError, LayerPath, verify_chain};
use disk_layers::{DiskFormat, DiskHeader, LayerFile, create_overlay, inspect_as};
use rustix::fs::{FlockOperation, OFlags};

use crate::error::StoreError;
use crate::id::LayerId;

/// Mode of a layer that may still be written.
const MODE_OPEN: u32 = 0o600;
/// Mode of an immutable layer.
const MODE_SEALED: u32 = 0o400;

/// What the top of a chain is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading, as all layers below a top.
    ReadOnly,
    /// Writing, by one process.
    ReadWrite,
}

/// A layer just made: an empty overlay, locked for its one writer.
#[derive(Debug)]
pub struct NewDelta {
    /// Its name.
    pub id: LayerId,
    /// Readable and writable. The lock belongs to the open file: it lasts until every copy of
    /// this descriptor is closed, in whichever process.
    pub file: File,
}

/// One layer of an opened chain.
#[derive(Debug)]
pub struct ChainLayer {
    /// Its name.
    pub id: LayerId,
    /// The file, ready to be passed on.
    pub layer: LayerFile,
}

/// A datastore's layers. See the crate documentation.
#[derive(Debug)]
pub struct LayerStore {
    root: PathBuf,
    layers: PathBuf,
    pub(crate) reserved: Arc<AtomicU64>,
}

impl LayerStore {
    /// Opens the store below `root`, making its directories where they are missing, and removes
    /// what imports that died left behind.
    pub fn open(root: &Path) -> Result<LayerStore, StoreError> {
        let mut directories = DirBuilder::new();
        directories.recursive(true).mode(0o700);
        for path in [root.join("layers"), root.join("vms")] {
            directories
                .create(&path)
                .map_err(|source| io_error("create", &path, source))?;
        }
        let root = root
            .canonicalize()
            .map_err(|source| io_error("open", root, source))?;
        let store = LayerStore {
            layers: root.join("layers"),
            root,
            reserved: Arc::default(),
        };
        store.remove_dead_imports()?;
        Ok(store)
    }

    /// The datastore's directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Path of a layer's file, whether it exists or not.
    pub fn layer_path(&self, id: LayerId) -> PathBuf {
        self.layers.join(id.file_name())
    }

    pub(crate) fn layers_path(&self) -> &Path {
        &self.layers
    }

    /// All layers on the datastore, in no order.
    pub fn list(&self) -> Result<Vec<LayerId>, StoreError> {
        Ok(self
            .file_names()?
            .iter()
            .filter_map(|name| LayerId::from_file_name(name))
            .collect())
    }

    pub(crate) fn file_names(&self) -> Result<Vec<String>, StoreError> {
        let failed = |source| io_error("list", &self.layers, source);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.layers).map_err(failed)? {
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// What the header of a layer says.
    pub fn header(&self, id: LayerId) -> Result<DiskHeader, StoreError> {
        let file = self.open_file(id, Access::ReadOnly)?;
        self.header_of(id, &file)
    }

    fn header_of(&self, id: LayerId, file: &File) -> Result<DiskHeader, StoreError> {
        inspect_as(file, DiskFormat::Qcow2).map_err(|source| StoreError::Chain {
            id,
            source: ChainError::Layer {
                path: self.layer_path(id),
                source,
            },
        })
    }

    /// Makes one empty overlay on `backing`, named `id`. It is not durable yet: see
    /// [`LayerStore::sync_directory`].
    pub fn create_delta(&self, id: LayerId, backing: LayerId) -> Result<NewDelta, StoreError> {
        let mut made = self.create_deltas(&[id], backing)?;
        made.pop().ok_or(StoreError::UnknownLayer { id })
    }

    /// Makes empty overlays on `backing`, all or none. `backing` can still be written to: it has
    /// to be sealed, or flushed and given up by its writer, before the overlays are used.
    pub fn create_deltas(
        &self,
        ids: &[LayerId],
        backing: LayerId,
    ) -> Result<Vec<NewDelta>, StoreError> {
        let size_bytes = self.header(backing)?.virtual_size_bytes;
        let mut made = Vec::with_capacity(ids.len());
        for &id in ids {
            match self.create_one(id, backing, size_bytes) {
                Ok(file) => made.push(NewDelta { id, file }),
                Err(err) => {
                    self.remove_new(made.iter().map(|delta| delta.id));
                    return Err(err);
                }
            }
        }
        Ok(made)
    }

    fn create_one(
        &self,
        id: LayerId,
        backing: LayerId,
        size_bytes: u64,
    ) -> Result<File, StoreError> {
        let file = self.create_file(&self.layer_path(id), id)?;
        let made = create_overlay(&file, size_bytes, &backing.file_name(), DiskFormat::Qcow2);
        if let Err(source) = made {
            self.remove_new([id]);
            return Err(StoreError::Create { id, source });
        }
        Ok(file)
    }

    /// A new file, locked.
    pub(crate) fn create_file(&self, path: &Path, id: LayerId) -> Result<File, StoreError> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(MODE_OPEN);
        let file = options.open(path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => StoreError::Exists { id },
            _ => io_error("create", path, source),
        })?;
        lock(&file, id, path)?;
        Ok(file)
    }

    /// Removes layers whose making or use was given up, on which nothing was built. Failures are
    /// left to the next [`LayerStore::collect`].
    pub fn remove_new(&self, ids: impl IntoIterator<Item = LayerId>) {
        for id in ids {
            let _ = fs::remove_file(self.layer_path(id));
        }
    }

    /// Opens a layer and all below it, top first. With [`Access::ReadWrite`] the top is locked:
    /// only one open file has it for writing, until all copies of the descriptor are closed.
    pub fn open_chain(&self, id: LayerId, access: Access) -> Result<Vec<ChainLayer>, StoreError> {
        let mut chain = Vec::new();
        for found in self.walk(id)? {
            let id = self.id_of(id, &found)?;
            let layer = LayerFile {
                file: found.file,
                format: found.header.format,
            };
            chain.push(ChainLayer { id, layer });
        }
        if access == Access::ReadWrite
            && let Some(top) = chain.first_mut()
        {
            top.layer.file = self.open_file(id, access)?;
        }
        Ok(chain)
    }

    /// The layers below a layer, nearest first.
    pub fn parents(&self, id: LayerId) -> Result<Vec<LayerId>, StoreError> {
        let chain = self.walk(id)?;
        chain
            .iter()
            .skip(1)
            .map(|found| self.id_of(id, found))
            .collect()
    }

    /// Whether a layer is a valid overlay on `backing`, complete as its maker left it; for the
    /// adoption of a pending top after a crash.
    pub fn is_overlay_of(&self, id: LayerId, backing: LayerId) -> Result<bool, StoreError> {
        match self.header(id) {
            Ok(header) => Ok(header
                .backing
                .is_some_and(|named| named.name == backing.file_name())),
            Err(StoreError::UnknownLayer { .. } | StoreError::Chain { .. }) => Ok(false),
            Err(err) => Err(err),
        }
    }

    fn walk(&self, id: LayerId) -> Result<Vec<LayerPath>, StoreError> {
        let path = self.layer_path(id);
        verify_chain(&self.layers, &path, DiskFormat::Qcow2).map_err(|source| match source {
            ChainError::Missing { overlay: None, .. } => StoreError::UnknownLayer { id },
            source => StoreError::Chain { id, source },
        })
    }

    fn id_of(&self, top: LayerId, found: &LayerPath) -> Result<LayerId, StoreError> {
        let inside = found.path.strip_prefix(&self.layers).ok();
        inside
            .and_then(Path::to_str)
            .and_then(LayerId::from_file_name)
            .ok_or_else(|| StoreError::ForeignFile {
                id: top,
                path: found.path.clone(),
            })
    }

    pub(crate) fn open_file(&self, id: LayerId, access: Access) -> Result<File, StoreError> {
        let path = self.layer_path(id);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(access == Access::ReadWrite)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
        let file = options.open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::UnknownLayer { id },
            // Root opens sealed files; others are stopped here.
            io::ErrorKind::PermissionDenied if access == Access::ReadWrite => {
                StoreError::Sealed { id }
            }
            _ => io_error("open", &path, source),
        })?;
        if access == Access::ReadWrite {
            lock(&file, id, &path)?;
            let meta = file
                .metadata()
                .map_err(|source| io_error("open", &path, source))?;
            if meta.mode() & 0o200 == 0 {
                return Err(StoreError::Sealed { id });
            }
        }
        Ok(file)
    }

    /// Makes a layer immutable: nobody opens it for writing again. Who has it open keeps that
    /// right, so its writer must have let go of it (a fork covers it by a new top).
    pub fn seal(&self, id: LayerId) -> Result<(), StoreError> {
        let path = self.layer_path(id);
        fs::set_permissions(&path, fs::Permissions::from_mode(MODE_SEALED)).map_err(|source| {
            match source.kind() {
                io::ErrorKind::NotFound => StoreError::UnknownLayer { id },
                _ => io_error("seal", &path, source),
            }
        })
    }

    /// Bytes that a layer takes on the file system.
    pub fn allocated_bytes(&self, id: LayerId) -> Result<u64, StoreError> {
        let path = self.layer_path(id);
        let meta = fs::symlink_metadata(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::UnknownLayer { id },
            _ => io_error("open", &path, source),
        })?;
        Ok(meta.blocks() * 512)
    }

    /// Makes the names of all layers made so far durable. Their content is made so by whoever
    /// writes it (a disk's first flush).
    pub fn sync_directory(&self) -> Result<(), StoreError> {
        sync_dir(&self.layers)
    }
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| io_error("sync", path, source))
}

fn lock(file: &File, id: LayerId, path: &Path) -> Result<(), StoreError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse { id }),
        Err(err) => Err(io_error("lock", path, err.into())),
    }
}

pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
