//! What goes into an archive: everything is read once, and the manifest worked out.

use std::fs::File;
use std::io;

use anyhow::Context;
use api_types::ExportRequest;
use archives::{
    Blob, Changes, Content, FORMAT, Layer, Manifest, Memory, MemoryChanges, Part, Survey, Watch,
    digest, survey,
};

use super::describe::{Names, format_of, machine_of};
use super::subject::{Source, Subject, boot_files, length_of};
use super::{TaskContext, refuse, watch};
use crate::clock::now_ms;
use crate::error::OpResult;
use crate::inventory::{ArchiveRecord, ArchivedTable};

/// Memory that an earlier export had.
#[derive(Debug)]
pub(super) struct EarlierMemory {
    /// SHA-256 of the RAM.
    pub sha256: String,
    /// Its table of page digests.
    pub table: File,
}

/// What is to be exported, beside the subject.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// Id of the export.
    pub id: String,
    /// Memory that the earlier export had, or why all of it is written although there is one.
    pub since: Result<EarlierMemory, Option<&'static str>>,
    /// The earlier export.
    pub earlier: Option<&'a ArchiveRecord>,
    /// Empty file for the table of page digests.
    pub table: Option<&'a File>,
    /// The request.
    pub request: &'a ExportRequest,
}

/// What an archive has of the memory.
#[derive(Debug, Default)]
pub(super) struct MemoryTold {
    /// Bytes in the archive, without pages of zeros.
    pub written_bytes: u64,
    /// Bytes that were left out.
    pub left_out_bytes: u64,
    /// Why none were left out although an earlier export was named.
    pub whole_because: Option<String>,
    /// The table of page digests that was written.
    pub table: Option<ArchivedTable>,
    changes: Option<Changes>,
}

/// All that goes into an archive.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    /// What is exported.
    pub subject: &'a Subject,
    /// What the archive says about itself.
    pub manifest: Manifest,
    /// Its memory.
    pub memory: MemoryTold,
    kernel: Source,
    initrd: Option<Source>,
}

impl<'a> Contents<'a> {
    /// Reads everything once and works the manifest out.
    pub fn describe(
        wanted: &Wanted<'_>,
        subject: &'a Subject,
        task: &TaskContext,
    ) -> OpResult<Self> {
        let (kernel_file, initrd_file) = boot_files(&subject.row)?;
        let mut total = 0;
        let memory = subject.memory.iter().flat_map(|(ram, state)| [ram, state]);
        for source in subject.layers.iter().map(|layer| &layer.file).chain(memory) {
            total += length_of(source)?;
        }
        let mut report = watch(task, total, (0.0, 0.4), "reading what is to be written");
        let kernel = blob("the kernel", &kernel_file, &mut report)?;
        let initrd = initrd_file.as_ref();
        let initrd = initrd.map(|file| blob("the initrd", file, &mut report));
        let initrd = initrd.transpose()?;
        let names = Names::of_subject(subject);
        let layers = layers_of(wanted, subject, &names, &mut report)?;
        let mut told = MemoryTold::default();
        let memory = match &subject.memory {
            Some((ram, checkpoint)) => Some(Memory {
                checkpoint: blob("the checkpoint", checkpoint, &mut report)?,
                ..memory_of(wanted, ram, &mut told, &mut report)?
            }),
            None => None,
        };
        let mut manifest = Manifest {
            format: FORMAT,
            id: wanted.id.clone(),
            since: wanted.request.since.clone(),
            boot_left_out: false,
            kind: subject.kind,
            created_at_ms: now_ms(),
            machine: machine_of(subject, names.tops(subject), kernel, initrd),
            layers,
            memory,
            point: subject.point.clone(),
        };
        let had = |blob: &Blob| {
            let known = wanted.earlier.map_or(&[][..], |earlier| &earlier.boot);
            known.iter().any(|known| known.sha256 == blob.sha256)
        };
        manifest.boot_left_out = manifest.boot().iter().all(|(_, blob)| had(blob));
        manifest.format = manifest.oldest_format();
        manifest.check().map_err(refuse)?;
        Ok(Self {
            subject,
            manifest,
            memory: told,
            kernel: kernel_file,
            initrd: initrd_file,
        })
    }

    /// The content of a part.
    pub fn open(&self, part: Part) -> io::Result<Content> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let memory = self.subject.memory.as_ref();
        let source = match part {
            Part::Kernel => Some(&self.kernel),
            Part::Initrd => self.initrd.as_ref(),
            Part::Layer(index) => self.subject.layers.get(index).map(|layer| &layer.file),
            Part::Ram | Part::Changes => memory.map(|(ram, _)| ram),
            Part::Checkpoint => memory.map(|(_, state)| state),
        };
        let file = source.ok_or_else(missing)?.file()?;
        match (part, &self.memory.changes) {
            (Part::Changes, Some(changes)) => Ok(Content::Bytes(Box::new(changes.content(file)))),
            (Part::Changes, None) => Err(missing()),
            _ => Ok(Content::File(file)),
        }
    }
}

fn blob(name: &str, source: &Source, report: &mut Watch<'_>) -> OpResult<Blob> {
    let file = source.file().context("cannot open a file again")?;
    digest(name, &file, report).map_err(refuse)
}

fn layers_of(
    wanted: &Wanted<'_>,
    subject: &Subject,
    names: &Names,
    report: &mut Watch<'_>,
) -> OpResult<Vec<Layer>> {
    let mut layers = Vec::new();
    for layer in &subject.layers {
        let row = &layer.row;
        let known = wanted.earlier.map_or(&[][..], |earlier| &earlier.layers);
        let earlier = known.iter().find(|known| known.layer == row.id);
        let file = match earlier {
            Some(earlier) => Blob {
                sha256: earlier.sha256.clone(),
                bytes: earlier.bytes,
            },
            None => blob(&format!("disk layer {}", row.id), &layer.file, report)?,
        };
        layers.push(Layer {
            id: names.of(&row.id),
            parent: row.parent.as_deref().map(|parent| names.of(parent)),
            format: format_of(row.format),
            disk_bytes: row.size_bytes,
            file,
            included: earlier.is_none() && (row.owned || !wanted.request.without_base),
        });
    }
    Ok(layers)
}

/// Reads the memory, and decides whether it goes whole; its checkpoint is left empty.
fn memory_of(
    wanted: &Wanted<'_>,
    ram: &Source,
    told: &mut MemoryTold,
    report: &mut Watch<'_>,
) -> OpResult<Memory> {
    let file = ram.file().context("cannot open a file again")?;
    let since = wanted.since.as_ref();
    let before = since.ok().map(|since| &since.table);
    let Survey {
        ram,
        table,
        full_pages,
        changes,
    } = survey(&file, wanted.table, before, report).map_err(refuse)?;
    let page = archives::PAGE_BYTES;
    told.table = table.map(|table| ArchivedTable {
        sha256: table.sha256,
        bytes: table.bytes,
    });
    told.written_bytes = full_pages * page;
    told.whole_because = match since {
        Err(why) => why.map(str::to_owned),
        Ok(_) => Some("all of it has changed".to_owned()),
    };
    let checkpoint = Blob {
        sha256: String::new(),
        bytes: 0,
    };
    // Where all of it differs, the archive had better stand by itself.
    let fewer = changes.filter(|changes| changes.full_pages < full_pages.max(1));
    let changes = match (fewer, since) {
        (Some(changes), Ok(since)) => {
            told.written_bytes = changes.full_pages * page;
            told.left_out_bytes = (full_pages - changes.full_pages) * page;
            told.whole_because = None;
            let file = changes.digest(&file, report).map_err(refuse)?;
            told.changes = Some(changes);
            Some(MemoryChanges {
                from_sha256: since.sha256.clone(),
                file,
            })
        }
        _ => None,
    };
    Ok(Memory {
        ram,
        changes,
        checkpoint,
    })
}
