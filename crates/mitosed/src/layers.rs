//! Disk layers in use: who refers to which, and making and removing their files.
//!
//! A layer lives as long as a VM's disk or another layer refers to it. References are counted in
//! memory from the rows alone, so they are rebuilt, not trusted, when the daemon starts.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use disk_layers::{CreateDiskError, DiskFormat, MAX_LAYERS, create_full, create_overlay};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use vmm_protocol::LayerFormat;

use crate::inventory::{LayerId, LayerRow};
use crate::nursery;

/// Longest wait for the lock of a layer, and the pause between two tries.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_INTERVAL: Duration = Duration::from_millis(2);

#[derive(Debug)]
struct Entry {
    row: LayerRow,
    users: u32,
}

/// Layers by name, with the number of their users.
#[derive(Debug, Default)]
pub struct Layers {
    entries: HashMap<LayerId, Entry>,
}

/// An open layer, shareable between the messages of one call.
#[derive(Clone, Debug)]
pub struct OpenLayer {
    /// Its file.
    pub file: Arc<OwnedFd>,
    /// Its format.
    pub format: LayerFormat,
}

impl Layers {
    /// Adds layers in any order, each of which uses its parent; those that are there already stay
    /// as they are.
    pub fn insert(&mut self, rows: impl IntoIterator<Item = LayerRow>) {
        let mut parents = Vec::new();
        for row in rows {
            if !self.entries.contains_key(&row.id) {
                parents.extend(row.parent.clone());
                self.entries.insert(row.id.clone(), Entry { row, users: 0 });
            }
        }
        for parent in parents {
            self.hold(&parent);
        }
    }

    /// Counts one more user of a layer.
    pub fn hold(&mut self, id: &str) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.users += 1;
        }
    }

    /// Counts one user less; returns the layers that have none left and are forgotten.
    #[must_use]
    pub fn release(&mut self, id: &str) -> Vec<LayerRow> {
        let mut gone = Vec::new();
        let mut next = Some(id.to_owned());
        while let Some(id) = next.take() {
            let Some(entry) = self.entries.get_mut(&id) else {
                break;
            };
            entry.users = entry.users.saturating_sub(1);
            if entry.users == 0
                && let Some(entry) = self.entries.remove(&id)
            {
                next = entry.row.parent.clone();
                gone.push(entry.row);
            }
        }
        gone
    }

    /// Lets `id` stand on `parent`, which shows the same as what it stands on now. Returns its row,
    /// and the layer that it stood on, which the caller releases when the row is on record.
    pub fn put_on(&mut self, id: &str, parent: &str) -> Option<(LayerRow, Option<LayerId>)> {
        if !self.entries.contains_key(parent) {
            return None;
        }
        let entry = self.entries.get_mut(id)?;
        let old = entry.row.parent.replace(parent.to_owned());
        let row = entry.row.clone();
        self.hold(parent);
        Some((row, old))
    }

    /// All layers.
    pub fn rows(&self) -> impl Iterator<Item = &LayerRow> {
        self.entries.values().map(|entry| &entry.row)
    }

    /// Returns and forgets layers without users, but for those that are to be kept.
    pub fn unused(&mut self, is_kept: impl Fn(&str) -> bool) -> Vec<LayerRow> {
        let mut gone = Vec::new();
        loop {
            let idle: Vec<_> = self
                .entries
                .values()
                .filter(|e| e.users == 0 && !is_kept(&e.row.id))
                .map(|e| e.row.id.clone())
                .collect();
            if idle.is_empty() {
                return gone;
            }
            for id in idle {
                gone.extend(self.release(&id));
            }
        }
    }

    /// A layer's row.
    pub fn get(&self, id: &str) -> Option<&LayerRow> {
        self.entries.get(id).map(|e| &e.row)
    }

    /// Layers that the daemon did not make.
    pub fn given(&self) -> Vec<LayerRow> {
        let rows = self.entries.values().map(|entry| &entry.row);
        rows.filter(|row| !row.owned).cloned().collect()
    }

    /// Whether a file is one of the layers.
    pub fn has_path(&self, path: &Path) -> bool {
        self.entries.values().any(|e| e.row.path == path)
    }

    /// Whether a layer's file lies below `dir`.
    pub fn any_below(&self, dir: &Path) -> bool {
        self.entries.values().any(|e| e.row.path.starts_with(dir))
    }

    /// Number of layers.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The stack under `top`, itself first.
    pub fn chain(&self, top: &str) -> anyhow::Result<Vec<LayerRow>> {
        let mut chain = Vec::new();
        let mut next = Some(top);
        while let Some(id) = next {
            let row = self
                .get(id)
                .with_context(|| format!("disk layer {id} is not in the inventory"))?;
            if chain.len() >= MAX_LAYERS {
                anyhow::bail!("disk has more than {MAX_LAYERS} layers");
            }
            chain.push(row.clone());
            next = row.parent.as_deref();
        }
        Ok(chain)
    }
}

/// Makes the file of a disk's top: an empty delta on `parent`, or an empty disk where there is none.
/// The file is locked as that of a delta.
pub fn make_top(row: &LayerRow, parent: Option<&LayerRow>) -> anyhow::Result<File> {
    match parent {
        Some(parent) => make_delta(row, parent),
        None => make_file(row, |file| create_full(file, row.size_bytes)),
    }
}

/// Makes the file of a delta on `parent`, empty. The file is locked for as long as a descriptor of
/// it is open, wherever it is passed to: a layer has one writer.
pub fn make_delta(row: &LayerRow, parent: &LayerRow) -> anyhow::Result<File> {
    let backing = backing_name(&row.path, &parent.path);
    make_file(row, |file| {
        create_overlay(file, row.size_bytes, &backing, disk_format(parent.format))
    })
}

fn make_file(
    row: &LayerRow,
    write: impl FnOnce(&File) -> Result<(), CreateDiskError>,
) -> anyhow::Result<File> {
    let failed = || format!("cannot make the disk {}", row.path.display());
    let mut new = File::options();
    new.read(true).write(true).create_new(true);
    let file = nursery::bear(&row.path, |path| new.open(path)).with_context(failed)?;
    if let Err(error) = write(&file) {
        let _ = fs::remove_file(&row.path);
        return Err(error).with_context(failed);
    }
    lock(&file).with_context(failed)?;
    Ok(file)
}

/// Locks a layer against a second writer. A process that is being started has copies of the
/// daemon's descriptors for a moment, so a lock that is taken is asked for again.
fn lock(file: &File) -> anyhow::Result<()> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_INTERVAL);
            }
            Err(Errno::WOULDBLOCK) => anyhow::bail!("another process writes to it"),
            Err(errno) => return Err(errno).context("cannot lock it"),
        }
    }
}

/// Opens a layer for reading, or also for writing.
pub fn open_layer(row: &LayerRow, writable: bool) -> anyhow::Result<OpenLayer> {
    let failed = || format!("cannot open the disk layer {}", row.path.display());
    let file = File::options()
        .read(true)
        .write(writable)
        .open(&row.path)
        .with_context(failed)?;
    if writable {
        lock(&file).with_context(failed)?;
    }
    Ok(OpenLayer {
        file: Arc::new(file.into()),
        format: row.format,
    })
}

/// Removes the files of layers that the daemon made.
pub fn remove_files(rows: &[LayerRow]) {
    for row in rows.iter().filter(|row| row.owned) {
        match fs::remove_file(&row.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %row.path.display(), %error, "cannot remove a disk layer");
            }
            _ => {}
        }
    }
}

/// Name of `backing` in the header of the file `delta`, which is in `layers/` of a datastore:
/// relative where both are in one datastore, or in one data directory, so that it can be moved.
pub fn backing_name(delta: &Path, backing: &Path) -> String {
    let absolute = || backing.display().to_string();
    let Some(store) = delta.parent().and_then(Path::parent) else {
        return absolute();
    };
    if let Ok(rest) = backing.strip_prefix(store) {
        return match rest.strip_prefix("layers") {
            Ok(name) => name.display().to_string(),
            Err(_) => format!("../{}", rest.display()),
        };
    }
    // Of all datastores, only the first is in a data directory; its images are beside it.
    let home = store.parent().filter(|_| store.ends_with("datastore1"));
    match home.and_then(|home| backing.strip_prefix(home).ok()) {
        Some(rest) if rest.starts_with("images") => format!("../../{}", rest.display()),
        _ => absolute(),
    }
}

/// Format in the words of crate `disk_layers`.
pub fn disk_format(format: LayerFormat) -> DiskFormat {
    match format {
        LayerFormat::Raw => DiskFormat::Raw,
        LayerFormat::Qcow2 => DiskFormat::Qcow2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, parent: Option<&str>) -> LayerRow {
        LayerRow {
            id: id.into(),
            parent: parent.map(str::to_owned),
            path: format!("/x/{id}").into(),
            format: LayerFormat::Qcow2,
            size_bytes: 1 << 20,
            owned: true,
            content: None,
        }
    }

    fn ids(rows: &[LayerRow]) -> Vec<&str> {
        rows.iter().map(|r| r.id.as_str()).collect()
    }

    #[test]
    fn a_layer_goes_with_its_last_user() {
        let mut layers = Layers::default();
        layers.insert([
            row("a", Some("base")),
            row("base", None),
            row("b", Some("base")),
        ]);
        layers.hold("a");
        layers.hold("b");
        assert_eq!(ids(&layers.chain("a").unwrap()), ["a", "base"]);
        assert_eq!(ids(&layers.release("a")), ["a"]);
        assert_eq!(ids(&layers.release("b")), ["b", "base"]);
        assert!(layers.release("b").is_empty());
    }

    #[test]
    fn a_layer_can_be_put_on_another_that_shows_the_same() {
        let mut layers = Layers::default();
        layers.insert([
            row("top", Some("b")),
            row("b", Some("a")),
            row("a", Some("base")),
            row("base", None),
            row("clone", Some("a")),
            row("merged", Some("base")),
        ]);
        layers.hold("top");
        layers.hold("clone");
        let (changed, old) = layers.put_on("top", "merged").unwrap();
        assert_eq!(changed.parent.as_deref(), Some("merged"));
        let gone = layers.release(&old.unwrap());
        assert_eq!(ids(&gone), ["b"], "the clone uses the other one");
        assert_eq!(
            ids(&layers.chain("top").unwrap()),
            ["top", "merged", "base"]
        );
        assert_eq!(ids(&layers.release("clone")), ["clone", "a"]);
        assert_eq!(ids(&layers.release("top")), ["top", "merged", "base"]);
        assert!(layers.put_on("top", "merged").is_none());
    }

    #[test]
    fn layers_that_nobody_uses_are_found() {
        let mut layers = Layers::default();
        layers.insert([
            row("base", None),
            row("left", Some("base")),
            row("used", None),
        ]);
        layers.hold("used");
        let gone = layers.unused(|_| false);
        assert_eq!(gone.len(), 2);
        assert!(layers.get("used").is_some());
    }

    #[test]
    fn a_parent_loop_is_an_error() {
        let mut layers = Layers::default();
        layers.insert([row("a", Some("b")), row("b", Some("a"))]);
        assert!(layers.chain("a").is_err());
    }

    #[test]
    fn backing_names_are_relative_within_the_data_directory() {
        let delta = Path::new("/h/datastore1/layers/a.qcow2");
        let check = |backing: &str| backing_name(delta, Path::new(backing));
        assert_eq!(check("/h/datastore1/layers/b.qcow2"), "b.qcow2");
        assert_eq!(check("/h/images/d/disk.raw"), "../../images/d/disk.raw");
        assert_eq!(check("/h/datastore1/x/b.qcow2"), "../x/b.qcow2");
        assert_eq!(check("/srv/disk.raw"), "/srv/disk.raw");
        assert_eq!(check("/h/other/layers/b"), "/h/other/layers/b");
        let elsewhere = Path::new("/mnt/a/layers/a.qcow2");
        for far in ["/mnt/b/layers/b.qcow2", "/mnt/images/d/disk.raw"] {
            assert_eq!(backing_name(elsewhere, Path::new(far)), far);
        }
        let near = Path::new("/mnt/a/layers/b.qcow2");
        assert_eq!(backing_name(elsewhere, near), "b.qcow2");
    }
}
