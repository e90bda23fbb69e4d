//! The instant clone: forking a running VM into new running VMs with one stun.
//!
//! ```text
//! plan ─ reserve names ─ make deltas, homes, processes                    source runs
//!                      └ record intent, then sync it with the directory entries
//! Fork to the source: gate, drain, stun, swap                             stun
//! Restore to every clone at once                                          source runs
//! wait for the sync, let flushes go on; the clones' answers
//! record the outcome, tell events, wait for agents
//! ```
//!
//! What a guest has flushed must survive the host's end. The intent (rows `creating`, pending tops)
//! and the directory entries of the deltas are durable before a flush of the source or of a clone
//! on its new top is answered; the final rows may come later, since a valid pending top is adopted by recovery. A delta's name tells
//! whose it is, so its directory entry alone is a sufficient record.

mod edits;
mod fail_at;
mod flatten;
mod linked;
mod of_snapshot;
mod outcome;
mod plan;
mod point;
mod record;
mod seats;
mod still;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use api_types::{CloneMode, Cloned, ClonedVm, Consistency, ForkRequest, MAX_CLONES};
use vmm_protocol::{CloneRam, Command, Fork, ForkStep, Forked, LayerFd, Newborn, Outcome, RamView};

pub(in crate::host) use self::edits::extra_disks_at;
pub(in crate::host) use self::flatten::{AtWork, History};
pub(in crate::host) use self::of_snapshot::{Held, past_of};
pub use self::point::PointFork;
pub(in crate::host) use self::point::{OpenPoints, SealedMemory};
pub(in crate::host) use self::record::Recorders;

use self::fail_at::{FailAt, HostStep};
use self::record::Recording;
use self::seats::{Seat, for_each};
use super::backends::{FdList, make_checkpoint, reopen_read_only};
use super::limits::Raise;
use super::states::Operation;
use super::{Host, Vm};
use crate::clock::{monotonic_ns, us_between};
use crate::error::{OpError, OpResult};
use crate::inventory::{LayerRow, PowerState};
use crate::layers::{OpenLayer, make_delta};
use crate::vmm::{Link, LinkError};

/// Time that requests in flight may take, where the request names none, milliseconds.
const DRAIN_MS_MAX: u32 = 250;
/// Longest time of a fork in the source beside draining.
const FORK_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time from the orders to the clones of a call to their first entries.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait for the agents of clones, where the request names none, seconds.
const DEFAULT_READY_WAIT_S: u64 = 120;

/// What the source gave.
struct ForkPoint {
    forked: Forked,
    layer: Option<Arc<OwnedFd>>,
    checkpoint: OwnedFd,
}

/// What is made before the source stands still.
struct Ground {
    /// The source's next tops.
    tops: Vec<OpenLayer>,
    kvm: Option<Arc<OwnedFd>>,
    /// The source's memory is not wanted.
    disks_only: bool,
    recording: Recording,
}

/// Times of the daemon's own phases.
struct Phases {
    arrived_ns: u64,
    done: Vec<(String, u64)>,
}

impl Phases {
    fn mark(&mut self, name: &str) {
        let us = us_between(self.arrived_ns, monotonic_ns());
        self.done.push((name.to_owned(), us));
    }
}

impl Host {
    /// Clones a VM; `arrived_ns` is when the request came.
    pub fn fork(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        request: &ForkRequest,
        arrived_ns: u64,
    ) -> OpResult<Cloned> {
        if let Some(name) = &request.snapshot {
            let snapshot = self.find_snapshot(source, name)?;
            return self.clone_snapshot(source, &snapshot, request, arrived_ns);
        }
        match request.mode {
            CloneMode::Instant => {}
            CloneMode::Linked => return self.clone_linked(source, request),
            CloneMode::Full => return self.clone_full(source, request, None),
        }
        if source.state() == PowerState::Suspended {
            return self.clone_suspended(source, request, arrived_ns);
        }
        let fail_at = FailAt::parse(request.fail_at.as_deref())?;
        let mut phases = Phases {
            arrived_ns,
            done: Vec::new(),
        };
        let (mut answer, seats) = {
            let _busy = self.pool.busy();
            self.wait_for_room(source)?;
            let _turn = self.turn(source)?;
            let (lodging, raise) = self.begin_raise(source, request.names.len());
            let forked = self.fork_now(source, request, raise, fail_at, &mut phases);
            let clones = forked.as_ref().ok().map(|(_, seats)| {
                let vms = seats.iter().map(|seat| Arc::clone(&seat.vm));
                vms.collect::<Vec<_>>()
            });
            self.settle_after_fork(source, clones, lodging);
            forked?
        };
        self.flatten_where_it_pays(source);
        let wait_s = match request.wait_ready_s {
            _ if request.paused => 0,
            Some(wait_s) => wait_s,
            None if source.live().row.has_agent => DEFAULT_READY_WAIT_S,
            None => 0,
        };
        wait_for_agents(wait_s, &seats, &mut answer.clones, arrived_ns);
        phases.mark("ready");
        answer.phases_us = phases.done;
        Ok(answer)
    }

    fn fork_now(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        request: &ForkRequest,
        raise: Option<Raise>,
        fail_at: FailAt,
        phases: &mut Phases,
    ) -> OpResult<(Cloned, Vec<Seat>)> {
        self.allow(source, Operation::Fork)?;
        let Some(link) = source.link() else {
            return Err(OpError::conflict(format!("{} is ending", source.name())));
        };
        self.check_stores_of(&source.row())?;
        let kvm = self.open_engine(&source.row().engine)?;
        let mut seats = self.plan_clones(&source.row(), request, MAX_CLONES as usize)?;
        seats
            .iter_mut()
            .for_each(|seat| seat.paused = request.paused);
        let vms: Vec<_> = seats.iter().map(|seat| Arc::clone(&seat.vm)).collect();
        let memory = match source.live().ram {
            Some(RamView::Private) => "fork",
            _ => "layer",
        };
        self.reserve(&vms, memory, Consistency::Instant)?;
        let forked = self
            .prepare(source, &mut seats, kvm, raise, fail_at, phases)
            .map_err(|error| (error, false))
            .and_then(|ground| {
                let newborns: Vec<_> = seats.iter().filter_map(|s| s.newborn.as_ref()).collect();
                let drain = request.drain_ms_max;
                let point = self.fork_source(source, &link, &newborns, &ground, drain, fail_at)?;
                Ok((point, ground.recording))
            });
        let (point, mut recording) = match forked {
            Ok(forked) => forked,
            Err((error, swapped)) => {
                self.fork_failed(source, false, swapped);
                for seat in &seats {
                    self.abandon_process(&seat.vm);
                    self.erase(&seat.vm, None);
                }
                return Err(error);
            }
        };
        phases.mark("forked");
        self.tell_all(&mut seats, &point, fail_at);
        phases.mark("told");
        self.adopt_tops(source, &point.forked, seats.len());
        recording.sync_when_running(&mut seats);
        let durable = recording
            .wait_durable()
            .and_then(|()| fail_at.check(HostStep::Sync));
        match durable {
            Ok(()) => {
                tell_durable(&source.name(), &link);
                clones_durable(&seats);
            }
            Err(error) => {
                let message = OpError::from(error).message();
                seats.iter_mut().for_each(|seat| seat.fail(message.clone()));
            }
        }
        phases.mark("durable");
        self.take_answers(&mut seats);
        phases.mark("running");
        let answer = self.conclude(source, &mut seats, &point.forked, phases);
        Ok((answer, seats))
    }

    /// Does all that can be done before the source stands still.
    fn prepare(
        self: &Arc<Self>,
        source: &Arc<Vm>,
        seats: &mut [Seat],
        kvm: Option<Arc<OwnedFd>>,
        raise: Option<Raise>,
        fail_at: FailAt,
        phases: &mut Phases,
    ) -> OpResult<Ground> {
        let (deltas, recording) = self.record_intent(source, seats, raise)?;
        phases.mark("planned");
        // Processes first: what they build ahead they build beside what follows here.
        let inherited = source.live().ram == Some(RamView::Private);
        let ahead = seats.len() <= prepared_ahead_max();
        for_each(seats, |seat| {
            self.make_home(&seat.vm)?;
            if inherited {
                return self.lay_newborn(seat);
            }
            self.lay_process(seat, kvm.as_ref(), ahead)
        })?;
        fail_at.check(HostStep::Processes)?;
        phases.mark("processes");
        let tops = make_next_tops(&deltas)?;
        for_each(seats, Seat::make_tops)?;
        self.open_below(seats)?;
        let kinds = source.live().row.ssh_host_key_kinds.clone();
        for seat in seats.iter_mut() {
            seat.host_keys = self.keys.take(&kinds);
        }
        for_each(seats, |seat| self.lay_backends(seat, kvm.as_ref()))?;
        fail_at.check(HostStep::Deltas)?;
        phases.mark("deltas");
        recording.wait_recorded()?;
        fail_at.check(HostStep::Record)?;
        phases.mark("recorded");
        Ok(Ground {
            tops,
            kvm,
            disks_only: false,
            recording,
        })
    }

    /// Tells the source to fork. An error also says whether the source has swapped its tops.
    fn fork_source(
        &self,
        source: &Vm,
        link: &Arc<Link>,
        seats: &[&(Arc<OwnedFd>, u32)],
        ground: &Ground,
        drain_ms_max: Option<u32>,
        fail_at: FailAt,
    ) -> Result<ForkPoint, (OpError, bool)> {
        let before = |error: anyhow::Error| (OpError::from(error), false);
        let mut fds = FdList::default();
        let next_tops = ground
            .tops
            .iter()
            .map(|top| LayerFd {
                fd: fds.add(Arc::clone(&top.file)),
                format: top.format,
            })
            .collect();
        let checkpoint = make_checkpoint().map_err(before)?;
        let copy = checkpoint.try_clone();
        let copy = copy.context("cannot share a memory file").map_err(before)?;
        let checkpoint_fd = fds.add(copy);
        let newborns = seats.iter().map(|(listener, uid)| Newborn {
            listener: fds.add(Arc::clone(listener)),
            uid: *uid,
        });
        let newborns: Vec<_> = newborns.collect();
        let kvm = ground.kvm.as_ref().filter(|_| !newborns.is_empty());
        let kvm = kvm.map(|fd| fds.add(Arc::clone(fd)));
        let drain_ms_max = drain_ms_max.unwrap_or(DRAIN_MS_MAX).min(60_000);
        let command = Command::Fork(Box::new(Fork {
            next_tops,
            checkpoint: checkpoint_fd,
            newborns,
            kvm,
            disks_only: ground.disks_only,
            drain_ms_max,
            fail_at: fail_at.source,
        }));
        let timeout = FORK_TIMEOUT + Duration::from_millis(drain_ms_max.into());
        match link.call(command, &fds.borrowed(), timeout) {
            Ok((Outcome::Forked(forked), fds)) => {
                let layer = forked.layer.map(|_| fds.into_iter().next()).map(|fd| {
                    let fd = fd.context("the source gave no memory layer")?;
                    anyhow::Ok(Arc::new(reopen_read_only(fd.as_fd())?))
                });
                let layer = layer.transpose().map_err(|e| (OpError::from(e), true))?;
                Ok(ForkPoint {
                    forked,
                    layer,
                    checkpoint,
                })
            }
            Ok(_) => Err((
                OpError::failed("the source gave an answer that does not fit"),
                true,
            )),
            Err(LinkError::Refused { message, step }) => {
                // Up to the swaps the source takes everything back.
                let swapped = step == Some(ForkStep::Publish);
                let message = format!("cannot fork {}: {message}", source.name());
                Err((OpError::failed(message), swapped))
            }
            // It was not sent.
            Err(LinkError::TooLarge { fds, .. }) => Err((too_many(seats.len(), fds), false)),
            // Nobody knows how far it came; an empty overlay as the top is right in either case.
            Err(error) => Err((self.explain(source, "cannot fork", error).into(), true)),
        }
    }

    /// Tells every clone to run.
    fn tell_all(&self, seats: &mut [Seat], point: &ForkPoint, fail_at: FailAt) {
        for (index, seat) in seats.iter_mut().enumerate() {
            let (ram, checkpoint) = match &point.layer {
                Some(layer) => (Some(Arc::clone(layer)), Some(&point.checkpoint)),
                None => (None, None),
            };
            let told = if index == 0 {
                fail_at.check(HostStep::Restore)
            } else {
                Ok(())
            };
            let told = told.and_then(|()| {
                if ram.is_none() {
                    self.meet_newborn(seat)?;
                }
                seat.tell_restore(ram, checkpoint)
            });
            if let Err(error) = told {
                seat.fail(OpError::from(error).message());
            }
        }
    }

    /// Waits until every clone that was told to run says that it does.
    fn take_answers(&self, seats: &mut [Seat]) {
        let start = Instant::now();
        for seat in seats.iter_mut() {
            let Some(pending) = seat.pending.take() else {
                continue;
            };
            match pending.wait_since(start, RESTORE_TIMEOUT) {
                Ok((Outcome::Running { first_run_at_ns }, _)) => {
                    seat.first_run_at_ns = Some(first_run_at_ns);
                }
                Ok((Outcome::Done, _)) if seat.paused => {}
                Ok(_) => seat.fail("the VM process gave an answer that does not fit".to_owned()),
                Err(error) => {
                    let error = self.explain(&seat.vm, "cannot start", error);
                    seat.fail(OpError::from(error).message());
                }
            }
        }
    }
}

/// Makes the files of a source's next tops, each with its parent.
fn make_next_tops(deltas: &[(LayerRow, LayerRow)]) -> anyhow::Result<Vec<OpenLayer>> {
    let make = |(delta, parent): &(LayerRow, LayerRow)| {
        Ok(OpenLayer {
            file: Arc::new(make_delta(delta, parent)?.into()),
            format: delta.format,
        })
    };
    deltas.iter().map(make).collect()
}

/// Waits for the agents of clones.
fn wait_for_agents(wait_s: u64, seats: &[Seat], clones: &mut [ClonedVm], arrived_ns: u64) {
    if wait_s == 0 {
        return;
    }
    let deadline = Instant::now() + Duration::from_secs(wait_s.min(86_400));
    for (seat, clone) in seats.iter().zip(clones) {
        if clone.error.is_some() {
            continue;
        }
        clone.ready_us = seat
            .vm
            .wait_ready(deadline)
            .map(|at| us_between(arrived_ns, at));
        if clone.ready_us.is_none() {
            clone.error = Some(match seat.vm.state() {
                state if state.has_process() => {
                    format!("runs, but its agent was not ready within {wait_s} s")
                }
                state => format!("is {} before its agent was ready", state.word()),
            });
        }
    }
}

/// Most clones of a call that are built while the source is still to be stopped: one for each
/// processor that the source leaves idle.
fn prepared_ahead_max() -> usize {
    // It reads a dozen files of the control groups, so it is asked once.
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let count = || std::thread::available_parallelism().map_or(1, usize::from);
    PROCESSORS.get_or_init(count).saturating_sub(1).max(1)
}

/// Lets flushes of a VM go on; where it cannot be said, they do not wait for long.
fn tell_durable(vm: &str, link: &Arc<Link>) {
    if let Err(error) = link.request(Command::ForkDurable, &[]) {
        tracing::warn!(vm, %error, "a VM did not hear that it may flush");
    }
}

/// Lets flushes of clones go on.
fn clones_durable(seats: &[Seat]) {
    for seat in seats.iter().filter(|seat| seat.error.is_none()) {
        if let Some(link) = &seat.link {
            tell_durable(&seat.vm.name(), link);
        }
    }
}

/// Where a clone finds its RAM.
fn clone_ram(ram: Option<Arc<OwnedFd>>, fds: &mut FdList) -> CloneRam {
    match ram {
        Some(layer) => CloneRam::Layer(fds.add(layer)),
        None => CloneRam::Inherited,
    }
}

/// The refusal of a call whose order to the source has more descriptors than a frame takes.
fn too_many(clones: usize, fds: usize) -> OpError {
    OpError::invalid(format!(
        "count: {clones} clones need {fds} descriptors in one call, which takes {} at most; make \
         several calls",
        vmm_protocol::MAX_FRAME_FDS
    ))
}
