//! Endpoints of disk pools.

use std::sync::Arc;

use api_types::{DiskPool, DiskPoolChangeRequest, DiskPoolRequest, schema};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, HttpError, blocking, body};
use super::call::{self, Call, CallQuery, DryRunQuery, KeyHeader, MatchHeader, TaskAnswers};
use crate::host::{Host, TaskSpec, check_version};

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list, make))
        .routes(routes!(detail, change, remove))
}

/// Which disk pool.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct DiskPoolPath {
    /// Its id, or its name where no other has it.
    #[param(schema_with = schema::disk_pool)]
    pub disk_pool: String,
}

/// Disk pools
#[utoipa::path(get, path = "/diskpools", tag = "datastores", operation_id = "list_disk_pools",
    responses((status = 200, description = "All disk pools", body = Vec<DiskPool>)))]
async fn list(State(host): Shared) -> Answer<Vec<DiskPool>> {
    blocking(move || Ok(host.disk_pools())).await
}

/// One disk pool
#[utoipa::path(get, path = "/diskpools/{disk_pool}", tag = "datastores",
    operation_id = "get_disk_pool", params(DiskPoolPath),
    responses((status = 200, description = "How full it is", body = DiskPool)))]
async fn detail(State(host): Shared, Path(path): Path<DiskPoolPath>) -> Answer<DiskPool> {
    blocking(move || host.disk_pool(&path.disk_pool)).await
}

/// Make a disk pool
///
/// It is filled in the background. The task's result is a `DiskPool`.
#[utoipa::path(post, path = "/diskpools", tag = "datastores", operation_id = "make_disk_pool",
    params(CallQuery, DryRunQuery, KeyHeader), request_body = DiskPoolRequest,
    responses(TaskAnswers))]
async fn make(State(host): Shared, call: Call, bytes: Bytes) -> Result<Response, HttpError> {
    let request: DiskPoolRequest = body(&bytes)?;
    if call.is_dry() {
        return call::tried(move || host.check_disk_pool(&request)).await;
    }
    let spec = TaskSpec::new("diskpool.make", &request.source);
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |_| worker.make_disk_pool(&request)).await
}

/// Change a disk pool
///
/// The number of its copies, or how fast they are made. The task's result is a `DiskPool`.
#[utoipa::path(patch, path = "/diskpools/{disk_pool}", tag = "datastores",
    operation_id = "change_disk_pool",
    params(DiskPoolPath, CallQuery, DryRunQuery, KeyHeader, MatchHeader),
    request_body = DiskPoolChangeRequest, responses(TaskAnswers))]
async fn change(
    State(host): Shared,
    Path(path): Path<DiskPoolPath>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let mut request: DiskPoolChangeRequest = body(&bytes)?;
    let pool = host.disk_pool(&path.disk_pool)?;
    check_version("disk pool", &pool.name, call.expected(), pool.version)?;
    // It is looked at again when the change is made.
    request.version = request.version.or(call.expected());
    if call.is_dry() {
        let found = check_version("disk pool", &pool.name, request.version, pool.version);
        return call::dry_run(move || found).await;
    }
    let spec = TaskSpec::new("diskpool.change", &pool.name).about(&pool.id);
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |_| {
        worker.change_disk_pool(&pool.id, &request)
    })
    .await
}

/// Remove a disk pool
///
/// Its copies are removed too; clones that were made of them stay.
#[utoipa::path(
    delete,
    path = "/diskpools/{disk_pool}",
    tag = "datastores",
    operation_id = "remove_disk_pool",
    params(DiskPoolPath, CallQuery, DryRunQuery, KeyHeader, MatchHeader),
    responses(TaskAnswers)
)]
async fn remove(
    State(host): Shared,
    Path(path): Path<DiskPoolPath>,
    call: Call,
) -> Result<Response, HttpError> {
    let pool = host.disk_pool(&path.disk_pool)?;
    check_version("disk pool", &pool.name, call.expected(), pool.version)?;
    if call.is_dry() {
        return call::dry_run(|| Ok(())).await;
    }
    let spec = TaskSpec::new("diskpool.remove", &pool.name).about(&pool.id);
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |_| worker.remove_disk_pool(&pool.id)).await
}
