//! Parents and their children: preparing, registering, renewing, ending.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use api_types::{
    Consistency, DryRun, ForkPoint as PointAnswer, MAX_CHILDREN, PointForkRequest, PrepareRequest,
    Prepared,
};
use vmm_protocol::RamView;

use super::super::seats::Seat;
use super::batch::{check_persistence, unclaim};
use crate::error::{OpError, OpResult};
use crate::host::check::Problems;
use crate::host::states::Operation;
use crate::host::{Host, TaskContext, Vm, event, tasks, vm_event};
use crate::inventory::{Changes, ChildRow, ForkPoint, Making, Object, PointMemory, PowerState};

/// Longest time of a command that warms a parent up, where the request names none.
const EXEC_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest wait for the agent of a guest that is to run it, seconds.
const AGENT_WAIT_S: u64 = 120;

impl Host {
    /// Turns a powered-on VM into a parent.
    pub fn prepare_parent(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        request: &PrepareRequest,
        context: &TaskContext,
    ) -> OpResult<Prepared> {
        let name = request
            .name
            .clone()
            .unwrap_or_else(|| vm.name().to_string());
        prepare_problems(self, &name, request).finish()?;
        self.allow(vm, Operation::Prepare)?;
        let exec_exit_code = self.warm_up(vm, request, context)?;
        context.progress(0.3, "sealing the fork point");
        let point = {
            self.wait_for_room(vm)?;
            let _turn = self.turn(vm)?;
            self.allow(vm, Operation::Prepare)?;
            self.check_memory("the call", super::super::super::memory::CLONE_COST_BYTES)?;
            if request.quiesce {
                self.bring_to_rest(vm)?;
            }
            self.check_stores_of(&vm.row())?;
            self.make_point(vm, &name, request)
                .map_err(|error| self.blame_stores(&vm.row(), error))?
        };
        context.progress(0.6, "making children");
        let children = self
            .register_children(&point, request, context)
            .inspect_err(|_| {
                let _ = self.end_point(&point, None);
            })?;
        Ok(Prepared {
            fork_point: self.show_point(&point),
            children,
            exec_exit_code,
        })
    }

    /// Tries a preparation out.
    pub fn check_prepare(&self, vm: &Vm, request: &PrepareRequest) -> DryRun {
        let name = request.name.clone();
        let name = name.unwrap_or_else(|| vm.name().to_string());
        let mut problems = prepare_problems(self, &name, request);
        problems.take(self.allow(vm, Operation::Prepare));
        problems.take(self.check_stores_of(&vm.row()));
        let cost = crate::host::memory::CLONE_COST_BYTES;
        problems.take(self.check_memory("the call", cost));
        problems.dry_run()
    }

    fn warm_up(
        &self,
        vm: &Arc<Vm>,
        request: &PrepareRequest,
        context: &TaskContext,
    ) -> OpResult<Option<i32>> {
        if request.exec.is_empty() {
            return Ok(None);
        }
        context.progress(0.0, "warming up");
        let timeout = request.exec_timeout_s.map(Duration::from_secs);
        let timeout = timeout.unwrap_or(EXEC_TIMEOUT);
        self.await_agent(vm, Instant::now(), AGENT_WAIT_S)?;
        let done = self.exec_in(vm, &request.exec, timeout)?;
        if done.exit_code != 0 {
            let words = done.stderr.lines().last().unwrap_or_default();
            return Err(OpError::failed(format!(
                "exec: {:?} ended with {} in {}: {words}; the VM runs on, nothing was sealed",
                request.exec.join(" "),
                done.exit_code,
                vm.name()
            )));
        }
        Ok(Some(done.exit_code))
    }

    /// Syncs the guest's file systems and pauses it. The caller has its turn.
    fn bring_to_rest(&self, vm: &Arc<Vm>) -> OpResult<()> {
        if vm.state() != PowerState::Running {
            return Ok(());
        }
        if vm.live().ready_at_ns.is_some() {
            self.sync_guest(vm)?;
        }
        self.pause_now(vm)
    }

    /// Has a guest sync its file systems.
    pub(in crate::host) fn sync_guest(&self, vm: &Arc<Vm>) -> OpResult<()> {
        let sync = ["sync".to_owned()];
        let done = self.exec_in(vm, &sync, Duration::from_secs(60))?;
        if done.exit_code != 0 {
            return Err(OpError::failed(format!(
                "quiesce: the guest of {} cannot sync its file systems: {}",
                vm.name(),
                done.stderr.trim()
            )));
        }
        Ok(())
    }

    /// Makes a kept fork point of a VM. The caller has its turn.
    pub(in crate::host) fn make_point(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        name: &str,
        request: &PrepareRequest,
    ) -> OpResult<Object<ForkPoint>> {
        let quiesced = vm.state().stands_still();
        let durable = request.durable;
        let in_files = durable || vm.live().ram == Some(RamView::Private);
        let wanted = request.datastore.as_deref();
        let place = in_files.then(|| self.memory_place(vm, wanted));
        let place = place.transpose()?;
        let point = self.begin_point(name, vm.row(), quiesced)?;
        let made = self.seal(vm, true, request.drain_ms_max);
        let made = made.and_then(|sealed| {
            let memory = self.store_memory(&point.id, sealed.memory, durable, place.as_ref())?;
            Ok((sealed.forked, memory))
        });
        let (forked, memory) = made.inspect_err(|_| {
            let _ = self.end_point(&point, None);
        })?;
        let kept = match memory {
            PointMemory::Kept { .. } => "in memory",
            _ => "in files",
        };
        let message = format!("fork point {name} kept {kept}, stun {} us", forked.stun_us);
        let figures = serde_json::json!({
            "fork_point": point.id,
            "stun_us": forked.stun_us,
            "io_held_us": forked.io_held_us,
            "children": request.children,
        });
        let told = Some(vm_event(vm, "vm.prepared", message).with(figures));
        let recorded = self.change_and_tell::<ForkPoint>(&point.id, None, told, |point| {
            point.doc.memory = memory.clone();
            point.doc.stun_us = forked.stun_us;
            point.doc.io_held_us = forked.io_held_us;
            Ok(())
        });
        let recorded = recorded.inspect_err(|_| {
            let mut point = point.clone();
            point.doc.memory = memory;
            if !self.end_point(&point, None) {
                // Somebody ended it before it had any.
                self.free_memory(&point);
            }
        })?;
        self.commit_logged(&[vm], Changes::default());
        self.inventory.sync().context("cannot sync the inventory")?;
        Ok(recorded)
    }

    /// Makes children that are not started: rows, homes, delta disks.
    fn register_children(
        self: &Arc<Self>,
        point: &Object<ForkPoint>,
        request: &PrepareRequest,
        context: &TaskContext,
    ) -> OpResult<Vec<String>> {
        if request.children == 0 {
            return Ok(Vec::new());
        }
        let count = request.children as usize;
        let how = PointForkRequest {
            persistent: Some(request.persistent),
            prefix: request.prefix.clone(),
            ..PointForkRequest::default()
        };
        let mut seats = self.add_children(point, &how, count)?;
        let names = seats.iter().map(|seat| seat.vm.name().to_string());
        let names = names.collect();
        let made = self
            .lay_registered(point, &mut seats)
            .and_then(|()| context.check());
        if let Err(error) = made {
            seats.iter().for_each(|seat| self.erase(&seat.vm, None));
            return Err(error);
        }
        Ok(names)
    }

    fn lay_registered(
        self: &Arc<Self>,
        point: &Object<ForkPoint>,
        seats: &mut [Seat],
    ) -> OpResult<()> {
        let mut recording = self.record_children(&point.doc.tops, seats)?;
        super::super::seats::for_each(seats, |seat| {
            self.make_home(&seat.vm)?;
            seat.make_tops()
        })?;
        recording.files_made();
        recording.wait_recorded()?;
        recording.wait_durable()?;
        let mut changed = Vec::new();
        for seat in seats.iter() {
            seat.vm.update(|live| {
                live.row.state = PowerState::PoweredOff;
                if let Some(child) = live.row.child.as_mut() {
                    child.started = false;
                }
            });
            self.link_tops(&seat.vm.row());
            changed.push(&seat.vm);
        }
        let told = changed
            .iter()
            .map(|vm| vm_event(vm, "vm.registered", format!("child of {}", point.name)));
        let changes = Changes {
            events: told.collect(),
            ..Changes::default()
        };
        self.commit(&changed, changes)?;
        self.inventory.sync().context("cannot sync the inventory")?;
        Ok(())
    }

    /// Children that are registered and were never started, by name.
    pub(super) fn registered_children(&self, point: &str) -> Vec<Arc<Vm>> {
        let mut found = self.children_of(point);
        found.retain(|vm| {
            let live = vm.live();
            live.row.state == PowerState::PoweredOff
                && !live.row.template
                && live.row.child.as_ref().is_some_and(ChildRow::is_fresh)
        });
        // web-2 comes before web-10.
        found.sort_by_key(|vm| (vm.name().len(), vm.name()));
        found
    }

    /// All children of a fork point, by name.
    pub(in crate::host) fn children_of(&self, point: &str) -> Vec<Arc<Vm>> {
        let mut all = self.all();
        all.retain(|vm| {
            let live = vm.live();
            live.row.child.as_ref().is_some_and(|c| c.point == point)
        });
        all
    }

    /// Takes a registered child for a call, unless somebody works with it; it is `creating` until
    /// then, which keeps others from its disks.
    pub(super) fn claim_child(
        &self,
        vm: &Arc<Vm>,
        persistent: Option<bool>,
    ) -> OpResult<Option<Seat>> {
        let Some(_turn) = vm.try_operate() else {
            return Ok(None);
        };
        // A daemon that finds it half-made does not remove it.
        let making = tasks::making("kept", Consistency::Instant).map(|making| Making {
            was_there: true,
            ..making
        });
        let claimed = vm.update(|live| {
            let off = live.row.state == PowerState::PoweredOff;
            let free = off && !live.removed && !live.row.template;
            match live.row.child.as_mut() {
                Some(child) if free && child.is_fresh() => {
                    child.started = true;
                    live.row.state = PowerState::Creating;
                    live.row.making.clone_from(&making);
                    child.persistent = persistent.unwrap_or(child.persistent);
                    true
                }
                _ => false,
            }
        });
        if !claimed {
            return Ok(None);
        }
        let seat = self.seat_of_present(vm);
        seat.inspect_err(|_| unclaim(vm)).map(Some)
    }

    /// A seat for a powered-off VM.
    pub(super) fn seat_of_present(&self, vm: &Arc<Vm>) -> OpResult<Seat> {
        let taps = self.open_taps(&vm.row())?;
        let mut seat = Seat::new(Arc::clone(vm), taps);
        seat.was_there = true;
        seat.add_present_disks(self)?;
        Ok(seat)
    }

    /// After a power-off: a child that is not persistent gives back what it wrote.
    pub(in crate::host) fn discard_changes(self: &Arc<Self>, vm: &Arc<Vm>) {
        let row = vm.row();
        let Some(child) = row.child.filter(|child| !child.persistent) else {
            return;
        };
        let renewed = self
            .object::<ForkPoint>(&child.point)
            .and_then(|point| self.renew_child(vm, &point));
        if let Err(error) = renewed {
            // Its next start tries again and tells.
            tracing::warn!(vm = &*vm.name(), "{}", error.message());
        }
    }

    /// Says whether a child keeps its disks over a power-off.
    pub fn set_persistence(&self, vm: &Arc<Vm>, persistent: bool) -> OpResult<()> {
        let _turn = self.turn(vm)?;
        self.check_persistent(vm, persistent)?;
        vm.update(|live| {
            live.row.version += 1;
            if let Some(child) = live.row.child.as_mut() {
                child.persistent = persistent;
            }
        });
        let child = vm.row().child;
        let word = child.map_or("", |child| child.persistence().word());
        let told = vm_event(vm, "vm.reconfigured", word);
        self.commit(&[vm], super::super::super::events::with_event(told))
    }

    /// Refuses a change of a child's persistence that its state or its parent does not allow.
    pub fn check_persistent(&self, vm: &Vm, persistent: bool) -> OpResult<()> {
        let row = vm.row();
        let Some(child) = &row.child else {
            return Err(OpError::conflict(format!(
                "{} is no child of a fork point: it keeps its disks",
                row.name
            )));
        };
        if row.persistence_settled() {
            let stays = match child.persistent {
                true => {
                    "was powered off or reset already, so it stays persistent; fork another child \
                     that is not"
                }
                false => {
                    "was powered off already, so it stays non-persistent; fork another child with \
                     --persistent"
                }
            };
            return Err(OpError::conflict(format!("{} {stays}", row.name)));
        }
        let point = self.object::<ForkPoint>(&child.point)?;
        check_persistence(&point, Some(persistent))
    }

    /// Ends a parent: its fork point and children that were never started are removed. Children
    /// that would need it later keep it, but with `force`, which makes them ordinary VMs.
    pub fn unprepare(self: &Arc<Self>, point: &Object<ForkPoint>, force: bool) -> OpResult<()> {
        self.check_unprepare(point, force)?;
        for vm in &self.registered_children(&point.id) {
            let _turn = self.turn(vm)?;
            let still = vm.row().child.is_some_and(|child| child.is_fresh());
            if still && vm.state().is_off() {
                self.erase(vm, Some(vm_event(vm, "vm.removed", "never started")));
            }
        }
        self.release_children(&point.id);
        let told = event(&point.name, "forkpoint.removed", "removed").about(&point.id);
        self.end_point(point, Some(told));
        Ok(())
    }

    /// Makes the children of a fork point ordinary VMs.
    pub(in crate::host) fn release_children(&self, point: &str) {
        for vm in self.children_of(point) {
            vm.update(|live| live.row.child = None);
            self.commit_logged(&[&vm], Changes::default());
        }
    }

    /// Refuses to end a parent that children would return to.
    pub fn check_unprepare(&self, point: &Object<ForkPoint>, force: bool) -> OpResult<()> {
        if matches!(point.doc.memory, PointMemory::Sealing) {
            return Err(OpError::conflict(format!(
                "fork point {} is still being made; wait for its task",
                point.name
            )));
        }
        let registered = self.registered_children(&point.id);
        let mut needing = self.children_of(&point.id);
        needing.retain(|vm| {
            let row = vm.row();
            let fresh = registered.iter().any(|child| child.id == vm.id);
            !fresh && row.child.is_some_and(|child| child.starts_at_point())
        });
        if let (Some(first), false) = (needing.first(), force) {
            return Err(OpError::conflict(format!(
                "fork point {}: {} and {} more would return to it after a power-off; remove them, \
                 or use --force, which leaves them as ordinary VMs",
                point.name,
                first.name(),
                needing.len() - 1
            )));
        }
        Ok(())
    }

    /// A fork point as an answer.
    pub fn show_point(&self, point: &Object<ForkPoint>) -> PointAnswer {
        use std::os::unix::fs::MetadataExt;
        let children = self.children_of(&point.id);
        let running = children.iter().filter(|vm| vm.state().has_process());
        let doc = &point.doc;
        let (memory, file_bytes) = match &doc.memory {
            PointMemory::Sealing => ("sealing", 0),
            PointMemory::Kept { .. } => ("memory", 0),
            PointMemory::Lost => ("lost", 0),
            PointMemory::Files { ram, checkpoint } => {
                let bytes_of = |path| std::fs::metadata(path).map_or(0, |file| file.blocks() * 512);
                ("files", bytes_of(ram) + bytes_of(checkpoint))
            }
        };
        PointAnswer {
            id: point.id.clone(),
            name: point.name.clone(),
            version: point.version,
            parent: self.parent_of(point),
            parent_id: doc.row.id.clone(),
            created_at_ms: doc.created_at_ms,
            memory: memory.to_owned(),
            memory_bytes: doc.row.spec.memory_bytes,
            file_bytes,
            quiesced: doc.quiesced,
            stun_us: doc.stun_us,
            io_held_us: doc.io_held_us,
            children_registered: self.registered_children(&point.id).len() as u32,
            children_running: running.count() as u32,
            children: children.len() as u32,
        }
    }
}

/// What a request for a fork point called `name` has wrong by itself.
fn prepare_problems(host: &Host, name: &str, request: &PrepareRequest) -> Problems {
    let mut problems = Problems::default();
    problems.take(host.check_free::<ForkPoint>(None, name));
    if request.children > MAX_CHILDREN {
        problems.note(OpError::invalid(format!(
            "children: {} is more than {MAX_CHILDREN}; give fewer",
            request.children
        )));
    }
    if request.datastore.is_some() && !request.durable {
        problems.note(OpError::invalid(
            "datastore: the memory goes to a datastore only with --durable; add it, or leave \
             this out",
        ));
    }
    if request.persistent && !request.quiesce {
        problems.note(OpError::invalid(
            "persistent: children keep their disks only where the parent is brought to rest; \
             prepare it with --quiesce",
        ));
    }
    problems
}
