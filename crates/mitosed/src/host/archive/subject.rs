//! What is exported: the rows of an instant and its open files.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use archives::{Kind, Point};

use super::{Host, Vm, needs_process};
use crate::clock::random_hex;
use crate::error::{OpError, OpResult};
use crate::inventory::{
    ForkPoint, LayerId, LayerRow, MemoryFiles, Object, PointMemory, PowerState, Snapshot,
    SnapshotMemory, VmRow,
};

/// An open file that never changes.
#[derive(Clone, Debug)]
pub(super) struct Source(Arc<OwnedFd>);

impl Source {
    /// Opens a file for reading.
    pub fn open(what: &str, path: &Path) -> OpResult<Self> {
        let file = File::open(path).map_err(|error| {
            OpError::failed(format!("{what}: cannot open {}: {error}", path.display()))
        })?;
        Ok(Self(Arc::new(file.into())))
    }

    /// The same file with a position of its own; it may have no name any more.
    pub fn file(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// One layer of a subject.
#[derive(Clone, Debug)]
pub(super) struct SubjectLayer {
    /// Its row.
    pub row: LayerRow,
    /// Its file.
    pub file: Source,
}

/// All that goes into an archive.
#[derive(Debug)]
pub(super) struct Subject {
    /// What it is.
    pub kind: Kind,
    /// The machine.
    pub row: VmRow,
    /// Immutable top layer of each disk; none for an empty slot.
    pub tops: Vec<Option<LayerId>>,
    /// All layers, parents first.
    pub layers: Vec<SubjectLayer>,
    /// Guest RAM and checkpoint.
    pub memory: Option<(Source, Source)>,
    /// File that stays with the guest RAM in it, where there is one.
    pub ram_file: Option<PathBuf>,
    /// The fork point, where it is one.
    pub point: Option<Point>,
    /// Time that the VM stood still for it, microseconds.
    pub stun_us: u64,
}

impl Host {
    /// A VM as it is: one that runs with the memory of this instant.
    pub(super) fn subject_of_vm(self: &Arc<Self>, vm: &Arc<Vm>) -> OpResult<Subject> {
        let _turn = self.turn(vm)?;
        let row = vm.row();
        let present: Vec<_> = row.tops().into_iter().flatten().collect();
        match vm.state() {
            PowerState::Creating => {
                needs_process(&vm.name(), PowerState::Creating)?;
                Err(OpError::conflict(format!("{} is being made", vm.name())))
            }
            PowerState::Suspended => {
                let files = row.memory_files().cloned();
                let tops = self.below_empty_tops(&row)?;
                self.subject(Kind::Vm, row, &tops, files.as_ref(), 0)
            }
            state if state.is_off() => {
                self.hold_layers(&present);
                let sealed = self.seal_powered_off(vm);
                let subject = sealed.and_then(|tops| self.subject(Kind::Vm, row, &tops, None, 0));
                self.drop_layers(&present);
                self.commit(&[vm], Default::default())?;
                subject
            }
            _ => {
                self.hold_layers(&present);
                let subject = self.subject_of_instant(vm, row);
                self.drop_layers(&present);
                subject
            }
        }
    }

    fn subject_of_instant(self: &Arc<Self>, vm: &Arc<Vm>, row: VmRow) -> OpResult<Subject> {
        let place = self.memory_place(vm, None)?;
        let sealed = self.seal(vm, true, None)?;
        let stun_us = sealed.forked.stun_us;
        let name = format!("export-{}-{}", vm.id, random_hex::<4>());
        match self.store_memory(&name, sealed.memory, true, Some(&place))? {
            PointMemory::Files { ram, checkpoint } => {
                let files = MemoryFiles { ram, checkpoint };
                let tops = &sealed.tops;
                let subject = self.subject(Kind::Vm, row, tops, Some(&files), stun_us);
                // They stay as long as they are open.
                self.remove_memory(&files);
                Ok(Subject {
                    ram_file: None,
                    ..subject?
                })
            }
            _ => Err(OpError::failed("the memory was not written to files")),
        }
    }

    /// A snapshot of a VM.
    pub(super) fn subject_of_snapshot(
        &self,
        vm: &Arc<Vm>,
        snapshot: &Object<Snapshot>,
    ) -> OpResult<Subject> {
        let _turn = self.turn(vm)?;
        let snapshot = self.find_snapshot(vm, &snapshot.id)?;
        self.check_complete(&snapshot)?;
        let files = match &snapshot.doc.memory {
            SnapshotMemory::Files(files) => Some(files),
            _ => None,
        };
        let row = VmRow {
            name: vm.name().to_string(),
            ..VmRow::clone(&snapshot.doc.row)
        };
        self.subject(Kind::Snapshot, row, &snapshot.doc.tops, files, 0)
    }

    /// A kept fork point.
    pub(super) fn subject_of_point(&self, point: &Object<ForkPoint>) -> OpResult<Subject> {
        let (ram, checkpoint) = self.open_point(point)?;
        let row = VmRow::clone(&point.doc.row);
        let mut subject = self.subject(Kind::ForkPoint, row, &point.doc.tops, None, 0)?;
        subject.memory = Some((Source(ram), Source(checkpoint)));
        if let PointMemory::Files { ram, .. } = &point.doc.memory {
            subject.ram_file = Some(ram.clone());
        }
        subject.point = Some(Point {
            name: point.name.clone(),
            quiesced: point.doc.quiesced,
        });
        Ok(subject)
    }

    fn subject(
        &self,
        kind: Kind,
        row: VmRow,
        tops: &[Option<LayerId>],
        memory: Option<&MemoryFiles>,
        stun_us: u64,
    ) -> OpResult<Subject> {
        let mut layers: Vec<SubjectLayer> = Vec::new();
        for top in tops.iter().flatten() {
            let chain = self.layers().chain(top)?;
            for row in chain.into_iter().rev() {
                if layers.iter().all(|layer| layer.row.id != row.id) {
                    let file = Source::open("disk layer", &row.path)?;
                    layers.push(SubjectLayer { row, file });
                }
            }
        }
        let open = match memory {
            Some(files) => Some((
                Source::open("memory", &files.ram)?,
                Source::open("checkpoint", &files.checkpoint)?,
            )),
            None => None,
        };
        Ok(Subject {
            kind,
            row,
            tops: tops.to_vec(),
            layers,
            ram_file: memory.map(|files| files.ram.clone()),
            memory: open,
            point: None,
            stun_us,
        })
    }
}

/// Opens the kernel and the initial RAM disk of a machine.
pub(super) fn boot_files(row: &VmRow) -> OpResult<(Source, Option<Source>)> {
    let kernel = Source::open("kernel", &row.boot.kernel)?;
    let initrd = row.boot.initrd.as_ref();
    let initrd = initrd
        .map(|path| Source::open("initrd", path))
        .transpose()?;
    Ok((kernel, initrd))
}

/// The length of a source, bytes.
pub(super) fn length_of(source: &Source) -> OpResult<u64> {
    let file = source.file().context("cannot open a file again")?;
    Ok(file.metadata().context("cannot read a file")?.len())
}
