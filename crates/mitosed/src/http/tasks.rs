//! Endpoints of tasks.

use std::convert::Infallible;
use std::sync::Arc;

use api_types::{Task, TaskState, schema};
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, HttpError, blocking, run_blocking};
use super::call::{Call, CallQuery, WAIT_MAX};
use super::page::{self, TaskQuery};
use crate::host::Host;

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(task))
        .routes(routes!(cancel))
        .routes(routes!(follow))
}

/// Which task.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct TaskPath {
    /// Its number.
    #[param(schema_with = schema::number)]
    task: i64,
}

/// Tasks
///
/// Latest first. Where there are more, the header `Link` tells where the list goes on.
#[utoipa::path(get, path = "/tasks", tag = "tasks", operation_id = "list_tasks", params(TaskQuery),
    responses((status = 200, description = "Tasks that fit", body = Vec<Task>)))]
async fn list(State(host): Shared, Query(query): Query<TaskQuery>) -> Result<Response, HttpError> {
    run_blocking(move || page::tasks(&host, &query)).await
}

/// One task
#[utoipa::path(get, path = "/tasks/{task}", tag = "tasks", operation_id = "get_task",
    params(TaskPath, CallQuery), responses((status = 200, description = "Its state", body = Task)))]
async fn task(State(host): Shared, Path(path): Path<TaskPath>, call: Call) -> Answer<Task> {
    if let Some(mut live) = host.live_task(path.task).filter(|_| call.waits()) {
        // Its end, or what it is after the wait, is read below.
        let ended = live
            .progress
            .wait_for(|task| task.state != TaskState::Running);
        let _ = tokio::time::timeout(WAIT_MAX, ended).await;
    }
    blocking(move || host.task(path.task)).await
}

/// Stop a task
///
/// It is asked to end; `GET` tells when it has. Not every task can be stopped.
#[utoipa::path(post, path = "/tasks/{task}/cancel", tag = "tasks", operation_id = "cancel_task", params(TaskPath), responses(
    (status = 202, description = "It is asked to end", body = Task),
))]
async fn cancel(
    State(host): Shared,
    Path(path): Path<TaskPath>,
) -> Result<(StatusCode, Json<Task>), HttpError> {
    let task = run_blocking(move || {
        host.cancel_task(path.task)?;
        host.task(path.task)
    });
    Ok((StatusCode::ACCEPTED, Json(task.await?)))
}

/// States of a task as server-sent events
///
/// The last one is final.
#[utoipa::path(get, path = "/tasks/{task}/events", tag = "tasks", operation_id = "follow_task", params(TaskPath), responses(
    (status = 200, description = "Its states as they come", body = String, content_type = "text/event-stream"),
))]
async fn follow(
    State(host): Shared,
    Path(TaskPath { task: id }): Path<TaskPath>,
) -> Result<Response, HttpError> {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Event, Infallible>>(16);
    let first = task_of(&host, id).await?;
    let live = host.live_task(id);
    tokio::spawn(async move {
        let mut last = first;
        if sender.send(Ok(event(&last))).await.is_err() {
            return;
        }
        let Some(mut handle) = live else { return };
        while last.state == TaskState::Running && handle.progress.changed().await.is_ok() {
            last = handle.progress.borrow_and_update().clone();
            if sender.send(Ok(event(&last))).await.is_err() {
                return;
            }
        }
        if last.state == TaskState::Running
            && let Ok(last) = task_of(&host, id).await
        {
            let _ = sender.send(Ok(event(&last))).await;
        }
    });
    let stream = Sse::new(ReceiverStream::new(receiver));
    Ok(stream.keep_alive(KeepAlive::default()).into_response())
}

async fn task_of(host: &Arc<Host>, id: i64) -> Result<Task, HttpError> {
    let host = Arc::clone(host);
    run_blocking(move || host.task(id)).await
}

fn event(task: &Task) -> Event {
    Event::default()
        .json_data(task)
        .unwrap_or_else(|_| Event::default().data("{}"))
}
