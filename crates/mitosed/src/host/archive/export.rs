//! Writing an archive.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use api_types::{DryRun, ErrorKind, ExportRequest, Exported};
use archives::{Blob, Manifest, Part};

use super::contents::{Contents, Wanted};
use super::subject::Subject;
use super::tables::NewTable;
use super::{Host, TaskContext, Vm, needs_process, part_of, refuse, vm_event, watch};
use crate::clock::{now_ms, random_hex};
use crate::error::{OpError, OpResult};
use crate::host::check::Problems;
use crate::host::event;
use crate::host::full::is_no_space;
use crate::inventory::{
    ArchiveRecord, ArchivedFile, ArchivedLayer, ArchivedMemory, BootSource, ForkPoint, NewEvent,
    Object, PowerState, sync_directory,
};

impl Host {
    /// Writes a VM or one of its snapshots to an archive.
    pub fn export_vm(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        request: &ExportRequest,
        task: &TaskContext,
    ) -> OpResult<Exported> {
        let earlier = self.check_export(request)?;
        task.progress(0.0, "taking hold of what is to be written");
        let subject = match &request.snapshot {
            Some(name) => self.subject_of_snapshot(vm, &self.find_snapshot(vm, name)?)?,
            None => self.subject_of_vm(vm)?,
        };
        let exported = self.export(&subject, earlier.as_ref(), request, task)?;
        let message = format!("exported to {}", request.path.display());
        self.told(vm_event(vm, "vm.exported", message), &exported);
        Ok(exported)
    }

    /// Tries an export of a VM or snapshot out.
    pub fn check_export_vm(&self, vm: &Vm, request: &ExportRequest) -> DryRun {
        let mut problems = Problems::default();
        problems.take(check_target(&request.path));
        problems.take(self.exported_before(request));
        match &request.snapshot {
            Some(name) => {
                let snapshot = self.find_snapshot(vm, name);
                problems.take(snapshot.and_then(|snapshot| self.check_complete(&snapshot)));
            }
            None => drop(problems.take(needs_making(vm))),
        }
        problems.dry_run()
    }

    /// Tries an export of a fork point out.
    pub fn check_export_point(&self, point: &Object<ForkPoint>, request: &ExportRequest) -> DryRun {
        let mut problems = Problems::default();
        if request.snapshot.is_some() {
            problems.note(no_snapshots());
        }
        problems.take(check_target(&request.path));
        problems.take(self.exported_before(request));
        problems.take(self.open_point(point));
        problems.dry_run()
    }

    /// Writes a kept fork point to an archive.
    pub fn export_point(
        self: &Arc<Self>,
        point: &Object<ForkPoint>,
        request: &ExportRequest,
        task: &TaskContext,
    ) -> OpResult<Exported> {
        if request.snapshot.is_some() {
            return Err(no_snapshots());
        }
        let earlier = self.check_export(request)?;
        let subject = self.subject_of_point(point)?;
        let exported = self.export(&subject, earlier.as_ref(), request, task)?;
        let message = format!("exported to {}", request.path.display());
        let told = event(&point.name, "forkpoint.exported", message).about(&point.id);
        self.told(told, &exported);
        Ok(exported)
    }

    fn told(&self, told: NewEvent, exported: &Exported) {
        let figures = serde_json::json!({
            "export": exported.id,
            "archive_bytes": exported.archive_bytes,
            "memory_bytes": exported.memory_bytes,
            "stun_us": exported.stun_us,
        });
        let changes = crate::host::events::with_event(told.with(figures));
        self.commit_logged(&[], changes);
    }

    /// Checks a request before anything stands still; returns the earlier export.
    fn check_export(&self, request: &ExportRequest) -> OpResult<Option<Object<ArchiveRecord>>> {
        check_target(&request.path)?;
        self.exported_before(request)
    }

    /// The earlier export that a request names.
    fn exported_before(&self, request: &ExportRequest) -> OpResult<Option<Object<ArchiveRecord>>> {
        let Some(since) = &request.since else {
            return Ok(None);
        };
        let record = self.object::<ArchiveRecord>(since);
        match record {
            Ok(record) if !record.doc.writing => Ok(Some(record)),
            _ => Err(OpError::new(
                ErrorKind::NotFound,
                format!(
                    "since: there is no export {since:?} of this host; export without it to write \
                     everything"
                ),
            )),
        }
    }

    fn export(
        self: &Arc<Self>,
        subject: &Subject,
        earlier: Option<&Object<ArchiveRecord>>,
        request: &ExportRequest,
        task: &TaskContext,
    ) -> OpResult<Exported> {
        let id = random_hex::<16>();
        let vm_id = &subject.row.id;
        let mut table = match subject.memory {
            Some(_) => self.new_table(vm_id, &id),
            None => None,
        };
        let contents = Contents::describe(
            &Wanted {
                id,
                since: self.earlier_memory(earlier, subject)?,
                earlier: earlier.map(|record| &record.doc),
                table: table.as_ref().map(NewTable::file),
                request,
            },
            subject,
            task,
        )?;
        let manifest = &contents.manifest;
        let record = self.record_of(&contents, &request.path);
        let record = self.make_object(None, &manifest.id, record, None)?;
        let written = write_archive(&contents, &request.path, task).and_then(|bytes| {
            self.change_object::<ArchiveRecord>(&record.id, None, |record| {
                record.doc.writing = false;
                Ok(())
            })
            .map(|_| bytes)
        });
        let archive_bytes = match written {
            Ok(bytes) => bytes,
            Err(error) => {
                self.remove_object::<ArchiveRecord>(&record.id, None)?;
                return Err(match error.has_cause(is_no_space) {
                    true => no_space_for(&request.path),
                    false => error,
                });
            }
        };
        if let Some(table) = table.as_mut().filter(|_| contents.memory.table.is_some()) {
            table.keep();
            self.prune_tables(vm_id);
        }
        let included = manifest.layers.iter().filter(|layer| layer.included);
        let included = included.count();
        Ok(Exported {
            id: manifest.id.clone(),
            path: request.path.clone(),
            kind: match subject.kind {
                archives::Kind::Vm => "vm",
                archives::Kind::Snapshot => "snapshot",
                archives::Kind::ForkPoint => "forkpoint",
            }
            .to_owned(),
            archive_bytes,
            layers: included,
            layers_left_out: manifest.layers.len() - included,
            memory: manifest.memory.is_some(),
            memory_bytes: contents.memory.written_bytes,
            memory_left_out_bytes: contents.memory.left_out_bytes,
            memory_whole_because: contents.memory.whole_because,
            stun_us: subject.stun_us,
        })
    }

    /// The record of an archive that is about to be written.
    fn record_of(&self, contents: &Contents<'_>, path: &Path) -> ArchiveRecord {
        let (subject, manifest) = (contents.subject, &contents.manifest);
        let layers = manifest.layers.iter().zip(&subject.layers);
        let layers = layers.map(|(layer, here)| ArchivedLayer {
            layer: here.row.id.clone(),
            sha256: layer.file.sha256.clone(),
            bytes: layer.file.bytes,
        });
        let memory = manifest.memory.as_ref().map(|memory| ArchivedMemory {
            sha256: memory.ram.sha256.clone(),
            bytes: memory.ram.bytes,
            file: subject.ram_file.clone(),
            table: contents.memory.table.clone(),
        });
        ArchiveRecord {
            path: path.to_owned(),
            subject: subject.row.name.clone(),
            vm_id: subject.row.id.clone(),
            writing: true,
            at_ms: now_ms(),
            layers: layers.collect(),
            boot: archived_boot(manifest, &subject.row.boot),
            memory,
            ..ArchiveRecord::default()
        }
    }
}

/// What a record tells of the boot files of an archive, which are these here.
pub(super) fn archived_boot(manifest: &Manifest, here: &BootSource) -> Vec<ArchivedFile> {
    let files = [Some(&here.kernel), here.initrd.as_ref()];
    let boot = manifest.boot().into_iter().zip(files.into_iter().flatten());
    let archived = |((_, blob), file): ((Part, &Blob), &PathBuf)| ArchivedFile {
        sha256: blob.sha256.clone(),
        bytes: blob.bytes,
        file: file.clone(),
    };
    boot.map(archived).collect()
}

fn no_space_for(path: &Path) -> OpError {
    let dir = path.parent().unwrap_or(path).display();
    OpError::unavailable(format!(
        "path: there is no space for the archive in {dir}; make space there, or choose another path"
    ))
}

fn no_snapshots() -> OpError {
    OpError::invalid("snapshot: a fork point has no snapshots; leave it out")
}

/// Refuses a VM that is still being made.
fn needs_making(vm: &Vm) -> OpResult<()> {
    match vm.state() {
        PowerState::Creating => needs_process(&vm.name(), PowerState::Creating),
        _ => Ok(()),
    }
}

/// Refuses a file that is there, and a folder that is not.
fn check_target(path: &Path) -> OpResult<()> {
    let shown = path.display();
    if !path.is_absolute() || path.file_name().is_none() {
        return Err(OpError::invalid(format!(
            "path: {shown} is no absolute path of a file"
        )));
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        return Err(OpError::invalid(format!(
            "path: there is no folder {}; make it, or choose another path",
            parent.display()
        )));
    }
    if fs::symlink_metadata(path).is_ok() {
        return Err(OpError::conflict(format!(
            "path: there is a file {shown} already; choose another path"
        ))
        .about("path"));
    }
    Ok(())
}

/// Writes the archive beside its name, durably, then gives it its name.
fn write_archive(contents: &Contents<'_>, path: &Path, task: &TaskContext) -> OpResult<u64> {
    use std::os::unix::fs::OpenOptionsExt;
    let part = part_of(path, &contents.manifest.id);
    let failed = || format!("path: cannot write {}", path.display());
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .with_context(failed)?;
    let written = fill_and_name(contents, file, &part, path, task);
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Writes the archive to its new file, then gives that its name.
fn fill_and_name(
    contents: &Contents<'_>,
    file: File,
    part: &Path,
    path: &Path,
    task: &TaskContext,
) -> OpResult<u64> {
    let failed = || format!("path: cannot write {}", path.display());
    let manifest = &contents.manifest;
    let mut open = |part: Part| contents.open(part);
    let mut report = watch(
        task,
        manifest.total_bytes(),
        (0.4, 1.0),
        "writing the archive",
    );
    let mut out = BufWriter::with_capacity(1 << 20, file);
    archives::write(&mut out, manifest, &mut open, &mut report).map_err(refuse)?;
    out.flush().with_context(failed)?;
    let file = out.into_inner().map_err(|error| error.into_error());
    let file = file.with_context(failed)?;
    file.sync_all().with_context(failed)?;
    let bytes = file.metadata().with_context(failed)?.len();
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        part,
        rustix::fs::CWD,
        path,
        rustix::fs::RenameFlags::NOREPLACE,
    )
    .with_context(failed)?;
    sync_directory(path.parent().unwrap_or(path)).with_context(failed)?;
    Ok(bytes)
}
