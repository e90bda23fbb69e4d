//! Writing an archive.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use api_types::{DryRun, ErrorKind, ExportRequest, Exported};
use archives::{FORMAT, Layer, Manifest, Memory, Part, digest};

use super::describe::{Names, format_of, machine_of};
use super::subject::{Source, Subject, boot_files, length_of};
use super::{Host, TaskContext, Vm, needs_process, part_of, refuse, vm_event, watch};
use crate::clock::{now_ms, random_hex};
use crate::error::{OpError, OpResult};
use crate::host::check::Problems;
use crate::host::event;
use crate::inventory::{
    ArchiveRecord, ArchivedLayer, ForkPoint, NewEvent, Object, PowerState, sync_directory,
};

impl Host {
    /// Writes a VM or one of its snapshots to an archive.
    pub fn export_vm(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        request: &ExportRequest,
        task: &TaskContext,
    ) -> OpResult<Exported> {
        let known = self.check_export(request)?;
        task.progress(0.0, "taking hold of what is to be written");
        let subject = match &request.snapshot {
            Some(name) => self.subject_of_snapshot(vm, &self.find_snapshot(vm, name)?)?,
            None => self.subject_of_vm(vm)?,
        };
        let exported = self.export(&subject, &known, request, task)?;
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
        let known = self.check_export(request)?;
        let subject = self.subject_of_point(point)?;
        let exported = self.export(&subject, &known, request, task)?;
        let message = format!("exported to {}", request.path.display());
        let told = event(&point.name, "forkpoint.exported", message).about(&point.id);
        self.told(told, &exported);
        Ok(exported)
    }

    fn told(&self, told: NewEvent, exported: &Exported) {
        let figures = serde_json::json!({
            "export": exported.id,
            "archive_bytes": exported.archive_bytes,
            "stun_us": exported.stun_us,
        });
        let changes = crate::host::events::with_event(told.with(figures));
        self.commit_logged(&[], changes);
    }

    /// Checks a request before anything stands still; returns the layers of the earlier export.
    fn check_export(&self, request: &ExportRequest) -> OpResult<Vec<ArchivedLayer>> {
        check_target(&request.path)?;
        self.exported_before(request)
    }

    /// Layers of the earlier export that a request names.
    fn exported_before(&self, request: &ExportRequest) -> OpResult<Vec<ArchivedLayer>> {
        let Some(since) = &request.since else {
            return Ok(Vec::new());
        };
        let record = self.object::<ArchiveRecord>(since);
        match record {
            Ok(record) if !record.doc.writing => Ok(record.doc.layers),
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
        known: &[ArchivedLayer],
        request: &ExportRequest,
        task: &TaskContext,
    ) -> OpResult<Exported> {
        let (kernel, initrd) = boot_files(&subject.row)?;
        let boot = Boot { kernel, initrd };
        let manifest = describe(subject, &boot, known, request, task)?;
        manifest.check().map_err(refuse)?;
        let layers: Vec<_> = manifest
            .layers
            .iter()
            .zip(&subject.layers)
            .map(|(layer, here)| ArchivedLayer {
                layer: here.row.id.clone(),
                sha256: layer.file.sha256.clone(),
                bytes: layer.file.bytes,
            })
            .collect();
        let record = ArchiveRecord {
            path: request.path.clone(),
            subject: subject.row.name.clone(),
            writing: true,
            at_ms: now_ms(),
            layers,
            ..ArchiveRecord::default()
        };
        let record = self.make_object(None, &manifest.id, record, None)?;
        let written =
            write_archive(subject, &boot, &manifest, &request.path, task).and_then(|bytes| {
                self.change_object::<ArchiveRecord>(&record.id, None, |record| {
                    record.doc.writing = false;
                    Ok(())
                })
                .map(|_| bytes)
            });
        let archive_bytes = match written {
            Ok(bytes) => bytes,
            Err(error) => {
                let _ = fs::remove_file(part_of(&request.path));
                self.remove_object::<ArchiveRecord>(&record.id, None)?;
                return Err(error);
            }
        };
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
            stun_us: subject.stun_us,
        })
    }
}

/// Files that boot.
struct Boot {
    kernel: Source,
    initrd: Option<Source>,
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

/// Reads everything once and works the manifest out.
fn describe(
    subject: &Subject,
    boot: &Boot,
    known: &[ArchivedLayer],
    request: &ExportRequest,
    task: &TaskContext,
) -> OpResult<Manifest> {
    let mut total = 0;
    let memory = subject.memory.iter().flat_map(|(ram, state)| [ram, state]);
    for source in subject.layers.iter().map(|layer| &layer.file).chain(memory) {
        total += length_of(source)?;
    }
    let mut report = watch(task, total, "reading what is to be written");
    let mut blob = |name: &str, source: &Source| {
        let file = source.file().context("cannot open a file again")?;
        digest(name, &file, &mut report).map_err(refuse)
    };
    let kernel = blob("the kernel", &boot.kernel)?;
    let initrd = boot.initrd.as_ref();
    let initrd = initrd.map(|file| blob("the initrd", file)).transpose()?;
    let names = Names::of_subject(subject);
    let mut layers = Vec::new();
    for layer in &subject.layers {
        let row = &layer.row;
        let earlier = known.iter().find(|known| known.layer == row.id);
        let file = match earlier {
            Some(earlier) => archives::Blob {
                sha256: earlier.sha256.clone(),
                bytes: earlier.bytes,
            },
            None => blob(&format!("disk layer {}", row.id), &layer.file)?,
        };
        layers.push(Layer {
            id: names.of(&row.id),
            parent: row.parent.as_deref().map(|parent| names.of(parent)),
            format: format_of(row.format),
            disk_bytes: row.size_bytes,
            file,
            included: earlier.is_none() && (row.owned || !request.without_base),
        });
    }
    let memory = match &subject.memory {
        Some((ram, checkpoint)) => Some(Memory {
            ram: blob("the memory", ram)?,
            checkpoint: blob("the checkpoint", checkpoint)?,
        }),
        None => None,
    };
    Ok(Manifest {
        format: FORMAT,
        id: random_hex::<16>(),
        since: request.since.clone(),
        kind: subject.kind,
        created_at_ms: now_ms(),
        machine: machine_of(subject, names.tops(subject), kernel, initrd),
        layers,
        memory,
    })
}

/// Writes the archive beside its name, durably, then gives it its name.
fn write_archive(
    subject: &Subject,
    boot: &Boot,
    manifest: &Manifest,
    path: &Path,
    task: &TaskContext,
) -> OpResult<u64> {
    use std::os::unix::fs::OpenOptionsExt;
    let part = part_of(path);
    let failed = || format!("path: cannot write {}", path.display());
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .with_context(failed)?;
    let mut open = |part: Part| open_part(subject, boot, part);
    let mut report = watch(task, manifest.total_bytes(), "writing the archive");
    let mut out = BufWriter::with_capacity(1 << 20, file);
    archives::write(&mut out, manifest, &mut open, &mut report).map_err(refuse)?;
    out.flush().with_context(failed)?;
    let file = out.into_inner().map_err(|error| error.into_error());
    let file = file.with_context(failed)?;
    file.sync_all().with_context(failed)?;
    let bytes = file.metadata().with_context(failed)?.len();
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        &part,
        rustix::fs::CWD,
        path,
        rustix::fs::RenameFlags::NOREPLACE,
    )
    .with_context(failed)?;
    sync_directory(path.parent().unwrap_or(path)).with_context(failed)?;
    Ok(bytes)
}

fn open_part(subject: &Subject, boot: &Boot, part: Part) -> io::Result<File> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let source = match part {
        Part::Kernel => Some(&boot.kernel),
        Part::Initrd => boot.initrd.as_ref(),
        Part::Layer(index) => subject.layers.get(index).map(|layer| &layer.file),
        Part::Ram => subject.memory.as_ref().map(|(ram, _)| ram),
        Part::Checkpoint => subject.memory.as_ref().map(|(_, state)| state),
    };
    source.ok_or_else(missing)?.file()
}
