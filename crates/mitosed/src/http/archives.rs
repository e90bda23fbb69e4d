//! Endpoints of export and import. Archives are files of the daemon's host.

use std::sync::Arc;

use api_types::{ExportRequest, ImportRequest};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{HttpError, body};
use super::call::{self, Call, CallQuery, DryRunQuery, KeyHeader, TaskAnswers};
use super::fork_points::PointPath;
use super::vms::VmPath;
use crate::host::{Host, TaskSpec};

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(export))
        .routes(routes!(export_point))
        .routes(routes!(import))
}

/// Export a VM or a snapshot
///
/// A VM that runs is exported with the memory of one instant, for which it stands still as shortly
/// as for a fork. With `since` only what changed since that export is in the archive. The task's
/// result is an `Exported`.
#[utoipa::path(post, path = "/vms/{vm}/export", tag = "archives", operation_id = "export_vm",
    params(VmPath, CallQuery, DryRunQuery, KeyHeader), request_body = ExportRequest,
    responses(TaskAnswers))]
async fn export(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let request: ExportRequest = body(&bytes)?;
    let vm = host.find(&path.vm)?;
    if call.is_dry() {
        return call::tried(move || host.check_export_vm(&vm, &request)).await;
    }
    let spec = TaskSpec::new("vm.export", &vm.name())
        .about(&vm.id)
        .cancellable();
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |task| {
        worker.export_vm(&vm, &request, task)
    })
    .await
}

/// Export a fork point
///
/// The task's result is an `Exported`.
#[utoipa::path(post, path = "/forkpoints/{fork_point}/export", tag = "archives",
    operation_id = "export_fork_point", params(PointPath, CallQuery, DryRunQuery, KeyHeader),
    request_body = ExportRequest, responses(TaskAnswers))]
async fn export_point(
    State(host): Shared,
    Path(path): Path<PointPath>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let request: ExportRequest = body(&bytes)?;
    let point = host.fork_point(&path.fork_point)?;
    if call.is_dry() {
        return call::tried(move || host.check_export_point(&point, &request)).await;
    }
    let spec = TaskSpec::new("forkpoint.export", &point.name)
        .about(&point.id)
        .cancellable();
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |task| {
        worker.export_point(&point, &request, task)
    })
    .await
}

/// Import an archive
///
/// The archive of a fork point becomes a fork point, others become VMs. Everything is verified before
/// anything is visible. What an archive made with `since` leaves out is found on the host, or in the
/// earlier archives that are given. With `replace` it takes the place of an earlier import of the same
/// machine that nobody changed since. The task's result is an `Imported`.
#[utoipa::path(post, path = "/import", tag = "archives", operation_id = "import_archive",
    params(CallQuery, DryRunQuery, KeyHeader), request_body = ImportRequest,
    responses(TaskAnswers))]
async fn import(State(host): Shared, call: Call, bytes: Bytes) -> Result<Response, HttpError> {
    let request: ImportRequest = body(&bytes)?;
    if call.is_dry() {
        return call::tried(move || host.check_import(&request)).await;
    }
    let subject = request.path.display().to_string();
    let spec = TaskSpec::new("archive.import", &subject).cancellable();
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |task| worker.import(&request, task)).await
}
