//! Layers of VMs that the inventory does not name, as long as it is older than they are: what a file
//! on a datastore stands on stays. It is off the record from then on, and goes as they do: with the
//! first start after the note was removed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use disk_layers::inspect_as;
use vmm_protocol::LayerFormat;

use super::Host;
use crate::inventory::LayerRow;
use crate::layers::{disk_format, remove_files};

impl Host {
    /// Removes the files of layers that nobody on record uses any more.
    pub(super) fn remove_layers(&self, gone: &[LayerRow]) {
        if !self.keeps_unlisted() {
            return remove_files(gone);
        }
        let owned = gone.iter().filter(|row| row.owned);
        let going = owned.filter_map(|row| fs::canonicalize(&row.path).ok());
        let kept = still_stood_on(&self.standing_files(), &going.collect());
        let (kept, gone): (Vec<_>, Vec<_>) = gone
            .iter()
            .cloned()
            .partition(|row| fs::canonicalize(&row.path).is_ok_and(|path| kept.contains(&path)));
        for row in kept {
            tracing::info!(path = %row.path.display(), "kept for a VM that the inventory does not name");
        }
        remove_files(&gone);
    }

    /// Whether a disk that the inventory does not name stands on a file below `dir`.
    pub(super) fn unlisted_stand_on(&self, dir: &Path) -> bool {
        let Ok(dir) = fs::canonicalize(dir) else {
            return false;
        };
        let named = |file: &Path| self.layers().has_path(file);
        self.keeps_unlisted()
            && self
                .standing_files()
                .iter()
                .any(|(file, below)| below.starts_with(&dir) && !named(file))
    }

    /// Files of layers on all datastores, each with the file that it stands on.
    fn standing_files(&self) -> Vec<(PathBuf, PathBuf)> {
        let dirs = self.stores.all_dirs().into_iter();
        let dirs = dirs.filter(|(id, _)| !self.stores.is_lost(id));
        let entries = dirs.flat_map(|(_, dir)| fs::read_dir(dir.layers()).into_iter().flatten());
        let files = entries.flatten().map(|entry| entry.path());
        files
            .filter_map(|file| Some((file.clone(), below(&file)?)))
            .collect()
    }
}

/// The file that a layer's header names, where there is one.
fn below(path: &Path) -> Option<PathBuf> {
    path.extension().filter(|ending| *ending == "qcow2")?;
    let header = File::open(path)
        .ok()
        .map(|file| inspect_as(&file, disk_format(LayerFormat::Qcow2)))?;
    match header {
        Ok(header) => {
            let name = header.backing?.name;
            // A name that is absolute stays as it is.
            fs::canonicalize(path.parent()?.join(name)).ok()
        }
        Err(error) => {
            let error = crate::error::chain_line(&error.into());
            tracing::warn!(path = %path.display(), "cannot tell what it stands on: {error}");
            None
        }
    }
}

/// Which of the files that are `going` others stand on, or such as stay for them.
fn still_stood_on(standing: &[(PathBuf, PathBuf)], going: &HashSet<PathBuf>) -> HashSet<PathBuf> {
    let is_going = |file: &PathBuf| fs::canonicalize(file).is_ok_and(|file| going.contains(&file));
    let mut kept: HashSet<PathBuf> = HashSet::new();
    let mut next: Vec<PathBuf> = standing
        .iter()
        .filter(|(file, _)| !is_going(file))
        .map(|(_, below)| below.clone())
        .collect();
    while let Some(file) = next.pop() {
        if going.contains(&file) && kept.insert(file.clone()) {
            let own = standing
                .iter()
                .filter(|(above, _)| fs::canonicalize(above).is_ok_and(|above| above == file));
            next.extend(own.map(|(_, below)| below.clone()));
        }
    }
    kept
}
