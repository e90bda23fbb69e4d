//! Checking a clone request and working out the clones.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use api_types::{CloneEdit, CloneMode, ForkRequest, MAX_CLONES, SerialRequest};

use super::edits::{check_edits, extra_disks_at, request_for};
use super::record::Recording;
use super::seats::Seat;
use crate::clock::{now_ms, random_hex, random_uuid};
use crate::error::{OpError, OpResult};
use crate::host::check::Problems;
use crate::host::datastores::{DELTA_BYTES, Promise};
use crate::host::guestinfo::guestinfo_of_new;
use crate::host::identity::new_mac;
use crate::host::limits::Raise;
use crate::host::media::check_slots;
use crate::host::memory::CLONE_COST_BYTES;
use crate::host::run::plan::claim_mac;
use crate::host::{Host, Vm, static_net};
use crate::inventory::{
    Changes, DiskRow, LayerId, LayerRow, ObjectId, PowerState, VM_FOLDER, VmRow,
};
use crate::layers::Layers;

/// What the clones of a request are to be.
#[derive(Debug)]
pub(in crate::host) struct Planned {
    /// Their rows, but for ids and disks.
    rows: Vec<VmRow>,
    /// Where their disks go.
    store: ObjectId,
    /// Space that they are promised.
    space: Vec<Promise>,
}

impl Host {
    /// Returns a seat for each clone of the request, of which there are at most `max`.
    pub(super) fn plan_clones(
        &self,
        row: &VmRow,
        request: &ForkRequest,
        max: usize,
    ) -> OpResult<Vec<Seat>> {
        let mut problems = Problems::default();
        let planned = self.check_clones(row, request, max, &mut problems);
        let Planned { rows, store, space } = problems.end(planned)?;
        let space = Arc::new(space);
        let media = self.plan_media("extra_disks", &request.extra_disks)?;
        let ids = self.new_ids("vm", rows.len())?;
        let clones = rows.into_iter().zip(ids).enumerate();
        clones
            .map(|(index, (mut clone, id))| {
                clone.id = id;
                clone.datastore.clone_from(&store);
                let taps = self.open_taps(&clone)?;
                let mut seat = Seat::new(Vm::new(clone), taps);
                seat.space = Some(Arc::clone(&space));
                seat.media = Some(match request_for(request, index) {
                    Cow::Borrowed(_) => Arc::clone(&media),
                    Cow::Owned(own) => self.plan_media("extra_disks", &own.extra_disks)?,
                });
                Ok(seat)
            })
            .collect()
    }

    /// The VMs of a request for full clones, without disks.
    pub(in crate::host) fn plan_full(
        &self,
        row: &VmRow,
        request: &ForkRequest,
    ) -> OpResult<Vec<Arc<Vm>>> {
        let seats = self.plan_clones(row, request, MAX_CLONES as usize)?;
        Ok(seats.into_iter().map(|seat| seat.vm).collect())
    }

    /// Gives clones of a kept fork point their disks on its sealed layers, and starts to record them
    /// as `creating`.
    pub(super) fn record_children(
        self: &Arc<Self>,
        tops: &[Option<LayerId>],
        seats: &mut [Seat],
    ) -> OpResult<Recording> {
        let mut changes = Changes::default();
        let mut layers = self.layers();
        for seat in seats.iter_mut() {
            let disks = seat.vm.row().spec.disks;
            if seat.was_there {
                seat.renew_slots(self, tops);
            } else {
                for (index, (top, spec)) in tops.iter().zip(&disks).enumerate() {
                    match top {
                        Some(top) => {
                            seat.add_disk(self, index, &layers.chain(top)?, spec.read_only);
                        }
                        None => seat.add_slot(self, index),
                    }
                }
            }
            take_disks(seat, &mut layers, &mut changes);
        }
        drop(layers);
        let vms = seats.iter().map(|seat| Arc::clone(&seat.vm)).collect();
        Recording::start(self, vms, changes, None)
    }

    /// Adds all that is in the way of the clones of a request to `problems`, and returns what they
    /// are to be; nothing is made. With problems the plan lacks clones.
    pub(in crate::host) fn check_clones(
        &self,
        row: &VmRow,
        request: &ForkRequest,
        max: usize,
        problems: &mut Problems,
    ) -> Option<Planned> {
        let count = request.names.len();
        let clones = u32::try_from(count).unwrap_or(u32::MAX);
        problems.take(check_count(count, max));
        problems.take(check_choices(request));
        problems.take(check_edits(request));
        problems.take(self.check_limit(request.memory_limit_bytes));
        problems.take(self.check_memory("the call", CLONE_COST_BYTES * u64::from(clones)));
        let pool = request.pool.as_deref().or(row.pool.as_deref());
        problems.take(self.pool_id(pool).and_then(|pool| {
            let bytes = row.spec.memory_bytes.saturating_mul(clones.into());
            self.check_pool(&pool, clones, bytes)
        }));
        self.try_media("extra_disks", &request.extra_disks, problems);
        let mut used = self.macs_in_use();
        let mut names = HashSet::new();
        let mut rows = Vec::new();
        // Names that are too many are not looked at one by one.
        for (index, name) in request.names.iter().enumerate().take(max) {
            let own = request_for(request, index);
            problems.take(check_nets(row, &own));
            problems.take(check_slots("extra_disks", row, own.extra_disks.len()));
            if let Cow::Owned(own) = &own {
                self.try_media("extra_disks", &own.extra_disks, problems);
            }
            let planned =
                clone_row(self, row, String::new(), name, &own, &mut used).and_then(|mut clone| {
                    self.edit_clone(&mut clone, request, index)?;
                    tell_clone(&mut clone, row, request, index)?;
                    Ok(clone)
                });
            let planned = problems.take(planned);
            let folder = planned.as_ref().map_or(&row.folder, |clone| &clone.folder);
            let folder = folder.as_deref().unwrap_or(VM_FOLDER);
            problems.take(match api_types::name_problem(name) {
                Some(problem) => Err(OpError::invalid(problem)),
                None => self.check_name_free(name, folder),
            });
            if !names.insert((name.clone(), folder.to_owned())) {
                problems.take(Err::<(), _>(OpError::invalid(format!(
                    "name: {name:?} is given twice; give each clone its own"
                ))));
            }
            rows.extend(planned);
        }
        if !request.addresses.is_empty() {
            problems.take(self.check_addresses(&rows));
        }
        let (store, space) = problems.take(self.promise_clones(row, request))?;
        Some(Planned { rows, store, space })
    }

    /// Promises the space of the deltas of a request's clones and of the source's next, and says on
    /// which datastore the clones go. Full clones are placed one by one.
    fn promise_clones(
        &self,
        source: &VmRow,
        request: &ForkRequest,
    ) -> OpResult<(ObjectId, Vec<Promise>)> {
        if request.mode == CloneMode::Full {
            if let Some(store) = &request.datastore {
                self.store_for_disks(store)?;
            }
            return Ok((source.datastore.clone(), Vec::new()));
        }
        let store = request.datastore.as_deref().unwrap_or(&source.datastore);
        let store = self.store_for_disks(store)?;
        let disks = source.deltas_of_fork();
        let of_clones = disks.saturating_mul(request.names.len());
        let of_clones = of_clones.saturating_add(extra_disks_of(request));
        let deltas = |count: usize| DELTA_BYTES.saturating_mul(count as u64);
        let space = if source.datastore == store.id {
            vec![self.promise_space(&store, deltas(disks.saturating_add(of_clones)))?]
        } else {
            let own = self.promise_deltas(&source.datastore, disks)?;
            vec![own, self.promise_space(&store, deltas(of_clones))?]
        };
        Ok((store.id, space))
    }

    /// Starts to record the clones as `creating` and the source's next tops as pending, and to raise
    /// its limit; returns the tops with their parents.
    pub(super) fn record_intent(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        seats: &mut [Seat],
        raise: Option<Raise>,
    ) -> OpResult<(Vec<(LayerRow, LayerRow)>, Recording)> {
        let mut changes = Changes::default();
        let mut deltas = Vec::new();
        source.update(|live| -> anyhow::Result<()> {
            let mut layers = self.layers();
            let row = &mut live.row;
            for index in 0..row.disks.len() {
                let Some(top) = &row.disks[index].top else {
                    for seat in seats.iter_mut() {
                        seat.add_slot(self, index);
                    }
                    continue;
                };
                let chain = layers.chain(top)?;
                if chain.len() + 1 >= disk_layers::MAX_LAYERS {
                    anyhow::bail!(
                        "disk {index} of {} has {} layers, the most that a disk can have; \
                         flatten it with a full clone",
                        row.name,
                        chain.len()
                    );
                }
                let read_only = row.spec.disks[index].read_only;
                if !read_only {
                    let delta = self.next_delta(row, index, &chain[0]);
                    deltas.push((delta, chain[0].clone()));
                }
                for seat in seats.iter_mut() {
                    seat.add_disk(self, index, &chain, read_only);
                }
            }
            // Nothing fails from here on, so references are counted once.
            let mut next = deltas.iter();
            for (disk, spec) in row.disks.iter_mut().zip(&row.spec.disks) {
                if disk.top.is_some() && !spec.read_only {
                    disk.pending = next.next().map(|(delta, _)| delta.id.clone());
                }
            }
            changes
                .layers
                .extend(deltas.iter().map(|(delta, _)| delta.clone()));
            layers.insert(changes.layers.iter().cloned());
            row.disks
                .iter()
                .filter_map(|disk| disk.pending.as_ref())
                .for_each(|pending| layers.hold(pending));
            for seat in seats.iter() {
                take_disks(seat, &mut layers, &mut changes);
            }
            Ok(())
        })?;
        let mut vms = vec![Arc::clone(source)];
        vms.extend(seats.iter().map(|seat| Arc::clone(&seat.vm)));
        Ok((deltas, Recording::start(self, vms, changes, raise)?))
    }
}

/// Takes a seat's disks over into its VM's row: the layers that are new are used from here on.
fn take_disks(seat: &Seat, layers: &mut Layers, changes: &mut Changes) {
    seat.vm.update(|live| {
        let before = std::mem::replace(&mut live.row.disks, seat.disk_rows());
        let had = |id: &&LayerId| before.iter().all(|disk| disk.top.as_ref() != Some(*id));
        let new: Vec<_> = live
            .row
            .disks
            .iter()
            .filter_map(|d| d.top.as_ref())
            .filter(had)
            .collect();
        let rows = seat.below_media().chain(seat.deltas());
        let rows = rows.filter(|row| layers.get(&row.id).is_none()).cloned();
        let rows: Vec<_> = rows.collect();
        layers.insert(rows.iter().cloned());
        new.into_iter().for_each(|top| layers.hold(top));
        changes.layers.extend(rows);
    });
}

/// Sets what the agent of clone number `index` (from 0) is told of its own.
fn tell_clone(
    clone: &mut VmRow,
    source: &VmRow,
    request: &ForkRequest,
    index: usize,
) -> OpResult<()> {
    static_net::assign(&mut clone.nics, &request.addresses, index)?;
    let given = &request.guestinfo.0;
    clone.guestinfo = guestinfo_of_new(&source.guestinfo, given, &clone.name, index + 1)?;
    Ok(())
}

/// Extra disks of all clones of a request.
fn extra_disks_of(request: &ForkRequest) -> usize {
    (0..request.names.len())
        .map(|index| extra_disks_at(request, index).len())
        .sum()
}

fn check_count(count: usize, max: usize) -> OpResult<()> {
    if count == 0 || count > max {
        return Err(OpError::invalid(format!(
            "count: {count} is not between 1 and {max} clones in one call; make several calls"
        )));
    }
    Ok(())
}

/// Refuses choices that do not go together.
fn check_choices(request: &ForkRequest) -> OpResult<()> {
    let count = request.names.len();
    if request.keep_mac && !request.nets.is_empty() {
        return Err(OpError::invalid(
            "net: clones that keep the source's addresses take no NICs of their own; leave one of both out",
        ));
    }
    if !request.serial.is_empty() && count > 1 {
        return Err(OpError::invalid(
            "serial: serial ports can be given for one clone at a time; use --name",
        ));
    }
    if !request.nets.is_empty() && count > 1 {
        return Err(OpError::invalid(
            "net: NICs can be given for one clone at a time; use --name",
        ));
    }
    if request.quiesce && request.mode == CloneMode::Instant {
        return Err(OpError::invalid(
            "quiesce: only before full and linked clones are file systems synced; leave it out, or \
             use --mode full",
        ));
    }
    let extra = |edit: &CloneEdit| !edit.extra_disks.is_empty();
    if (!request.extra_disks.is_empty() || request.each.iter().any(extra))
        && request.mode != CloneMode::Instant
    {
        return Err(OpError::invalid(
            "extra_disks: only instant clones get disks at the fork; leave them out, and add disks to \
             the clone with 'mitose set'",
        ));
    }
    if request.paused && request.mode != CloneMode::Instant {
        return Err(OpError::invalid(
            "paused: only instant clones run, so only they can stand still; leave it out",
        ));
    }
    Ok(())
}

fn check_nets(row: &VmRow, request: &ForkRequest) -> OpResult<()> {
    let (given, count) = (request.nets.len(), row.spec.nics.len());
    if given > count {
        return Err(OpError::invalid(format!(
            "net: {} has {count} NICs, {given} were given for its clone; leave some out",
            row.name
        )));
    }
    Ok(())
}

/// The row of one clone, without disks.
pub(super) fn clone_row(
    host: &Host,
    source: &VmRow,
    id: String,
    name: &str,
    request: &ForkRequest,
    used: &mut HashSet<vm_spec::MacAddr>,
) -> OpResult<VmRow> {
    let mut row = VmRow {
        id,
        name: name.to_owned(),
        version: 1,
        state: PowerState::Creating,
        reason: None,
        created_at_ms: now_ms(),
        uuid: random_uuid(),
        bios_uuid: None,
        template: false,
        machine_id: random_hex::<16>(),
        source: Some(source.name.clone()),
        source_id: Some(source.id.clone()),
        generation: source.generation + 1,
        child: None,
        snapshot: None,
        suspend: None,
        begun: None,
        standby: false,
        begun_by: None,
        making: None,
        serial: clone_serial(host, &source.serial, &request.serial)?,
        uid: None,
        pid: None,
        group: None,
        memory_limit_bytes: request.memory_limit_bytes.or(source.memory_limit_bytes),
        // Others are told when they boot: nobody knows before what their disks have.
        has_host_keys: request.mode == CloneMode::Instant,
        cold_clone: request.mode != CloneMode::Instant,
        guest: None,
        freeze: None,
        stuns: Vec::new(),
        disks: Vec::<DiskRow>::new(),
        nics: Vec::new(),
        next_layer: 0,
        ..source.clone()
    };
    for (index, nic) in row.spec.nics.iter_mut().enumerate() {
        let net = request.nets.get(index);
        nic.keep_mac = request.keep_mac;
        if !request.keep_mac {
            nic.mac = match net.and_then(|net| net.mac) {
                None => new_mac(used),
                Some(mac) => claim_mac(mac, used)?,
            };
        }
        row.nics.push(host.clone_nic(&source.nics[index], net)?);
    }
    Ok(row)
}

/// Back ends of a clone's serial ports: those that were given, then what the source's become.
fn clone_serial(
    host: &Host,
    source: &[SerialRequest],
    given: &[SerialRequest],
) -> OpResult<Vec<SerialRequest>> {
    if given.len() > source.len() {
        return Err(OpError::invalid(format!(
            "serial: the source has {} serial ports, {} were given for its clone",
            source.len(),
            given.len()
        )));
    }
    host.check_serial(given, None)?;
    let own = |port: &SerialRequest| match port {
        SerialRequest::None => SerialRequest::None,
        SerialRequest::Pty => SerialRequest::Pty,
        // Two VMs do not share a file or a socket.
        SerialRequest::Log | SerialRequest::File(_) | SerialRequest::Unix(_) => SerialRequest::Log,
    };
    let rest = source[given.len()..].iter().map(own);
    Ok(given.iter().cloned().chain(rest).collect())
}
