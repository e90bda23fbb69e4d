//! Making a VM or a fork point of an archive.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Context;
use api_types::{DryRun, ImportAs, ImportRequest, Imported};
use archives::{ArchiveError, Blob, Manifest, Part, Watch, copy_expected, digest};

use super::describe::{format_from, row_of};
use super::export::archived_boot;
use super::files::{Places, Staged, settle_layer};
use super::known::Found;
use super::origins::{FileOrigin, LayerOrigin, Opened, Origins};
use super::succession::{Predecessor, check_identity, machine_of};
use super::{Host, TaskContext, Vm, refuse, vm_event, watch};
use crate::clock::{now_ms, random_hex, random_uuid};
use crate::error::{OpError, OpResult};
use crate::host::check::Problems;
use crate::host::datastores::Promise;
use crate::host::full::is_no_space;
use crate::host::identity::new_mac;
use crate::inventory::{
    ArchiveRecord, ArchivedLayer, ArchivedMemory, BootSource, Changes, Datastore, DiskRow,
    FIRST_DATASTORE, ForkPoint, LayerRow, Object, ObjectId, PowerState, SuspendRow, VM_FOLDER,
    VmRow,
};
use crate::layers::make_delta;

/// Layers of an import by their names in the archive.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub rows: HashMap<String, LayerRow>,
    /// Those that archives had.
    pub new: Vec<LayerRow>,
    /// Those that were here.
    pub found: usize,
}

/// One import.
pub(super) struct Intake<'a> {
    pub request: &'a ImportRequest,
    pub opened: &'a Opened,
    pub origins: &'a Origins,
    /// Name of what is made.
    pub name: &'a str,
    /// Datastore of its disks and its memory.
    pub datastore: ObjectId,
    /// Id of the record.
    pub import: String,
    pub places: Places,
    pub task: &'a TaskContext,
}

impl Intake<'_> {
    /// What the archive says about itself.
    pub fn manifest(&self) -> &Manifest {
        self.opened.manifest()
    }

    /// Boot files, where they stay.
    pub fn boot(&self) -> BootSource {
        let manifest = self.manifest();
        let place = |part| self.places.path_of(manifest, part);
        let initrd = manifest.machine.initrd.as_ref();
        BootSource {
            image: None,
            kernel: place(Part::Kernel),
            initrd: initrd.map(|_| place(Part::Initrd)),
        }
    }

    /// Row of the machine, without disks.
    pub fn row(&self, id: String, name: String) -> VmRow {
        let mut row = row_of(&self.manifest().machine, id, name, self.boot());
        row.datastore.clone_from(&self.datastore);
        row
    }

    /// Says in a VM's row that it is there, and as what.
    pub fn settle_state(&self, row: &mut VmRow) {
        row.standby = !self.request.new_identity;
        row.state = PowerState::PoweredOff;
        if self.manifest().memory.is_some() {
            row.state = PowerState::Suspended;
            row.suspend = Some(SuspendRow::Files {
                files: self.places.memory.clone(),
                as_clone: self.request.new_identity,
                copied: true,
                waking: false,
            });
        }
    }

    /// The record of the archive.
    pub fn record(&self, vm_id: &str, taken: &Taken) -> Object<ArchiveRecord> {
        let manifest = self.manifest();
        let here = |id: &str| taken.rows.get(id).map(|row| row.id.clone());
        let layers = manifest.layers.iter().map(|layer| ArchivedLayer {
            layer: here(&layer.id).unwrap_or_default(),
            sha256: layer.file.sha256.clone(),
            bytes: layer.file.bytes,
        });
        let memory = manifest.memory.as_ref().map(|memory| ArchivedMemory {
            sha256: memory.ram.sha256.clone(),
            bytes: memory.ram.bytes,
            file: Some(self.places.memory.ram.clone()),
            table: None,
        });
        Object {
            id: self.import.clone(),
            parent: None,
            // One archive may be imported several times.
            name: format!("{}-of-{}", self.import, manifest.id),
            version: 1,
            doc: ArchiveRecord {
                path: self.request.path.clone(),
                subject: manifest.machine.name.clone(),
                vm_id: vm_id.to_owned(),
                imported: true,
                at_ms: now_ms(),
                layers: layers.collect(),
                boot: archived_boot(manifest, &self.boot()),
                memory,
                ..ArchiveRecord::default()
            },
        }
    }
}

impl Host {
    /// Tries an import out; what the files of the archive hold is not verified.
    pub fn check_import(&self, request: &ImportRequest) -> DryRun {
        let mut problems = Problems::default();
        let Some(opened) = Opened::open(&request.path, &request.earlier, &mut problems) else {
            problems.take(self.store_for_disks(datastore_for(request, None).as_ref()));
            return problems.dry_run();
        };
        let manifest = opened.manifest();
        let name = name_for(request, manifest);
        let what = problems.take(what_to_make(request, manifest));
        let what = what.unwrap_or(ImportAs::Vm);
        let old = problems.take(self.predecessor(request, manifest, what, name));
        let old = old.flatten();
        match (&old, what) {
            (Some(old), _) => self.check_succession(old, request, manifest, &mut problems),
            (None, ImportAs::Forkpoint) => {
                problems.take(self.check_free::<ForkPoint>(None, name));
            }
            (None, ImportAs::Vm) => {
                problems.take(match api_types::name_problem(name) {
                    Some(problem) => Err(OpError::invalid(problem)),
                    None => self.check_name_free(name, VM_FOLDER),
                });
                if !request.new_identity {
                    let row = machine_of(manifest);
                    problems.take(check_identity(&self.all(), &row, manifest));
                }
            }
        }
        let mut go_on = |_| ControlFlow::Continue(());
        let mut found = Found::new(self);
        let origins = self.origins(&opened, &mut found, &mut go_on, &mut problems);
        let wanted = datastore_for(request, old.as_ref());
        problems.take(self.room_for(&wanted, manifest, origins.as_ref()));
        problems.dry_run()
    }

    /// Makes a VM or a fork point of an archive.
    pub fn import(
        self: &Arc<Self>,
        request: &ImportRequest,
        task: &TaskContext,
    ) -> OpResult<Imported> {
        let mut problems = Problems::default();
        let opened = Opened::open(&request.path, &request.earlier, &mut problems);
        let opened = problems.end(opened)?;
        let manifest = opened.manifest();
        let what = what_to_make(request, manifest)?;
        let name = name_for(request, manifest);
        if let Some(problem) = api_types::name_problem(name) {
            return Err(OpError::invalid(problem));
        }
        let mut problems = Problems::default();
        let old = self.predecessor(request, manifest, what, name)?;
        if let Some(old) = &old {
            self.check_succession(old, request, manifest, &mut problems);
        }
        let mut found = Found::new(self);
        let origins = {
            let total = manifest
                .memory
                .as_ref()
                .map_or(1, |memory| memory.ram.bytes);
            let mut report = watch(task, total, (0.0, 0.2), "looking for what is here");
            self.origins(&opened, &mut found, &mut report, &mut problems)
        };
        let origins = problems.end(origins)?;
        let wanted = datastore_for(request, old.as_ref());
        let (datastore, _space) = self.room_for(&wanted, manifest, Some(&origins))?;
        let import = self.new_id("archive")?;
        let kept = old.as_ref().map(Predecessor::name);
        let intake = Intake {
            request,
            opened: &opened,
            origins: &origins,
            name: kept.as_deref().unwrap_or(name),
            places: Places::new(self, &import, &datastore)?,
            datastore,
            import,
            task,
        };
        let made = match (what, &old) {
            (_, Some(Predecessor::Vm(vm))) => self.succeed(&intake, vm),
            (_, Some(Predecessor::Point(point))) => self.import_point(&intake, Some(point)),
            (ImportAs::Vm, None) => self.import_vm(&intake),
            (ImportAs::Forkpoint, None) => self.import_point(&intake, None),
        };
        made.map_err(|error| match error.has_cause(is_no_space) {
            true => self.no_room(&intake).unwrap_or(error),
            false => error,
        })
    }

    /// The refusal of an import for which a datastore had less space than its archives have content.
    fn no_room(&self, intake: &Intake<'_>) -> Option<OpError> {
        let store = self.object::<Datastore>(&intake.datastore).ok()?;
        let request = intake.request;
        let archives = std::iter::once(&request.path).chain(&request.earlier);
        let lengths = archives.filter_map(|path| Some(std::fs::metadata(path).ok()?.len()));
        Some(self.ran_out_of_space(&store, lengths.sum()))
    }

    fn import_vm(self: &Arc<Self>, intake: &Intake<'_>) -> OpResult<Imported> {
        let mut row = intake.row(self.new_id("vm")?, intake.name.to_owned());
        let new_identity = intake.request.new_identity;
        if new_identity {
            self.give_identity(&mut row);
        }
        let vm = Vm::new(row);
        let _turn = vm.operate();
        self.reserve_where(std::slice::from_ref(&vm), |members| match new_identity {
            true => Ok(()),
            false => check_identity(members, &vm.row(), intake.manifest()),
        })?;
        let mut staged = Staged::default();
        let made = self.take_files(intake, &mut staged).and_then(|taken| {
            let disks = self.lay_disks(&vm, intake.manifest(), &taken)?;
            self.record_import(intake, &vm, &taken, disks)?;
            Ok(taken)
        });
        match made {
            Ok(taken) => {
                staged.keep();
                self.link_tops(&vm.row());
                Ok(imported(intake, &vm, &taken))
            }
            Err(error) => {
                self.erase(&vm, None);
                Err(error)
            }
        }
    }

    /// The datastore that the machine is to be on, with the space of what comes out of the archive.
    fn room_for(
        &self,
        wanted: &str,
        manifest: &Manifest,
        origins: Option<&Origins>,
    ) -> OpResult<(ObjectId, Promise)> {
        let store = self.store_for_disks(wanted)?;
        // Memory is mostly holes; what it needs shows when it is written.
        let comes = |index: usize| match origins {
            Some(origins) => !matches!(origins.layers[index], LayerOrigin::Here(_)),
            None => manifest.layers[index].included,
        };
        let layers = manifest.layers.iter().enumerate();
        let needed = layers
            .filter(|(index, _)| comes(*index))
            .map(|(_, layer)| layer.file.bytes)
            .fold(0, u64::saturating_add);
        let space = self.promise_space(&store, needed)?;
        Ok((store.id, space))
    }

    /// Gives a machine an identity of its own.
    fn give_identity(&self, row: &mut VmRow) {
        let mut used = self.macs_in_use();
        row.uuid = random_uuid();
        row.bios_uuid = None;
        row.machine_id = random_hex::<16>();
        row.spec.nics.iter_mut().for_each(|nic| {
            nic.mac = new_mac(&mut used);
            nic.keep_mac = false;
        });
    }

    /// Takes all files out of archives, verified and durable.
    pub(super) fn take_files(
        self: &Arc<Self>,
        intake: &Intake<'_>,
        staged: &mut Staged,
    ) -> OpResult<Taken> {
        let (manifest, places) = (intake.manifest(), &intake.places);
        let total = manifest.total_bytes();
        let mut report = watch(
            intake.task,
            total,
            (0.2, 1.0),
            "taking files out of the archive",
        );
        bring_earlier(intake, staged, &mut report)?;
        let ram = intake.origins.ram.as_ref();
        let mut place = |part| match part {
            Part::Changes => open_ram(places),
            part => staged.make(&places.path_of(manifest, part)),
        };
        let reader = &intake.opened.reader;
        let taken = match ram.is_some_and(|ram| ram.is_result) {
            false => reader.extract(&mut place, &mut report),
            true => {
                let mut place = |part| match part {
                    Part::Changes => Ok(None),
                    part => place(part).map(Some),
                };
                reader.extract_some(&mut place, &mut report)
            }
        };
        taken.map_err(refuse)?;
        if let (Some(_), Some(memory)) = (ram, &manifest.memory) {
            let ram = open_ram(places).context("cannot open what was written")?;
            let made = digest("memory/ram", &ram, &mut report).map_err(refuse)?;
            if made != memory.ram {
                let member = "memory/ram".to_owned();
                return Err(refuse(ArchiveError::Damaged { member }));
            }
        }
        let taken = settle_layers(intake)?;
        places.settle(staged)?;
        Ok(taken)
    }

    /// Makes the VM's own tops on the layers, which are held from here on.
    fn lay_disks(
        &self,
        vm: &Arc<Vm>,
        manifest: &Manifest,
        taken: &Taken,
    ) -> OpResult<Vec<LayerRow>> {
        let mut deltas = Vec::new();
        let mut disks = Vec::new();
        vm.update(|live| -> OpResult<()> {
            let tops = manifest
                .machine
                .disks
                .iter()
                .zip(&manifest.machine.spec.disks);
            for (index, (top, spec)) in tops.enumerate() {
                let Some(top) = top else {
                    disks.push(DiskRow::default());
                    continue;
                };
                let top = taken.rows.get(top);
                let top = top.with_context(|| format!("disk {index} has no layer"))?;
                let mut own = top.id.clone();
                if !spec.read_only {
                    let delta = self.next_delta(&mut live.row, index, top);
                    own.clone_from(&delta.id);
                    deltas.push((delta, top.clone()));
                }
                disks.push(DiskRow::of(Some(own)));
            }
            let mut layers = self.layers();
            layers.insert(taken.rows.values().cloned());
            layers.insert(deltas.iter().map(|(delta, _)| delta.clone()));
            let held = disks.iter().flat_map(DiskRow::held);
            held.for_each(|layer| layers.hold(layer));
            live.row.disks = disks;
            Ok(())
        })?;
        for (delta, parent) in &deltas {
            make_delta(delta, parent)?;
        }
        self.make_home(vm)?;
        Ok(deltas.into_iter().map(|(delta, _)| delta).collect())
    }

    fn record_import(
        &self,
        intake: &Intake<'_>,
        vm: &Arc<Vm>,
        taken: &Taken,
        deltas: Vec<LayerRow>,
    ) -> OpResult<()> {
        crate::inventory::sync_directory(&self.store(&vm.row().datastore).layers())
            .context("cannot sync the datastore")?;
        vm.update(|live| intake.settle_state(&mut live.row));
        let record = intake.record(&vm.id, taken);
        let message = format!("imported from {}", intake.request.path.display());
        let told = serde_json::json!(imported(intake, vm, taken));
        let mut changes = Changes {
            objects: vec![crate::host::row_of(&record)?],
            events: vec![vm_event(vm, "vm.imported", message).with(told)],
            ..Changes::default()
        };
        changes.layers.extend(taken.rows.values().cloned());
        changes.layers.extend(deltas);
        self.commit(&[vm], changes)?;
        self.inventory.sync().context("cannot sync the inventory")?;
        Ok(())
    }
}

/// Takes what the archive leaves out from files of this host and from earlier archives: boot files,
/// disk layers, and the RAM that its changes start from.
fn bring_earlier(intake: &Intake<'_>, staged: &mut Staged, report: &mut Watch<'_>) -> OpResult<()> {
    let (manifest, places) = (intake.manifest(), &intake.places);
    for (part, blob, origin) in &intake.origins.boot {
        if let FileOrigin::Here(file) = origin {
            let path = places.path_of(manifest, *part);
            let to = staged.make(&path);
            let to = to.with_context(|| format!("cannot make {}", path.display()))?;
            copy_found(file, blob, &to, report)?;
        }
    }
    for (number, earlier) in intake.opened.earlier.iter().enumerate() {
        let mut wanted = parts_from(intake.origins, number);
        // Two disks may have equal layers, which are one in the archive: each pass takes a part once.
        while !wanted.is_empty() {
            let mut place = |part| match wanted.iter().position(|(there, _)| *there == part) {
                Some(index) => {
                    let (_, here) = wanted.swap_remove(index);
                    staged.make(&places.path_of(manifest, here)).map(Some)
                }
                None => Ok(None),
            };
            earlier.extract_some(&mut place, report).map_err(refuse)?;
        }
    }
    bring_ram(intake, staged, report)
}

/// Boot files and layers that come from an earlier archive: each as it is called there, and here.
fn parts_from(origins: &Origins, number: usize) -> Vec<(Part, Part)> {
    let layers = origins.layers.iter().enumerate();
    let layers = layers.filter_map(|(index, origin)| match origin {
        LayerOrigin::Earlier(archive, layer) if *archive == number => {
            Some((Part::Layer(*layer), Part::Layer(index)))
        }
        _ => None,
    });
    let boot = origins.boot.iter().filter_map(|(part, _, origin)| {
        let from = matches!(origin, FileOrigin::Earlier(archive) if *archive == number);
        from.then_some((*part, *part))
    });
    layers.chain(boot).collect()
}

/// Copies a file of this host that was looked at before.
fn copy_found(file: &File, expected: &Blob, to: &File, report: &mut Watch<'_>) -> OpResult<()> {
    match copy_expected("a file of this host", file, expected, to, report) {
        Ok(true) => Ok(()),
        Ok(false) => Err(OpError::failed(
            "a file that the archive needs was changed meanwhile; try again",
        )),
        Err(error) => Err(refuse(error)),
    }
}

/// Makes the RAM that the archive's changes start from, where it has some.
fn bring_ram(intake: &Intake<'_>, staged: &mut Staged, report: &mut Watch<'_>) -> OpResult<()> {
    let places = &intake.places;
    let Some(origin) = &intake.origins.ram else {
        return Ok(());
    };
    let ram = staged.make(&places.memory.ram);
    let ram = ram.with_context(|| format!("cannot make {}", places.memory.ram.display()))?;
    let take = |number: usize, wanted: Part, report: &mut Watch<'_>| {
        let mut place = |part| match part == wanted {
            true => ram.try_clone().map(Some),
            false => Ok(None),
        };
        let earlier = &intake.opened.earlier[number];
        earlier.extract_some(&mut place, report).map_err(refuse)
    };
    match &origin.base {
        FileOrigin::Earlier(number) => take(*number, Part::Ram, report)?,
        FileOrigin::Here(file) => copy_found(file, &origin.whole, &ram, report)?,
    }
    let mut changes = origin.changes.iter();
    changes.try_for_each(|number| take(*number, Part::Changes, report))
}

/// Gives layers that came out of archives their parents here.
fn settle_layers(intake: &Intake<'_>) -> OpResult<Taken> {
    let (manifest, places) = (intake.manifest(), &intake.places);
    let mut taken = Taken::default();
    let origins = manifest.layers.iter().zip(&intake.origins.layers);
    for (index, (layer, origin)) in origins.enumerate() {
        if let LayerOrigin::Here(row) = origin {
            taken.found += 1;
            taken.rows.insert(layer.id.clone(), row.clone());
            continue;
        }
        let parent = layer.parent.as_ref();
        let parent = parent.and_then(|parent| taken.rows.get(parent));
        let path = places.path_of(manifest, Part::Layer(index));
        settle_layer(layer, &path, parent)?;
        let row = LayerRow {
            id: places.layer_id(index),
            parent: parent.map(|parent| parent.id.clone()),
            path,
            format: format_from(layer.format),
            size_bytes: layer.disk_bytes,
            owned: true,
            content: None,
        };
        taken.new.push(row.clone());
        taken.rows.insert(layer.id.clone(), row);
    }
    Ok(taken)
}

/// The RAM of the import, to be changed.
fn open_ram(places: &Places) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(&places.memory.ram)
}

/// What is told of a VM that came out of an archive.
pub(super) fn imported(intake: &Intake<'_>, vm: &Vm, taken: &Taken) -> Imported {
    Imported {
        export: intake.manifest().id.clone(),
        kind: ImportAs::Vm,
        name: vm.name().to_string(),
        vm_id: Some(vm.id.clone()),
        fork_point_id: None,
        state: vm.state().word().to_owned(),
        layers: taken.new.len(),
        layers_found: taken.found,
        replaced: false,
    }
}

/// The datastore that a request means: the one that the predecessor is on, where it names none.
fn datastore_for(request: &ImportRequest, old: Option<&Predecessor>) -> String {
    let given = request.datastore.clone();
    given
        .or_else(|| old.map(Predecessor::datastore))
        .unwrap_or_else(|| FIRST_DATASTORE.to_owned())
}

fn name_for<'a>(request: &'a ImportRequest, manifest: &'a Manifest) -> &'a str {
    let point = manifest.point.as_ref().map(|point| &point.name);
    let own = match request.import_as {
        Some(ImportAs::Vm) => None,
        _ => point,
    };
    let own = own.unwrap_or(&manifest.machine.name);
    request.name.as_ref().unwrap_or(own)
}

/// What an archive is made to.
fn what_to_make(request: &ImportRequest, manifest: &Manifest) -> OpResult<ImportAs> {
    let usual = match manifest.kind {
        archives::Kind::ForkPoint => ImportAs::Forkpoint,
        archives::Kind::Vm | archives::Kind::Snapshot => ImportAs::Vm,
    };
    let what = request.import_as.unwrap_or(usual);
    if what == ImportAs::Forkpoint && manifest.memory.is_none() {
        return Err(OpError::conflict(
            "as: the archive has no memory, so that nothing can be forked from it; import it as vm",
        ));
    }
    Ok(what)
}
