//! Files of an import: where they stay, and taking them back.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use archives::{Layer, LayerFormat, Manifest, Part};
use disk_layers::{check_whole, inspect_as, set_backing};

use super::Host;
use super::describe::format_from;
use crate::error::{OpError, OpResult};
use crate::inventory::{LayerRow, MemoryFiles, sync_directory};
use crate::layers::{backing_name, disk_format};

/// Files that are removed again unless the import comes to its end.
#[derive(Debug, Default)]
pub(super) struct Staged {
    files: Vec<PathBuf>,
    kept: bool,
}

impl Staged {
    /// Makes an empty file.
    pub fn make(&mut self, path: &Path) -> io::Result<File> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        self.files.push(path.to_owned());
        Ok(file)
    }

    /// What was made.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// They stay.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for path in self.files.iter().filter(|_| !self.kept) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Where the files of one import stay.
#[derive(Debug)]
pub(super) struct Places {
    layers: PathBuf,
    boot: PathBuf,
    /// Guest RAM and checkpoint.
    pub memory: MemoryFiles,
    /// Id of the import.
    import: String,
}

impl Places {
    /// Places of the import with this id; its disks are on the datastore.
    pub fn new(host: &Host, import: &str, datastore: &str) -> OpResult<Self> {
        let memory = host.store(datastore).memory();
        let boot = host.boot_dir();
        for dir in [&memory, &boot] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(Self {
            layers: host.store(datastore).layers(),
            boot,
            memory: MemoryFiles {
                ram: memory.join(format!("{import}.ram")),
                checkpoint: memory.join(format!("{import}.state")),
            },
            import: import.to_owned(),
        })
    }

    /// Id of a layer of the archive here.
    pub fn layer_id(&self, index: usize) -> String {
        format!("{}-{index}", self.import)
    }

    /// Path of a part.
    pub fn path_of(&self, manifest: &Manifest, part: Part) -> PathBuf {
        match part {
            Part::Kernel => self.boot.join(format!("{}.kernel", self.import)),
            Part::Initrd => self.boot.join(format!("{}.initrd", self.import)),
            Part::Layer(index) => {
                let raw = manifest.layers[index].format == LayerFormat::Raw;
                let ending = if raw { "raw" } else { "qcow2" };
                let name = format!("{}.{ending}", self.layer_id(index));
                self.layers.join(name)
            }
            // Changes are made to the RAM that they start from.
            Part::Ram | Part::Changes => self.memory.ram.clone(),
            Part::Checkpoint => self.memory.checkpoint.clone(),
        }
    }

    /// Makes everything that was written durable, and memory and boot files read-only: they never
    /// change.
    pub fn settle(&self, staged: &Staged) -> OpResult<()> {
        use std::os::unix::fs::PermissionsExt;
        for path in staged.files() {
            let settled = File::open(path).and_then(|file| {
                if !path.starts_with(&self.layers) {
                    file.set_permissions(fs::Permissions::from_mode(0o400))?;
                }
                file.sync_all()
            });
            settled.with_context(|| format!("cannot finish {}", path.display()))?;
        }
        let memory = self.memory.ram.parent().unwrap_or(&self.layers);
        for dir in [&*self.layers, &*self.boot, memory] {
            sync_directory(dir).with_context(|| format!("cannot sync {}", dir.display()))?;
        }
        Ok(())
    }
}

/// Refuses a layer whose file is not what the manifest says, and makes it name its parent here.
pub(super) fn settle_layer(layer: &Layer, path: &Path, parent: Option<&LayerRow>) -> OpResult<()> {
    let refused = |what: &str| {
        OpError::conflict(format!(
            "path: layer {} of the archive {what}; it was made by a broken or hostile program",
            layer.id
        ))
        .about("path")
    };
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let format = disk_format(format_from(layer.format));
    let header = inspect_as(&file, format)
        .with_context(|| format!("path: layer {} of the archive", layer.id))
        .map_err(|error| OpError::caused(api_types::ErrorKind::Conflict, error))?;
    if header.virtual_size_bytes != layer.disk_bytes {
        return Err(refused("has another disk size than its manifest says"));
    }
    if layer.format == LayerFormat::Qcow2 {
        check_whole(&file)
            .with_context(|| format!("path: layer {} of the archive", layer.id))
            .map_err(|error| OpError::caused(api_types::ErrorKind::Conflict, error))?;
    }
    match (&header.backing, parent) {
        (None, None) => Ok(()),
        (Some(_), Some(parent)) => {
            let name = backing_name(path, &parent.path);
            set_backing(&file, &name, disk_format(parent.format))
                .with_context(|| format!("cannot use layer {} of the archive", layer.id))?;
            Ok(())
        }
        (Some(backing), None) => {
            let shown: String = backing.name.chars().take(60).collect();
            Err(refused(&format!(
                "stands on the file {shown:?} outside of the archive"
            )))
        }
        (None, Some(_)) => Err(refused("names no backing file although it has a parent")),
    }
}
