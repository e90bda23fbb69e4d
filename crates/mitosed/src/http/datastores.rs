//! Endpoints of datastores.

use std::sync::Arc;

use api_types::{Datastore, DatastoreAddRequest, DatastoreChangeRequest, schema};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, HttpError, blocking, body, run_blocking};
use super::call::{self, Call, CallQuery, DryRunQuery, KeyHeader, MatchHeader, TaskAnswers};
use crate::host::{Host, TaskSpec, check_version};

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list, add))
        .routes(routes!(detail, change, remove))
}

/// Which datastore.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct DatastorePath {
    /// Its id or name.
    #[param(schema_with = schema::datastore)]
    pub datastore: String,
}

/// Datastores
#[utoipa::path(get, path = "/datastores", tag = "datastores", operation_id = "list_datastores",
    responses((status = 200, description = "All datastores", body = Vec<Datastore>)))]
async fn list(State(host): Shared) -> Answer<Vec<Datastore>> {
    blocking(move || Ok(host.datastores())).await
}

/// One datastore
#[utoipa::path(get, path = "/datastores/{datastore}", tag = "datastores",
    operation_id = "get_datastore", params(DatastorePath),
    responses((status = 200, description = "How full it is", body = Datastore)))]
async fn detail(State(host): Shared, Path(path): Path<DatastorePath>) -> Answer<Datastore> {
    blocking(move || host.datastore(&path.datastore)).await
}

/// Add a datastore
///
/// In an existing directory of its own. The task's result is a `Datastore`.
#[utoipa::path(post, path = "/datastores", tag = "datastores", operation_id = "add_datastore",
    params(CallQuery, DryRunQuery, KeyHeader), request_body = DatastoreAddRequest,
    responses(TaskAnswers))]
async fn add(State(host): Shared, call: Call, bytes: Bytes) -> Result<Response, HttpError> {
    let request: DatastoreAddRequest = body(&bytes)?;
    if call.is_dry() {
        return call::tried(move || host.check_datastore(&request)).await;
    }
    let spec = TaskSpec::new("datastore.add", &request.name);
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |_| worker.add_datastore(&request)).await
}

/// Change a datastore
///
/// Its name, its limits, or whether it takes new disks. The task's result is a `Datastore`.
#[utoipa::path(patch, path = "/datastores/{datastore}", tag = "datastores",
    operation_id = "change_datastore",
    params(DatastorePath, CallQuery, DryRunQuery, KeyHeader, MatchHeader),
    request_body = DatastoreChangeRequest, responses(TaskAnswers))]
async fn change(
    State(host): Shared,
    Path(path): Path<DatastorePath>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let mut request: DatastoreChangeRequest = body(&bytes)?;
    let reader = Arc::clone(&host);
    let store = run_blocking(move || reader.datastore(&path.datastore)).await?;
    check_version("datastore", &store.name, call.expected(), store.version)?;
    // It is looked at again when the change is made.
    request.version = request.version.or(call.expected());
    if call.is_dry() {
        return call::tried(move || host.check_datastore_change(&store.id, &request)).await;
    }
    let spec = TaskSpec::new("datastore.change", &store.name).about(&store.id);
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |_| {
        worker.change_datastore(&store.id, &request)
    })
    .await
}

/// Remove a datastore
///
/// Only one that nothing is on; its directory stays.
#[utoipa::path(
    delete,
    path = "/datastores/{datastore}",
    tag = "datastores",
    operation_id = "remove_datastore",
    params(DatastorePath, CallQuery, DryRunQuery, KeyHeader, MatchHeader),
    responses(TaskAnswers)
)]
async fn remove(
    State(host): Shared,
    Path(path): Path<DatastorePath>,
    call: Call,
) -> Result<Response, HttpError> {
    let reader = Arc::clone(&host);
    let store = run_blocking(move || reader.datastore(&path.datastore)).await?;
    check_version("datastore", &store.name, call.expected(), store.version)?;
    if call.is_dry() {
        return call::dry_run(move || host.check_datastore_removal(&store.id)).await;
    }
    let spec = TaskSpec::new("datastore.remove", &store.name).about(&store.id);
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |_| {
        worker.remove_datastore(&store.id)
    })
    .await
}
