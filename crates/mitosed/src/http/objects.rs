//! Endpoints of any object: what all kinds of the inventory have; and of changes of VMs.

use std::sync::Arc;

use api_types::{ObjectRequest, ReconfigureRequest, TreeObject, VmDetail, schema};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, HttpError, blocking, body, run_blocking};
use super::call::{self, Call, DryRunQuery, KeyHeader, MatchHeader, tagged};
use super::vms::VmPath;
use crate::host::{Host, TaskContext, TaskSpec};

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(detail, change))
        .routes(routes!(reconfigure))
}

/// Which object.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct ObjectPath {
    /// Its id.
    #[param(schema_with = schema::object)]
    object: String,
}

/// Objects of all kinds
#[utoipa::path(get, path = "/objects", tag = "objects", operation_id = "list_objects", responses(
    (status = 200, description = "All of them", body = Vec<TreeObject>),
))]
async fn list(State(host): Shared) -> Answer<Vec<TreeObject>> {
    blocking(move || Ok(host.list_objects())).await
}

/// One object
#[utoipa::path(get, path = "/objects/{object}", tag = "objects", operation_id = "get_object",
    params(ObjectPath), responses((status = 200, description = "It", body = TreeObject,
        headers(("ETag" = String, description = "Its version")))))]
async fn detail(State(host): Shared, Path(path): Path<ObjectPath>) -> Result<Response, HttpError> {
    let found = run_blocking(move || host.show_any(&path.object)).await?;
    Ok(tagged(found.version, found))
}

/// Change name, place and words of an object
#[utoipa::path(patch, path = "/objects/{object}", tag = "objects", operation_id = "change_object",
    params(ObjectPath, DryRunQuery, KeyHeader, MatchHeader), request_body = ObjectRequest,
    responses((status = 200, description = "As it is now", body = TreeObject,
        headers(("ETag" = String, description = "Its version")))))]
async fn change(
    State(host): Shared,
    Path(path): Path<ObjectPath>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let request: ObjectRequest = body(&bytes)?;
    let expected = call.expected();
    let reader = Arc::clone(&host);
    let found = run_blocking(move || reader.show_any(&path.object)).await?;
    if call.is_dry() {
        return call::tried(move || host.check_any_change(&found.id, expected, &request)).await;
    }
    let spec = TaskSpec::new("object.change", &found.name).about(&found.id);
    let worker = Arc::clone(&host);
    let work = move |_: &TaskContext| worker.change_any(&found.id, expected, &request);
    let answer = |changed: TreeObject| tagged(changed.version, changed);
    call::give(host, call, spec, work, answer).await
}

/// Change a VM
///
/// Name, folder, pool, annotation, attributes, cables and back ends of serial ports change at any
/// time, everything else while the VM is powered off.
#[utoipa::path(patch, path = "/vms/{vm}", tag = "vms", operation_id = "change_vm",
    params(VmPath, DryRunQuery, KeyHeader, MatchHeader), request_body = ReconfigureRequest,
    responses((status = 200, description = "As it is now", body = VmDetail,
        headers(("ETag" = String, description = "Its version")))))]
async fn reconfigure(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let request: ReconfigureRequest = body(&bytes)?;
    let expected = call.expected();
    let vm = host.find(&path.vm)?;
    if call.is_dry() {
        return call::tried(move || host.check_reconfigure(&vm, expected, &request)).await;
    }
    let spec = TaskSpec::new("vm.reconfigure", &vm.name()).about(&vm.id);
    let worker = Arc::clone(&host);
    let work = move |_: &TaskContext| {
        worker.reconfigure(&vm, expected, &request)?;
        Ok(worker.detail(&vm))
    };
    let answer = |changed: VmDetail| tagged(changed.vm.version, changed);
    call::give(host, call, spec, work, answer).await
}
