//! The HTTP interface on the daemon's Unix socket. Handlers translate and call the host.
//!
//! The socket belongs to the daemon's user alone, who may do everything.

mod answer;
mod archives;
mod check;
mod conform;
mod daemon;
mod datastores;
mod disk_pools;
mod document;
mod events;
mod folders;
mod fork_points;
mod guests;
mod images;
mod lineage;
mod networks;
mod objects;
mod respools;
mod snapshots;
mod started;
mod streams;
mod tasks;
mod vms;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Extension, Router};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use utoipa_axum::router::OpenApiRouter;

use self::answer::HttpError;
use crate::clock::monotonic_ns;
use crate::host::Host;

/// When a request came, `CLOCK_MONOTONIC` nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Arrived(u64);

/// Wakes the server to end.
#[derive(Clone, Debug, Default)]
struct Stop(Arc<Notify>);

/// Serves until a signal or a request ends it.
pub async fn serve(host: Arc<Host>) -> anyhow::Result<()> {
    let path = host.config.home.socket();
    // The lock of the data directory is held: what is there was left by a daemon that ended.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    let stop = Stop::default();
    let app = router(host, stop.clone());
    tracing::info!(socket = %path.display(), "serving");
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    tokio::select! {
        served = axum::serve(listener, app) => served.context("cannot serve")?,
        _ = terminate.recv() => tracing::info!("ending by SIGTERM"),
        _ = interrupt.recv() => tracing::info!("ending by SIGINT"),
        () = stop.0.notified() => tracing::info!("ending by request"),
    }
    let _ = fs::remove_file(&path);
    Ok(())
}

/// Handlers' view of the host.
type Shared = State<Arc<Host>>;

/// All routes that the document describes, with what they told of themselves.
fn described() -> OpenApiRouter<Arc<Host>> {
    let api = OpenApiRouter::new()
        .merge(vms::routes())
        .merge(fork_points::routes())
        .merge(guests::routes())
        .merge(images::routes())
        .merge(objects::routes())
        .merge(folders::routes())
        .merge(networks::routes())
        .merge(respools::routes())
        .merge(lineage::routes())
        .merge(snapshots::routes())
        .merge(archives::routes())
        .merge(tasks::routes())
        .merge(events::routes())
        .merge(datastores::routes())
        .merge(disk_pools::routes())
        .merge(daemon::routes())
        .merge(document::routes());
    document::router().nest(api_types::API_PREFIX, api)
}

/// The interface's OpenAPI document.
pub fn openapi() -> Value {
    document::complete(&described().into_openapi())
}

fn router(host: Arc<Host>, stop: Stop) -> Router {
    let (routes, collected) = described().split_for_parts();
    let document = Arc::new(document::complete(&collected));
    let rules = conform::Rules::new(&document);
    routes
        .nest(api_types::API_PREFIX, streams::routes())
        .fallback(async || {
            HttpError::not_found(
                "there is no such path in this interface; see /api/v1/openapi.json",
            )
        })
        .layer(middleware::from_fn_with_state(rules, conform::conform))
        .layer(middleware::from_fn(stamp))
        .layer(Extension(document))
        .layer(Extension(stop))
        .with_state(host)
}

async fn stamp(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Arrived(monotonic_ns()));
    next.run(request).await
}

#[cfg(test)]
mod tests;
