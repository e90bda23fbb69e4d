//! Changes of the machine, while it is off.

use std::collections::HashSet;
use std::sync::Arc;

use api_types::{ErrorKind, ReconfigureRequest, SerialRequest};
use serde_json::json;
use vm_spec::{DiskSpec, SpecError};

use super::missing;
use crate::error::{OpError, OpResult};
use crate::host::describe::pool_of;
use crate::host::run::plan::{Base, add_nics, check_uuid, invalid_spec};
use crate::host::{Host, Vm, vm_event};
use crate::inventory::{Changes, DiskRow, LayerRow, VmRow};
use crate::layers::{make_delta, remove_files};

/// A machine as it is to be, and the disks that come and go.
#[derive(Debug)]
pub(super) struct Rebuilt {
    row: VmRow,
    added: Vec<Base>,
    /// Tops of disks that are removed.
    gone: Vec<DiskRow>,
    changed: Vec<&'static str>,
}

impl Host {
    /// Works out the machine after a change; nothing is made.
    pub(super) fn plan_rebuilt(&self, vm: &Vm, change: &ReconfigureRequest) -> OpResult<Rebuilt> {
        let mut row = vm.row();
        let mut changed = Vec::new();
        self.plan_machine(&mut row, change, &mut changed)?;
        let mut gone = Vec::new();
        for index in descending(
            "remove_disks",
            "disk",
            &change.remove_disks,
            row.disks.len(),
        )? {
            gone.push(row.disks.remove(index));
            row.spec.disks.remove(index);
            changed.push("disks");
        }
        for index in descending("remove_nics", "NIC", &change.remove_nics, row.nics.len())? {
            row.nics.remove(index);
            row.spec.nics.remove(index);
            changed.push("nics");
        }
        self.plan_nics(&mut row, change, &mut changed)?;
        let mut added = Vec::new();
        for disk in &change.add_disks {
            let base = self.inspect("add_disks", &disk.path, disk.format, disk.read_only)?;
            row.spec.disks.push(DiskSpec {
                serial: free_serial(&row.spec.disks),
                read_only: base.read_only,
            });
            added.push(base);
            changed.push("disks");
        }
        row.spec.validate().map_err(invalid_spec)?;
        changed.dedup();
        Ok(Rebuilt {
            row,
            added,
            gone,
            changed,
        })
    }

    fn plan_machine(
        &self,
        row: &mut VmRow,
        change: &ReconfigureRequest,
        changed: &mut Vec<&'static str>,
    ) -> OpResult<()> {
        if let Some(cpus) = change.cpus {
            let narrow = u8::try_from(cpus);
            row.spec.cpus = narrow.map_err(|_| invalid_spec(SpecError::Cpus(cpus)))?;
            changed.push("cpus");
        }
        if let Some(bytes) = change.memory_bytes {
            let more = bytes.saturating_sub(row.spec.memory_bytes);
            self.check_pool(pool_of(&row.pool), 0, more)?;
            self.check_image_memory(row.boot.image.as_deref(), bytes)?;
            row.spec.memory_bytes = bytes;
            changed.push("memory_bytes");
        }
        if let Some(limit) = change.memory_limit_bytes {
            row.memory_limit_bytes = (limit > 0).then_some(limit);
            self.check_limit(row.memory_limit_bytes)?;
            changed.push("memory_limit_bytes");
        }
        if let Some(cmdline) = &change.cmdline {
            row.spec.cmdline.clone_from(cmdline);
            changed.push("cmdline");
        }
        if let Some(engine) = change.engine {
            self.choose_engine(engine)?.0.clone_into(&mut row.engine);
            changed.push("engine");
        }
        if let Some(uuid) = &change.uuid {
            row.uuid = check_uuid("uuid", uuid)?;
            self.check_uuid_free(&row.uuid, Some(&row.id))?;
            changed.push("uuid");
        }
        if let Some(uuid) = &change.bios_uuid {
            row.bios_uuid = Some(check_uuid("bios_uuid", uuid)?);
            changed.push("bios_uuid");
        }
        if let Some(ports) = change.serial_ports {
            row.spec.serial_ports = ports;
            row.spec.validate().map_err(invalid_spec)?;
            row.serial.resize(usize::from(ports), SerialRequest::Log);
            changed.push("serial_ports");
        }
        Ok(())
    }

    /// Puts NICs on other networks, and adds some.
    fn plan_nics(
        &self,
        row: &mut VmRow,
        change: &ReconfigureRequest,
        changed: &mut Vec<&'static str>,
    ) -> OpResult<()> {
        for nic in &change.nics {
            let count = row.nics.len();
            let index = usize::from(nic.nic);
            let Some(at) = row.nics.get_mut(index) else {
                return Err(missing("nics", "NIC", index, count));
            };
            match (&nic.network, &nic.tap) {
                (None, None) => continue,
                (Some(_), Some(_)) => {
                    return Err(OpError::invalid(
                        "nics: a NIC is on a network or on a TAP interface; leave one of both out",
                    ));
                }
                (Some(network), None) => {
                    at.network = Some(self.network_id(network)?);
                    at.tap = None;
                }
                (None, Some(tap)) => {
                    at.network = None;
                    at.tap = Some(tap.clone());
                }
            }
            changed.push("nics");
        }
        if !change.add_nics.is_empty() {
            let mut used: HashSet<_> = self.macs_in_use();
            add_nics(self, row, &change.add_nics, &mut used)?;
            changed.push("nics");
        }
        Ok(())
    }

    /// Records the machine as it is to be with the layers that come and go, then makes and removes
    /// files. The caller has the VM's turn.
    pub(super) fn rebuild(&self, vm: &Arc<Vm>, rebuilt: Rebuilt) -> OpResult<()> {
        let Rebuilt {
            mut row,
            added,
            gone,
            changed,
        } = rebuilt;
        let before = vm.row();
        let mut changes = Changes::default();
        let mut deltas = Vec::new();
        for base in &added {
            let below = &base.layers[0];
            changes.layers.extend(base.layers.iter().cloned());
            let mut top = below.id.clone();
            if !base.read_only {
                let index = row.disks.len();
                let delta = self.next_delta(&mut row, index, below);
                top.clone_from(&delta.id);
                changes.layers.push(delta.clone());
                deltas.push((delta, below.clone()));
            }
            row.disks.push(DiskRow { top, pending: None });
        }
        {
            let mut layers = self.layers();
            layers.insert(changes.layers.iter().cloned());
            let new = row.disks.iter().rev().take(added.len());
            new.for_each(|disk| layers.hold(&disk.top));
        }
        row.version += 1;
        let made = self
            .record_rebuilt(vm, &row, changes, &changed)
            .and_then(|()| {
                let mut files = deltas.iter();
                files.try_for_each(|(delta, below)| make_delta(delta, below).map(drop))?;
                self.sync_layers(&row, !deltas.is_empty())
            });
        if let Err(error) = made {
            self.take_back(vm, &before, &row, added.len());
            return Err(error);
        }
        let mut released = Vec::new();
        {
            let mut layers = self.layers();
            for disk in &gone {
                released.extend(layers.release(&disk.top));
            }
        }
        self.forget_layers(&released);
        self.link_tops(&vm.row());
        Ok(())
    }

    fn record_rebuilt(
        &self,
        vm: &Arc<Vm>,
        row: &VmRow,
        mut changes: Changes,
        changed: &[&'static str],
    ) -> OpResult<()> {
        let message = format!("changed: {}", changed.join(", "));
        let told = vm_event(vm, "vm.reconfigured", message).with(json!({ "changed": changed }));
        changes.events.push(told);
        self.change_row(vm, changes, |live| set_machine(live, row))
    }

    /// Gives a VM its former machine back where disks could not be made.
    fn take_back(&self, vm: &Arc<Vm>, before: &VmRow, row: &VmRow, added: usize) {
        let mut released = Vec::new();
        {
            let mut layers = self.layers();
            for disk in row.disks.iter().rev().take(added) {
                released.extend(layers.release(&disk.top));
            }
        }
        vm.update(|live| {
            let version = live.row.version + 1;
            set_machine(&mut live.row, before);
            live.row.version = version;
            live.row.next_layer = row.next_layer;
        });
        self.commit_logged(&[vm], Changes::default());
        self.forget_layers(&released);
    }

    /// Removes layers that nobody uses any more, from the record and from the datastore.
    fn forget_layers(&self, released: &[LayerRow]) {
        if released.is_empty() {
            return;
        }
        let changes = Changes {
            removed_layers: released.iter().map(|layer| layer.id.clone()).collect(),
            ..Changes::default()
        };
        self.commit_logged(&[], changes);
        remove_files(released);
    }

    fn sync_layers(&self, row: &VmRow, made: bool) -> OpResult<()> {
        if !made {
            return Ok(());
        }
        let synced = crate::inventory::sync_directory(&self.store(&row.datastore).layers());
        synced.map_err(|error| OpError::failed(format!("cannot sync the datastore: {error}")))
    }

    /// Refuses an instance UUID that another VM has.
    pub(in crate::host) fn check_uuid_free(&self, uuid: &str, own: Option<&str>) -> OpResult<()> {
        let vms = self.all();
        let taken = vms
            .iter()
            .find(|vm| Some(&*vm.id) != own && vm.live().row.uuid == uuid);
        match taken {
            Some(vm) => Err(OpError::new(
                ErrorKind::Conflict,
                format!(
                    "uuid: {uuid} belongs to {}; leave it out for a new one",
                    vm.name()
                ),
            )),
            None => Ok(()),
        }
    }
}

/// Takes over what a rebuild can change, and leaves what happens by itself.
fn set_machine(live: &mut VmRow, row: &VmRow) {
    live.spec.clone_from(&row.spec);
    live.disks.clone_from(&row.disks);
    live.nics.clone_from(&row.nics);
    live.serial.clone_from(&row.serial);
    live.engine.clone_from(&row.engine);
    live.uuid.clone_from(&row.uuid);
    live.bios_uuid.clone_from(&row.bios_uuid);
    live.memory_limit_bytes = row.memory_limit_bytes;
    live.next_layer = row.next_layer;
    live.version = row.version;
}

/// Places of parts to be removed, the last one first; each is there and named once.
fn descending(field: &str, what: &str, given: &[u8], count: usize) -> OpResult<Vec<usize>> {
    let mut places: Vec<usize> = given.iter().map(|place| usize::from(*place)).collect();
    places.sort_unstable_by(|a, b| b.cmp(a));
    if let Some(twice) = places.windows(2).find(|pair| pair[0] == pair[1]) {
        let twice = twice[0];
        return Err(OpError::invalid(format!(
            "{field}: {what} {twice} is named twice; name it once"
        )));
    }
    match places.first() {
        Some(place) if *place >= count => Err(missing(field, what, *place, count)),
        _ => Ok(places),
    }
}

/// A serial number that no disk of the VM has.
fn free_serial(disks: &[DiskSpec]) -> String {
    (0..)
        .map(|number| format!("mitose-disk{number}"))
        .find(|serial| disks.iter().all(|disk| disk.serial != *serial))
        .unwrap_or_default()
}
