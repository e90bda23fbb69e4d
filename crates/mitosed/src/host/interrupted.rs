//! Tasks that were in work when the daemon ended, once their effects are settled.
//!
//! - The row of a VM names the task that made it: that item of the task was made.
//! - It names the task that last began with it what suspends it, or what the next daemon finishes
//!   (`begun.rs`): that is done, unless it could not be finished.
//! - A removal whose VM is gone is done.
//! - All else is `failed: interrupted`, with items that tell what was made.
//!
//! In an answer that is made here, times and stuns are 0 or left out: nobody knows them any more.

use std::collections::HashMap;
use std::sync::Arc;

use api_types::{Cloned, ClonedVm, ErrorKind, PointForked, RunReply, Task, TaskState};
use serde::Serialize;
use serde_json::Value;

use super::tasks::conclude;
use super::{Host, Vm, number_of};
use crate::error::{OpError, OpResult};
use crate::inventory::{ForkPoint, Making, PowerState};

/// Why a task failed.
const INTERRUPTED: &str = "interrupted: the daemon ended";
/// Why an item of a task failed.
const NOT_MADE: &str = "interrupted: the daemon ended before it was made";

impl Host {
    /// Ends tasks of an earlier daemon; `unfinished` tells why some could not be finished.
    pub(super) fn end_interrupted_tasks(&self, mut unfinished: HashMap<i64, OpError>) {
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

    fn what_was_done(&self, task: &mut Task) -> OpResult<Value> {
        let made = self.made_by(task.id);
        if !task.items.is_empty() {
            return self.tell_items(task, made);
        }
        if let ("vm.run", Some(vm)) = (task.kind.as_str(), made.first()) {
            return value_of(RunReply {
                vm: self.show(vm),
                first_run_us: None,
                ready_us: None,
                notes: Vec::new(),
            });
        }
        let id = task.object.as_deref().unwrap_or_default();
        match self.listing().get(id).cloned() {
            None if task.kind == "vm.remove" => Ok(Value::Null),
            Some(vm) if vm.row().begun_by == Some(task.id) => value_of(self.show(&vm)),
            _ => Err(OpError::failed(INTERRUPTED)),
        }
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

fn value_of(answer: impl Serialize) -> OpResult<Value> {
    serde_json::to_value(answer).map_err(|error| OpError::caused(ErrorKind::Failed, error))
}
