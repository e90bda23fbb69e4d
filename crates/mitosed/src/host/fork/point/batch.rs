//! Children of a kept fork point: any number of them in one call, none of which stuns anybody.
//!
//! They are brought to life in groups, so that descriptors and unfinished work stay bounded; a call
//! that is cancelled ends between two groups. A child that fails is taken back alone.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};

use api_types::{
    Cloned, Consistency, DryRun, ErrorKind, ForkRequest, MAX_CHILDREN, MAX_NAME_BYTES,
    PointForkRequest, PointForked,
};

use super::super::record::Recording;
use super::super::seats::{Seat, for_each_alone};
use super::super::{DEFAULT_READY_WAIT_S, clones_durable, prepared_ahead_max, wait_for_agents};
use crate::clock::{monotonic_ns, us_between};
use crate::error::{OpError, OpResult};
use crate::host::check::Problems;
use crate::host::guestinfo::guestinfo_of_new;
use crate::host::media::check_slots;
use crate::host::{Host, TaskContext, Vm, static_net, vm_event};
use crate::inventory::{ChildRow, ForkPoint, Object, VmRow};

/// Children that are brought to life together.
const GROUP: usize = 50;

/// How often free names are chosen where other calls take them first.
const NAME_TRIES: usize = 32;

/// What is forked, and how.
#[derive(Debug)]
pub struct PointFork<'a> {
    /// The fork point.
    pub point: &'a Object<ForkPoint>,
    /// The request.
    pub request: &'a PointForkRequest,
    /// When it came.
    pub arrived_ns: u64,
    /// Its task, where it has one.
    pub context: Option<&'a TaskContext>,
}

/// What all children of a call start from.
pub(in crate::host::fork) struct Ground {
    /// Memory layer.
    pub ram: Arc<OwnedFd>,
    /// Checkpoint.
    pub checkpoint: Arc<OwnedFd>,
    /// Device of the KVM engine, where they run on it.
    pub kvm: Option<Arc<OwnedFd>>,
}

impl Host {
    /// Powers on children of a fork point.
    pub fn fork_from_point(self: &Arc<Self>, fork: &PointFork<'_>) -> OpResult<PointForked> {
        let (point, request) = (fork.point, fork.request);
        let count = count_of(request);
        self.children_problems(point, request).finish()?;
        let ground = self.ground(point)?;
        let mut seats = self.seats_of(point, request, count)?;
        if let Some(context) = fork.context {
            self.name_items(context, seats.iter().map(|seat| seat.vm.name().to_string()));
        }
        let mut clones = Vec::with_capacity(seats.len());
        let mut cancelled = false;
        let groups = seats.len().div_ceil(GROUP);
        for (number, group) in seats.chunks_mut(GROUP).enumerate() {
            cancelled |= fork.context.is_some_and(|context| context.check().is_err());
            if cancelled {
                group
                    .iter_mut()
                    .for_each(|seat| seat.fail("cancelled".to_owned()));
            } else {
                let _busy = self.pool.busy();
                self.bring_to_life(point, group, &ground);
            }
            let settled = self.settle_seats(&point.name, group, fork.arrived_ns);
            clones.extend(self.record_settled(settled, group));
            self.report(fork.context, number, groups, group);
            let vms = group.iter().filter(|seat| seat.error.is_none());
            self.settle_in(vms.map(|seat| Arc::clone(&seat.vm)).collect(), None);
        }
        let wall_us = seats.iter().filter_map(|seat| seat.first_run_at_ns).max();
        let wall_us = wall_us.map_or(0, |at| us_between(fork.arrived_ns, at));
        let wait_s = match request.wait_ready_s {
            _ if request.paused => 0,
            Some(wait_s) => wait_s,
            // All of them work at once on what processors there are.
            None if point.doc.row.has_agent => DEFAULT_READY_WAIT_S + seats.len() as u64,
            None => 0,
        };
        wait_for_agents(wait_s, &seats, &mut clones, fork.arrived_ns);
        for (index, clone) in clones.iter().enumerate() {
            if let (Some(context), Some(error)) = (fork.context, &clone.error) {
                context.item_done(index, Err(error.clone()));
            }
        }
        if cancelled && clones.iter().all(|clone| clone.error.is_some()) {
            return Err(OpError::failed("cancelled"));
        }
        Ok(PointForked {
            fork_point: point.id.clone(),
            wall_us,
            cloned: Cloned {
                source: self.parent_of(point),
                stun_us: 0,
                io_held_us: 0,
                memory: "kept".to_owned(),
                consistency: Consistency::Instant,
                steps_us: Vec::new(),
                phases_us: vec![(
                    "ready".to_owned(),
                    us_between(fork.arrived_ns, monotonic_ns()),
                )],
                clones,
            },
        })
    }

    /// Tries a request for children out.
    pub fn check_children(&self, point: &Object<ForkPoint>, request: &PointForkRequest) -> DryRun {
        let mut problems = self.children_problems(point, request);
        let row = &point.doc.row;
        let count = count_of(request).min(MAX_CHILDREN as usize);
        problems.take(self.open_point(point));
        problems.take(self.check_given(row, request, count));
        let names = match &request.names[..] {
            [] => {
                let ahead = self.registered_children(&point.id).len().min(count);
                self.child_names(point, request.prefix.as_deref(), count - ahead)
            }
            names => names.to_vec(),
        };
        if !names.is_empty() {
            let clone = clone_of(names, request);
            self.check_clones(row, &clone, MAX_CHILDREN as usize, &mut problems);
        }
        problems.dry_run()
    }

    /// What a request for children has wrong by itself, and its extra disks.
    fn children_problems(&self, point: &Object<ForkPoint>, request: &PointForkRequest) -> Problems {
        let mut problems = request_problems(point, request);
        let disks = &request.extra_disks;
        self.try_media("extra_disks", disks, &mut problems);
        problems.take(check_slots("extra_disks", &point.doc.row, disks.len()));
        problems
    }

    fn ground(&self, point: &Object<ForkPoint>) -> OpResult<Ground> {
        let (ram, checkpoint) = self.open_point(point)?;
        Ok(Ground {
            ram,
            checkpoint,
            kvm: self.open_engine(&point.doc.row.engine)?,
        })
    }

    /// Children that were made ahead, then new ones.
    fn seats_of(
        self: &Arc<Self>,
        point: &Object<ForkPoint>,
        request: &PointForkRequest,
        count: usize,
    ) -> OpResult<Vec<Seat>> {
        self.check_given(&point.doc.row, request, count)?;
        let media = self.plan_media("extra_disks", &request.extra_disks)?;
        let mut seats = Vec::new();
        if request.names.is_empty() {
            for vm in self.registered_children(&point.id) {
                if seats.len() == count {
                    break;
                }
                match self.claim_child(&vm, request.persistent) {
                    Ok(None) => {}
                    Ok(Some(mut seat)) => {
                        seat.media = Some(Arc::clone(&media));
                        seats.push(seat);
                    }
                    Err(error) => {
                        seats.iter().for_each(|seat: &Seat| unclaim(&seat.vm));
                        return Err(error);
                    }
                }
            }
        }
        let tops = seats.len().saturating_mul(media.len());
        let space = (tops > 0).then(|| self.promise_deltas(&point.doc.row.datastore, tops));
        let planned = space.transpose().and_then(|space| {
            let space = space.map(|space| Arc::new(vec![space]));
            seats
                .iter_mut()
                .for_each(|seat| seat.space.clone_from(&space));
            self.add_children(point, request, count - seats.len())
        });
        match planned {
            Ok(new) => seats.extend(new),
            Err(error) => {
                // Those that were claimed stay as they are.
                seats.iter().for_each(|seat| unclaim(&seat.vm));
                return Err(error);
            }
        }
        let given = seats.iter_mut().enumerate().try_for_each(|(index, seat)| {
            seat.paused = request.paused;
            self.give_child(&seat.vm, &point.doc.row.guestinfo, request, index)
        });
        if let Err(error) = given {
            // Another call took an address meanwhile.
            for seat in &seats {
                match seat.was_there {
                    true => unclaim(&seat.vm),
                    false => self.erase(&seat.vm, None),
                }
            }
            return Err(error);
        }
        Ok(seats)
    }

    /// Gives child number `index` (from 0) of a call, which is listed, its guestinfo and addresses.
    fn give_child(
        &self,
        vm: &Vm,
        inherited: &BTreeMap<String, String>,
        request: &PointForkRequest,
        index: usize,
    ) -> OpResult<()> {
        let mut row = vm.row();
        give(&mut row, inherited, request, index)?;
        // Held until the addresses are the VM's, so that no other call takes them.
        let vms = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        self.check_addresses_among(vms.all(), std::slice::from_ref(&row))?;
        vm.update(|live| {
            live.row.guestinfo = row.guestinfo;
            live.row.nics = row.nics;
        });
        Ok(())
    }

    /// Checks what children are given beside their names before any is touched: with the longest
    /// name and for the last of them, it holds for all; addresses are looked at one by one.
    fn check_given(
        &self,
        parent: &VmRow,
        request: &PointForkRequest,
        count: usize,
    ) -> OpResult<()> {
        let mut probe = parent.clone();
        probe.id = String::new();
        probe.name = "x".repeat(MAX_NAME_BYTES);
        let last = count.saturating_sub(1);
        give(&mut probe, &parent.guestinfo, request, 0)?;
        give(&mut probe, &parent.guestinfo, request, last)?;
        if request.addresses.is_empty() {
            return Ok(());
        }
        let rows = (0..count.min(MAX_CHILDREN as usize)).map(|index| {
            let mut row = probe.clone();
            "a child of this call".clone_into(&mut row.name);
            row.nics.iter_mut().for_each(|nic| nic.addresses = None);
            static_net::assign(&mut row.nics, &request.addresses, index)?;
            Ok(row)
        });
        self.check_addresses(&rows.collect::<OpResult<Vec<_>>>()?)
    }

    /// Seats of new children with the names of the request; where it has none, of `count` with names
    /// that are free.
    pub(super) fn add_children(
        &self,
        point: &Object<ForkPoint>,
        request: &PointForkRequest,
        count: usize,
    ) -> OpResult<Vec<Seat>> {
        if !request.names.is_empty() {
            return self.new_children(point, request.names.clone(), request);
        }
        let mut tries = 1..NAME_TRIES;
        loop {
            let names = self.child_names(point, request.prefix.as_deref(), count);
            let added = self.new_children(point, names.clone(), request);
            // They are chosen and listed at different times: another call may have been faster.
            let taken = || {
                let listing = self.listing();
                let mut names = names.iter();
                names.any(|name| listing.named(name).next().is_some())
            };
            match added {
                Err(error) if error.kind == ErrorKind::Conflict && taken() => {
                    tries.next().ok_or(error)?;
                }
                added => return added,
            }
        }
    }

    /// Seats of new children, listed under their names.
    fn new_children(
        &self,
        point: &Object<ForkPoint>,
        names: Vec<String>,
        request: &PointForkRequest,
    ) -> OpResult<Vec<Seat>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let clone = clone_of(names, request);
        let seats = self.plan_clones(&point.doc.row, &clone, MAX_CHILDREN as usize)?;
        for seat in &seats {
            seat.vm.update(|live| {
                live.row.child = Some(ChildRow {
                    point: point.id.clone(),
                    persistent: request.persistent.unwrap_or(false),
                    started: true,
                    used: false,
                    settled: false,
                });
            });
        }
        let vms: Vec<_> = seats.iter().map(|seat| Arc::clone(&seat.vm)).collect();
        self.reserve(&vms, "kept", Consistency::Instant)?;
        Ok(seats)
    }

    /// Brings a group of children to life; each that fails is marked.
    pub(in crate::host::fork) fn bring_to_life(
        self: &Arc<Self>,
        point: &Object<ForkPoint>,
        seats: &mut [Seat],
        ground: &Ground,
    ) {
        if let Err(error) = self.lay_out(point, seats, ground) {
            let message = error.message();
            seats.iter_mut().for_each(|seat| seat.fail(message.clone()));
        }
    }

    fn lay_out(
        self: &Arc<Self>,
        point: &Object<ForkPoint>,
        seats: &mut [Seat],
        ground: &Ground,
    ) -> OpResult<()> {
        let mut recording: Recording = self.record_children(&point.doc.tops, seats)?;
        let kvm = ground.kvm.as_ref();
        let ahead = seats.len() <= prepared_ahead_max();
        for_each_alone(seats, |seat| {
            if !seat.was_there {
                self.make_home(&seat.vm)?;
            }
            self.lay_process(seat, kvm, ahead)
        });
        for_each_alone(seats, Seat::make_tops);
        self.open_below(seats)?;
        for seat in seats.iter_mut() {
            seat.host_keys = self.keys.take(&point.doc.row.ssh_host_key_kinds);
        }
        for_each_alone(seats, |seat| self.lay_backends(seat, kvm));
        recording.wait_recorded()?;
        for_each_alone(seats, |seat| {
            seat.tell_restore(Some(Arc::clone(&ground.ram)), Some(&ground.checkpoint))
        });
        recording.sync_when_running(seats);
        match recording.wait_durable() {
            Ok(()) => clones_durable(seats),
            Err(error) => return Err(error.into()),
        }
        self.take_answers(seats);
        Ok(())
    }

    fn report(&self, context: Option<&TaskContext>, number: usize, groups: usize, group: &[Seat]) {
        let Some(context) = context else { return };
        for (index, seat) in group.iter().enumerate() {
            let result = seat.error.clone().map_or(Ok(()), Err);
            context.item_done(number * GROUP + index, result);
        }
        let fraction = (number + 1) as f32 / groups as f32;
        context.progress(fraction, "powering on children");
    }

    /// Names that are free: the prefix, or the fork point's name and a dash, and rising numbers.
    pub(super) fn child_names(
        &self,
        point: &Object<ForkPoint>,
        prefix: Option<&str>,
        count: usize,
    ) -> Vec<String> {
        let prefix = prefix.map_or_else(|| format!("{}-", point.name), str::to_owned);
        let listing = self.listing();
        (1..)
            .map(|number: u64| format!("{prefix}{number}"))
            .filter(|name| listing.named(name).next().is_none())
            .take(count)
            .collect()
    }

    /// Restores a powered-off child at its fork point; returns when it was entered. The caller has
    /// its turn.
    pub(in crate::host) fn start_child(self: &Arc<Self>, vm: &Arc<Vm>) -> OpResult<u64> {
        let row = vm.row();
        let point = self.point_of(&row)?;
        self.renew_child(vm, &point)?;
        let ground = self.ground(&point)?;
        let mut seats = vec![self.seat_of_present(vm)?];
        vm.update(|live| {
            if let Some(child) = live.row.child.as_mut() {
                child.started = true;
            }
        });
        self.bring_to_life(&point, &mut seats, &ground);
        let arrived_ns = monotonic_ns();
        let mut settled = self.settle_seats(&point.name, &mut seats, arrived_ns);
        if seats.iter().all(|seat| seat.error.is_none()) {
            let message = format!("running from its fork point {}", point.name);
            settled.events = vec![vm_event(vm, "vm.started", message)];
        }
        self.record_settled(settled, &seats);
        self.settle_in(vec![Arc::clone(vm)], None);
        match seats.remove(0) {
            Seat {
                error: Some(error), ..
            } => Err(OpError::failed(error)),
            seat => Ok(seat.first_run_at_ns.unwrap_or(arrived_ns)),
        }
    }

    pub(in crate::host) fn point_of(&self, row: &VmRow) -> OpResult<Object<ForkPoint>> {
        let id = row.child.as_ref().map_or("", |child| child.point.as_str());
        self.object::<ForkPoint>(id).map_err(|_| {
            OpError::conflict(format!(
                "{}: its fork point {id} is gone, so it cannot return there; remove it with \
                 'mitose rm {}'",
                row.name, row.name
            ))
        })
    }
}

/// Children that a request asks for.
fn count_of(request: &PointForkRequest) -> usize {
    request.names.len().max(request.count as usize)
}

/// New children as clones.
fn clone_of(names: Vec<String>, request: &PointForkRequest) -> ForkRequest {
    ForkRequest {
        names,
        extra_disks: request.extra_disks.clone(),
        keep_mac: request.keep_mac,
        memory_limit_bytes: request.memory_limit_bytes,
        ..ForkRequest::default()
    }
}

/// What a request for children has wrong by itself.
fn request_problems(point: &Object<ForkPoint>, request: &PointForkRequest) -> Problems {
    let mut problems = Problems::default();
    let count = count_of(request);
    if count == 0 || count > MAX_CHILDREN as usize {
        problems.note(OpError::invalid(format!(
            "count: {count} is not between 1 and {MAX_CHILDREN} children in one call; give one \
             that is"
        )));
    }
    if !request.names.is_empty() && request.count != 0 {
        problems.note(OpError::invalid(
            "count: names are given, so their number is the count; leave one of them out",
        ));
    }
    problems.take(check_persistence(point, request.persistent));
    problems
}

/// Persistent children need a parent at rest.
pub(super) fn check_persistence(
    point: &Object<ForkPoint>,
    persistent: Option<bool>,
) -> OpResult<()> {
    if persistent == Some(true) && !point.doc.quiesced {
        return Err(OpError::conflict(format!(
            "persistent: {0} was running when it was prepared, so what its guest had not yet \
             written to its disks would be missing after a power-off; prepare it with --quiesce",
            point.doc.row.name
        )));
    }
    Ok(())
}

/// Gives child number `index` (from 0) of a call its guestinfo and addresses.
fn give(
    row: &mut VmRow,
    inherited: &BTreeMap<String, String>,
    request: &PointForkRequest,
    index: usize,
) -> OpResult<()> {
    row.guestinfo = guestinfo_of_new(inherited, &request.guestinfo.0, &row.name, index + 1)?;
    row.nics.iter_mut().for_each(|nic| nic.addresses = None);
    static_net::assign(&mut row.nics, &request.addresses, index)
}

/// A child that was claimed and is not started after all.
pub(super) fn unclaim(vm: &Vm) {
    vm.update(|live| {
        live.row.state = crate::inventory::PowerState::PoweredOff;
        live.row.making = None;
        if let Some(child) = live.row.child.as_mut() {
            child.started = false;
        }
    });
}
