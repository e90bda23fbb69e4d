//! Answers to requests that start a task: the task at once, or with its end.

use api_types::{Task, TaskState};
use axum::Json;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::HttpError;
use crate::error::{OpError, OpResult};
use crate::host::TaskHandle;

/// Whether the answer waits for the task's end.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Answer when the task has ended; its state tells how.
    #[serde(default)]
    pub wait: bool,
}

/// The answer about a task that was started.
pub type Started = Result<(StatusCode, Json<Task>), HttpError>;

/// Starts a task on a thread that may block, and answers.
pub async fn start(
    query: WaitQuery,
    start: impl FnOnce() -> OpResult<TaskHandle> + Send + 'static,
) -> Started {
    let started = tokio::task::spawn_blocking(start).await;
    let mut handle = match started {
        Ok(started) => started?,
        Err(error) => {
            tracing::error!(%error, "a task was not started");
            return Err(OpError::failed("the task was not started; see the daemon's log").into());
        }
    };
    while query.wait
        && handle.task().state == TaskState::Running
        && handle.progress.changed().await.is_ok()
    {}
    let task = handle.task();
    let begun = task.state == TaskState::Running;
    let status = if begun {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(task)))
}
