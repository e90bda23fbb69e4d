//! Endpoints of images and tasks.

use std::convert::Infallible;
use std::sync::Arc;

use api_types::{Image, ImageRequest, Task, TaskState};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use tokio_stream::wrappers::ReceiverStream;

use super::answer::{Answer, blocking, body};
use crate::host::Host;

type Shared = State<Arc<Host>>;

pub fn routes() -> Router<Arc<Host>> {
    Router::new()
        .route("/images", get(list).post(make))
        .route("/images/{name}", delete(remove))
        .route("/tasks/{id}", get(task).delete(cancel))
        .route("/tasks/{id}/events", get(follow))
}

async fn list(State(host): Shared) -> Answer<Vec<Image>> {
    blocking(move || host.images()).await
}

async fn make(State(host): Shared, bytes: Bytes) -> Answer<Task> {
    let request: ImageRequest = body(&bytes)?;
    blocking(move || host.make_image(request)).await
}

async fn remove(State(host): Shared, Path(name): Path<String>) -> Answer<()> {
    blocking(move || host.remove_image(&name)).await
}

async fn task(State(host): Shared, Path(id): Path<i64>) -> Answer<Task> {
    blocking(move || host.task(id)).await
}

async fn cancel(State(host): Shared, Path(id): Path<i64>) -> Answer<()> {
    blocking(move || host.cancel_task(id)).await
}

/// A task's states as server-sent events; the last one is final.
async fn follow(State(host): Shared, Path(id): Path<i64>) -> Response {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Event, Infallible>>(16);
    let first = host.task(id);
    let live = host.live_task(id);
    let first = match first {
        Ok(first) => first,
        Err(error) => return super::answer::HttpError::from(error).into_response(),
    };
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
            && let Ok(last) = host.task(id)
        {
            let _ = sender.send(Ok(event(&last))).await;
        }
    });
    Sse::new(ReceiverStream::new(receiver))
        .keep_alive(KeepAlive::default())
        .into_response()
}

fn event(task: &Task) -> Event {
    Event::default()
        .json_data(task)
        .unwrap_or_else(|_| Event::default().data("{}"))
}
