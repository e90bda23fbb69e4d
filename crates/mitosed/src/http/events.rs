//! Endpoint of events: lists, and streams that go on.

use std::convert::Infallible;
use std::sync::Arc;

use api_types::{Event as EventAnswer, schema};
use axum::extract::{Query, Request, State};
use axum::http::header;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::access::revoked;
use super::answer::{HttpError, run_blocking};
use super::page::{self, EventQuery};
use crate::host::Host;

/// Events that a stream takes out of the inventory at a time.
const BATCH: usize = 1000;

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
    let news = host.subscribe();
    let (sender, receiver) = mpsc::channel::<Result<Event, Infallible>>(64);
    let mut follower = Follower {
        last: query.after.unwrap_or(0),
        host: Arc::clone(&host),
        sender,
        query,
    };
    if follower.query.after.is_none() {
        let host = Arc::clone(&host);
        let latest = run_blocking(move || host.latest_events(1)).await?;
        follower.last = latest.last().map_or(0, |event| event.id);
    }
    let revoked = revoked(host, request.extensions().get().cloned());
    tokio::spawn(async move {
        tokio::select! {
            () = revoked => {}
            () = follower.follow(news) => {}
        }
    });
    Ok(Sse::new(ReceiverStream::new(receiver))
        .keep_alive(KeepAlive::default())
        .into_response())
}

/// Somebody who is told all events that fit, each once and in order.
struct Follower {
    host: Arc<Host>,
    query: EventQuery,
    /// Number of the last event that was looked at.
    last: i64,
    sender: mpsc::Sender<Result<Event, Infallible>>,
}

impl Follower {
    /// Tells what is known, then what comes, until the reader is gone.
    async fn follow(mut self, mut news: Receiver<EventAnswer>) {
        let mut goes_on = self.catch_up().await;
        while goes_on {
            goes_on = match news.recv().await {
                Ok(event) if event.id <= self.last => true,
                Ok(event) if event.id == self.last + 1 => self.tell(&event).await,
                // Others come before it, or this reader was too slow: the inventory has them all.
                Ok(_) | Err(RecvError::Lagged(_)) => self.catch_up().await,
                Err(RecvError::Closed) => false,
            };
        }
    }

    async fn catch_up(&mut self) -> bool {
        loop {
            let (host, last) = (Arc::clone(&self.host), self.last);
            let batch = run_blocking(move || host.events(last, BATCH)).await;
            // What cannot be read now is read with the next event.
            let batch = batch.unwrap_or_default();
            for event in &batch {
                if !self.tell(event).await {
                    return false;
                }
            }
            if batch.len() < BATCH {
                return true;
            }
        }
    }

    /// Says whether there is still somebody to be told.
    async fn tell(&mut self, event: &EventAnswer) -> bool {
        self.last = event.id;
        !self.query.fits(event) || self.sender.send(Ok(as_sse(event))).await.is_ok()
    }
}

fn as_sse(event: &EventAnswer) -> Event {
    Event::default()
        .id(event.id.to_string())
        .json_data(event)
        .unwrap_or_else(|_| Event::default().data("{}"))
}
