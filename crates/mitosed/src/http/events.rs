//! Endpoint of events: lists, and streams that go on.

use std::convert::Infallible;
use std::sync::Arc;

use api_types::{Event as EventAnswer, schema};
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
use super::answer::{HttpError, run_blocking};
use super::page::{self, EventQuery};
use crate::host::Host;

/// Most events that a stream begins with.
const MAX_EVENTS: usize = 10_000;

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new().routes(routes!(events))
}

/// Header that event streams are taken up with.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Header)]
struct LastEventHeader {
    /// Number of the last event that a stream gave; as `after`.
    #[serde(rename = "Last-Event-ID")]
    #[param(schema_with = schema::number, required = false)]
    #[expect(
        dead_code,
        reason = "it is read from the headers; this is its documentation"
    )]
    last: Option<i64>,
}

/// Events
///
/// A list, or server-sent events that go on where the client accepts `text/event-stream`.
#[utoipa::path(get, path = "/events", tag = "events", operation_id = "list_events",
    params(EventQuery, LastEventHeader), responses(
    (status = 200, description = "Events, oldest first", content(
        (Vec<EventAnswer> = "application/json"), (String = "text/event-stream"),
    )),
))]
async fn events(
    State(host): Shared,
    Query(mut query): Query<EventQuery>,
    request: Request,
) -> Result<Response, HttpError> {
    let accept = request.headers().get(header::ACCEPT);
    let follow = accept
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("text/event-stream"));
    let last = request.headers().get("last-event-id");
    let last = last.and_then(|last| last.to_str().ok()?.parse().ok());
    query.after = query.after.or(last);
    if !follow {
        return run_blocking(move || page::events(&host, &query)).await;
    }
    let mut news = host.subscribe();
    let reader = Arc::clone(&host);
    let known = run_blocking(move || match query.after {
        Some(after) => reader.events(after, MAX_EVENTS),
        None => Ok(Vec::new()),
    });
    let known = known.await?;
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(64);
    tokio::spawn(async move {
        let mut last = query.after.unwrap_or(0);
        for event in known {
            last = event.id;
            if !query.fits(&event) {
                continue;
            }
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
                if !query.fits(&event) {
                    continue;
                }
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
