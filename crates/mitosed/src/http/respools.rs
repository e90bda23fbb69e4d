//! Endpoints of resource pools.

use std::sync::Arc;

use api_types::{PoolRequest, ResourcePool, schema};
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
use crate::inventory::ResourcePool as PoolDoc;

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list, make))
        .routes(routes!(detail, remove))
}

/// Which resource pool.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct PoolPath {
    /// Its id or name.
    #[param(schema_with = schema::resource_pool)]
    pool: String,
}

/// Resource pools
#[utoipa::path(get, path = "/respools", tag = "respools", operation_id = "list_respools", responses(
    (status = 200, description = "All of them", body = Vec<ResourcePool>),
))]
async fn list(State(host): Shared) -> Answer<Vec<ResourcePool>> {
    blocking(move || Ok(host.list_pools())).await
}

/// Make a resource pool
#[utoipa::path(post, path = "/respools", tag = "respools", operation_id = "make_respool",
    params(DryRunQuery, KeyHeader), request_body = PoolRequest,
    responses((status = 200, description = "It is there", body = ResourcePool)))]
async fn make(State(host): Shared, call: Call, bytes: Bytes) -> Result<Response, HttpError> {
    let request: PoolRequest = body(&bytes)?;
    if call.is_dry() {
        return call::tried(move || host.check_new_pool(&request)).await;
    }
    let spec = TaskSpec::new("pool.create", &request.name);
    let worker = Arc::clone(&host);
    let work = move |_: &TaskContext| worker.make_pool(&request);
    call::give(host, call, spec, work, |made| Json(made).into_response()).await
}

/// One resource pool
#[utoipa::path(get, path = "/respools/{pool}", tag = "respools", operation_id = "get_respool",
    params(PoolPath), responses((status = 200, description = "It", body = ResourcePool)))]
async fn detail(State(host): Shared, Path(path): Path<PoolPath>) -> Answer<ResourcePool> {
    blocking(move || {
        let found = host.object::<PoolDoc>(&path.pool)?;
        Ok(host.show_pool(&found))
    })
    .await
}

/// Remove a resource pool
///
/// Only while nothing uses it.
#[utoipa::path(delete, path = "/respools/{pool}", tag = "respools", operation_id = "remove_respool",
    params(PoolPath, DryRunQuery, KeyHeader, MatchHeader),
    responses((status = 204, description = "It is gone")))]
async fn remove(
    State(host): Shared,
    Path(path): Path<PoolPath>,
    call: Call,
) -> Result<Response, HttpError> {
    call.check_version(&host.object::<PoolDoc>(&path.pool)?)?;
    if call.is_dry() {
        return call::dry_run(move || host.check_pool_removal(&path.pool).map(drop)).await;
    }
    let spec = TaskSpec::new("pool.remove", &path.pool);
    let worker = Arc::clone(&host);
    call::run_to_end(host, call, spec, move |_| worker.remove_pool(&path.pool)).await
}
