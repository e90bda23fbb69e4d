//! The fork: one stun in which the source's state becomes a fork point.
//!
//! Order: open the next tops → gate disk queues → wait for requests in flight and write caches →
//! stop vCPUs and hold every worker → save → swap disk tops → switch or hold RAM → resume → ungate
//! → write the checkpoint. Each failure undoes what came before it, and the source runs on. Where
//! only its disks are wanted, there is no stun ([`disks_only`]).
//!
//! RAM: a VM that was never forked turns its memfd into the layer. One that runs on a private view
//! splits its process: the child (the *holder*) keeps the instant, and clones are born of it.

mod disks_only;
mod finishing;
mod split;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk_layers::{LayerFile, PreparedTop};
use guest_memory::{GuestRam, SealedView, View};
use jail::SoleThread;
use virtio_devices::WorkerGuard;
use vmm_protocol::ForkStep;

pub(crate) use self::finishing::Finishing;
use crate::checkpoint::Checkpoint;
use crate::clock::{monotonic_ns, us_between};
use crate::disks::{Disk, stack_of};
use crate::durability::Durability;
use crate::error::{ForkCause, ForkError};
use crate::machine::{Machine, lock_ram};

/// What a fork needs, made ahead of it.
#[derive(Debug)]
pub struct ForkPlan {
    /// The next top of each disk that has a medium and can be written to, in slot order.
    pub next_tops: Vec<LayerFile>,
    /// Takes the checkpoint, where clones do not inherit it.
    pub checkpoint: File,
    /// Memory of the instant is not wanted: vCPUs run on.
    pub disks_only: bool,
    /// Longest wait for requests in flight, milliseconds.
    pub drain_ms_max: u32,
    /// Step at which to fail, for tests.
    pub fail_at: Option<ForkStep>,
}

/// A fork's result in the source.
#[derive(Debug)]
pub struct ForkReport {
    /// First vCPU kicked to last one re-entered, microseconds.
    pub stun_us: u64,
    /// Disk queues gated to ungated, microseconds.
    pub io_held_us: u64,
    /// The memory layer; none where RAM is held by a child process.
    pub layer: Option<OwnedFd>,
    /// Process id of the holder.
    pub holder: Option<i32>,
    /// Duration of each step, microseconds.
    pub steps_us: Vec<(ForkStep, u64)>,
    /// How many forks the machine has had, with this one where memory was wanted.
    pub number: u64,
}

/// The instant of a source that ran on a private view, in the holder process.
#[derive(Debug)]
pub struct Held {
    /// Guest RAM of the instant.
    pub ram: Arc<Mutex<GuestRam>>,
    /// State of the instant.
    pub checkpoint: Checkpoint,
    /// This process has one thread.
    pub thread: SoleThread,
}

/// On which side of the fork the caller is.
#[derive(Debug)]
pub enum ForkOutcome {
    /// The source, which runs on.
    Source(ForkReport),
    /// The holder: a new process in which only RAM is usable. The caller forgets its [`Machine`]
    /// and closes all descriptors before anything else.
    Holder(Box<Held>),
}

/// Times the steps.
struct Steps {
    fail_at: Option<ForkStep>,
    last_ns: u64,
    us: Vec<(ForkStep, u64)>,
}

impl Steps {
    fn begin(fail_at: Option<ForkStep>) -> Self {
        Self {
            fail_at,
            last_ns: monotonic_ns(),
            us: vec![],
        }
    }

    /// Notes the end of `step`, and fails there if a test asked for it.
    fn done(&mut self, step: ForkStep) -> Result<(), ForkError> {
        let now = monotonic_ns();
        self.us.push((step, us_between(self.last_ns, now)));
        self.last_ns = now;
        if self.fail_at == Some(step) {
            return Err(ForkError {
                step,
                cause: ForkCause::Injected,
            });
        }
        Ok(())
    }
}

fn at<E: Into<ForkCause>>(step: ForkStep) -> impl FnOnce(E) -> ForkError {
    move |cause| ForkError {
        step,
        cause: cause.into(),
    }
}

/// What the stopped part made.
enum Instant_ {
    Sealed(Box<Checkpoint>, SealedView),
    /// With the checkpoint, which is the holder's. It is dropped here when the vCPUs run again: after a
    /// `fork()` each page that is written to is copied first, which took 14 us.
    Holding(i32, Box<Checkpoint>),
    Holder(Box<Held>),
}

impl Machine {
    /// Makes a fork point of this instant. In the holder process the call returns
    /// [`ForkOutcome::Holder`].
    pub fn fork(&mut self, plan: ForkPlan) -> Result<ForkOutcome, ForkError> {
        let ForkPlan {
            next_tops,
            checkpoint: file,
            disks_only,
            drain_ms_max,
            fail_at,
        } = plan;
        let mut steps = Steps::begin(fail_at);
        let tops = self.prepare_tops(next_tops)?;
        if disks_only {
            let sealed = self.seal_disks(tops, drain_ms_max, steps);
            return sealed.map(ForkOutcome::Source);
        }
        self.prepare_ram()?;
        steps.done(ForkStep::PrepareTops)?;
        let finishing = self.finishing.clone();
        let quiet = finishing.quiet();
        let held_from = monotonic_ns();
        self.platform
            .disks
            .iter()
            .for_each(|disk| disk.worker.gate());
        let result = self.fork_gated(tops, drain_ms_max, &mut steps);
        if let Ok((Instant_::Holder(held), _)) = result {
            // The guard belongs to the source's process.
            std::mem::forget(quiet);
            return Ok(ForkOutcome::Holder(held));
        }
        drop(quiet);
        // The vCPUs are about to run; nothing below is part of the stun.
        if self.begun {
            self.platform
                .disks
                .iter()
                .for_each(|disk| disk.worker.ungate());
        }
        let io_held_us = if self.platform.disks.is_empty() {
            0
        } else {
            us_between(held_from, monotonic_ns())
        };
        let (instant, stun_from) = result?;
        self.forks += 1;
        let (layer, holder) = match instant {
            Instant_::Sealed(checkpoint, view) => {
                self.finishing.leave(view);
                let layer = self.layer()?;
                write_checkpoint(&checkpoint, file)?;
                (Some(layer), None)
            }
            // The holder has it.
            Instant_::Holding(child, checkpoint) => {
                drop(checkpoint);
                (None, Some(child))
            }
            Instant_::Holder(_) => unreachable!("returned above"),
        };
        steps.done(ForkStep::Publish)?;
        let stun_us = stun_from.map_or(0, |from| us_between(from, self.vcpus.wait_entered().1));
        Ok(ForkOutcome::Source(ForkReport {
            stun_us,
            io_held_us,
            layer,
            holder,
            steps_us: steps.us,
            number: self.forks,
        }))
    }

    fn prepare_ram(&self) -> Result<(), ForkError> {
        let mut ram = lock_ram(&self.ram);
        if ram.view() == View::Shared {
            ram.prepare_seal().map_err(at(ForkStep::PrepareTops))?;
        }
        Ok(())
    }

    /// Opens the next tops; a read-only disk and an empty slot have none. Returns them with their
    /// disks' indices.
    fn prepare_tops(&self, files: Vec<LayerFile>) -> Result<Vec<(usize, PreparedTop)>, ForkError> {
        let step = ForkStep::PrepareTops;
        let disks = self.spec.disks.iter().zip(&self.platform.disks).enumerate();
        let writable: Vec<_> = disks
            .filter(|(_, (spec, disk))| !spec.read_only && disk.has_medium)
            .collect();
        let (found, wanted) = (files.len(), writable.len());
        if found != wanted {
            return Err(ForkError {
                step,
                cause: ForkCause::Tops { found, wanted },
            });
        }
        let open = |((index, _), file): ((usize, _), _)| {
            let top = PreparedTop::open(file).map_err(|source| ForkError {
                step,
                cause: ForkCause::OpenTop { index, source },
            })?;
            Ok((index, top))
        };
        writable.into_iter().zip(files).map(open).collect()
    }

    /// With disk queues gated: drains, stops, and makes the instant. On failure everything is as
    /// before; on success the vCPUs run again (but in the holder). Also returns when the stun began,
    /// where the vCPUs ran.
    fn fork_gated(
        &mut self,
        tops: Vec<(usize, PreparedTop)>,
        drain_ms_max: u32,
        steps: &mut Steps,
    ) -> Result<(Instant_, Option<u64>), ForkError> {
        let Self {
            spec,
            engine,
            vm,
            ram,
            platform,
            vcpus,
            durability,
            ..
        } = self;
        drain(&platform.disks, drain_ms_max, steps)?;
        let was_running = vcpus.is_running();
        let stun_from = monotonic_ns();
        let states = vcpus.park_and_save();
        // Only now: a vCPU that resets a device wants the same locks before it can stand still.
        let mut disks: Vec<_> = platform
            .disks
            .iter()
            .map(|disk| disk.worker.lock())
            .collect();
        let shared = platform.shared.lock();
        let result = states.map_err(at(ForkStep::Stop)).and_then(|mut vcpus| {
            steps.done(ForkStep::Stop)?;
            let clock = vm.save_clock(&mut vcpus).map_err(at(ForkStep::Save))?;
            let mut slots: Vec<_> = disks.iter().map(|guard| guard.save(0)).collect();
            slots.extend((0..shared.len()).map(|index| shared.save(index)));
            let checkpoint = Box::new(Checkpoint {
                engine: (*engine).to_owned(),
                cpus: spec.cpus,
                memory_bytes: spec.memory_bytes,
                vcpus,
                clock,
                platform: platform.save(slots),
            });
            steps.done(ForkStep::Save)?;
            swap_all(&mut disks, tops, durability, ram, checkpoint, steps)
        });
        if matches!(result, Ok(Instant_::Holder(_))) {
            // The guards belong to threads that this process does not have.
            std::mem::forget((disks, shared));
            return result.map(|instant| (instant, None));
        }
        if was_running {
            vcpus.run();
        }
        drop((disks, shared));
        result.map(|instant| (instant, was_running.then_some(stun_from)))
    }

    fn layer(&self) -> Result<OwnedFd, ForkError> {
        let layer = lock_ram(&self.ram).file().try_clone();
        let layer = layer.map_err(|error| ForkError {
            step: ForkStep::Publish,
            cause: ForkCause::Write(error),
        })?;
        Ok(layer.into())
    }

    /// Says whether a fork has left something to do.
    pub fn has_finishing(&self) -> bool {
        self.finishing.is_due()
    }

    /// Starts what a fork has left to do; call it when its clones had time to come to life.
    pub fn after_fork(&mut self) {
        self.finishing.start();
    }
}

/// Waits for requests in flight of gated disks, and writes their table caches.
fn drain(disks: &[Disk], ms_max: u32, steps: &mut Steps) -> Result<(), ForkError> {
    let deadline = Instant::now() + Duration::from_millis(ms_max.into());
    for (index, disk) in disks.iter().enumerate() {
        let step = ForkStep::Drain;
        let busy = || ForkError {
            step,
            cause: ForkCause::Busy { index, ms: ms_max },
        };
        let mut guard = disk.worker.lock_until(deadline).ok_or_else(busy)?;
        guard.quiesce().map_err(|source| ForkError {
            step,
            cause: ForkCause::Flush { index, source },
        })?;
    }
    steps.done(ForkStep::Drain)
}

/// Swaps disk tops, then RAM; undoes the tops if RAM fails.
fn swap_all(
    disks: &mut [WorkerGuard<'_>],
    tops: Vec<(usize, PreparedTop)>,
    durability: &Durability,
    ram: &Arc<Mutex<GuestRam>>,
    checkpoint: Box<Checkpoint>,
    steps: &mut Steps,
) -> Result<Instant_, ForkError> {
    let swapped = swap_tops(disks, tops, durability, steps)?;
    let switched = switch_ram(ram, checkpoint, steps);
    if switched.is_err() {
        take_back(disks, &swapped, durability);
    }
    switched
}

/// Swaps disk tops, all or none; returns the indices of their disks.
fn swap_tops(
    disks: &mut [WorkerGuard<'_>],
    tops: Vec<(usize, PreparedTop)>,
    durability: &Durability,
    steps: &mut Steps,
) -> Result<Vec<usize>, ForkError> {
    let mut swapped = vec![];
    let mut result = Ok(());
    durability.awaited();
    for (index, top) in tops {
        let Some(stack) = stack_of(&mut disks[index]) else {
            continue;
        };
        if let Err(source) = stack.push_top(top) {
            result = Err(ForkError {
                step: ForkStep::SwapDisks,
                cause: ForkCause::Swap { index, source },
            });
            break;
        }
        stack.before_first_sync(durability.before_first_sync());
        swapped.push(index);
    }
    match result.and_then(|()| steps.done(ForkStep::SwapDisks)) {
        Ok(()) => Ok(swapped),
        Err(error) => {
            take_back(disks, &swapped, durability);
            Err(error)
        }
    }
}

fn take_back(disks: &mut [WorkerGuard<'_>], swapped: &[usize], durability: &Durability) {
    for index in swapped {
        if let Some(stack) = stack_of(&mut disks[*index]) {
            stack
                .pop_top()
                .expect("a top that nothing wrote to comes off");
        }
    }
    durability.reached();
}

fn switch_ram(
    shared: &Arc<Mutex<GuestRam>>,
    checkpoint: Box<Checkpoint>,
    steps: &mut Steps,
) -> Result<Instant_, ForkError> {
    let step = ForkStep::SwapMemory;
    let mut ram = lock_ram(shared);
    match ram.view() {
        View::Shared => {
            let view = ram.seal().map_err(at(step))?;
            let sealed = view
                .forbid_new_writers()
                .map_err(|error| ForkError {
                    step,
                    cause: ForkCause::Write(error),
                })
                .and_then(|()| steps.done(step));
            if let Err(error) = sealed {
                ram.unseal(view)
                    .expect("the old view goes back to its own addresses");
                return Err(error);
            }
            Ok(Instant_::Sealed(checkpoint, view))
        }
        View::Private => {
            drop(ram);
            // A failure asked for by a test comes before the split: there is nothing to undo after.
            if steps.fail_at == Some(step) {
                steps.done(step)?;
            }
            match split::split().map_err(at(step))? {
                split::Side::Source { holder } => {
                    steps.done(step)?;
                    Ok(Instant_::Holding(holder, checkpoint))
                }
                split::Side::Holder(thread) => {
                    let ram = Arc::clone(shared);
                    Ok(Instant_::Holder(Box::new(Held {
                        ram,
                        checkpoint: *checkpoint,
                        thread,
                    })))
                }
            }
        }
    }
}

fn write_checkpoint(checkpoint: &Checkpoint, mut file: File) -> Result<(), ForkError> {
    let bytes = checkpoint.encode().map_err(at(ForkStep::Publish))?;
    file.write_all(&bytes).map_err(|error| ForkError {
        step: ForkStep::Publish,
        cause: ForkCause::Write(error),
    })
}
