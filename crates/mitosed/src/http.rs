//! The HTTP interface on the daemon's Unix socket. Handlers translate and call the host.
//!
//! The socket belongs to the daemon's user alone, who may do everything.

mod answer;
mod images;
mod streams;
mod vms;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use anyhow::Context;
use api_types::{Check, DaemonStatus};
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use self::answer::{Answer, HttpError};
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

fn router(host: Arc<Host>, stop: Stop) -> Router {
    let api = Router::new()
        .route("/daemon", get(status))
        .route("/daemon/stop", post(stop_daemon))
        .route("/doctor", get(doctor))
        .route("/events", get(streams::events))
        .merge(vms::routes())
        .merge(images::routes());
    Router::new()
        .nest(api_types::API_PREFIX, api)
        .fallback(async || HttpError::not_found("there is no such path in this interface"))
        .layer(middleware::from_fn(stamp))
        .layer(Extension(stop))
        .with_state(host)
}

async fn stamp(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(Arrived(monotonic_ns()));
    next.run(request).await
}

async fn status(State(host): State<Arc<Host>>) -> Json<DaemonStatus> {
    Json(host.status())
}

async fn stop_daemon(Extension(stop): Extension<Stop>) -> Json<()> {
    // After the answer is on its way.
    tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        stop.0.notify_one();
    });
    Json(())
}

async fn doctor(State(host): State<Arc<Host>>) -> Answer<Vec<Check>> {
    answer::blocking(move || Ok(crate::doctor::examine(&host))).await
}
