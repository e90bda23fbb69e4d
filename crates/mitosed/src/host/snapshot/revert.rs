//! Returning to a snapshot.
//!
//! New tops are made on the snapshot's layers first; then one change of the record gives the VM
//! its disks and configuration of that time. Before it nothing but the process is gone, after it
//! the VM is at the snapshot: a daemon that ends in between leaves one or the other.

use std::sync::{Arc, PoisonError};

use anyhow::Context;
use api_types::{DryRun, ErrorKind};
use vm_spec::MacAddr;

use super::{Host, Vm, vm_event};
use crate::error::{OpError, OpResult};
use crate::host::TaskContext;
use crate::host::check::Problems;
use crate::host::identity::port_of;
use crate::host::states::Operation;
use crate::host::suspend::GoesOn;
use crate::inventory::{
    Begun, Changes, DiskRow, LayerId, MemoryFiles, Object, PowerState, Snapshot, SnapshotMemory,
    VmRow,
};

impl Host {
    /// Returns a VM to a snapshot: its present state is lost. It runs where the snapshot has
    /// memory, otherwise it is powered off.
    pub fn revert(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        reference: &str,
        task: &TaskContext,
    ) -> OpResult<()> {
        let _busy = self.pool.busy();
        let _turn = self.turn(vm)?;
        let snapshot = self.find_snapshot(vm, reference)?;
        self.revert_problems(vm, &snapshot).finish()?;
        let begun = Begun::Revert {
            snapshot: snapshot.id.clone(),
        };
        let tell = |fraction: f32, message: &str| task.progress(fraction, message);
        self.with_begun(vm, begun, || self.revert_now(vm, &snapshot, &tell))
    }

    /// As [`Host::revert`], for a caller that has the VM's turn and has looked at the snapshot.
    pub(in crate::host) fn revert_now(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        snapshot: &Object<Snapshot>,
        tell: &dyn Fn(f32, &str),
    ) -> OpResult<()> {
        tell(0.1, "ending what runs");
        self.end_process(vm);
        if vm.state().has_process() {
            return Err(OpError::failed(format!(
                "{}: its process does not end",
                vm.name()
            )));
        }
        tell(0.3, "taking back the disks");
        self.revert_disks(vm, snapshot)?;
        match &snapshot.doc.memory {
            SnapshotMemory::Files(files) => {
                tell(0.6, "loading the memory");
                self.resume_snapshot(vm, snapshot, files)
            }
            _ => Ok(()),
        }
    }

    /// Tries a return to a snapshot out.
    pub fn check_revert(&self, vm: &Vm, snapshot: &Object<Snapshot>) -> DryRun {
        self.revert_problems(vm, snapshot).dry_run()
    }

    fn revert_problems(&self, vm: &Vm, snapshot: &Object<Snapshot>) -> Problems {
        let mut problems = Problems::default();
        problems.take(self.check_complete(snapshot));
        problems.take(self.allow(vm, Operation::Revert));
        let present = vm.row();
        problems.take(self.check_stores_of(&present));
        problems.take(self.check_stores_of_snapshot(&present, snapshot));
        problems.take(self.check_snapshot_files(snapshot));
        problems.take(self.check_unique(vm, snapshot, &self.all()));
        let disks = snapshot.doc.tops.iter().zip(&snapshot.doc.row.spec.disks);
        let new = disks.filter(|(top, spec)| top.is_some() && !spec.read_only);
        problems.take(self.check_space_for_tops(&present.datastore, new.count()));
        let with_memory = !matches!(snapshot.doc.memory, SnapshotMemory::None);
        if with_memory && !vm.state().has_process() {
            let bytes = snapshot.doc.row.spec.memory_bytes;
            problems.take(self.check_memory("the VM", bytes));
        }
        if with_memory {
            self.check_goes_on(&present, snapshot, &mut problems);
        }
        problems
    }

    /// Refuses a return to a snapshot whose disks or memory are on a datastore that is not there.
    fn check_stores_of_snapshot(
        &self,
        present: &VmRow,
        snapshot: &Object<Snapshot>,
    ) -> OpResult<()> {
        let tops = snapshot.doc.tops.iter().cloned().map(DiskRow::of);
        self.check_stores_of(&reverted(present, snapshot, tops.collect()))?;
        match &snapshot.doc.memory {
            SnapshotMemory::Files(files) => {
                self.check_store_of(&files.ram)?;
                self.check_store_of(&files.checkpoint)
            }
            _ => Ok(()),
        }
    }

    /// Notes what the host does not have any more and the guest of a snapshot goes on with.
    fn check_goes_on(&self, present: &VmRow, snapshot: &Object<Snapshot>, problems: &mut Problems) {
        let mut found = Problems::default();
        let after = reverted(present, snapshot, Vec::new());
        self.check_host_side(present, &after, &mut found);
        for error in found.into_errors() {
            problems.note(OpError::new(
                match error.kind {
                    ErrorKind::Invalid => ErrorKind::Conflict,
                    kind => kind,
                },
                format!(
                    "snapshot: {} cannot go on as it was in {:?}: {}",
                    present.name,
                    snapshot.name,
                    error.message()
                ),
            ));
        }
    }

    /// Refuses a return to a machine whose addresses, UUID or serial ports another VM was given since.
    /// Its guest, or those who know it, would hold on to them, so that it gets no new ones as a clone does.
    fn check_unique(
        &self,
        vm: &Vm,
        snapshot: &Object<Snapshot>,
        listed: &[Arc<Vm>],
    ) -> OpResult<()> {
        let present = vm.row();
        let after = reverted(&present, snapshot, Vec::new());
        let mut others = listed.iter().filter(|other| other.id != vm.id);
        let of_others = others.find_map(|other| {
            let live = other.live();
            let name = &live.row.name;
            if after.uuid != present.uuid && live.row.uuid == after.uuid {
                return Some(format!("{name} has its UUID"));
            }
            if let Some(mac) = taken_mac(&present, &after, &live.row) {
                return Some(format!("{name} has its hardware address {mac}"));
            }
            let ports = after.serial.iter();
            let again = ports.filter(|port| !present.serial.contains(port));
            let path = port_of(&live.row, again)?.display();
            Some(format!("{name} has {path} for a serial port"))
        });
        let taken = of_others.or_else(|| {
            let rows = std::slice::from_ref(&after);
            let address = self.find_address_taken(listed.iter(), rows);
            address.map(|address| address.told)
        });
        match taken {
            Some(taken) => Err(OpError::conflict(format!(
                "snapshot: {} cannot be what it was in {:?}: {taken}; change or remove that VM, or \
                 clone the snapshot",
                present.name, snapshot.name
            ))),
            None => Ok(()),
        }
    }

    fn resume_snapshot(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        snapshot: &Object<Snapshot>,
        files: &MemoryFiles,
    ) -> OpResult<()> {
        let resumed = self.power_on_from(vm, files, GoesOn::Again);
        resumed.map(drop).map_err(|error| {
            OpError::failed(format!(
                "{0} has the disks of {1:?} and is powered off; its memory could not be loaded: {2}",
                vm.name(),
                snapshot.name,
                error.message()
            ))
        })
    }

    fn revert_disks(self: &Arc<Self>, vm: &Arc<Vm>, snapshot: &Object<Snapshot>) -> OpResult<()> {
        let made = self.make_tops_on(vm, &snapshot.doc.tops, &snapshot.doc.row.spec.disks)?;
        let changed = self.take_machine_back(vm, snapshot, &made.disks);
        let (before, after) = changed.inspect_err(|_| self.drop_layers(&made.held))?;
        let told = vm_event(
            vm,
            "snapshot.reverted",
            format!("returned to snapshot {}", snapshot.name),
        );
        let recorded = self
            .commit(&[vm], super::super::events::with_event(told))
            .and_then(|()| Ok(self.inventory.sync().context("cannot sync the inventory")?));
        if let Err(error) = recorded {
            vm.update(|live| live.row = before);
            self.commit_logged(&[vm], Changes::default());
            self.drop_layers(&made.held);
            return Err(error);
        }
        let old: Vec<LayerId> = before
            .disks
            .iter()
            .flat_map(|disk| disk.held().cloned())
            .collect();
        self.drop_layers(&old);
        before
            .memory_files()
            .into_iter()
            .for_each(|files| self.remove_memory(files));
        self.link_tops(&after);
        Ok(())
    }

    /// Gives a VM its row of a snapshot, where nobody has what is to be unique; nobody is listed
    /// meanwhile. Returns the rows of before and after.
    fn take_machine_back(
        &self,
        vm: &Vm,
        snapshot: &Object<Snapshot>,
        disks: &[DiskRow],
    ) -> OpResult<(VmRow, VmRow)> {
        let listed = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<_> = listed.all().cloned().collect();
        self.check_unique(vm, snapshot, &all)?;
        Ok(vm.update(|live| {
            let before = live.row.clone();
            live.row = reverted(&before, snapshot, disks.to_vec());
            live.row.process_gone(false);
            (before, live.row.clone())
        }))
    }
}

/// A hardware address that a VM would have again and another has. Those that clones keep on purpose
/// are nobody's alone.
fn taken_mac(present: &VmRow, after: &VmRow, other: &VmRow) -> Option<MacAddr> {
    let had = |mac| present.spec.nics.iter().any(|nic| nic.mac == mac);
    let has = |mac| {
        let mut nics = other.spec.nics.iter();
        nics.any(|nic| nic.mac == mac && !nic.keep_mac)
    };
    let mut nics = after.spec.nics.iter();
    nics.find(|nic| !nic.keep_mac && !had(nic.mac) && has(nic.mac))
        .map(|nic| nic.mac)
}

/// The row of a VM that has returned to a snapshot: the machine of that time, in the place and with
/// the history of the present one.
fn reverted(present: &VmRow, snapshot: &Object<Snapshot>, disks: Vec<DiskRow>) -> VmRow {
    let present = present.clone();
    VmRow {
        name: present.name,
        folder: present.folder,
        version: present.version + 1,
        labels: present.labels,
        child: present.child,
        pool: present.pool,
        datastore: present.datastore,
        state: PowerState::PoweredOff,
        reason: None,
        uid: present.uid,
        pid: present.pid,
        group: present.group,
        stuns: present.stuns,
        next_layer: present.next_layer,
        snapshot: Some(snapshot.id.clone()),
        suspend: None,
        begun: present.begun,
        begun_by: present.begun_by,
        making: present.making,
        disks,
        ..VmRow::clone(&snapshot.doc.row)
    }
}
