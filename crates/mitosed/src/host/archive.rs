//! Export to archives, and import from them.
//!
//! An export first takes hold of what it writes: sealed layers and the memory of an instant, all of
//! them files that never change, open before the VM goes on. The archive appears under its name
//! when it is whole. An import puts files where they stay, verified, before any row names them:
//! recovery removes files that no row names.

mod contents;
mod describe;
mod export;
mod files;
mod import;
mod known;
mod origins;
mod point;
mod subject;
mod succession;
mod tables;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use archives::ArchiveError;

pub(super) use self::succession::Successions;
use super::recover::sweep;
use super::{Host, TaskContext, Vm, needs_process, vm_event};
use crate::error::OpError;
use crate::inventory::{ArchiveRecord, BootSource, ForkPoint, Snapshot};

impl Host {
    /// Folder of kernels and initial RAM disks that came out of archives.
    pub(super) fn boot_dir(&self) -> PathBuf {
        self.config.home.datastore().join("boot")
    }

    /// Removes boot files of archives that no machine boots any more.
    pub(super) fn sweep_boot_files(&self) {
        if self.keeps_unlisted() {
            return;
        }
        let dir = self.boot_dir();
        let Ok(entries) = std::fs::read_dir(&dir) else {
            return;
        };
        // Files come after their row, and a child after its point: what is seen last is what others
        // make meanwhile.
        let paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        let mut used = HashSet::new();
        let mut note = |boot: &BootSource| {
            used.insert(boot.kernel.clone());
            used.extend(boot.initrd.clone());
        };
        // Before the rows, where they are in the end.
        self.successions.boot_files().iter().for_each(&mut note);
        let points = self.objects::<ForkPoint>();
        points.iter().for_each(|point| note(&point.doc.row.boot));
        let snapshots = self.objects::<Snapshot>();
        snapshots.iter().for_each(|s| note(&s.doc.row.boot));
        self.all().iter().for_each(|vm| note(&vm.live().row.boot));
        for path in paths {
            if !used.contains(&path) {
                let _ = std::fs::remove_file(&path);
            }
        }
    }

    /// Removes archives that were being written, at the start of a daemon.
    pub(super) fn settle_archives(&self) {
        for record in self.objects::<ArchiveRecord>() {
            if record.doc.writing {
                let _ = std::fs::remove_file(part_of(&record.doc.path, &record.name));
                if let Err(error) = self.remove_object::<ArchiveRecord>(&record.id, None) {
                    tracing::error!("{}", error.message());
                }
            }
        }
        self.sweep_tables();
    }
}

/// Where the archive of an export is while it is written: no other export, and nobody else, has a
/// file of this name.
fn part_of(path: &Path, export: &str) -> PathBuf {
    let short = export.get(..8).unwrap_or(export);
    path.with_added_extension(format!("{short}.part"))
}

/// Reports bytes to a task, of which this is a part from one fraction to another, and says when
/// somebody cancelled it.
fn watch<'a>(
    task: &'a TaskContext,
    total_bytes: u64,
    (begin, end): (f32, f32),
    what: &'a str,
) -> impl FnMut(u64) -> std::ops::ControlFlow<()> + 'a {
    let mut done = 0_u64;
    let mut told = 0_u64;
    move |bytes| {
        done += bytes;
        if task.check().is_err() {
            return std::ops::ControlFlow::Break(());
        }
        // A step is a hundredth, so that followers are not flooded.
        if done - told > total_bytes / 100 {
            told = done;
            let part = (done as f32 / total_bytes.max(1) as f32).min(1.0);
            task.progress(begin + part * (end - begin), what);
        }
        std::ops::ControlFlow::Continue(())
    }
}

/// An error of the archive as that of an operation.
fn refuse(error: ArchiveError) -> OpError {
    match error {
        ArchiveError::Cancelled => OpError::failed("cancelled"),
        error => OpError::caused(api_types::ErrorKind::Conflict, error).about("path"),
    }
}
