//! Endpoints of folders of VMs.

use std::sync::Arc;

use api_types::{Folder, FolderRequest, schema};
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

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list, make))
        .routes(routes!(detail, remove))
}

/// Which folder of VMs.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct FolderPath {
    /// Its id or path.
    #[param(schema_with = schema::folder)]
    folder: String,
}

/// Folders of VMs
#[utoipa::path(get, path = "/folders", tag = "folders", operation_id = "list_folders", responses(
    (status = 200, description = "All of them", body = Vec<Folder>),
))]
async fn list(State(host): Shared) -> Answer<Vec<Folder>> {
    blocking(move || Ok(host.list_folders())).await
}

/// Make a folder of VMs
#[utoipa::path(post, path = "/folders", tag = "folders", operation_id = "make_folder",
    params(DryRunQuery, KeyHeader), request_body = FolderRequest,
    responses((status = 200, description = "It is there", body = Folder)))]
async fn make(State(host): Shared, call: Call, bytes: Bytes) -> Result<Response, HttpError> {
    let request: FolderRequest = body(&bytes)?;
    if call.is_dry() {
        return call::tried(move || host.check_folder(&request)).await;
    }
    let spec = TaskSpec::new("folder.create", &request.name);
    let worker = Arc::clone(&host);
    let work = move |_: &TaskContext| worker.make_folder(&request);
    call::give(host, call, spec, work, |made| Json(made).into_response()).await
}

/// One folder of VMs
#[utoipa::path(get, path = "/folders/{folder}", tag = "folders", operation_id = "get_folder",
    params(FolderPath), responses((status = 200, description = "It", body = Folder)))]
async fn detail(State(host): Shared, Path(path): Path<FolderPath>) -> Answer<Folder> {
    blocking(move || {
        let found = host.folder(&path.folder)?;
        Ok(host.show_folder(&found))
    })
    .await
}

/// Remove a folder of VMs
///
/// Only while nothing uses it.
#[utoipa::path(delete, path = "/folders/{folder}", tag = "folders", operation_id = "remove_folder",
    params(FolderPath, DryRunQuery, KeyHeader, MatchHeader),
    responses((status = 204, description = "It is gone")))]
async fn remove(
    State(host): Shared,
    Path(path): Path<FolderPath>,
    call: Call,
) -> Result<Response, HttpError> {
    call.check_version(&host.folder(&path.folder)?)?;
    if call.is_dry() {
        return call::dry_run(move || host.check_folder_removal(&path.folder).map(drop)).await;
    }
    let spec = TaskSpec::new("folder.remove", &path.folder);
    let worker = Arc::clone(&host);
    call::run_to_end(host, call, spec, move |_| {
        worker.remove_folder(&path.folder)
    })
    .await
}
