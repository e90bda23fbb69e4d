//! Endpoints of networks.

use std::sync::Arc;

use api_types::{Network, NetworkRequest, schema};
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, HttpError, blocking, body};
use super::call::{self, Call, DryRunQuery, KeyHeader, MatchHeader};
use crate::host::{Host, TaskContext, TaskSpec};
use crate::inventory::Network as NetworkDoc;

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list, make))
        .routes(routes!(detail, remove))
}

/// Which network.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct NetworkPath {
    /// Its id or name.
    #[param(schema_with = schema::label)]
    network: String,
}

/// Networks
#[utoipa::path(get, path = "/networks", tag = "networks", operation_id = "list_networks", responses(
    (status = 200, description = "All of them", body = Vec<Network>),
))]
async fn list(State(host): Shared) -> Answer<Vec<Network>> {
    blocking(move || Ok(host.list_networks())).await
}

/// Make a network
#[utoipa::path(post, path = "/networks", tag = "networks", operation_id = "make_network",
    params(DryRunQuery, KeyHeader), request_body = NetworkRequest,
    responses((status = 200, description = "It is there", body = Network)))]
async fn make(State(host): Shared, call: Call, bytes: Bytes) -> Result<Response, HttpError> {
    let request: NetworkRequest = body(&bytes)?;
    if call.is_dry() {
        return call::tried(move || host.check_network(&request)).await;
    }
    let spec = TaskSpec::new("network.create", &request.name);
    let worker = Arc::clone(&host);
    let work = move |_: &TaskContext| worker.make_network(&request);
    call::give(host, call, spec, work, |made| Json(made).into_response()).await
}

/// One network
#[utoipa::path(get, path = "/networks/{network}", tag = "networks", operation_id = "get_network",
    params(NetworkPath), responses((status = 200, description = "It", body = Network)))]
async fn detail(State(host): Shared, Path(path): Path<NetworkPath>) -> Answer<Network> {
    blocking(move || {
        let found = host.object::<NetworkDoc>(&path.network)?;
        Ok(host.show_network(&found))
    })
    .await
}

/// Remove a network
///
/// Only while nothing uses it.
#[utoipa::path(delete, path = "/networks/{network}", tag = "networks", operation_id = "remove_network",
    params(NetworkPath, DryRunQuery, KeyHeader, MatchHeader),
    responses((status = 204, description = "It is gone")))]
async fn remove(
    State(host): Shared,
    Path(path): Path<NetworkPath>,
    call: Call,
) -> Result<Response, HttpError> {
    call.check_version(&host.object::<NetworkDoc>(&path.network)?)?;
    if call.is_dry() {
        return call::dry_run(move || host.check_network_removal(&path.network).map(drop)).await;
    }
    let spec = TaskSpec::new("network.remove", &path.network);
    let worker = Arc::clone(&host);
    call::run_to_end(host, call, spec, move |_| {
        worker.remove_network(&path.network)
    })
    .await
}
