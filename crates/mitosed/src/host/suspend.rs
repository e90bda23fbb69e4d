//! Suspending a VM to disk, and letting it go on from files.
//!
//! ```text
//! running ─ pause ─ seal ─ write files (the row says `writing`) ─ record `suspended` ─ end process
//! suspended ─ restore from the files ─ record `running` ─ remove the files
//! ```
//!
//! Until `suspended` is on record the process is there and can go on; from then on the files are
//! complete. A daemon that finds a VM on its way lets it go on, or ends its process.

mod recover;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::{IdentityKind, ToGuest};
use anyhow::Context;
use vmm_protocol::{CloneRam, Command, Outcome, RamView, Restore};

use super::backends::FdList;
use super::events::with_event;
use super::identity::identity_message;
use super::memory_files::MemoryPlace;
use super::states::Operation;
use super::{Host, TaskContext, Vm, vm_event};
use crate::clock::{now_ms, random_hex, random_uuid};
use crate::error::{OpError, OpResult};
use crate::inventory::{Changes, MemoryFiles, PointMemory, PowerState, SuspendRow, VmRow};
use crate::vmm::Build;

/// Longest time from the order to go on to the first entry.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time that a VM process has for a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);

/// As what a VM goes on from an instant in files. Its guest hears of a new generation (ACPI's VM
/// generation id) where that instant has gone on elsewhere or may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GoesOn {
    /// It stood still since.
    Once,
    /// It went on from there before, or does so on another host.
    Again,
    /// As another machine.
    AsClone,
}

impl Host {
    /// Suspends a VM to disk.
    pub fn suspend(self: &Arc<Self>, vm: &Arc<Vm>, task: &TaskContext) -> OpResult<()> {
        let _turn = self.turn(vm)?;
        let before = vm.state();
        if !self.allow(vm, Operation::Suspend)? {
            return Ok(());
        }
        let link = vm
            .link()
            .ok_or_else(|| OpError::conflict(format!("{} is ending", vm.name())))?;
        let place = self.memory_place(vm, None)?;
        let paused = before == PowerState::Paused;
        vm.update(|live| {
            live.row.suspend = Some(SuspendRow::Writing { paused });
            live.row.begun_by = Some(task.id());
        });
        task.progress(0.0, "standing still");
        let written = self
            .commit(&[vm], Changes::default())
            .and_then(|()| {
                let paused = link.call(Command::Pause, &[], COMMAND_TIMEOUT);
                paused.map_err(|error| self.explain(vm, "cannot stop", error))?;
                vm.update(|live| {
                    if live.link.is_some() {
                        live.row.state = PowerState::Paused;
                    }
                });
                task.progress(0.1, "writing the memory");
                self.write_suspended(vm, &place)
            })
            .and_then(|files| self.record_suspended(vm, files));
        if let Err(error) = written {
            self.take_suspend_back(vm, before);
            return Err(error);
        }
        task.progress(0.9, "ending the process");
        self.end_process(vm);
        Ok(())
    }

    fn write_suspended(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        place: &MemoryPlace,
    ) -> OpResult<MemoryFiles> {
        let tops: Vec<_> = vm.row().tops().into_iter().flatten().collect();
        self.hold_layers(&tops);
        let sealed = self.seal(vm, true, None);
        self.drop_layers(&tops);
        // Each time under another name: the memory that a VM went on from may still be mapped.
        let name = format!("{}-{}", vm.id, random_hex::<4>());
        match self.store_memory(&name, sealed?.memory, true, Some(place))? {
            PointMemory::Files { ram, checkpoint } => Ok(MemoryFiles { ram, checkpoint }),
            _ => Err(OpError::failed("the memory was not written to files")),
        }
    }

    fn record_suspended(&self, vm: &Arc<Vm>, files: MemoryFiles) -> OpResult<()> {
        let before = vm.update(|live| {
            let before = live.row.clone();
            live.row.state = PowerState::Suspended;
            live.row.suspend = Some(SuspendRow::Files {
                files: files.clone(),
                as_clone: false,
                copied: false,
                waking: false,
            });
            before
        });
        let told = vm_event(vm, "vm.suspended", "suspended to disk");
        let recorded = self
            .commit(&[vm], with_event(told))
            .and_then(|()| Ok(self.inventory.sync().context("cannot sync the inventory")?));
        recorded.inspect_err(|_| {
            vm.update(|live| {
                live.row.state = before.state;
                live.row.suspend = before.suspend;
            });
            self.remove_memory(&files);
        })
    }

    /// Lets a VM go on that could not be suspended.
    fn take_suspend_back(&self, vm: &Arc<Vm>, before: PowerState) {
        vm.update(|live| (live.row.suspend, live.row.begun_by) = (None, None));
        if before == PowerState::Running
            && let Some(link) = vm.link()
        {
            match link.call(Command::Resume, &[], COMMAND_TIMEOUT) {
                Ok(_) => vm.update(|live| {
                    if live.link.is_some() {
                        live.row.state = PowerState::Running;
                    }
                }),
                Err(error) => tracing::warn!(vm = &*vm.name(), %error, "it does not go on"),
            }
        }
        self.commit_logged(&[vm], Changes::default());
    }

    /// Lets a suspended VM go on; the caller has its turn.
    pub(super) fn wake(self: &Arc<Self>, vm: &Arc<Vm>) -> OpResult<()> {
        let Some(SuspendRow::Files {
            files,
            as_clone,
            copied,
            ..
        }) = vm.row().suspend
        else {
            return Err(OpError::failed(format!(
                "{0} has no memory on disk; 'mitose stop {0} --force' makes it powered off",
                vm.name()
            )));
        };
        self.check_memory("the VM", vm.row().spec.memory_bytes)?;
        set_waking(vm, true);
        let goes_on = match (as_clone, copied) {
            (true, _) => GoesOn::AsClone,
            (false, true) => GoesOn::Again,
            (false, false) => GoesOn::Once,
        };
        if let Err(error) = self.power_on_from(vm, &files, goes_on) {
            self.stay_suspended(vm);
            return Err(error);
        }
        // It runs: the files are removed when that is on record.
        vm.update(|live| live.row.suspend = None);
        self.commit(&[vm], Changes::default())?;
        self.inventory.sync().context("cannot sync the inventory")?;
        self.remove_memory(&files);
        Ok(())
    }

    /// Gives the memory of a suspended VM up: it is powered off. The caller has its turn.
    pub(super) fn discard_memory(&self, vm: &Arc<Vm>) -> OpResult<()> {
        let files = vm.update(|live| {
            live.row.process_gone(false);
            live.row.state = PowerState::PoweredOff;
            live.row.suspend.take()
        });
        let told = vm_event(
            vm,
            "vm.stopped",
            "powered off; its memory on disk was given up",
        );
        self.commit(&[vm], with_event(told))?;
        if let Some(SuspendRow::Files { files, .. }) = files {
            self.remove_memory(&files);
        }
        Ok(())
    }

    /// Starts the process of a VM that has none, at the instant that the files hold; returns when
    /// the guest was entered. The caller has the VM's turn.
    pub(super) fn power_on_from(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        files: &MemoryFiles,
        goes_on: GoesOn,
    ) -> OpResult<u64> {
        let row = vm.row();
        let kvm = self.open_engine(&row.engine)?;
        let mut fds = FdList::default();
        let ram = fds.add(open_memory("memory", &files.ram)?);
        let checkpoint = fds.add(open_memory("checkpoint", &files.checkpoint)?);
        let taps = self.open_taps(&row)?;
        let disks = self.open_disks(&row)?;
        let shell = self.pool.take(Some(Build::of(&row.spec, kvm.is_some())))?;
        let link = self.assign(vm, shell)?;
        // A shell of the pool has its group: it is limited before it has a guest.
        self.limit(vm);
        // The process is on record before it runs a guest, so that recovery finds it.
        let restored = self.commit(&[vm], Changes::default()).and_then(|()| {
            let identity = match goes_on {
                GoesOn::AsClone => {
                    let keys = self.keys.take(&row.ssh_host_key_kinds);
                    identity_message(&row, IdentityKind::Clone, keys)
                }
                GoesOn::Once | GoesOn::Again => same_identity(&row),
            };
            let backends = self.backends(&row, kvm.as_ref(), &disks, &taps, identity, &mut fds)?;
            let order = Restore {
                spec: row.spec.clone(),
                ram: CloneRam::Layer(ram),
                checkpoint: Some(checkpoint),
                backends,
                generation_id: (goes_on != GoesOn::Once).then(random_hex::<16>),
                paused: false,
                durable: true,
            };
            let order = Command::Restore(Box::new(order));
            match link.call(order, &fds.borrowed(), RESTORE_TIMEOUT) {
                Ok((Outcome::Running { first_run_at_ns }, _)) => Ok(first_run_at_ns),
                Ok(_) => Err(OpError::failed(
                    "the VM process gave an answer that does not fit",
                )),
                Err(error) => Err(self.explain(vm, "cannot go on with", error).into()),
            }
        });
        match restored {
            Ok(first_run_at_ns) => {
                let (no_space, alive) =
                    vm.update(|live| (live.came_to_life(RamView::Private), !link.is_closed()));
                let told = vm_event(vm, "vm.started", "goes on from its memory on disk");
                // It runs, whether that can be recorded now or not.
                self.commit_logged(&[vm], with_event(told));
                if let Some(disk) = no_space {
                    self.no_space(vm, disk);
                }
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

    /// Removes memory and checkpoint from the datastore.
    pub(super) fn remove_memory(&self, files: &MemoryFiles) {
        for path in [&files.ram, &files.checkpoint] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %path.display(), "cannot remove a file");
                }
                _ => {}
            }
        }
    }
}

impl VmRow {
    /// Memory that the VM goes on from.
    pub(in crate::host) fn memory_files(&self) -> Option<&MemoryFiles> {
        match &self.suspend {
            Some(SuspendRow::Files { files, .. }) => Some(files),
            _ => None,
        }
    }
}

/// The agent's identity message for a guest that goes on as the same machine. It has a number of its
/// own, since the agent applies each once: the clock stood still, and random numbers that were drawn
/// since are not to be drawn again.
fn same_identity(row: &VmRow) -> String {
    let message = VmRow {
        uuid: random_uuid(),
        ..row.clone()
    };
    let message = identity_message(&message, IdentityKind::Boot, Vec::new());
    match serde_json::from_str(&message) {
        Ok(ToGuest::Identity(mut identity)) => {
            identity.wall_clock_unix_ns = now_ms().unsigned_abs() * 1_000_000;
            serde_json::to_string(&ToGuest::Identity(identity)).unwrap_or(message)
        }
        _ => message,
    }
}

/// Says in a VM's row whether it is being brought to life.
pub(super) fn set_waking(vm: &Vm, now: bool) {
    vm.update(|live| {
        if let Some(SuspendRow::Files { waking, .. }) = &mut live.row.suspend {
            *waking = now;
        }
    });
}

fn open_memory(what: &str, path: &Path) -> OpResult<OwnedFd> {
    match File::open(path) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(OpError::failed(format!(
            "{what}: cannot open {}: {error}",
            path.display()
        ))),
    }
}
