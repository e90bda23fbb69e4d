//! Tables of page digests: what a later export needs to write only the memory that changed.
//!
//! Each export with memory leaves `exports/<vm>.<export>.pages`, of 1/256 of the RAM's size. The newest
//! [`TABLES_PER_VM`] of a VM are kept, and go with the VM and its last fork point. Nothing depends on
//! them: without its table the memory of a later export goes whole.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use archives::digest;

use super::contents::EarlierMemory;
use super::subject::{Subject, length_of};
use super::{Host, sweep};
use crate::error::OpResult;
use crate::inventory::{ArchiveRecord, ForkPoint, Object};

/// Tables that are kept of one VM: at most an eighth of its RAM.
const TABLES_PER_VM: usize = 32;
const ENDING: &str = ".pages";

/// A table that is removed again unless its export comes to its end.
#[derive(Debug)]
pub(super) struct NewTable {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl NewTable {
    /// Its file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// It stays.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for NewTable {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Host {
    fn table_path(&self, vm: &str, export: &str) -> PathBuf {
        let name = format!("{vm}.{export}{ENDING}");
        self.config.home.exports().join(name)
    }

    /// An empty table of an export, where one can be made.
    pub(super) fn new_table(&self, vm: &str, export: &str) -> Option<NewTable> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.table_path(vm, export);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match file {
            Ok(file) => Some(NewTable {
                path,
                file,
                kept: false,
            }),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "no page digests are kept");
                None
            }
        }
    }

    /// What the earlier export had of the memory, or why the memory goes whole: nothing where no
    /// earlier export was named.
    pub(super) fn earlier_memory(
        &self,
        earlier: Option<&Object<ArchiveRecord>>,
        subject: &Subject,
    ) -> OpResult<Result<EarlierMemory, Option<&'static str>>> {
        let (Some(record), Some((ram, _))) = (earlier, &subject.memory) else {
            return Ok(Err(None));
        };
        let Some(memory) = &record.doc.memory else {
            return Ok(Err(Some("no memory of that export is on record")));
        };
        if memory.bytes != length_of(ram)? {
            return Ok(Err(Some("that export had memory of another size")));
        }
        let lost = Ok(Err(Some(
            "the page digests of that export are not kept any more",
        )));
        let Some(told) = &memory.table else {
            return lost;
        };
        let path = self.table_path(&record.doc.vm_id, &record.name);
        let Ok(table) = File::open(&path) else {
            return lost;
        };
        let mut go_on = |_| std::ops::ControlFlow::Continue(());
        match digest("page digests", &table, &mut go_on) {
            Ok(found) if (&found.sha256, found.bytes) == (&told.sha256, told.bytes) => {
                Ok(Ok(EarlierMemory {
                    sha256: memory.sha256.clone(),
                    table,
                }))
            }
            _ => {
                tracing::warn!(path = %path.display(), "page digests are damaged; removed");
                let _ = fs::remove_file(&path);
                lost
            }
        }
    }

    /// Removes the oldest tables of a VM that has too many.
    pub(super) fn prune_tables(&self, vm: &str) {
        let mut tables = self.tables_of(vm);
        tables.sort_by_key(|path| {
            let written = fs::metadata(path).and_then(|table| table.modified());
            std::cmp::Reverse(written.unwrap_or(SystemTime::UNIX_EPOCH))
        });
        remove(tables.iter().skip(TABLES_PER_VM));
    }

    /// Removes the tables of a VM where neither it nor a fork point of it is there any more.
    pub(in crate::host) fn forget_tables(&self, vm: &str) {
        let tables = self.tables_of(vm);
        if !tables.is_empty() && !self.keeps_tables(vm) {
            remove(&tables);
        }
    }

    /// Removes tables that no record needs, at the start of a daemon.
    pub(super) fn sweep_tables(&self) {
        if self.keeps_unlisted() {
            return;
        }
        let records = self.objects::<ArchiveRecord>();
        let needed = records.iter().filter(|record| {
            let memory = record.doc.memory.as_ref();
            memory.is_some_and(|memory| memory.table.is_some())
                && self.keeps_tables(&record.doc.vm_id)
        });
        let needed: std::collections::HashSet<PathBuf> = needed
            .map(|record| self.table_path(&record.doc.vm_id, &record.name))
            .collect();
        let dir = self.config.home.exports();
        sweep(&dir, |name| needed.contains(&dir.join(name)));
    }

    fn keeps_tables(&self, vm: &str) -> bool {
        let points = || self.objects::<ForkPoint>().into_iter();
        self.all().iter().any(|known| known.id == vm) || points().any(|p| p.doc.row.id == vm)
    }

    fn tables_of(&self, vm: &str) -> Vec<PathBuf> {
        let beginning = format!("{vm}.");
        let entries = fs::read_dir(self.config.home.exports());
        let paths = entries.into_iter().flatten().flatten().map(|e| e.path());
        let of_vm = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(&beginning))
        };
        paths.filter(of_vm).collect()
    }
}

fn remove<'a>(tables: impl IntoIterator<Item = &'a PathBuf>) {
    for path in tables {
        remove_table(path);
    }
}

fn remove_table(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "cannot remove page digests");
    }
}
