//! Making a VM and booting it.
//!
//! Everything is checked before anything is made; the row `creating` comes first, so that a crash
//! at any point leaves nothing that recovery does not find.

mod blame;
pub(super) mod plan;

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol::IdentityKind;
use api_types::{Consistency, ErrorKind, RunReply, RunRequest};
use vmm_protocol::{Boot, Command, LayerFormat, Outcome, RamView};

use self::blame::blame;
use self::plan::{Base, Plan};
use super::backends::{FdList, make_ram, open_given};
use super::check::Problems;
use super::events::with_event;
use super::identity::identity_message;
use super::{Host, Vm, vm_event};
use crate::clock::{random_uuid, us_between};
use crate::error::{OpError, OpResult};
use crate::inventory::{Changes, DiskRow, LayerRow, NewEvent, PowerState, VmRow};
use crate::layers::make_delta;

/// Longest time from the order to boot to the first entry of the guest.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait for the agent of an image that has one, where the request names none, seconds.
const DEFAULT_READY_WAIT_S: u64 = 180;

impl Host {
    /// Makes a VM and boots it where the request says so; `arrived_ns` is when the request came.
    pub fn run(self: &Arc<Self>, request: RunRequest, arrived_ns: u64) -> OpResult<RunReply> {
        let mut problems = Problems::default();
        let planned = self.plan(&request, &mut problems);
        problems.finish()?;
        let Some(Plan {
            mut row,
            bases,
            notes,
            space,
        }) = planned
        else {
            return Err(OpError::failed("the request gave no plan"));
        };
        row.id = self.new_id("vm")?;
        let vm = Vm::new(row);
        let first_run_at_ns = {
            let _busy = self.pool.busy();
            let _turn = vm.operate();
            self.reserve(std::slice::from_ref(&vm), "none", Consistency::AtRest)?;
            let made = self
                .make_disks(&vm, &bases)
                .and_then(|()| self.make_home(&vm).map_err(OpError::from))
                .and_then(|()| match request.powered_off {
                    true => self.leave_off(&vm).map(|()| None),
                    false => self.power_on(&vm).map(Some),
                });
            made.inspect_err(|_| self.erase(&vm, None))?
        };
        drop(space);
        self.link_tops(&vm.row());
        let ready_us = match first_run_at_ns {
            Some(_) => self.wait_for_agent(&vm, request.wait_ready_s, arrived_ns)?,
            None => None,
        };
        Ok(RunReply {
            vm: self.show(&vm),
            first_run_us: first_run_at_ns.map(|at| us_between(arrived_ns, at)),
            ready_us,
            notes,
        })
    }

    /// A VM that was made is not started.
    fn leave_off(&self, vm: &Arc<Vm>) -> OpResult<()> {
        let told = vm_event(vm, "vm.created", "created, powered off");
        self.change_row(vm, with_event(told), |row| {
            row.state = PowerState::PoweredOff;
        })
    }

    fn wait_for_agent(
        &self,
        vm: &Arc<Vm>,
        wait_s: Option<u64>,
        arrived_ns: u64,
    ) -> OpResult<Option<u64>> {
        let wait_s = match wait_s {
            Some(wait_s) => wait_s,
            None if vm.live().row.has_agent => DEFAULT_READY_WAIT_S,
            None => 0,
        };
        if wait_s == 0 {
            return Ok(None);
        }
        let deadline = Instant::now() + Duration::from_secs(wait_s.min(86_400));
        match vm.wait_ready(deadline) {
            Some(at) => Ok(Some(us_between(arrived_ns, at))),
            None if vm.state().has_process() => Err(OpError::new(
                ErrorKind::Timeout,
                format!(
                    "{0} runs, but its agent was not ready within {wait_s} s; see 'mitose logs {0}'",
                    vm.name()
                ),
            )),
            None => {
                let reason = vm
                    .row()
                    .reason
                    .unwrap_or_else(|| "it powered off".to_owned());
                Err(OpError::failed(format!(
                    "{0} ended before its agent was ready: {reason}; see 'mitose logs {0}'",
                    vm.name()
                )))
            }
        }
    }

    /// Starts the process of a VM that has none and boots it; returns when the guest was entered.
    /// The caller has the VM's turn.
    pub(super) fn power_on(self: &Arc<Self>, vm: &Arc<Vm>) -> OpResult<u64> {
        let row = vm.row();
        self.check_stores_of(&row)?;
        if row.returns_to_point() {
            return self.start_child(vm);
        }
        let kvm = self.open_engine(&row.engine)?;
        let mut fds = FdList::default();
        let kernel = fds.add(OwnedFd::from(open_given("kernel", &row.boot.kernel)?));
        let initrd = match &row.boot.initrd {
            Some(path) => Some(fds.add(OwnedFd::from(open_given("initrd", path)?))),
            None => None,
        };
        let ram = fds.add(make_ram(row.spec.memory_bytes)?);
        let taps = self.open_taps(&row)?;
        let disks = self.open_disks(&row)?;
        let shell = self.pool.take(None)?;
        let link = self.assign(vm, shell)?;
        // A shell of the pool has its group: it is limited before it has a guest.
        self.limit(vm);
        // The process is on record before it runs a guest, so that recovery finds it.
        let booted = self.commit(&[vm], Changes::default()).and_then(|()| {
            let identity = boot_identity(&row);
            let backends = self.backends(&row, kvm.as_ref(), &disks, &taps, identity, &mut fds)?;
            let mut spec = row.spec.clone();
            spec.cmdline = spec.cmdline.replace("{machine_id}", &row.machine_id);
            let boot = Boot {
                spec,
                ram,
                kernel,
                initrd,
                backends,
            };
            let answer = link.call(Command::Boot(Box::new(boot)), &fds.borrowed(), BOOT_TIMEOUT);
            match answer {
                Ok((Outcome::Running { first_run_at_ns }, _)) => Ok(first_run_at_ns),
                Ok(_) => Err(OpError::failed(
                    "the VM process gave an answer that does not fit",
                )),
                Err(error) => Err(blame(self.explain(vm, "cannot boot", error).into())),
            }
        });
        match booted {
            Ok(first_run_at_ns) => {
                let (no_space, alive) =
                    vm.update(|live| (live.came_to_life(RamView::Shared), !link.is_closed()));
                // It runs, whether that can be recorded now or not.
                self.commit_logged(&[vm], with_event(vm_event(vm, "vm.started", "running")));
                if let Some(disk) = no_space {
                    self.no_space(vm, disk);
                }
                self.pull_cables(vm);
                self.expect_clones(vm);
                self.settle_in(vec![Arc::clone(vm)], None);
                if !alive {
                    // It ended before its state was set: what its end means is decided now.
                    (self.handler(vm, &link))(crate::vmm::Notice::Closed(None));
                }
                Ok(first_run_at_ns)
            }
            Err(error) => {
                self.abandon_process(vm);
                Err(error)
            }
        }
    }

    /// Records a new VM with its disks, then makes the files of their deltas.
    fn make_disks(&self, vm: &Arc<Vm>, bases: &[Base]) -> OpResult<()> {
        let mut changes = Changes::default();
        let mut deltas = Vec::new();
        vm.update(|live| {
            for (index, base) in bases.iter().enumerate() {
                let below = &base.layers[0];
                changes.layers.extend(base.layers.iter().cloned());
                let top = if base.read_only {
                    below.id.clone()
                } else {
                    let delta = self.next_delta(&mut live.row, index, below);
                    changes.layers.push(delta.clone());
                    deltas.push((delta.clone(), below.clone()));
                    delta.id
                };
                live.row.disks.push(DiskRow::of(Some(top)));
            }
            let slots = live.row.spec.disks.len();
            live.row.disks.resize(slots, DiskRow::default());
            let mut layers = self.layers();
            layers.insert(changes.layers.iter().cloned());
            live.row
                .disks
                .iter()
                .flat_map(DiskRow::held)
                .for_each(|layer| layers.hold(layer));
        });
        self.commit(&[vm], changes)?;
        for (delta, below) in &deltas {
            make_delta(delta, below)?;
        }
        if deltas.is_empty() {
            return Ok(());
        }
        let dir = self.store(&vm.row().datastore).layers();
        crate::inventory::sync_directory(&dir)
            .map_err(|error| OpError::failed(format!("cannot sync the datastore: {error}")))
    }

    /// Names the next delta of disk `index` on `parent`.
    pub(super) fn next_delta(&self, row: &mut VmRow, index: usize, parent: &LayerRow) -> LayerRow {
        self.next_top(row, index, Some(parent), parent.size_bytes)
    }

    /// Names the next top of disk `index` on `parent`, or of an empty disk where there is none.
    pub(super) fn next_top(
        &self,
        row: &mut VmRow,
        index: usize,
        parent: Option<&LayerRow>,
        size_bytes: u64,
    ) -> LayerRow {
        let id = format!("{}-{index}-{}", row.id, row.next_layer);
        row.next_layer += 1;
        LayerRow {
            path: self
                .store(&row.datastore)
                .layers()
                .join(format!("{id}.qcow2")),
            id,
            parent: parent.map(|parent| parent.id.clone()),
            format: LayerFormat::Qcow2,
            size_bytes,
            owned: true,
            content: None,
        }
    }

    /// Removes a VM without a process, its disks, its home folder and its row.
    pub(super) fn erase(&self, vm: &Arc<Vm>, told: Option<NewEvent>) {
        let row = vm.update(|live| {
            live.removed = true;
            live.row.clone()
        });
        let snapshots = self.snapshots_of(vm);
        // The record first: once its layers are let go, whoever else lets go of them removes them.
        let changes = Changes {
            removed_vms: vec![row.id.clone()],
            removed_objects: snapshots.iter().map(|s| s.id.clone()).collect(),
            events: told.into_iter().collect(),
            ..Changes::default()
        };
        self.commit_logged(&[], changes);
        let debris = self.let_go(&snapshots);
        self.forget_debris(&debris);
        self.drop_layers(row.disks.iter().flat_map(DiskRow::held));
        row.memory_files()
            .into_iter()
            .for_each(|files| self.remove_memory(files));
        self.forget_sockets(vm);
        let _ = fs::remove_file(self.process_log_elsewhere(vm));
        let home = self.vm_home(&row);
        match fs::remove_dir_all(&home) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, home = %home.display(), "cannot remove a home folder");
            }
            _ => {}
        }
        self.unlist(vm);
        self.forget_tables(&vm.id);
        if row.boot.kernel.starts_with(self.boot_dir()) {
            self.sweep_boot_files();
        }
    }
}

/// What the agent of a guest that boots is told.
fn boot_identity(row: &VmRow) -> String {
    let mut row = row.clone();
    if row.cold_clone {
        // Its own number comes with what a clone is told, once its agent has said what it has.
        row.uuid = random_uuid();
    }
    identity_message(&row, IdentityKind::Boot, Vec::new())
}
