//! Tasks that were in work when the daemon ended, once their effects are settled.
//!
//! - The row of a VM names the task that made it: that item of the task was made.
//! - It names the task that last began with it what suspends it, or what the next daemon finishes
//!   (`begun.rs`): that is done, unless it could not be finished.
//! - A removal whose VM is gone is done.
//! - A snapshot, a fork point and an import are on record together with an event of the task that made
//!   them; an image has its name when it is whole. They are there, or nothing of them is.
//! - All else is `failed: interrupted`, with items that tell what was made.
//!
//! In an answer that is made here, times and stuns are 0 or left out: nobody knows them any more.

use std::collections::HashMap;
use std::sync::Arc;

use api_types::{
    Cloned, ClonedVm, ErrorKind, Event, Imported, PointForked, Prepared, RunReply, Task, TaskState,
};
use serde::Serialize;
use serde_json::Value;

use super::tasks::conclude;
use super::{Host, Vm, number_of};
use crate::error::{OpError, OpResult};
use crate::image;
use crate::inventory::{ForkPoint, Making, PointMemory, PowerState, Snapshot, SnapshotMemory};

/// Why a task failed.
const INTERRUPTED: &str = "interrupted: the daemon ended";
/// Why an item of a task failed.
const NOT_MADE: &str = "interrupted: the daemon ended before it was made";

impl Host {
    /// Ends tasks of an earlier daemon; `unfinished` tells why some could not be finished.
    pub(super) fn end_interrupted_tasks(self: &Arc<Self>, mut unfinished: HashMap<i64, OpError>) {
        for mut task in self.inventory.running_tasks().unwrap_or_default() {
            let result = match unfinished.remove(&task.id) {
                Some(error) => Err(error),
                None => self.what_was_done(&mut task),
            };
            conclude(&mut task, result.as_ref().map(Clone::clone), false);
            if let Err(error) = self.put_task(&task) {
                tracing::error!("{}", error.message());
            }
        }
    }

    fn what_was_done(self: &Arc<Self>, task: &mut Task) -> OpResult<Value> {
        let made = self.made_by(task.id);
        if !task.items.is_empty() {
            return self.tell_items(task, made);
        }
        let whole = match task.kind.as_str() {
            "vm.run" => made.first().map(|vm| {
                value_of(RunReply {
                    vm: self.show(vm),
                    first_run_us: None,
                    ready_us: None,
                    notes: Vec::new(),
                })
            }),
            "snapshot.create" => self.made_snapshot(task),
            "vm.prepare" => self.made_point(task, &made),
            "archive.import" => self.made_of_archive(task),
            "image.build" | "image.import" => self.made_image(task),
            _ => return self.what_was_changed(task),
        };
        whole.unwrap_or_else(|| Err(nothing_left(task)))
    }

    fn what_was_changed(&self, task: &Task) -> OpResult<Value> {
        let id = task.object.as_deref().unwrap_or_default();
        match self.listing().get(id).cloned() {
            None if task.kind == "vm.remove" => Ok(Value::Null),
            Some(vm) if vm.row().begun_by == Some(task.id) => value_of(self.show(&vm)),
            _ => Err(OpError::failed(INTERRUPTED)),
        }
    }

    /// The event of one of these kinds that a task told.
    fn told_by(&self, task: &Task, kinds: &[&str]) -> Option<Event> {
        let events = self.inventory.events_of_task(task.id).unwrap_or_default();
        let mut events = events.into_iter();
        events.find(|event| kinds.contains(&event.kind.as_str()))
    }

    fn made_snapshot(&self, task: &Task) -> Option<OpResult<Value>> {
        let told = self.told_by(task, &["snapshot.created"])?.data?;
        let snapshot = self.object::<Snapshot>(told["snapshot"].as_str()?).ok()?;
        if snapshot.doc.memory == SnapshotMemory::Writing {
            // It could not be removed.
            return Some(Err(OpError::failed(INTERRUPTED)));
        }
        let vm = self.listing().get(snapshot.parent.as_deref()?).cloned()?;
        Some(value_of(self.show_snapshot(&vm, &snapshot)))
    }

    /// A fork point whose children are missing goes as it does where they cannot be made.
    fn made_point(self: &Arc<Self>, task: &Task, made: &[Arc<Vm>]) -> Option<OpResult<Value>> {
        let told = self.told_by(task, &["vm.prepared"])?.data?;
        let point = self
            .object::<ForkPoint>(told["fork_point"].as_str()?)
            .ok()?;
        if point.doc.memory == PointMemory::Lost {
            return Some(Err(OpError::failed(INTERRUPTED)));
        }
        let wanted = told["children"].as_u64().unwrap_or(0);
        if (made.len() as u64) < wanted {
            self.end_point(&point, None);
            return None;
        }
        Some(value_of(Prepared {
            fork_point: self.show_point(&point),
            children: made.iter().map(|vm| vm.name().to_string()).collect(),
            exec_exit_code: None,
        }))
    }

    fn made_of_archive(&self, task: &Task) -> Option<OpResult<Value>> {
        let told = self
            .told_by(task, &["vm.imported", "forkpoint.imported"])?
            .data?;
        let imported: Imported = serde_json::from_value(told).ok()?;
        let is_there = match (&imported.vm_id, &imported.fork_point_id) {
            (Some(vm), _) => self.listing().get(vm).is_some(),
            (_, Some(point)) => self.object::<ForkPoint>(point).is_ok(),
            _ => false,
        };
        is_there.then(|| value_of(imported))
    }

    /// An image of the name that is older was there before, and the task would have been refused.
    fn made_image(&self, task: &Task) -> Option<OpResult<Value>> {
        // Opening the store removes what is left of others.
        let store = image::store(&self.config.home).ok()?;
        let found = store.get(&task.subject).ok()?;
        let made = std::fs::metadata(&found.dir).and_then(|dir| dir.modified());
        let made_at = made.ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        if made_at.as_millis() < u128::from(task.started_at_ms.unsigned_abs()) {
            return None;
        }
        if self.told_by(task, &["image.made"]).is_none() {
            let told = format!("{} done", task.kind);
            self.on_behalf(Some(task.id), || {
                self.tell(&task.subject, "image.made", told);
            });
        }
        Some(Ok(Value::Null))
    }

    /// VMs that a task made, in the order in which they got their ids.
    fn made_by(&self, task: i64) -> Vec<Arc<Vm>> {
        let mut made = self.all();
        made.retain(|vm| {
            let live = vm.live();
            let making = live.row.making.as_ref();
            live.row.state != PowerState::Creating && making.is_some_and(|by| by.task == task)
        });
        made.sort_by_key(|vm| number_of(&vm.id));
        made
    }

    /// Says of each item of a task that clones whether it is among those that were `made`; none is
    /// an error.
    fn tell_items(&self, task: &mut Task, mut made: Vec<Arc<Vm>>) -> OpResult<Value> {
        let making = made.first().and_then(|vm| vm.row().making);
        let mut clones = Vec::new();
        for item in &mut task.items {
            // Clones in several folders may have one name.
            let at = made.iter().position(|vm| *vm.name() == *item.name);
            match at.map(|at| made.remove(at)) {
                Some(_) => item.state = TaskState::Success,
                None => {
                    item.state = TaskState::Failed;
                    item.error = Some(NOT_MADE.to_owned());
                }
            }
            clones.push(ClonedVm {
                name: item.name.clone(),
                error: item.error.clone(),
                ..ClonedVm::default()
            });
        }
        let Some(making) = making else {
            return Err(OpError::failed(INTERRUPTED));
        };
        self.answer_of(task, making, clones)
    }

    fn answer_of(&self, task: &Task, making: Making, clones: Vec<ClonedVm>) -> OpResult<Value> {
        let id = task.object.clone().unwrap_or_default();
        let mut cloned = Cloned {
            source: task.subject.clone(),
            stun_us: 0,
            io_held_us: 0,
            memory: making.memory,
            consistency: making.consistency,
            steps_us: Vec::new(),
            phases_us: Vec::new(),
            clones,
        };
        if task.kind == "forkpoint.fork" {
            if let Ok(point) = self.object::<ForkPoint>(&id) {
                cloned.source = point.doc.row.name;
            }
            return value_of(PointForked {
                fork_point: id,
                wall_us: 0,
                cloned,
            });
        }
        value_of(cloned)
    }
}

/// Why a task failed of which nothing is there.
fn nothing_left(task: &Task) -> OpError {
    let with = match task.idempotency_key {
        Some(_) => " with another idempotency key",
        None => "",
    };
    OpError::failed(format!(
        "{INTERRUPTED} before it was made, and nothing of it is left; make the call again{with}"
    ))
}

fn value_of(answer: impl Serialize) -> OpResult<Value> {
    serde_json::to_value(answer).map_err(|error| OpError::caused(ErrorKind::Failed, error))
}
