//! Upkeep: disk stacks that forks made long are made short again, in the background.
//!
//! A thread looks at every VM whose row changed. Where a stack is nearly at its limit, the sealed
//! layers right below its top are merged into a new one ([`merge`]), which then takes their place
//! below the top. Layers never change: others who use the merged ones keep them, and they go with
//! their last user. Merges are tasks `disk.merge`, one at a time, at a limited rate and idle
//! priority; a guest notices nothing but its disk's queue being held for microseconds.
//!
//! A fork does not wait for any of this, but where its source's stack is at its limit: then for a
//! moment, if what is to be merged is small, and for as long as it takes before a stack would have
//! more layers than a disk can have.

mod merge;
mod plan;
mod settle;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use api_types::TaskState;
use disk_layers::MAX_LAYERS;

pub(in crate::host) use self::plan::DepthLimit;
use super::{Host, TaskSpec, Vm};
use crate::error::{OpError, OpResult};
use crate::inventory::{LayerRow, PowerState};
use crate::layers::Layers;

/// A merge that failed is not tried again for so long.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// A fork waits so long for merges of little data.
const SHORT_WAIT: Duration = Duration::from_secs(5);
/// A fork waits so long where it would make a stack too deep for any disk.
const LONG_WAIT: Duration = Duration::from_secs(120);
/// Merges of fewer bytes are worth a fork's while to wait for.
const SMALL_BYTES: u64 = 32 << 20;
/// How often a fork that waits looks at its source.
const LOOK: Duration = Duration::from_millis(200);

/// VMs to be looked at.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Ids of VMs, each once.
    queue: VecDeque<String>,
    queued: HashSet<String>,
    /// VM whose disks are merged.
    at_work: Option<String>,
    /// When a disk may be tried again.
    paused: HashMap<(String, usize), Instant>,
    ended: bool,
}

impl Upkeep {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a VM looked at.
    pub(super) fn look_at(&self, id: &str) {
        let mut state = self.lock();
        if state.queued.insert(id.to_owned()) {
            state.queue.push_back(id.to_owned());
            self.changed.notify_all();
        }
    }

    /// Begins no merge any more.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Waits for work; none when there will be no more.
    fn next(&self) -> Option<String> {
        let mut state = self.lock();
        state.at_work = None;
        self.changed.notify_all();
        loop {
            if state.ended {
                return None;
            }
            if let Some(id) = state.queue.pop_front() {
                state.queued.remove(&id);
                state.at_work = Some(id.clone());
                return Some(id);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// What one disk's stack is made of.
struct Stack {
    chain: Vec<LayerRow>,
    /// Layers right below the top that can be merged.
    mergeable: usize,
    limit: DepthLimit,
}

impl Stack {
    fn fixed(&self) -> usize {
        self.chain.len() - 1 - self.mergeable
    }

    /// Whether the stack has as many layers as it should have at most.
    fn is_full(&self) -> bool {
        self.mergeable >= 2 && self.chain.len() >= self.limit.for_stack(self.fixed())
    }

    /// Layers to be merged, newest first.
    fn run(&self) -> Option<&[LayerRow]> {
        if self.chain.len() + 1 < self.limit.for_stack(self.fixed()) {
            return None;
        }
        let mergeable = &self.chain[1..=self.mergeable];
        let sizes: Vec<u64> = mergeable.iter().map(bytes_of).collect();
        let run = self.limit.run_to_merge(&sizes, self.fixed())?;
        Some(&mergeable[..run])
    }
}

/// Space that a layer takes.
fn bytes_of(layer: &LayerRow) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(&layer.path);
    file.map_or(0, |file| file.blocks() * 512).max(1)
}

impl Host {
    /// Starts the thread; it ends with the host.
    pub(super) fn start_upkeep(self: &Arc<Self>) -> anyhow::Result<()> {
        for vm in self.all() {
            self.upkeep.look_at(&vm.id);
        }
        let (upkeep, host) = (Arc::clone(&self.upkeep), Arc::downgrade(self));
        std::thread::Builder::new()
            .name("upkeep".into())
            .spawn(move || run(&upkeep, &host))?;
        Ok(())
    }

    /// The stack of a VM's disk.
    fn stack_of(&self, layers: &Layers, vm: &str, disk: usize, top: &str) -> OpResult<Stack> {
        let chain = layers.chain(top)?;
        let below = chain.iter().skip(1);
        let merged = |layer: &&LayerRow| layer.owned && layer.parent.is_some();
        let mergeable = below.take_while(merged).count();
        // A clone that was never forked has the layers of its source: they are not to be copied
        // for each clone of a batch.
        let own = format!("{vm}-{disk}-");
        let grew = chain.iter().skip(1).any(|layer| layer.id.starts_with(&own));
        let limit = self.config.disk_layers * if grew { 1 } else { 2 };
        Ok(Stack {
            chain,
            mergeable,
            limit: DepthLimit(limit.min(MAX_LAYERS - 4)),
        })
    }

    /// Stack of each disk of a VM that can grow.
    fn stacks(&self, vm: &Vm) -> Vec<(usize, Stack)> {
        let row = vm.row();
        let disks = row.disks.iter().zip(&row.spec.disks).enumerate();
        let layers = self.layers();
        disks
            .filter(|(_, (_, spec))| !spec.read_only)
            .filter_map(|(index, (disk, _))| {
                let top = disk.top.as_ref()?;
                let stack = self.stack_of(&layers, &row.id, index, top);
                Some((index, stack.ok()?))
            })
            .collect()
    }

    /// Merges what is to be merged of one VM.
    fn look_after(self: &Arc<Self>, id: &str) {
        let Some(vm) = self.listing().get(id).cloned() else {
            return;
        };
        // It is looked at again when it runs: until then the next import stands on its layers.
        let waits = {
            let live = vm.live();
            live.starting || live.unanswered || live.row.standby
        };
        if vm.state() == PowerState::Creating || waits {
            return;
        }
        for (disk, stack) in self.stacks(&vm) {
            let key = (vm.id.clone(), disk);
            let paused = self.upkeep.lock().paused.get(&key).copied();
            let wanted = stack.run().is_some();
            if !wanted || paused.is_some_and(|until| Instant::now() < until) {
                continue;
            }
            let merged = self.merge_as_task(&vm, disk);
            let mut state = self.upkeep.lock();
            match merged {
                true => state.paused.remove(&key),
                false => state
                    .paused
                    .insert(key, Instant::now() + PAUSE_AFTER_FAILURE),
            };
        }
    }

    /// Runs one merge to its end; returns whether it was done.
    fn merge_as_task(self: &Arc<Self>, vm: &Arc<Vm>, disk: usize) -> bool {
        let spec = TaskSpec::new("disk.merge", &vm.name())
            .about(&vm.id)
            .cancellable();
        let (task, run) = match self.begin_task(spec) {
            Ok(begun) => begun,
            Err(error) => {
                tracing::warn!(vm = &*vm.name(), disk, "no merge: {}", error.message());
                return false;
            }
        };
        if let Some(run) = run {
            run.run(|context| self.merge_disk(vm, disk, context));
        }
        let ended = task.task();
        let done = ended.state == TaskState::Success;
        if !done {
            let error = ended.error.unwrap_or_default();
            tracing::warn!(vm = &*vm.name(), disk, error, "a merge was not done");
        }
        done
    }

    /// Before a fork takes its source's turn: waits where the stack is at its limit.
    pub(in crate::host) fn wait_for_room(&self, vm: &Vm) -> OpResult<()> {
        let start = Instant::now();
        loop {
            let mut stacks = self.stacks(vm).into_iter();
            let Some((disk, stack)) = stacks.find(|(_, stack)| stack.is_full()) else {
                return Ok(());
            };
            let depth = stack.chain.len();
            let too_deep = depth + 2 >= MAX_LAYERS;
            let bytes: u64 = stack.run().unwrap_or_default().iter().map(bytes_of).sum();
            let patience = match too_deep {
                true => LONG_WAIT,
                false if bytes <= SMALL_BYTES => SHORT_WAIT,
                false => Duration::ZERO,
            };
            let left = patience.saturating_sub(start.elapsed());
            let mut state = self.upkeep.lock();
            let paused = state.paused.get(&(vm.id.clone(), disk));
            let hopeless = paused.is_some_and(|until| Instant::now() < *until);
            let elsewhere = state.at_work.as_deref().is_some_and(|id| id != vm.id);
            if too_deep && (hopeless || left.is_zero()) {
                return Err(OpError::conflict(format!(
                    "disk {disk} of {} has {depth} layers, the most that a disk can have, and \
                     they could not be merged; see 'mitose events', or make a full clone",
                    vm.name()
                )));
            }
            if left.is_zero() || (!too_deep && (hopeless || elsewhere)) {
                return Ok(());
            }
            if state.at_work.as_deref() != Some(&vm.id) && state.queued.insert(vm.id.clone()) {
                state.queue.push_front(vm.id.clone());
                self.upkeep.changed.notify_all();
            }
            drop(
                self.upkeep
                    .changed
                    .wait_timeout(state, left.min(LOOK))
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }
}

fn run(upkeep: &Upkeep, host: &Weak<Host>) {
    while let Some(id) = upkeep.next() {
        let Some(host) = host.upgrade() else {
            return;
        };
        host.look_after(&id);
    }
}
