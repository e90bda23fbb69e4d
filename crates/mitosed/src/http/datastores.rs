//! Endpoints of datastores.

use std::sync::Arc;

use api_types::{Datastore, DatastoreAddRequest, DatastoreChangeRequest, Task, schema};
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
        .routes(routes!(list, add))
        .routes(routes!(detail, change, remove))
}

/// Which datastore.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct DatastorePath {
    /// Its id or name.
    #[param(schema_with = schema::reference)]
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
    params(WaitQuery), request_body = DatastoreAddRequest, responses(
    (status = 200, description = "The task has ended well", body = Task),
    (status = 202, description = "The task is in work", body = Task),
))]
async fn add(State(host): Shared, Query(query): Query<WaitQuery>, bytes: Bytes) -> Started {
    let request: DatastoreAddRequest = body(&bytes)?;
    started::start(query, move || {
        let spec = TaskSpec::new("datastore.add", &request.name);
        let worker = Arc::clone(&host);
        host.start_task(spec, move |_| worker.add_datastore(&request))
    })
    .await
}

/// Change a datastore
///
/// Its name, its limits, or whether it takes new disks. The task's result is a `Datastore`.
#[utoipa::path(patch, path = "/datastores/{datastore}", tag = "datastores",
    operation_id = "change_datastore", params(DatastorePath, WaitQuery),
    request_body = DatastoreChangeRequest, responses(
    (status = 200, description = "The task has ended well", body = Task),
    (status = 202, description = "The task is in work", body = Task),
))]
async fn change(
    State(host): Shared,
    Path(path): Path<DatastorePath>,
    Query(query): Query<WaitQuery>,
    bytes: Bytes,
) -> Started {
    let request: DatastoreChangeRequest = body(&bytes)?;
    started::start(query, move || {
        let store = host.datastore(&path.datastore)?;
        let spec = TaskSpec::new("datastore.change", &store.name).about(&store.id);
        let worker = Arc::clone(&host);
        host.start_task(spec, move |_| worker.change_datastore(&store.id, &request))
    })
    .await
}

/// Remove a datastore
///
/// Only one that nothing is on; its directory stays.
#[utoipa::path(delete, path = "/datastores/{datastore}", tag = "datastores",
    operation_id = "remove_datastore", params(DatastorePath, WaitQuery), responses(
    (status = 200, description = "The task has ended well", body = Task),
    (status = 202, description = "The task is in work", body = Task),
))]
async fn remove(
    State(host): Shared,
    Path(path): Path<DatastorePath>,
    Query(query): Query<WaitQuery>,
) -> Started {
    started::start(query, move || {
        let store = host.datastore(&path.datastore)?;
        let spec = TaskSpec::new("datastore.remove", &store.name).about(&store.id);
        let worker = Arc::clone(&host);
        host.start_task(spec, move |_| worker.remove_datastore(&store.id))
    })
    .await
}
