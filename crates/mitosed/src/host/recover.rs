//! Start of a daemon: finding again what an earlier one left, and removing what never lived.
//!
//! - A VM whose process answers goes on; a row `creating` among them is rolled forward.
//! - A VM that ran and whose process does not answer is left alone until it does (`late.rs`).
//! - A row `creating` without a running guest is removed with all that was made for it, but for a
//!   child that was registered before: it is that again.
//! - A valid pending top becomes the top: an empty overlay equals its base.
//! - A top that stands on a merged layer is recorded so.
//! - Sockets, processes, home folders and deltas that no row names are removed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use disk_layers::{DiskHeader, inspect_as};
use vmm_protocol::{Command, Outcome, Status, VmState};

use super::shell::VMM_LOG_SUFFIX;
use super::{Host, Vm, vm_event};
use crate::config::Config;
use crate::inventory::{
    Begun, Changes, Contents, ForkPoint, Inventory, LayerRow, PowerState, VmRow,
};
use crate::layers::{backing_name, disk_format};
use crate::vmm::{self, Link, LinkError, Pending, Reactor};

/// Time that a VM process has to tell its state.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// A process, and whether it took the question.
type Asked = (Arc<Link>, Result<Pending, LinkError>);

impl Host {
    /// Takes over a data directory.
    pub fn recover(config: Config, inventory: Box<dyn Inventory>) -> anyhow::Result<Arc<Self>> {
        let contents = inventory.load()?;
        let uids: HashSet<u32> = contents.vms.iter().filter_map(|row| row.uid).collect();
        let host = Self::new(config, inventory, Reactor::start()?, uids);
        host.load(contents);
        host.meet_epoch()?;
        host.meet_datastores()?;
        host.meet_processes()?;
        host.meet_keepers()?;
        host.settle_pending();
        host.settle_snapshots();
        host.settle_archives();
        host.settle_merges();
        host.make_way_for_unlisted()?;
        host.remove_leftovers();
        // From here on VMs that did not answer are taken over, or seen to have ended.
        let _ = host.settled.set(());
        host.tell_limits();
        let unfinished = host.finish_begun();
        host.end_interrupted_tasks(unfinished);
        host.settle_in(host.all(), None);
        if !host.keeps_unlisted() {
            host.sweep_bridges();
        }
        let answering = |vm: &&Arc<Vm>| !vm.live().unanswered;
        let all = host.all();
        all.iter()
            .filter(answering)
            .for_each(|vm| host.pull_cables(vm));
        host.pool.fill_in_background()?;
        host.keep_catching_up()?;
        host.watch_datastores()?;
        host.fill_disk_pools()?;
        if !host.keeps_unlisted() {
            // VMs that are not named may stand on the layers that it takes away.
            host.start_upkeep()?;
        }
        Ok(host)
    }

    fn load(&self, contents: Contents) {
        let mut layers = self.layers();
        layers.insert(contents.layers);
        let mut vms = Vec::new();
        for mut row in contents.vms {
            if row.state.is_off() {
                // An earlier daemon may not have said so.
                row.process_gone(false);
            }
            for disk in &row.disks {
                disk.held().for_each(|layer| layers.hold(layer));
            }
            vms.push(Vm::new(row));
        }
        drop(layers);
        self.apply_objects(&Changes {
            objects: contents.objects,
            ..Changes::default()
        });
        self.hold_points();
        self.hold_snapshots();
        self.list_known(&vms);
    }

    /// Connects to every process that a row may have, and settles each VM by its answer.
    fn meet_processes(self: &Arc<Self>) -> anyhow::Result<()> {
        let vms = self.all();
        let asked = vms.iter().map(|vm| self.ask(vm));
        let asked: Vec<Option<Asked>> = asked.collect::<anyhow::Result<_>>()?;
        let start = Instant::now();
        for (vm, asked) in vms.iter().zip(asked) {
            let Some((link, pending)) = asked else {
                self.settle_without_process(vm);
                continue;
            };
            let answer = pending.and_then(|pending| pending.wait_since(start, STATUS_TIMEOUT));
            let error = match answer {
                Ok((Outcome::Status(status), _)) => {
                    self.take_over(vm, &link, &status);
                    continue;
                }
                Ok(_) => LinkError::Unexpected,
                Err(error) => error,
            };
            tracing::warn!(vm = &*vm.name(), "no state from a VM process: {error}");
            let root = self.config.home.root();
            let is_there = || vm.row().pid.is_some_and(|pid| vmm::may_be_of(root, pid));
            // One that closed the connection may have ended.
            if ran(vm) && (!matches!(error, LinkError::Closed) || is_there()) {
                self.leave_unanswered(vm);
            } else {
                self.settle_without_process(vm);
            }
        }
        Ok(())
    }

    /// Settles a VM by what its process says of itself.
    pub(super) fn take_over(self: &Arc<Self>, vm: &Arc<Vm>, link: &Arc<Link>, status: &Status) {
        match status.state {
            VmState::Shell => self.settle_without_process(vm),
            _ => self.go_on(vm, link, status),
        }
    }

    /// Asks the process of a VM for its state; none where there is no process. That it cannot be
    /// known whether there is one is an error: the VM may run, and would be taken for one that does
    /// not.
    fn ask(self: &Arc<Self>, vm: &Arc<Vm>) -> anyhow::Result<Option<Asked>> {
        let link = match self.connect(&vm.id, |link| self.handler(vm, link)) {
            Ok(Some(link)) => link,
            Ok(None) => return Ok(None),
            Err(_) if vm.state().is_off() => return Ok(None),
            Err(error) => return Err(error),
        };
        vm.update(|live| {
            live.link = Some(Arc::clone(&link));
            live.begin();
        });
        let pending = link.request(Command::Status, &[]);
        Ok(Some((link, pending)))
    }

    /// Connects to the process of the VM or fork point `id`; what it says goes to the handler that
    /// `handler` makes. None where nobody listens.
    pub(in crate::host) fn connect(
        &self,
        id: &str,
        handler: impl FnOnce(&Arc<Link>) -> Box<dyn Fn(vmm::Notice) + Send + Sync>,
    ) -> anyhow::Result<Option<Arc<Link>>> {
        let link = match Link::connect(&self.config.home.vm_socket(id)) {
            Err(error) if error.is_nobody() => return Ok(None),
            connected => {
                connected.with_context(|| format!("cannot tell whether {id} has a process"))?
            }
        };
        self.reactor.watch(&link, handler(&link))?;
        Ok(Some(link))
    }

    fn go_on(self: &Arc<Self>, vm: &Arc<Vm>, link: &Arc<Link>, status: &Status) {
        if self.ends_suspended(vm, status) {
            return;
        }
        let was_creating = vm.update(|live| {
            let was_creating = live.row.state == PowerState::Creating;
            live.row.state = state_of(&live.row, status);
            live.starting = false;
            live.row.standby = false;
            // What was said while no daemon listened is unknown.
            live.identity_stale = true;
            live.row.pid = link.peer_pid().or(live.row.pid);
            // A fork records its clones before their processes get user ids.
            let uid = live.row.uid.or_else(|| vmm::uid_of(live.row.pid?));
            uid.into_iter().for_each(|uid| self.pool.claim_uid(uid));
            live.row.uid = uid;
            live.ram = status.ram;
            live.ready_at_ns = status.agent_ready.then(|| status.ready_at_ns.unwrap_or(0));
            was_creating
        });
        let changes = if was_creating {
            let message = "was being made when the daemon ended; it runs";
            super::events::with_event(vm_event(vm, "vm.recovered", message))
        } else {
            Changes::default()
        };
        let task = vm.row().making.map(|making| making.task);
        self.on_behalf(task.filter(|_| was_creating), || {
            self.commit_logged(&[vm], changes);
        });
        self.settle_suspended(vm);
        if link.is_closed() {
            (self.handler(vm, link))(vmm::Notice::Closed(None));
        }
    }

    fn settle_without_process(self: &Arc<Self>, vm: &Arc<Vm>) {
        let state = vm.state();
        let verdict = self.memory_verdict(&vm.row());
        // A recorded process id may belong to another process by now; forgotten VM processes are
        // found by their mark.
        vm.update(|live| {
            let had_process = live.row.pid.take().is_some();
            live.row.standby &= !had_process;
            live.to_mend = had_process && state != PowerState::Creating;
        });
        self.abandon_process(vm);
        match state {
            state if state.is_off() => {}
            PowerState::Suspended => self.stay_suspended(vm),
            PowerState::Creating => {
                let message = "was being made when the daemon ended; removed";
                let task = vm.row().making.map(|making| making.task);
                self.on_behalf(task, || {
                    if !self.take_child_back(vm) {
                        self.erase(vm, Some(vm_event(vm, "vm.removed", message)));
                    }
                });
            }
            // What had been begun is finished, and then told.
            _ if vm.row().begun.is_some() => {
                self.give_memory_up(vm);
                vm.update(|live| {
                    let reset = matches!(live.row.begun, Some(Begun::Reset));
                    live.row.process_gone(reset);
                    live.row.state = PowerState::PoweredOff;
                    live.row.freeze = None;
                });
            }
            _ => {
                let (off, kind) = match verdict {
                    Some(_) => (PowerState::OutOfMemory, "vm.out_of_memory"),
                    None => (PowerState::PoweredOff, "vm.failed"),
                };
                let mut message = "the VM process ended while the daemon was down".to_owned();
                if let Some(verdict) = verdict {
                    message = verdict;
                } else if let Some(words) = self.last_words(vm) {
                    message = format!("{message}; {words}");
                }
                self.give_memory_up(vm);
                vm.update(|live| {
                    live.row.process_gone(false);
                    live.row.state = off;
                    live.row.freeze = None;
                    live.row.reason = Some(message.clone());
                });
                let told = super::events::with_event(vm_event(vm, kind, message));
                self.commit_logged(&[vm], told);
            }
        }
    }

    /// Takes valid pending tops, forgets others, and finds deltas that are newer than their row.
    /// Those on a datastore that is not there wait for it.
    fn settle_pending(&self) {
        for vm in self.all() {
            // Which tops a process writes to that does not answer shows when it does.
            let unknown = vm.live().unanswered;
            if !unknown && !self.stores.is_lost(&vm.row().datastore) {
                self.settle_pending_of(&vm);
            }
        }
    }

    pub(super) fn settle_pending_of(&self, vm: &Arc<Vm>) {
        self.settle_tops(vm);
        // The top may be one that was found just now.
        if vm.update(|live| std::mem::take(&mut live.to_mend)) {
            self.mend_disks(vm);
        }
    }

    fn settle_tops(&self, vm: &Arc<Vm>) {
        self.find_unrecorded(vm);
        let row = vm.row();
        if row.disks.iter().all(|disk| disk.pending.is_none()) {
            return;
        }
        let valid = {
            let layers = self.layers();
            row.disks
                .iter()
                .filter_map(|disk| disk.pending.as_ref())
                .all(|pending| layers.get(pending).is_some_and(is_valid_delta))
        };
        let slots = row.disks.iter().enumerate();
        let slots = slots.filter(|(_, disk)| disk.top.is_none() && disk.pending.is_some());
        let slots: Vec<usize> = slots.map(|(slot, _)| slot).collect();
        let mut changes = Changes::default();
        if valid {
            self.take_pending_tops(vm);
            self.send_again(vm, &slots);
        } else {
            let gone = self.drop_pending_tops(vm);
            changes.removed_layers = gone.iter().map(|layer| layer.id.clone()).collect();
            self.remove_layers(&gone);
        }
        self.commit_logged(&[vm], changes);
    }

    /// After the host's end a delta's directory entry may be durable while the row naming it is
    /// not: its name says whose it is, its header what it stands on.
    fn find_unrecorded(&self, vm: &Arc<Vm>) {
        let row = vm.row();
        for (index, disk) in row.disks.iter().enumerate() {
            if disk.pending.is_some() || row.spec.disks.get(index).is_none_or(|d| d.read_only) {
                continue;
            }
            let top = disk.top.as_ref();
            let Some(top) = top.and_then(|top| self.layers().get(top).cloned()) else {
                continue;
            };
            let mut probe = row.clone();
            // Numbers are given in order; a few may have been used up by failed calls.
            for _ in 0..64 {
                let delta = self.next_delta(&mut probe, index, &top);
                if self.layers().get(&delta.id).is_some() || !stands_on(&delta, &top) {
                    continue;
                }
                let id = delta.id.clone();
                let mut layers = self.layers();
                layers.insert([delta.clone()]);
                layers.hold(&id);
                drop(layers);
                vm.update(|live| {
                    live.row.next_layer = probe.next_layer;
                    live.row.disks[index].pending = Some(id);
                });
                let changes = Changes {
                    layers: vec![delta],
                    ..Changes::default()
                };
                self.commit_logged(&[vm], changes);
                break;
            }
        }
    }

    fn remove_leftovers(&self) {
        // What a process that does not answer does yet may put its disks on any of its own.
        let all = self.all();
        let unanswered = all.iter().filter(|vm| vm.live().unanswered);
        let kept: Vec<String> = unanswered.map(|vm| format!("{}-", vm.id)).collect();
        let is_kept = |id: &str| kept.iter().any(|own| id.starts_with(own));
        let gone = self.layers().unused(is_kept);
        if !gone.is_empty() {
            let changes = Changes {
                removed_layers: gone.iter().map(|layer| layer.id.clone()).collect(),
                ..Changes::default()
            };
            self.commit_logged(&[], changes);
            self.remove_layers(&gone);
        }
        if self.keeps_unlisted() {
            return;
        }
        let mut pids: HashSet<i32> = self.all().iter().filter_map(|vm| vm.row().pid).collect();
        pids.extend(self.keeper_pids());
        let root = self.config.home.root();
        for pid in vmm::orphans_of(root, |pid| pids.contains(&pid)) {
            tracing::info!(pid, "ending a VM process that belongs to no VM");
            vmm::kill(pid);
        }
        self.sweep_groups();
        let ids: HashSet<String> = self.all().iter().map(|vm| vm.id.clone()).collect();
        let mut live: HashSet<String> = self
            .all()
            .iter()
            .filter(|vm| vm.link().is_some())
            .map(|vm| vm.id.clone())
            .collect();
        live.extend(
            self.objects::<ForkPoint>()
                .into_iter()
                .map(|point| point.id),
        );
        let of_vm = |name: &str| {
            name.split_once('.')
                .is_some_and(|(id, _)| live.contains(id))
        };
        sweep(&self.config.home.run(), |name| {
            of_vm(name) || name == api_types::SOCKET_NAME
        });
        sweep(&self.config.home.logs(), |name| {
            let of_vm = name.strip_suffix(VMM_LOG_SUFFIX);
            !name.starts_with("shell-") && of_vm.is_none_or(|id| ids.contains(id))
        });
        for (id, _) in self.stores.all_dirs() {
            if !self.stores.is_lost(&id) {
                self.sweep_datastore(&id);
            }
        }
        self.sweep_boot_files();
    }
}

/// Whether a VM was on record as one whose guest runs, and nobody was about to end it.
pub(super) fn ran(vm: &Vm) -> bool {
    let live = vm.live();
    live.row.state.has_process() && live.row.begun.is_none()
}

/// The state of a VM whose process says what it does.
pub(super) fn state_of(row: &VmRow, status: &Status) -> PowerState {
    let wish = row.freeze.as_ref();
    match status.state {
        VmState::Paused if wish.is_some_and(|wish| !wish.thawed) => PowerState::Frozen,
        VmState::Paused => PowerState::Paused,
        VmState::PausedNoSpace => PowerState::PausedNoSpace,
        VmState::Running | VmState::Shell | VmState::Keeper => PowerState::Running,
    }
}

/// Whether the file of a top is there and complete.
fn is_valid_delta(row: &LayerRow) -> bool {
    let header = File::open(&row.path)
        .ok()
        .and_then(|file| inspect_as(&file, disk_format(row.format)).ok());
    let stands = |h: &DiskHeader| h.backing.is_some() == row.parent.is_some();
    header.is_some_and(|h| h.virtual_size_bytes == row.size_bytes && stands(&h))
}

fn stands_on(delta: &LayerRow, top: &LayerRow) -> bool {
    let header = File::open(&delta.path)
        .ok()
        .and_then(|file| inspect_as(&file, disk_format(delta.format)).ok());
    let backing = header.and_then(|h| h.backing).map(|b| b.name);
    backing == Some(backing_name(&delta.path, &top.path))
}

/// Removes what is in `dir` and not to be kept.
pub(super) fn sweep(dir: &Path, keep: impl Fn(&str) -> bool) {
    let removed = (|| -> anyhow::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(&keep) {
                continue;
            }
            tracing::info!(path = %entry.path().display(), "removing what belongs to no VM");
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    })();
    if let Err(error) = removed.with_context(|| format!("cannot clean up {}", dir.display())) {
        tracing::warn!("{error:#}");
    }
}
