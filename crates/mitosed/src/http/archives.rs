//! Endpoints of export and import. Archives are files of the daemon's host.

use std::sync::Arc;

use api_types::{ExportRequest, ImportRequest, Task};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::body;
use super::fork_points::PointPath;
use super::started::{self, Started, WaitQuery};
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
/// as for a fork. The task's result is an `Exported`.
#[utoipa::path(post, path = "/vms/{vm}/export", tag = "archives", operation_id = "export_vm",
    params(VmPath, WaitQuery), request_body = ExportRequest, responses(
    (status = 200, description = "The task has ended well", body = Task),
    (status = 202, description = "The task is in work", body = Task),
))]
async fn export(
    State(host): Shared,
    Path(path): Path<VmPath>,
    Query(query): Query<WaitQuery>,
    bytes: Bytes,
) -> Started {
    let request: ExportRequest = body(&bytes)?;
    started::start(query, move || {
        let vm = host.find(&path.vm)?;
        let spec = TaskSpec::new("vm.export", &vm.name())
            .about(&vm.id)
            .cancellable();
        let worker = Arc::clone(&host);
        host.start_task(spec, move |task| worker.export_vm(&vm, &request, task))
    })
    .await
}

/// Export a fork point
///
/// The task's result is an `Exported`.
#[utoipa::path(post, path = "/forkpoints/{fork_point}/export", tag = "archives",
    operation_id = "export_fork_point", params(PointPath, WaitQuery),
    request_body = ExportRequest, responses(
    (status = 200, description = "The task has ended well", body = Task),
    (status = 202, description = "The task is in work", body = Task),
))]
async fn export_point(
    State(host): Shared,
    Path(path): Path<PointPath>,
    Query(query): Query<WaitQuery>,
    bytes: Bytes,
) -> Started {
    let request: ExportRequest = body(&bytes)?;
    started::start(query, move || {
        let point = host.fork_point(&path.fork_point)?;
        let spec = TaskSpec::new("forkpoint.export", &point.name)
            .about(&point.id)
            .cancellable();
        let worker = Arc::clone(&host);
        host.start_task(spec, move |task| {
            worker.export_point(&point, &request, task)
        })
    })
    .await
}

/// Import an archive
///
/// Everything is verified before anything is visible. The task's result is an `Imported`.
#[utoipa::path(post, path = "/import", tag = "archives", operation_id = "import_archive",
    params(WaitQuery), request_body = ImportRequest, responses(
    (status = 200, description = "The task has ended well", body = Task),
    (status = 202, description = "The task is in work", body = Task),
))]
async fn import(State(host): Shared, Query(query): Query<WaitQuery>, bytes: Bytes) -> Started {
    let request: ImportRequest = body(&bytes)?;
    started::start(query, move || {
        let subject = request.path.display().to_string();
        let spec = TaskSpec::new("archive.import", &subject).cancellable();
        let worker = Arc::clone(&host);
        host.start_task(spec, move |task| worker.import(&request, task))
    })
    .await
}
