//! Making a VM of an archive.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::Context;
use api_types::{DryRun, ImportRequest, Imported};
use archives::{Manifest, Part, Reader};

use super::describe::{format_from, row_of};
use super::files::{Places, Staged, settle_layer};
use super::{Host, TaskContext, Vm, refuse, vm_event, watch};
use crate::clock::{now_ms, random_hex, random_uuid};
use crate::error::{OpError, OpResult};
use crate::host::backends::open_given;
use crate::host::check::Problems;
use crate::host::datastores::Promise;
use crate::host::identity::new_mac;
use crate::inventory::{
    ArchiveRecord, ArchivedLayer, BootSource, Changes, DiskRow, FIRST_DATASTORE, LayerId, LayerRow,
    Object, ObjectId, PowerState, SuspendRow, VM_FOLDER, VmRow,
};
use crate::layers::make_delta;

/// Layers of an import by their names in the archive.
#[derive(Debug, Default)]
struct Taken {
    rows: HashMap<String, LayerRow>,
    /// Those that the archive had.
    new: Vec<LayerRow>,
    found: usize,
}

/// What is recorded of an import.
struct Intake<'a> {
    vm: &'a Arc<Vm>,
    /// Id of the record.
    import: &'a str,
    request: &'a ImportRequest,
    manifest: &'a Manifest,
    places: &'a Places,
}

/// Layers that were there already, held until the VM's disks hold them.
#[derive(Debug, Default)]
struct Found(Vec<LayerId>);

impl Found {
    fn hold(&mut self, host: &Host, id: &str) {
        let mut layers = host.layers();
        // A base image that no disk stands on yet is no layer, and is not removed.
        if layers.get(id).is_some() {
            layers.hold(id);
            self.0.push(id.to_owned());
        }
    }

    fn release(&self, host: &Host) {
        host.drop_layers(&self.0);
    }
}

impl Host {
    /// Tries an import out; what the files of the archive hold is not verified.
    pub fn check_import(&self, request: &ImportRequest) -> DryRun {
        let mut problems = Problems::default();
        let file = open_given("path", &request.path);
        let reader = problems.take(file.and_then(|file| Reader::open(file).map_err(refuse)));
        let wanted = request.datastore.as_deref().unwrap_or(FIRST_DATASTORE);
        let Some(reader) = reader else {
            problems.take(self.store_for_disks(wanted));
            return problems.dry_run();
        };
        let manifest = reader.manifest();
        let name = request.name.as_ref().unwrap_or(&manifest.machine.name);
        problems.take(match api_types::name_problem(name) {
            Some(problem) => Err(OpError::invalid(problem)),
            None => self.check_name_free(name, VM_FOLDER),
        });
        problems.take(self.room_for(request, manifest));
        let boot = BootSource {
            image: None,
            kernel: Default::default(),
            initrd: None,
        };
        let mut row = row_of(&manifest.machine, ObjectId::new(), name.clone(), boot);
        problems.take(self.settle_identity(&mut row, request.new_identity));
        problems.dry_run()
    }

    /// Makes a VM of an archive.
    pub fn import(
        self: &Arc<Self>,
        request: &ImportRequest,
        task: &TaskContext,
    ) -> OpResult<Imported> {
        let file = open_given("path", &request.path)?;
        let reader = Reader::open(file).map_err(refuse)?;
        let manifest = reader.manifest();
        let name = request.name.as_ref().unwrap_or(&manifest.machine.name);
        if let Some(problem) = api_types::name_problem(name) {
            return Err(OpError::invalid(problem));
        }
        let (datastore, _space) = self.room_for(request, manifest)?;
        let import = self.new_id("archive")?;
        let places = Places::new(self, &import, &datastore)?;
        let boot = BootSource {
            image: None,
            kernel: places.path_of(manifest, Part::Kernel),
            initrd: manifest
                .machine
                .initrd
                .as_ref()
                .map(|_| places.path_of(manifest, Part::Initrd)),
        };
        let mut row = row_of(&manifest.machine, self.new_id("vm")?, name.clone(), boot);
        row.datastore = datastore;
        self.settle_identity(&mut row, request.new_identity)?;
        let vm = Vm::new(row);
        let _turn = vm.operate();
        self.reserve(std::slice::from_ref(&vm))?;
        let mut staged = Staged::default();
        let mut held = Found::default();
        let made = self
            .take_files(&reader, &places, &mut staged, &mut held, task)
            .and_then(|taken| {
                let disks = self.lay_disks(&vm, manifest, &taken)?;
                let intake = Intake {
                    vm: &vm,
                    import: &import,
                    request,
                    manifest,
                    places: &places,
                };
                self.record_import(&intake, &taken, disks)?;
                Ok(taken)
            });
        held.release(self);
        match made {
            Ok(taken) => {
                staged.keep();
                self.link_tops(&vm.row());
                Ok(Imported {
                    export: manifest.id.clone(),
                    name: vm.name().to_string(),
                    vm_id: vm.id.clone(),
                    state: vm.state().word().to_owned(),
                    layers: taken.new.len(),
                    layers_found: taken.found,
                })
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
        request: &ImportRequest,
        manifest: &Manifest,
    ) -> OpResult<(ObjectId, Promise)> {
        let wanted = request.datastore.as_deref().unwrap_or(FIRST_DATASTORE);
        let store = self.store_for_disks(wanted)?;
        // Memory is mostly holes; what it needs shows when it is written.
        let disks = manifest.parts().into_iter();
        let needed = disks
            .filter(|(part, _)| matches!(part, Part::Layer(_)))
            .map(|(_, blob)| blob.bytes)
            .fold(0, u64::saturating_add);
        let space = self.promise_space(&store, needed)?;
        Ok((store.id, space))
    }

    /// Gives the machine an identity of its own, or checks that nobody here has its.
    fn settle_identity(&self, row: &mut VmRow, new: bool) -> OpResult<()> {
        let mut used = self.macs_in_use();
        if new {
            row.uuid = random_uuid();
            row.bios_uuid = None;
            row.machine_id = random_hex::<16>();
            row.spec.nics.iter_mut().for_each(|nic| {
                nic.mac = new_mac(&mut used);
                nic.keep_mac = false;
            });
            return Ok(());
        }
        let twin = self.all().into_iter().find(|vm| vm.row().uuid == row.uuid);
        let problem = match (
            twin,
            row.spec.nics.iter().find(|nic| used.contains(&nic.mac)),
        ) {
            (Some(twin), _) => format!("this machine is here already as {}", twin.name()),
            (None, Some(nic)) => format!("a VM here has its hardware address {}", nic.mac),
            (None, None) => return Ok(()),
        };
        Err(OpError::conflict(format!(
            "new_identity: {problem}; remove that VM, or import with --new-identity"
        ))
        .about("new_identity"))
    }

    /// Takes all files out of the archive, verified and durable.
    fn take_files(
        self: &Arc<Self>,
        reader: &Reader,
        places: &Places,
        staged: &mut Staged,
        held: &mut Found,
        task: &TaskContext,
    ) -> OpResult<Taken> {
        let manifest = reader.manifest();
        let mut taken = Taken::default();
        for layer in manifest.layers.iter().filter(|layer| !layer.included) {
            let row = self.find_known(manifest, layer, task)?;
            taken.found += 1;
            held.hold(self, &row.id);
            taken.rows.insert(layer.id.clone(), row);
        }
        let mut place = |part| staged.make(&places.path_of(manifest, part));
        let mut report = watch(
            task,
            manifest.total_bytes(),
            "taking files out of the archive",
        );
        reader.extract(&mut place, &mut report).map_err(refuse)?;
        for (index, layer) in manifest.layers.iter().enumerate() {
            if !layer.included {
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
        protect(manifest, places)?;
        places.sync(manifest)?;
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
        taken: &Taken,
        deltas: Vec<LayerRow>,
    ) -> OpResult<()> {
        let Intake {
            vm,
            import,
            request,
            manifest,
            places,
        } = intake;
        crate::inventory::sync_directory(&self.store(&vm.row().datastore).layers())
            .context("cannot sync the datastore")?;
        vm.update(|live| match manifest.memory {
            Some(_) => {
                live.row.state = PowerState::Suspended;
                live.row.suspend = Some(SuspendRow::Files {
                    files: places.memory.clone(),
                    as_clone: request.new_identity,
                    copied: true,
                    waking: false,
                });
            }
            None => live.row.state = PowerState::PoweredOff,
        });
        let here = |id: &str| taken.rows.get(id).map(|row| row.id.clone());
        let layers = manifest.layers.iter().map(|layer| ArchivedLayer {
            layer: here(&layer.id).unwrap_or_default(),
            sha256: layer.file.sha256.clone(),
            bytes: layer.file.bytes,
        });
        let record = Object {
            id: (*import).to_owned(),
            parent: None,
            // One archive may be imported several times.
            name: format!("{import}-of-{}", manifest.id),
            version: 1,
            doc: ArchiveRecord {
                path: request.path.clone(),
                subject: manifest.machine.name.clone(),
                imported: true,
                at_ms: now_ms(),
                layers: layers.collect(),
                ..ArchiveRecord::default()
            },
        };
        let message = format!("imported from {}", request.path.display());
        let mut changes = Changes {
            objects: vec![crate::host::row_of(&record)?],
            events: vec![vm_event(vm, "vm.imported", message)],
            ..Changes::default()
        };
        changes.layers.extend(taken.rows.values().cloned());
        changes.layers.extend(deltas);
        self.commit(&[vm], changes)?;
        self.inventory.sync().context("cannot sync the inventory")?;
        Ok(())
    }
}

/// Makes memory and boot files read-only: they never change.
fn protect(manifest: &Manifest, places: &Places) -> OpResult<()> {
    for (part, _) in manifest.parts() {
        if matches!(part, Part::Layer(_)) {
            continue;
        }
        let path = places.path_of(manifest, part);
        let file = std::fs::File::open(&path).context("cannot open what was written")?;
        rustix::fs::fchmod(file.as_fd(), rustix::fs::Mode::from_raw_mode(0o400))
            .with_context(|| format!("cannot protect {}", path.display()))?;
    }
    Ok(())
}
