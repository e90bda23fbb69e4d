//! Calls about tasks that somebody else may have begun.

use std::time::{Duration, Instant};

use api_types::{Task, TaskState};

use crate::calls::{deadline_in, encode};
use crate::{Client, ClientError};

/// Which tasks.
#[derive(Clone, Debug, Default)]
pub struct TaskFilter {
    /// State.
    pub state: Option<TaskState>,
    /// Kind, such as `vm.fork`.
    pub kind: Option<String>,
    /// Id of the object that they work on.
    pub object: Option<String>,
    /// Most tasks of the answer.
    pub limit: Option<u32>,
}

impl TaskFilter {
    fn query(&self) -> String {
        let state = self.state.map(|state| match state {
            TaskState::Running => "running",
            TaskState::Success => "success",
            TaskState::Failed => "failed",
            TaskState::Cancelled => "cancelled",
        });
        let given = [
            ("state", state.map(str::to_owned)),
            ("kind", self.kind.as_deref().map(encode)),
            ("object", self.object.as_deref().map(encode)),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ];
        let given = given
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        let parts: Vec<_> = given
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        parts.join("&")
    }
}

impl Client {
    /// Tasks that fit, latest first.
    pub fn tasks_that(&self, filter: &TaskFilter) -> Result<Vec<Task>, ClientError> {
        self.get(&format!("/tasks?{}", filter.query()))
    }

    /// Waits for the end of a task; returns it as it is then, or after `longest`.
    pub fn wait_task(&self, id: i64, longest: Duration) -> Result<Task, ClientError> {
        let deadline = deadline_in(longest);
        loop {
            // An answer waits some seconds itself, which may be more than is left.
            let wait = deadline.saturating_duration_since(Instant::now()) > Duration::from_secs(5);
            let task: Task = self.get(&format!("/tasks/{id}?wait={wait}"))?;
            if task.state != TaskState::Running || Instant::now() >= deadline {
                return Ok(task);
            }
            if !wait {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_without_end_has_one() {
        assert!(deadline_in(Duration::MAX) > Instant::now());
        assert!(deadline_in(Duration::ZERO) <= Instant::now());
    }

    #[test]
    fn only_what_is_given_is_asked_for() {
        assert_eq!(TaskFilter::default().query(), "");
        let filter = TaskFilter {
            state: Some(TaskState::Running),
            kind: Some("vm.fork".into()),
            limit: Some(5),
            ..TaskFilter::default()
        };
        assert_eq!(filter.query(), "state=running&kind=vm%2Efork&limit=5");
    }
}
