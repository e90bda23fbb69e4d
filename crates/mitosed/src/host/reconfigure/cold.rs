//! Changes of the machine, while it is off.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use api_types::{ReconfigureRequest, SerialRequest};
use serde_json::json;
use vm_spec::{DiskSpec, SpecError, format_size};

use super::missing;
use crate::error::{OpError, OpResult};
use crate::host::check::Problems;
use crate::host::describe::pool_of;
use crate::host::identity::{check_own_among, uuid_taken};
use crate::host::run::plan::{Base, add_nics, add_slots, check_uuid, free_serial, invalid_spec};
use crate::host::{Host, Vm, vm_event};
use crate::inventory::{Changes, DiskRow, LayerRow, VmRow};
use crate::layers::make_delta;

/// A machine as it is to be, and the disks that come and go.
#[derive(Debug)]
pub(super) struct Rebuilt {
    row: VmRow,
    added: Vec<Base>,
    /// Tops of disks that are removed.
    gone: Vec<DiskRow>,
    changed: Vec<&'static str>,
}

impl Rebuilt {
    /// The machine as it is to be, without the disks that come.
    pub(super) fn row(&self) -> VmRow {
        self.row.clone()
    }
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
        if let Some(count) = change.spare_disks {
            set_spare(&mut row, count);
            changed.push("spare_disks");
        }
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

    /// Refuses to make a VM that starts from a fork point another machine than is there, each part by
    /// its field. What is the same there may be said.
    pub(super) fn check_fixed(
        &self,
        row: &VmRow,
        change: &ReconfigureRequest,
        problems: &mut Problems,
    ) {
        let Some(child) = row.child.as_ref().filter(|child| child.starts_at_point()) else {
            return;
        };
        let point = self.point_of(row).ok();
        let there = point.as_ref().map_or(row, |point| &point.doc.row);
        let name = &row.name;
        let clone = format!("change a clone of it ('mitose clone {name} --mode linked')");
        let remedy = if child.persistent {
            format!("start it and power it off first, or {clone}")
        } else if row.persistence_settled() {
            clone
        } else {
            format!(
                "make it persistent ('mitose persist {name}') and power it off after it ran, or \
                 {clone}"
            )
        };
        for (field, has) in self.changed_from(there, change) {
            let message = format!("{field}: {name} starts from its fork point, {has}; {remedy}");
            problems.note(OpError::conflict(message).about(field));
        }
    }

    /// Fields of a change that ask for something else than the machine `there` has, and what it has.
    fn changed_from(
        &self,
        there: &VmRow,
        change: &ReconfigureRequest,
    ) -> Vec<(&'static str, String)> {
        let spec = &there.spec;
        let mut found = Vec::new();
        if change.cpus.is_some_and(|cpus| cpus != u32::from(spec.cpus)) {
            found.push(("cpus", format!("which has {} vCPUs", spec.cpus)));
        }
        let bytes = spec.memory_bytes;
        if change.memory_bytes.is_some_and(|wanted| wanted != bytes) {
            let has = format!("which has {} of memory", format_size(bytes));
            found.push(("memory_bytes", has));
        }
        let cmdline = change.cmdline.as_ref();
        if cmdline.is_some_and(|cmdline| *cmdline != spec.cmdline) {
            let has = "whose guest has booted with its command line";
            found.push(("cmdline", has.to_owned()));
        }
        let engine = change.engine.map(|engine| self.choose_engine(engine));
        if matches!(engine, Some(Ok((engine, _))) if engine != there.engine) {
            found.push(("engine", format!("which is of the engine {}", there.engine)));
        }
        let ports = change.serial_ports;
        if ports.is_some_and(|ports| ports != spec.serial_ports) {
            let has = format!("which has {} serial ports", spec.serial_ports);
            found.push(("serial_ports", has));
        }
        let parts = [
            ("add_disks", !change.add_disks.is_empty()),
            ("remove_disks", !change.remove_disks.is_empty()),
            ("spare_disks", change.spare_disks.is_some()),
            ("add_nics", !change.add_nics.is_empty()),
            ("remove_nics", !change.remove_nics.is_empty()),
        ];
        for (field, _) in parts.into_iter().filter(|(_, asked)| *asked) {
            found.push((field, "whose disks and NICs stay".to_owned()));
        }
        found
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
        if changed.contains(&"nics") {
            self.check_addresses(std::slice::from_ref(row))?;
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
        let before = self.claim_own(vm, &row)?;
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
            row.disks.push(DiskRow::of(Some(top)));
        }
        {
            let mut layers = self.layers();
            layers.insert(changes.layers.iter().cloned());
            let new = row.disks.iter().rev().take(added.len());
            let new = new.flat_map(DiskRow::held);
            new.for_each(|layer| layers.hold(layer));
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
            for layer in gone.iter().flat_map(DiskRow::held) {
                released.extend(layers.release(layer));
            }
        }
        self.forget_layers(&released);
        self.link_tops(&vm.row());
        Ok(())
    }

    /// Gives a VM what of `row` no other VM may have; nobody else gets any of it in between. Returns
    /// its row of before.
    fn claim_own(&self, vm: &Vm, row: &VmRow) -> OpResult<VmRow> {
        let vms = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        let had = vm.row().spec.nics;
        let mut new = row.clone();
        // Clones may keep what it has had all along.
        new.spec
            .nics
            .retain(|nic| had.iter().all(|had| had.mac != nic.mac));
        check_own_among(vms.all(), std::slice::from_ref(&new))?;
        self.check_addresses_among(vms.all(), std::slice::from_ref(row))?;
        Ok(vm.update(|live| {
            let before = live.row.clone();
            live.row.standby &= live.row.spec == row.spec;
            live.row.uuid.clone_from(&row.uuid);
            live.row.spec.nics.clone_from(&row.spec.nics);
            live.row.nics.clone_from(&row.nics);
            before
        }))
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
            let added = row.disks.iter().rev().take(added);
            for layer in added.flat_map(DiskRow::held) {
                released.extend(layers.release(layer));
            }
        }
        vm.update(|live| {
            let version = live.row.version + 1;
            set_machine(&mut live.row, before);
            live.row.standby = before.standby;
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
        self.remove_layers(released);
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
            Some(vm) => Err(uuid_taken(uuid, &vm.name())),
            None => Ok(()),
        }
    }
}

/// Gives a machine so many empty slots: those that are too many go from the end.
fn set_spare(row: &mut VmRow, count: u32) {
    let mut left = count as usize;
    let kept: Vec<bool> = row
        .disks
        .iter()
        .map(|disk| {
            let empty = disk.top.is_none();
            let kept = !empty || left > 0;
            left -= usize::from(empty && kept);
            kept
        })
        .collect();
    let mut keep = kept.iter();
    row.disks.retain(|_| keep.next() == Some(&true));
    let mut keep = kept.iter();
    row.spec.disks.retain(|_| keep.next() == Some(&true));
    add_slots(&mut row.spec.disks, left as u32);
    row.disks.resize(row.spec.disks.len(), DiskRow::default());
}

/// Takes over what a rebuild can change, and leaves what happens by itself.
fn set_machine(live: &mut VmRow, row: &VmRow) {
    live.standby &= live.spec == row.spec && live.disks == row.disks;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests as sample;

    /// A machine whose slot n has a medium where bit n of `media` is set.
    fn machine(slots: usize, media: usize) -> VmRow {
        let mut row = sample::vm("vm-1", "a");
        add_slots(&mut row.spec.disks, slots as u32);
        let top = |slot: usize| (media >> slot & 1 == 1).then(|| format!("top{slot}"));
        row.disks = (0..slots).map(|slot| DiskRow::of(top(slot))).collect();
        row
    }

    #[test]
    fn spare_slots_come_and_go_and_media_stay() {
        for (media, count) in (0..32).flat_map(|media| (0..7).map(move |count| (media, count))) {
            let before = machine(5, media);
            let mut row = before.clone();
            set_spare(&mut row, count);
            assert_eq!(row.empty_slots(), count as usize, "{media:b}");
            let disks = |row: &VmRow| {
                let all = row.disks.iter().zip(&row.spec.disks);
                let full = all.filter(|(disk, _)| disk.top.is_some());
                let full = full.map(|(disk, spec)| (disk.top.clone(), spec.serial.clone()));
                full.collect::<Vec<_>>()
            };
            assert_eq!(disks(&row), disks(&before), "{media:b} {count}");
            let mut serials: Vec<_> = row.spec.disks.iter().map(|disk| &disk.serial).collect();
            serials.sort_unstable();
            serials.dedup();
            assert_eq!(serials.len(), row.disks.len());
        }
    }
}
