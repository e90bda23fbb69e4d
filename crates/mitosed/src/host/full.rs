//! Full clones: powered off, with whole copies of the source's disks.
//!
//! ```text
//! for each clone: place ─ record `creating` ─ home ─ take ready copies by rename, or copy ─ record
//! ```
//!
//! The disks of a source that runs are sealed first ([`instant`]): all clones of a call show the
//! same instant.
//!
//! Each clone is whole or gone: one that fails, or is cut by a crash or a cancellation, takes nothing
//! along and leaves nothing behind, and the others stay.

mod content;
mod instant;
mod place;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Context;
use api_types::{CloneMode, Cloned, ClonedVm, Consistency, CopyOrigin, ForkRequest};
use disk_layers::{CopyMethod, CreateDiskError, DiskError, LayerFile, Pace, Progress, copy_full};

pub(super) use self::content::{Content, stamp_of, verify_copy};
use self::instant::Stun;
use self::place::Place;
use super::states::Operation;
use super::tasks::{TaskContext, TaskSpec};
use super::{Host, Vm, vm_event};
use crate::error::{OpError, OpResult};
use crate::inventory::{Changes, DiskRow, LayerRow, ObjectId, PowerState, VmRow, sync_directory};
use crate::layers::disk_format;

/// A batch of full clones.
struct Batch<'a> {
    source: &'a VmRow,
    content: Content,
    request: &'a ForkRequest,
    context: Option<&'a TaskContext>,
    count: usize,
    stun: Stun,
    consistency: Consistency,
    /// Datastore of each copy that was made for it.
    placed: RefCell<Vec<ObjectId>>,
}

/// The task that clones a VM. Full clones may be cancelled between and in copies of disks.
pub fn clone_task(source: &Vm, request: &ForkRequest) -> TaskSpec {
    let spec = TaskSpec::new("vm.fork", &source.name())
        .about(&source.id)
        .items(&request.names);
    match request.mode {
        CloneMode::Full if request.snapshot.is_none() => spec.cancellable(),
        _ => spec,
    }
}

impl Host {
    /// Clones a VM in a task that [`clone_task`] begins.
    pub fn clone_vm(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        request: &ForkRequest,
        arrived_ns: u64,
        context: &TaskContext,
    ) -> OpResult<Cloned> {
        match request.mode {
            CloneMode::Full if request.snapshot.is_none() => {
                self.clone_full(source, request, Some(context))
            }
            _ => self.fork(source, request, arrived_ns),
        }
    }

    /// Makes full clones of a VM: of its disks, and where it runs of those of this instant.
    pub(super) fn clone_full(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        request: &ForkRequest,
        context: Option<&TaskContext>,
    ) -> OpResult<Cloned> {
        if source.state().has_process() {
            self.wait_for_room(source)?;
        }
        let turn = self.turn(source)?;
        self.allow(source, Operation::CopyWhole)?;
        let row = source.row();
        self.check_stores_of(&row)?;
        if row.state.is_off() {
            return self.copy_clones(&row, request, Consistency::AtRest, context);
        }
        let vms = self.plan_full(&row, request)?;
        let consistency = self.settle_guest(source, request)?;
        self.reserve(&vms, "none", consistency)?;
        let sealed = self.instant_disks(source);
        drop(turn);
        let made = sealed.and_then(|instant| {
            let batch = Batch {
                content: self.content_of(&instant.row)?,
                source: &instant.row,
                request,
                context,
                count: vms.len(),
                stun: instant.stun,
                consistency,
                placed: RefCell::default(),
            };
            Ok(self.fill_clones(&batch, &vms))
        });
        made.inspect_err(|_| vms.iter().for_each(|vm| self.erase(vm, None)))?
    }

    /// Makes full clones of disks that do not change meanwhile.
    pub(super) fn copy_clones(
        self: &Arc<Self>,
        source: &VmRow,
        request: &ForkRequest,
        consistency: Consistency,
        context: Option<&TaskContext>,
    ) -> OpResult<Cloned> {
        let vms = self.plan_full(source, request)?;
        let batch = Batch {
            source,
            content: self.content_of(source)?,
            request,
            context,
            count: vms.len(),
            stun: Stun::default(),
            consistency,
            placed: RefCell::default(),
        };
        self.reserve(&vms, "none", consistency)?;
        self.fill_clones(&batch, &vms)
    }

    fn fill_clones(self: &Arc<Self>, batch: &Batch<'_>, vms: &[Arc<Vm>]) -> OpResult<Cloned> {
        let mut taking = Some(self.disk_pools.begin_taking());
        let mut results: Vec<OpResult<CopyOrigin>> = Vec::new();
        for (index, vm) in vms.iter().enumerate() {
            let ready = self.disk_pools.has_ready(&batch.content.stamps);
            // Copies take long, and pools are filled beside them.
            taking = taking.filter(|_| ready);
            results.push(self.clone_one(batch, index, vm));
        }
        let concluded = self.conclude_full(batch, vms, results);
        drop(taking);
        concluded
    }

    fn clone_one(
        self: &Arc<Self>,
        batch: &Batch<'_>,
        index: usize,
        vm: &Arc<Vm>,
    ) -> OpResult<CopyOrigin> {
        let check = batch.context.map_or(Ok(()), TaskContext::check);
        let made = check.and_then(|()| self.make_full(batch, index, vm));
        if made.is_err() {
            self.erase(vm, None);
        }
        if let Some(context) = batch.context {
            let told = made.as_ref().map(drop).map_err(OpError::message);
            context.item_done(index, told);
        }
        made
    }

    fn make_full(
        self: &Arc<Self>,
        batch: &Batch<'_>,
        index: usize,
        vm: &Arc<Vm>,
    ) -> OpResult<CopyOrigin> {
        let wanted = batch.request.datastore.as_deref();
        let placed = batch.placed.borrow().clone();
        let mut place = self.place_full(batch.source, &batch.content, wanted, &placed)?;
        if place.ready.is_none() {
            batch.placed.borrow_mut().push(place.store.id.clone());
        }
        let copies = self.record_copies(batch, vm, &place)?;
        self.make_home(vm)?;
        let mut how = None;
        for (number, copy) in copies.iter().enumerate() {
            match &place.ready {
                Some(ready) => {
                    fs::rename(ready.disk(number), &copy.path).with_context(|| {
                        format!("cannot take a copy to {}", copy.path.display())
                    })?;
                    how = Some("pool");
                }
                None => {
                    let method = self.copy_for(batch, (index, number), copy, &mut place)?;
                    how = Some(word_of(method));
                }
            }
        }
        vm.update(|live| {
            live.row.state = PowerState::PoweredOff;
            live.row.generation = live.row.generation.saturating_sub(1);
        });
        let message = format!("full clone of {}", batch.source.name);
        let changes = Changes {
            events: vec![vm_event(vm, "vm.cloned", message)],
            ..Changes::default()
        };
        self.commit(&[vm], changes)?;
        self.link_tops(&vm.row());
        drop(place.ready.take());
        Ok(CopyOrigin {
            datastore: place.store.name,
            how: how.unwrap_or("none").to_owned(),
            reason: place.reason,
        })
    }

    /// Records a clone as `creating`, with the files that its copies are to be; returns those.
    fn record_copies(
        &self,
        batch: &Batch<'_>,
        vm: &Arc<Vm>,
        place: &Place,
    ) -> OpResult<Vec<LayerRow>> {
        let mut copies = Vec::new();
        vm.update(|live| {
            let row = &mut live.row;
            row.datastore.clone_from(&place.store.id);
            let mut chains = batch.content.chains.iter();
            for (index, disk) in batch.source.disks.iter().enumerate() {
                let mut top = disk.top.clone();
                if top.is_some()
                    && !batch.source.spec.disks[index].read_only
                    && let Some(chain) = chains.next()
                {
                    let mut copy = self.next_delta(row, index, &chain[0]);
                    copy.parent = None;
                    top = Some(copy.id.clone());
                    copies.push(copy);
                }
                row.disks.push(DiskRow::of(top));
            }
            let mut layers = self.layers();
            layers.insert(copies.iter().cloned());
            row.disks
                .iter()
                .filter_map(|disk| disk.top.as_ref())
                .for_each(|top| layers.hold(top));
        });
        let changes = Changes {
            layers: copies.clone(),
            ..Changes::default()
        };
        self.commit(&[vm], changes)?;
        Ok(copies)
    }

    /// Copies for a clone (`index` in the batch) disk `number` of the batch's source.
    fn copy_for(
        &self,
        batch: &Batch<'_>,
        (index, number): (usize, usize),
        copy: &LayerRow,
        place: &mut Place,
    ) -> OpResult<CopyMethod> {
        let Place { store, space, .. } = place;
        let disks = batch.content.chains.len();
        let mut seen = 0;
        let mut tell = |progress: Progress| {
            if let Some(space) = space {
                space.spend(progress.done_bytes.saturating_sub(seen));
                seen = progress.done_bytes;
            }
            let Some(context) = batch.context else {
                return ControlFlow::Continue(());
            };
            let disk = progress.done_bytes as f32 / progress.total_bytes.max(1) as f32;
            let clone = (number as f32 + disk) / disks as f32;
            let message = format!(
                "clone {} of {}: copying disk {number} to {}",
                index + 1,
                batch.count,
                copy.path.display()
            );
            context.progress((index as f32 + clone) / batch.count as f32, &message);
            match context.check() {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        let rate = batch.request.rate_bytes_per_s.and_then(NonZeroU64::new);
        let mut pace = match rate {
            Some(rate) => Pace::limited(&mut tell, rate),
            None => Pace::free(&mut tell),
        };
        let chain = &batch.content.chains[number];
        let target = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&copy.path)
            .with_context(|| format!("cannot make {}", copy.path.display()))?;
        copy_disk(chain, target, &mut pace).map_err(|error| {
            let full = error.chain().any(is_no_space);
            match full {
                true => self.ran_out_of_space(store, batch.content.bytes),
                false => error
                    .context(format!("cannot copy a disk to {}", copy.path.display()))
                    .into(),
            }
        })
    }

    /// Makes it durable and tells what came of it. A batch of which nothing was made has failed.
    fn conclude_full(
        self: &Arc<Self>,
        batch: &Batch<'_>,
        vms: &[Arc<Vm>],
        results: Vec<OpResult<CopyOrigin>>,
    ) -> OpResult<Cloned> {
        let made = results.iter().filter(|result| result.is_ok()).count();
        let whole = vms.iter().zip(&results).filter(|(_, made)| made.is_ok());
        let stores: BTreeSet<_> = whole.map(|(vm, _)| vm.row().datastore).collect();
        for store in stores {
            sync_directory(&self.store(&store).layers()).context("cannot sync the datastore")?;
        }
        self.inventory.sync().context("cannot sync the inventory")?;
        if let Some(context) = batch.context
            && context.check().is_err()
            && made < results.len()
        {
            return Err(OpError::failed(format!(
                "cancelled: {made} of {} clones were made",
                results.len()
            )));
        }
        if made == 0 {
            let first = results.into_iter().find_map(Result::err);
            return Err(first.unwrap_or_else(|| OpError::failed("no clone was made")));
        }
        let clones = vms.iter().zip(results).map(|(vm, result)| {
            let name = vm.name().to_string();
            match result {
                Ok(origin) => ClonedVm {
                    name,
                    disks: Some(origin),
                    ..ClonedVm::default()
                },
                Err(error) => ClonedVm {
                    name,
                    error: Some(error.message()),
                    ..ClonedVm::default()
                },
            }
        });
        Ok(Cloned {
            source: batch.source.name.clone(),
            stun_us: batch.stun.stun_us,
            io_held_us: batch.stun.io_held_us,
            memory: "none".to_owned(),
            consistency: batch.consistency,
            steps_us: Vec::new(),
            phases_us: Vec::new(),
            clones: clones.collect(),
        })
    }
}

/// Writes what a stack shows to a new standalone file, durably.
pub(super) fn copy_disk(
    chain: &[LayerRow],
    target: File,
    pace: &mut Pace<'_>,
) -> anyhow::Result<CopyMethod> {
    let open = |layer: &LayerRow| {
        let file = File::open(&layer.path)
            .with_context(|| format!("cannot open the disk layer {}", layer.path.display()))?;
        anyhow::Ok(LayerFile {
            file,
            format: disk_format(layer.format),
        })
    };
    let chain = chain.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let (method, _) = copy_full(chain, target, pace)?;
    Ok(method)
}

/// Whether a write found no space.
pub(super) fn is_no_space(cause: &(dyn std::error::Error + 'static)) -> bool {
    matches!(cause.downcast_ref(), Some(DiskError::NoSpace))
        || matches!(cause.downcast_ref(), Some(CreateDiskError::NoSpace))
        || cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull)
}

fn word_of(method: CopyMethod) -> &'static str {
    match method {
        CopyMethod::Reflink => "reflink",
        CopyMethod::File | CopyMethod::Flatten => "copy",
    }
}
