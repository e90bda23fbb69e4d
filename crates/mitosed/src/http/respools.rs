//! Endpoints of resource pools.

use std::sync::Arc;

use api_types::{PoolRequest, ResourcePool, schema};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, HttpError, blocking, blocking_empty, body};
use crate::host::{Host, TaskSpec};
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
    #[param(schema_with = schema::label)]
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
    request_body = PoolRequest, responses((status = 200, description = "It is there", body = ResourcePool)))]
async fn make(State(host): Shared, bytes: Bytes) -> Answer<ResourcePool> {
    let request: PoolRequest = body(&bytes)?;
    blocking(move || {
        let spec = TaskSpec::new("pool.create", &request.name);
        let worker = Arc::clone(&host);
        host.in_task(spec, move |_| worker.make_pool(&request))
    })
    .await
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
    params(PoolPath), responses((status = 204, description = "It is gone")))]
async fn remove(State(host): Shared, Path(path): Path<PoolPath>) -> Result<StatusCode, HttpError> {
    blocking_empty(move || {
        let spec = TaskSpec::new("pool.remove", &path.pool);
        let worker = Arc::clone(&host);
        host.in_task(spec, move |_| worker.remove_pool(&path.pool))
    })
    .await
}
