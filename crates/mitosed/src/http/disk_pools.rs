//! Endpoints of disk pools.

use std::sync::Arc;

use api_types::{DiskPool, DiskPoolChangeRequest, DiskPoolRequest, Task, schema};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, blocking, body};
use super::started::{self, Started, WaitQuery};
use crate::host::{Host, TaskSpec};

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
    #[param(schema_with = schema::reference)]
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
    params(WaitQuery), request_body = DiskPoolRequest, responses(
    (status = 200, description = "The task has ended well", body = Task),
    (status = 202, description = "The task is in work", body = Task),
))]
async fn make(State(host): Shared, Query(query): Query<WaitQuery>, bytes: Bytes) -> Started {
    let request: DiskPoolRequest = body(&bytes)?;
    started::start(query, move || {
        let spec = TaskSpec::new("diskpool.make", &request.source);
        let worker = Arc::clone(&host);
        host.start_task(spec, move |_| worker.make_disk_pool(&request))
    })
    .await
}

/// Change a disk pool
///
/// The number of its copies, or how fast they are made. The task's result is a `DiskPool`.
#[utoipa::path(patch, path = "/diskpools/{disk_pool}", tag = "datastores",
    operation_id = "change_disk_pool", params(DiskPoolPath, WaitQuery),
    request_body = DiskPoolChangeRequest, responses(
    (status = 200, description = "The task has ended well", body = Task),
    (status = 202, description = "The task is in work", body = Task),
))]
async fn change(
    State(host): Shared,
    Path(path): Path<DiskPoolPath>,
    Query(query): Query<WaitQuery>,
    bytes: Bytes,
) -> Started {
    let request: DiskPoolChangeRequest = body(&bytes)?;
    started::start(query, move || {
        let pool = host.disk_pool(&path.disk_pool)?;
        let spec = TaskSpec::new("diskpool.change", &pool.name).about(&pool.id);
        let worker = Arc::clone(&host);
        host.start_task(spec, move |_| worker.change_disk_pool(&pool.id, &request))
    })
    .await
}

/// Remove a disk pool
///
/// Its copies are removed too; clones that were made of them stay.
#[utoipa::path(delete, path = "/diskpools/{disk_pool}", tag = "datastores",
    operation_id = "remove_disk_pool", params(DiskPoolPath, WaitQuery), responses(
    (status = 200, description = "The task has ended well", body = Task),
    (status = 202, description = "The task is in work", body = Task),
))]
async fn remove(
    State(host): Shared,
    Path(path): Path<DiskPoolPath>,
    Query(query): Query<WaitQuery>,
) -> Started {
    started::start(query, move || {
        let pool = host.disk_pool(&path.disk_pool)?;
        let spec = TaskSpec::new("diskpool.remove", &pool.name).about(&pool.id);
        let worker = Arc::clone(&host);
        host.start_task(spec, move |_| worker.remove_disk_pool(&pool.id))
    })
    .await
}
