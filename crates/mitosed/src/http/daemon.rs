//! Endpoints of the daemon and its host.

use std::sync::Arc;

use api_types::{Check, DaemonStatus};
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, blocking};
use super::{Shared, Stop};
use crate::host::Host;

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(stop_daemon))
        .routes(routes!(doctor))
}

/// State of the daemon
#[utoipa::path(get, path = "/daemon", tag = "daemon", responses(
    (status = 200, description = "It runs", body = DaemonStatus),
))]
async fn status(State(host): Shared) -> Json<DaemonStatus> {
    Json(host.status())
}

/// End the daemon
///
/// VMs run on; the next daemon finds them.
#[utoipa::path(post, path = "/daemon/stop", tag = "daemon", responses(
    (status = 204, description = "It is about to end"),
))]
async fn stop_daemon(Extension(stop): Extension<Stop>) -> StatusCode {
    // After the answer is on its way.
    tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        stop.0.notify_one();
    });
    StatusCode::NO_CONTENT
}

/// Checks of the host
#[utoipa::path(get, path = "/doctor", tag = "daemon", responses(
    (status = 200, description = "What was looked at and found", body = Vec<Check>),
))]
async fn doctor(State(host): Shared) -> Answer<Vec<Check>> {
    blocking(move || Ok(crate::doctor::examine(&host))).await
}
