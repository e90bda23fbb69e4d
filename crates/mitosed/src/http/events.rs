//! Endpoint of events: lists, and streams that go on.

use std::convert::Infallible;
use std::sync::Arc;

use api_types::{Event as EventAnswer, schema};
use axum::Json;
use axum::extract::{Query, Request, State};
use axum::http::header;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::HttpError;
use crate::error::OpError;
use crate::host::Host;

/// Events shown where the client names no number.
const LATEST_EVENTS: usize = 100;
/// Most events of one answer.
const MAX_EVENTS: usize = 10_000;

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new().routes(routes!(events))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Number of the last event that the client knows; the latest ones where not given.
    #[param(schema_with = schema::number, required = false)]
    after: Option<i64>,
}

/// Events
///
/// A list, or server-sent events that go on where the client accepts `text/event-stream`.
#[utoipa::path(get, path = "/events", tag = "events", params(EventQuery), responses(
    (status = 200, description = "Events, oldest first", content(
        (Vec<EventAnswer> = "application/json"), (String = "text/event-stream"),
    )),
))]
async fn events(
    State(host): Shared,
    Query(query): Query<EventQuery>,
    request: Request,
) -> Result<Response, HttpError> {
    let accept = request.headers().get(header::ACCEPT);
    let follow = accept
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("text/event-stream"));
    let mut news = host.subscribe();
    let reader = Arc::clone(&host);
    let known = tokio::task::spawn_blocking(move || match query.after {
        Some(after) => reader.events(after, MAX_EVENTS),
        None if follow => Ok(Vec::new()),
        None => reader.latest_events(LATEST_EVENTS),
    });
    let known = known
        .await
        .unwrap_or_else(|_| Err(OpError::failed("cannot read events")))?;
    if !follow {
        return Ok(Json(known).into_response());
    }
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(64);
    tokio::spawn(async move {
        let mut last = query.after.unwrap_or(0);
        for event in known {
            last = event.id;
            if sender.send(Ok(as_sse(&event))).await.is_err() {
                return;
            }
        }
        loop {
            let missed = match news.recv().await {
                Ok(event) if event.id <= last => continue,
                Ok(event) => vec![event],
                // This reader was too slow for the channel; the inventory has them all.
                Err(RecvError::Lagged(_)) => host.events(last, MAX_EVENTS).unwrap_or_default(),
                Err(RecvError::Closed) => return,
            };
            for event in missed {
                last = event.id;
                if sender.send(Ok(as_sse(&event))).await.is_err() {
                    return;
                }
            }
        }
    });
    Ok(Sse::new(ReceiverStream::new(receiver))
        .keep_alive(KeepAlive::default())
        .into_response())
}

fn as_sse(event: &EventAnswer) -> Event {
    Event::default()
        .id(event.id.to_string())
        .json_data(event)
        .unwrap_or_else(|_| Event::default().data("{}"))
}
