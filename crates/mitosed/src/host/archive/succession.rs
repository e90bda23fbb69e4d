//! The same machine, here already: a second one is refused, or takes the place of the first.
//!
//! A *standby* is what an import made and nobody has changed since. A later import of the same
//! machine may take its place: the object stays and gets the disks, the memory and the machine of the new
//! archive by one change of the record, as in a return to a snapshot. Until then it is what it was
//! and may be started, which ends its being a standby and has the import refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use api_types::{ImportAs, ImportRequest, Imported};
use archives::Manifest;

use super::files::Staged;
use super::import::{Intake, Taken, imported};
use super::point::tops_of;
use super::{Host, Vm, vm_event};
use crate::error::{OpError, OpResult};
use crate::host::check::Problems;
use crate::host::describe::pool_of;
use crate::host::identity::check_own_among;
use crate::host::states::Operation;
use crate::inventory::{
    BootSource, Changes, Datastore, DiskRow, ForkPoint, Object, ObjectId, PointMemory, PowerState,
    VmRow, sync_directory,
};

/// Objects whose place imports under way are to take, with the boot files of those.
#[derive(Debug, Default)]
pub(in crate::host) struct Successions(Mutex<BTreeMap<ObjectId, BootSource>>);

/// The right to take the place of one object, for as long as it lives.
pub(super) struct Succession<'a> {
    all: &'a Successions,
    id: &'a str,
}

impl Successions {
    /// Boot files that no row names yet.
    pub fn boot_files(&self) -> Vec<BootSource> {
        self.lock().values().cloned().collect()
    }

    /// Begins to take the place of an object.
    pub(super) fn begin<'a>(&'a self, id: &'a str, boot: BootSource) -> OpResult<Succession<'a>> {
        let mut all = self.lock();
        if all.contains_key(id) {
            return Err(OpError::conflict(
                "replace: another import takes its place already; wait for its task",
            ));
        }
        all.insert(id.to_owned(), boot);
        Ok(Succession { all: self, id })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectId, BootSource>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Succession<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(self.id);
    }
}

/// Whose place an import takes.
pub(super) enum Predecessor {
    Vm(Arc<Vm>),
    Point(Object<ForkPoint>),
}

impl Predecessor {
    /// Its name, which stays.
    pub fn name(&self) -> String {
        match self {
            Self::Vm(vm) => vm.name().to_string(),
            Self::Point(point) => point.name.clone(),
        }
    }

    /// The datastore that it is on.
    pub fn datastore(&self) -> ObjectId {
        match self {
            Self::Vm(vm) => vm.row().datastore,
            Self::Point(point) => point.doc.row.datastore.clone(),
        }
    }
}

impl Host {
    /// Whose place an import is to take, where it is to and there is one. What is called `name` is
    /// looked for among fork points: a machine may have several.
    pub(super) fn predecessor(
        &self,
        request: &ImportRequest,
        manifest: &Manifest,
        what: ImportAs,
        name: &str,
    ) -> OpResult<Option<Predecessor>> {
        if !request.replace {
            return Ok(None);
        }
        if request.new_identity {
            return Err(OpError::invalid(
                "replace: another machine takes nobody's place; leave out one of replace and \
                 new_identity",
            ));
        }
        let uuid = &manifest.machine.uuid;
        Ok(match what {
            ImportAs::Vm => {
                let mut all = self.all().into_iter();
                all.find(|vm| vm.live().row.uuid == *uuid)
                    .map(Predecessor::Vm)
            }
            ImportAs::Forkpoint => {
                let mut all = self.objects::<ForkPoint>().into_iter();
                all.find(|point| point.name == name && point.doc.row.uuid == *uuid)
                    .map(Predecessor::Point)
            }
        })
    }

    /// Notes all that keeps an import from taking its predecessor's place.
    pub(super) fn check_succession(
        &self,
        old: &Predecessor,
        request: &ImportRequest,
        manifest: &Manifest,
        problems: &mut Problems,
    ) {
        match old {
            Predecessor::Vm(vm) => {
                problems.take(self.check_standby(vm));
                problems.take(self.check_kept(vm, request, manifest));
                let others: Vec<_> = self.all().into_iter().filter(|o| o.id != vm.id).collect();
                problems.take(check_identity(&others, &machine_of(manifest), manifest));
            }
            Predecessor::Point(point) => {
                problems.take(self.check_standby_point(point));
            }
        }
    }

    fn check_standby(&self, vm: &Vm) -> OpResult<()> {
        self.allow(vm, Operation::Replace)?;
        let changed = match self.snapshots_of(vm).first() {
            _ if !vm.live().row.standby => "has run, or was changed, since it was made".to_owned(),
            Some(snapshot) => format!("has the snapshot {:?}", snapshot.name),
            None => return Ok(()),
        };
        Err(OpError::conflict(format!(
            "replace: {0} {changed}, so that it is no copy that waits any more; remove it with \
             'mitose rm {0}', or import with --new-identity",
            vm.name()
        )))
    }

    /// Refuses a request that wants what stays to be otherwise.
    fn check_kept(&self, vm: &Vm, request: &ImportRequest, manifest: &Manifest) -> OpResult<()> {
        let name = vm.name();
        if request
            .name
            .as_ref()
            .is_some_and(|wanted| **wanted != *name)
        {
            return Err(OpError::conflict(format!(
                "name: this machine is here as {name}, which stays its name; leave the name out, and \
                 change it with 'mitose set'"
            )));
        }
        let row = vm.row();
        if let Some(wanted) = &request.datastore
            && self.object::<Datastore>(wanted)?.id != row.datastore
        {
            return Err(OpError::conflict(format!(
                "datastore: {name} is on another datastore, where it stays; leave the datastore out"
            )));
        }
        let bytes = manifest.machine.spec.memory_bytes;
        let more = bytes.saturating_sub(row.spec.memory_bytes);
        self.check_pool(pool_of(&row.pool), 0, more)
    }

    /// Refuses to remove a fork point for a later one that did not come out of an archive, or that
    /// children return to.
    pub(super) fn check_standby_point(&self, point: &Object<ForkPoint>) -> OpResult<()> {
        let name = &point.name;
        let refused = |what: String| Err(OpError::conflict(format!("replace: {what}")));
        if matches!(point.doc.memory, PointMemory::Sealing) {
            return refused(format!(
                "fork point {name} is still being made; wait for its task"
            ));
        }
        if !point.doc.imported {
            return refused(format!(
                "fork point {name} was made here; remove it with 'mitose unprepare {name}', or choose \
                 another name"
            ));
        }
        let mut needing = self.children_of(&point.id).into_iter().filter(|vm| {
            let live = vm.live();
            let child = live.row.child.as_ref();
            child.is_some_and(|child| child.starts_at_point())
        });
        match needing.next() {
            Some(first) => refused(format!(
                "{} and {} more children return to fork point {name}; remove them, make them \
                 persistent, or choose another name",
                first.name(),
                needing.count()
            )),
            None => Ok(()),
        }
    }

    /// Gives a standby the content of a later archive.
    pub(super) fn succeed(
        self: &Arc<Self>,
        intake: &Intake<'_>,
        vm: &Arc<Vm>,
    ) -> OpResult<Imported> {
        let _succession = self.successions.begin(&vm.id, intake.boot())?;
        let mut staged = Staged::default();
        let taken = self.take_files(intake, &mut staged)?;
        // Who needs the standby did not have to wait until here.
        let _turn = self.turn(vm)?;
        let tops = tops_of(intake, &taken)?;
        {
            let mut layers = self.layers();
            layers.insert(taken.rows.values().cloned());
            tops.iter().flatten().for_each(|top| layers.hold(top));
        }
        let before = self.put_in_place(intake, vm, &taken);
        // Its disks hold them.
        self.drop_layers(tops.iter().flatten());
        let before = before?;
        staged.keep();
        self.drop_layers(before.disks.iter().flat_map(DiskRow::held));
        before
            .memory_files()
            .into_iter()
            .for_each(|files| self.remove_memory(files));
        self.link_tops(&vm.row());
        if before.boot.kernel.starts_with(self.boot_dir()) {
            self.sweep_boot_files();
        }
        Ok(replaced(intake, vm, &taken))
    }

    /// Makes tops on the layers of an archive and records them as a VM's; returns its row of before.
    fn put_in_place(
        self: &Arc<Self>,
        intake: &Intake<'_>,
        vm: &Arc<Vm>,
        taken: &Taken,
    ) -> OpResult<VmRow> {
        let manifest = intake.manifest();
        let old = Predecessor::Vm(Arc::clone(vm));
        let check = || {
            let mut problems = Problems::default();
            self.check_succession(&old, intake.request, manifest, &mut problems);
            problems.finish()
        };
        check()?;
        let store = self.store(&intake.datastore).layers();
        sync_directory(&store).context("cannot sync the datastore")?;
        // Recovery removes them where nobody uses them.
        let layers = Changes {
            layers: taken.rows.values().cloned().collect(),
            ..Changes::default()
        };
        self.commit(&[], layers)?;
        let tops = tops_of(intake, taken)?;
        let made = self.make_tops_on(vm, &tops, &manifest.machine.spec.disks)?;
        let new = intake.row(vm.id.clone(), vm.name().to_string());
        let before = self
            .succeed_row(vm, new, |row| {
                row.disks.clone_from(&made.disks);
                intake.settle_state(row);
            })
            .inspect_err(|_| self.drop_layers(&made.held))?;
        let recorded = self.record_in_place(intake, vm, taken);
        if let Err(error) = recorded {
            vm.update(|live| live.row.clone_from(&before));
            self.commit_logged(&[vm], Changes::default());
            self.drop_layers(&made.held);
            return Err(error);
        }
        Ok(before)
    }

    /// Gives a VM the machine `new`, where nobody has what is to be its alone; nobody is listed
    /// meanwhile. Returns the row of before.
    fn succeed_row(&self, vm: &Vm, new: VmRow, settle: impl FnOnce(&mut VmRow)) -> OpResult<VmRow> {
        let listed = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        let mut row = successor(&vm.row(), new);
        check_own_among(listed.all(), std::slice::from_ref(&row))?;
        settle(&mut row);
        Ok(vm.update(|live| std::mem::replace(&mut live.row, row)))
    }

    fn record_in_place(&self, intake: &Intake<'_>, vm: &Arc<Vm>, taken: &Taken) -> OpResult<()> {
        let path = intake.request.path.display();
        let message = format!("imported from {path}, in place of an earlier import");
        let told = serde_json::json!(replaced(intake, vm, taken));
        let changes = Changes {
            objects: vec![crate::host::row_of(&intake.record(&vm.id, taken))?],
            events: vec![vm_event(vm, "vm.imported", message).with(told)],
            ..Changes::default()
        };
        self.commit(&[vm], changes)?;
        self.inventory.sync().context("cannot sync the inventory")?;
        Ok(())
    }
}

fn replaced(intake: &Intake<'_>, vm: &Vm, taken: &Taken) -> Imported {
    Imported {
        replaced: true,
        ..imported(intake, vm, taken)
    }
}

/// Refuses a machine that is here already, or whose hardware addresses others have.
pub(super) fn check_identity(
    members: &[Arc<Vm>],
    row: &VmRow,
    manifest: &Manifest,
) -> OpResult<()> {
    let twin = members.iter().find(|vm| vm.live().row.uuid == row.uuid);
    let nics = || row.spec.nics.iter();
    let taken = members.iter().find_map(|vm| {
        let live = vm.live();
        let has = |mac| live.row.spec.nics.iter().any(|nic| nic.mac == mac);
        nics().map(|nic| nic.mac).find(|mac| has(*mac))
    });
    let (problem, place) = match (twin, taken) {
        (Some(twin), _) => (
            format!("this machine is here already as {}", twin.name()),
            "take its place with --replace, ",
        ),
        (None, Some(mac)) => (format!("a VM here has its hardware address {mac}"), ""),
        (None, None) => return Ok(()),
    };
    // What an archive of changes starts from may go with that VM.
    let remove = match manifest.since {
        Some(_) => "remove that VM and give the earlier archives with --earlier",
        None => "remove that VM",
    };
    Err(OpError::conflict(format!(
        "new_identity: {problem}; {place}{remove}, or import with --new-identity"
    ))
    .about("new_identity"))
}

/// The machine of an archive, as far as its identity goes.
pub(super) fn machine_of(manifest: &Manifest) -> VmRow {
    let boot = BootSource {
        image: None,
        kernel: Default::default(),
        initrd: None,
    };
    super::describe::row_of(&manifest.machine, ObjectId::new(), String::new(), boot)
}

/// The row of a VM with the machine of a later archive: what this host gives it stays. NICs are told
/// by their hardware addresses.
fn successor(present: &VmRow, new: VmRow) -> VmRow {
    let present = present.clone();
    let nic_of = |mac| present.spec.nics.iter().position(|nic| nic.mac == mac);
    let mut row = VmRow {
        folder: present.folder,
        version: present.version + 1,
        labels: present.labels,
        pool: present.pool,
        datastore: present.datastore,
        created_at_ms: present.created_at_ms,
        memory_limit_bytes: present.memory_limit_bytes,
        guestinfo: present.guestinfo,
        next_layer: present.next_layer,
        state: PowerState::PoweredOff,
        ..new
    };
    for (nic, spec) in row.nics.iter_mut().zip(&row.spec.nics) {
        if let Some(known) = nic_of(spec.mac).and_then(|index| present.nics.get(index)) {
            nic.clone_from(known);
        }
    }
    for (port, known) in row.serial.iter_mut().zip(present.serial) {
        *port = known;
    }
    row
}
