//! Operations as tasks: each is a row that tells who asked, how far it is, and what it gave. One that
//! was in work when the daemon ended is ended by the next one (`interrupted.rs`), after its effects
//! were settled.
//!
//! ```text
//! begin_task ─▶ running ──▶ success | failed | cancelled
//!                  └ progress, states of items (in memory; in the store with the end)
//! ```
//!
//! The names of its items are on record before the first is made.
//!
//! A task that makes several things is a success when all of them are made. Where some are not, it
//! has failed, or was cancelled, and its result and its items tell what became of each.
//!
//! A client may give an idempotency key: the first call with it is carried out, later ones get the
//! same task.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use api_types::{Consistency, ErrorKind, Task, TaskItem, TaskState};
use images::CancelToken;
use serde::Serialize;
use tokio::sync::watch;

use super::Host;
use crate::clock::now_ms;
use crate::error::{OpError, OpResult};
use crate::inventory::{Making, NewEvent};

/// Longest idempotency key, bytes.
pub const MAX_KEY_BYTES: usize = 128;

thread_local! {
    /// Task that this thread works for, and who asked for it.
    static ACTING_FOR: RefCell<Option<(i64, String)>> = const { RefCell::new(None) };
}

/// Names the task and the user behind events that are told on the thread of a task.
pub(super) fn sign(events: &mut [NewEvent]) {
    ACTING_FOR.with_borrow(|acting| {
        let Some((task, user)) = acting else { return };
        for event in events.iter_mut().filter(|event| event.task.is_none()) {
            event.task = Some(*task);
            event.user = Some(user.clone()).filter(|user| !user.is_empty());
        }
    });
}

/// The task that this thread works for.
pub(super) fn present() -> Option<i64> {
    ACTING_FOR.with_borrow(|acting| acting.as_ref().map(|(task, _)| *task))
}

/// What the row of a VM says of the task at work, which makes it.
pub(super) fn making(memory: &str, consistency: Consistency) -> Option<Making> {
    present().map(|task| Making {
        task,
        memory: memory.to_owned(),
        consistency,
        was_there: false,
    })
}

/// Live tasks by number.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    live: Mutex<HashMap<i64, TaskHandle>>,
    /// Taken from the look for an idempotency key to the task's record.
    keys: Mutex<()>,
}

/// What is known of a task before it begins.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    task: Task,
    asked: Option<String>,
}

impl TaskSpec {
    /// A task of `kind` that works on what is called `subject`.
    pub fn new(kind: &str, subject: &str) -> Self {
        Self {
            task: Task::new(kind, subject),
            asked: None,
        }
    }

    /// The same, on the object `id`.
    pub fn about(mut self, id: &str) -> Self {
        self.task.object = Some(id.to_owned());
        self
    }

    /// The same, asked for by `user`.
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.task.user);
        self
    }

    /// The same, that somebody may cancel.
    pub fn cancellable(mut self) -> Self {
        self.task.cancellable = true;
        self
    }

    /// The same, that makes what has these names, all in work.
    pub fn items(mut self, names: &[String]) -> Self {
        self.task.items = in_work(names.iter().cloned());
        self
    }

    /// The same, to be carried out once for this key.
    pub fn key(mut self, key: Option<String>) -> Self {
        self.task.idempotency_key = key;
        self
    }

    /// The same, with the digest of the call that the key came with.
    pub fn asked(mut self, asked: Option<String>) -> Self {
        self.asked = asked;
        self
    }
}

/// A task in work.
#[derive(Clone, Debug)]
pub struct TaskHandle {
    /// Its progress.
    pub progress: watch::Receiver<Task>,
    cancel: CancelToken,
}

impl TaskHandle {
    /// Its present state.
    pub fn task(&self) -> Task {
        self.progress.borrow().clone()
    }
}

/// What the work of a task reports to; copies are the same.
#[derive(Clone, Debug)]
pub struct TaskContext {
    progress: Arc<watch::Sender<Task>>,
    cancel: CancelToken,
}

impl TaskContext {
    /// The task's number.
    pub fn id(&self) -> i64 {
        self.progress.borrow().id
    }

    /// How much is done, 0 to 1, and what is done at the moment. What was done stays done.
    pub fn progress(&self, fraction: f32, message: &str) {
        let percent = (fraction.clamp(0.0, 1.0) * 100.0) as u8;
        self.progress.send_modify(|task| {
            task.percent = task.percent.max(Some(percent));
            message.clone_into(&mut task.message);
        });
    }

    /// An item has ended; one that fails in a task that somebody cancelled is cancelled with it.
    pub fn item_done(&self, index: usize, result: Result<(), String>) {
        let cancelled = self.cancel.is_cancelled();
        self.progress.send_modify(|task| {
            let Some(item) = task.items.get_mut(index) else {
                return;
            };
            item.state = match &result {
                Ok(()) => TaskState::Success,
                Err(_) if cancelled => TaskState::Cancelled,
                Err(_) => TaskState::Failed,
            };
            item.error = result.err();
        });
    }

    /// Token that is set when somebody cancels the task.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// Fails when somebody cancelled the task; called where nothing is half-made.
    pub fn check(&self) -> OpResult<()> {
        if self.cancel.is_cancelled() {
            return Err(OpError::failed("cancelled"));
        }
        Ok(())
    }
}

/// What is to be done for a task that is on record.
#[derive(Debug)]
pub struct TaskRun {
    host: Arc<Host>,
    context: TaskContext,
    user: String,
}

impl TaskRun {
    /// Does `work` on this thread, to the task's end.
    pub fn run<T: Serialize>(self, work: impl FnOnce(&TaskContext) -> OpResult<T>) {
        let Self {
            host,
            context,
            user,
        } = self;
        ACTING_FOR.set(Some((context.id(), user)));
        // A bug in an operation ends that operation, not the wait for it.
        let worked = std::panic::catch_unwind(AssertUnwindSafe(|| work(&context)));
        let broke_off = |_| {
            let told = "the operation broke off; see the daemon's log";
            Err(OpError::failed(told))
        };
        // The thread works for others next.
        ACTING_FOR.set(None);
        let result = worked.unwrap_or_else(broke_off).and_then(|result| {
            serde_json::to_value(result).map_err(|error| OpError::caused(ErrorKind::Failed, error))
        });
        host.task_ended(&context, result);
    }
}

impl Host {
    /// Puts a task on record and returns what is to be done for it: nothing where its idempotency
    /// key was used before, then the handle is that task's.
    pub fn begin_task(self: &Arc<Self>, spec: TaskSpec) -> OpResult<(TaskHandle, Option<TaskRun>)> {
        let TaskSpec { mut task, asked } = spec;
        check_key(task.idempotency_key.as_deref())?;
        task.started_at_ms = now_ms();
        let cancel = CancelToken::default();
        let keys = task.idempotency_key.is_some().then(|| self.keys_of_tasks());
        if let Some(earlier) = self.earlier_task(&task, asked.as_deref())? {
            return Ok((earlier, None));
        }
        let added = self.inventory.add_task(&task, asked.as_deref());
        task.id = added.map_err(OpError::from)?;
        let (id, user) = (task.id, task.user.clone());
        let (sender, progress) = watch::channel(task);
        let handle = TaskHandle {
            progress,
            cancel: cancel.clone(),
        };
        self.live_tasks().insert(id, handle.clone());
        drop(keys);
        let context = TaskContext {
            progress: Arc::new(sender),
            cancel,
        };
        let run = TaskRun {
            host: Arc::clone(self),
            context,
            user,
        };
        Ok((handle, Some(run)))
    }

    /// The task of the call with the digest `asked` and an idempotency key; where the key came with
    /// another call, that is an error.
    pub fn task_asked_for(&self, key: &str, asked: &str) -> OpResult<Option<TaskHandle>> {
        let _keys = self.keys_of_tasks();
        let found = self.inventory.task_of_key(key).map_err(OpError::from)?;
        let Some((id, Some(first))) = found else {
            return Ok(None);
        };
        let earlier = self.handle_of(id)?;
        match first == asked {
            true => Ok(Some(earlier)),
            false => Err(used_key(key, &earlier.task())),
        }
    }

    /// The task that was begun with the same key, unless it was for another call.
    fn earlier_task(&self, task: &Task, asked: Option<&str>) -> OpResult<Option<TaskHandle>> {
        let Some(key) = task.idempotency_key.as_deref() else {
            return Ok(None);
        };
        let found = self.inventory.task_of_key(key).map_err(OpError::from)?;
        let Some((id, first)) = found else {
            return Ok(None);
        };
        let handle = self.handle_of(id)?;
        let earlier = handle.task();
        let same = match (first.as_deref(), asked) {
            (Some(first), Some(asked)) => first == asked,
            _ => (&earlier.kind, &earlier.subject) == (&task.kind, &task.subject),
        };
        match same {
            true => Ok(Some(handle)),
            false => Err(used_key(key, &earlier)),
        }
    }

    /// A task, in work or ended.
    fn handle_of(&self, id: i64) -> OpResult<TaskHandle> {
        // The end of one that is not in work is written.
        match self.live_task(id) {
            Some(live) => Ok(live),
            None => Ok(TaskHandle {
                progress: watch::channel(self.task(id)?).1,
                cancel: CancelToken::default(),
            }),
        }
    }

    fn keys_of_tasks(&self) -> std::sync::MutexGuard<'_, ()> {
        let keys = &self.tasks.keys;
        keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn task_ended(&self, context: &TaskContext, result: OpResult<serde_json::Value>) {
        let mut task = context.progress.borrow().clone();
        conclude(
            &mut task,
            result.as_ref().map(Clone::clone),
            context.cancel.is_cancelled(),
        );
        let id = task.id;
        let written = self.put_task(&task);
        context.progress.send_replace(task);
        match written {
            Ok(_) => {
                self.live_tasks().remove(&id);
            }
            // It is told from memory until its end can be written.
            Err(error) => tracing::error!("{}; it is tried again", error.message()),
        }
    }

    /// Writes the ends of tasks that could not be written when they came.
    pub(super) fn end_waiting_tasks(&self) {
        let ended: Vec<Task> = {
            let live = self.live_tasks();
            let tasks = live.values().map(TaskHandle::task);
            tasks.filter(|t| t.state != TaskState::Running).collect()
        };
        for task in ended {
            if self.put_task(&task).is_ok() {
                self.live_tasks().remove(&task.id);
            }
        }
    }

    /// A task in work, to be followed.
    pub fn live_task(&self, id: i64) -> Option<TaskHandle> {
        self.live_tasks().get(&id).cloned()
    }

    /// A task's present state.
    pub fn task(&self, id: i64) -> OpResult<Task> {
        if let Some(handle) = self.live_task(id) {
            return Ok(handle.task());
        }
        let found = self.inventory.task(id);
        let found = found.map_err(OpError::from)?;
        found.ok_or_else(|| OpError::new(ErrorKind::NotFound, format!("there is no task {id}")))
    }

    /// At most `limit` tasks with a number below `before`, latest first.
    pub fn list_tasks(&self, before: i64, limit: usize) -> OpResult<Vec<Task>> {
        let mut tasks = self.inventory.tasks(before, limit).map_err(OpError::from)?;
        for task in &mut tasks {
            if let Some(handle) = self.live_task(task.id) {
                *task = handle.task();
            }
        }
        Ok(tasks)
    }

    /// Asks a task to end; it ends as cancelled where it has not done its work before.
    pub fn cancel_task(&self, id: i64) -> OpResult<()> {
        let Some(handle) = self.live_task(id) else {
            return self.task(id).map(drop);
        };
        let task = handle.task();
        if !task.cancellable {
            return Err(OpError::conflict(format!(
                "task {id} ({}) cannot be cancelled; wait for its end",
                task.kind
            )));
        }
        handle.cancel.cancel();
        Ok(())
    }

    /// Names what a task makes, all in work, on record unless it began with these names.
    pub(super) fn name_items(&self, context: &TaskContext, names: impl Iterator<Item = String>) {
        let items = in_work(names);
        let mut known = true;
        context.progress.send_modify(|task| {
            known = task.items == items;
            task.items = items;
        });
        let task = context.progress.borrow().clone();
        // What it makes is recorded next, and fails likewise.
        if !known && let Err(error) = self.put_task(&task) {
            tracing::warn!("{}", error.message());
        }
    }

    /// Does `act` as a part of a task of an earlier daemon: its events are that task's.
    pub(super) fn on_behalf<T>(&self, task: Option<i64>, act: impl FnOnce() -> T) -> T {
        let task = task.and_then(|id| self.inventory.task(id).ok().flatten());
        let before = ACTING_FOR.replace(task.map(|task| (task.id, task.user)));
        let done = act();
        ACTING_FOR.set(before);
        done
    }

    pub(super) fn put_task(&self, task: &Task) -> OpResult<()> {
        self.inventory.put_task(task).map_err(OpError::from)
    }

    fn live_tasks(&self) -> std::sync::MutexGuard<'_, HashMap<i64, TaskHandle>> {
        self.tasks
            .live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_work(names: impl Iterator<Item = String>) -> Vec<TaskItem> {
    let item = |name| TaskItem {
        name,
        state: TaskState::Running,
        error: None,
    };
    names.map(item).collect()
}

fn used_key(key: &str, earlier: &Task) -> OpError {
    let error = OpError::conflict(format!(
        "idempotency key: {key:?} came with another call before ({} of {}); take another key",
        earlier.kind, earlier.subject
    ));
    error.about("Idempotency-Key")
}

fn check_key(key: Option<&str>) -> OpResult<()> {
    match key {
        Some(key) if key.is_empty() || key.len() > MAX_KEY_BYTES => Err(OpError::invalid(format!(
            "idempotency key: {} bytes are not between 1 and {MAX_KEY_BYTES}",
            key.len()
        ))),
        _ => Ok(()),
    }
}

/// Turns a success into what it is where some of its items were not made.
fn conclude_partly(task: &mut Task, cancelled: bool) {
    let lost = |item: &&TaskItem| matches!(item.state, TaskState::Failed | TaskState::Cancelled);
    let lost: Vec<&TaskItem> = task.items.iter().filter(lost).collect();
    let Some(first) = lost.first() else { return };
    let (all, failed) = (task.items.len(), lost.len());
    let made = all - failed;
    let why = first.error.as_deref().unwrap_or("it broke off");
    let (state, error) = match cancelled {
        true => (
            TaskState::Cancelled,
            format!("cancelled: {made} of {all} were made"),
        ),
        false => (
            TaskState::Failed,
            format!("{failed} of {all} failed; the first, {}: {why}", first.name),
        ),
    };
    task.state = state;
    task.percent = Some((made * 100 / all) as u8);
    task.message = format!("{made} of {all} made");
    task.error = Some(error);
    task.error_kind = Some(ErrorKind::Failed);
}

/// Sets a task's end. Work that was done in spite of being cancelled is a success.
pub(super) fn conclude(
    task: &mut Task,
    result: Result<serde_json::Value, &OpError>,
    cancelled: bool,
) {
    // The clock may have been set back.
    task.ended_at_ms = Some(now_ms().max(task.started_at_ms));
    match result {
        Ok(result) => {
            task.state = TaskState::Success;
            task.percent = Some(100);
            task.message = "done".to_owned();
            task.result = Some(result).filter(|result| !result.is_null());
            conclude_partly(task, cancelled);
        }
        Err(error) => {
            task.state = if cancelled {
                TaskState::Cancelled
            } else {
                TaskState::Failed
            };
            task.error = Some(error.message());
            task.error_kind = Some(error.kind);
            task.field = error.field().map(str::to_owned);
            task.remedy = error.remedy().map(str::to_owned);
        }
    }
    for item in &mut task.items {
        if item.state == TaskState::Running {
            item.state = task.state;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_does_not_go_back() {
        let (sender, progress) = watch::channel(Task::new("vm.export", "a"));
        let context = TaskContext {
            progress: Arc::new(sender),
            cancel: CancelToken::default(),
        };
        for (fraction, percent) in [(0.3, 30), (0.1, 30), (0.5, 50), (0.0, 50)] {
            context.progress(fraction, "at work");
            assert_eq!(progress.borrow().percent, Some(percent));
        }
    }
}
