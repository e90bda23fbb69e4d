//! Endpoints of prepared parents, kept fork points and their children.

use std::sync::Arc;

use api_types::{ForkPoint, PersistenceRequest, PointForkRequest, PrepareRequest, Vm, schema};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, HttpError, blocking, body};
use super::call::{self, Call, CallQuery, DryRunQuery, KeyHeader, MatchHeader, TaskAnswers};
use super::vms::VmPath;
use super::{Arrived, Shared};
use crate::host::{Host, PointFork, TaskContext, TaskSpec};

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(detail, remove))
        .routes(routes!(fork))
        .routes(routes!(prepare))
        .routes(routes!(set_persistence))
}

/// Which fork point.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct PointPath {
    /// Its id or name, or the name of its parent.
    #[param(schema_with = schema::fork_point)]
    pub fork_point: String,
}

/// Fork points
#[utoipa::path(get, path = "/forkpoints", tag = "fork points", operation_id = "list_fork_points",
    responses((status = 200, description = "All kept fork points", body = Vec<ForkPoint>)))]
async fn list(State(host): Shared) -> Answer<Vec<ForkPoint>> {
    blocking(move || {
        let points = host.all_fork_points();
        Ok(points.iter().map(|point| host.show_point(point)).collect())
    })
    .await
}

/// One fork point
#[utoipa::path(get, path = "/forkpoints/{fork_point}", tag = "fork points",
    operation_id = "get_fork_point", params(PointPath),
    responses((status = 200, description = "It, with its children counted", body = ForkPoint)))]
async fn detail(State(host): Shared, Path(path): Path<PointPath>) -> Answer<ForkPoint> {
    blocking(move || Ok(host.show_point(&host.fork_point(&path.fork_point)?))).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RemoveQuery {
    /// Also where children would return to it: they become ordinary VMs.
    #[serde(default)]
    force: bool,
}

/// End a parent
///
/// Its fork point is removed, with children that were never started.
#[utoipa::path(delete, path = "/forkpoints/{fork_point}", tag = "fork points",
    operation_id = "remove_fork_point", params(PointPath, RemoveQuery, DryRunQuery, KeyHeader, MatchHeader),
    responses((status = 204, description = "It is gone")))]
async fn remove(
    State(host): Shared,
    Path(path): Path<PointPath>,
    Query(query): Query<RemoveQuery>,
    call: Call,
) -> Result<Response, HttpError> {
    let point = host.only_fork_point(&path.fork_point)?;
    call.check_version(&point)?;
    if call.is_dry() {
        return call::dry_run(move || host.check_unprepare(&point, query.force)).await;
    }
    let spec = TaskSpec::new("forkpoint.remove", &point.name).about(&point.id);
    let worker = Arc::clone(&host);
    call::run_to_end(host, call, spec, move |_| {
        worker.unprepare(&point, query.force)
    })
    .await
}

/// Power on children
///
/// Any number of children of a fork point: those that were made ahead first, then new ones. Nobody
/// is stunned. The task's result is a `PointForked`; its items are the children.
#[utoipa::path(post, path = "/forkpoints/{fork_point}/fork", tag = "fork points",
    operation_id = "fork_fork_point", params(PointPath, CallQuery, DryRunQuery, KeyHeader),
    request_body = PointForkRequest, responses(TaskAnswers))]
async fn fork(
    State(host): Shared,
    Path(path): Path<PointPath>,
    call: Call,
    Extension(Arrived(arrived_ns)): Extension<Arrived>,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let request: PointForkRequest = body(&bytes)?;
    let point = host.fork_point(&path.fork_point)?;
    if call.is_dry() {
        return call::tried(move || host.check_children(&point, &request)).await;
    }
    let spec = TaskSpec::new("forkpoint.fork", &point.name)
        .about(&point.id)
        .items(&request.names)
        .cancellable();
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |context| {
        worker.fork_from_point(&PointFork {
            point: &point,
            request: &request,
            arrived_ns,
            context: Some(context),
        })
    })
    .await
}

/// Turn a VM into a parent
///
/// Seals a fork point of a powered-on VM, and makes children ahead. The task's result is a
/// `Prepared`.
#[utoipa::path(post, path = "/vms/{vm}/prepare", tag = "fork points", operation_id = "prepare_vm",
    params(VmPath, CallQuery, DryRunQuery, KeyHeader),
    request_body(content = Option<PrepareRequest>), responses(TaskAnswers))]
async fn prepare(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let request: Option<PrepareRequest> = body(&bytes)?;
    let request = request.unwrap_or_default();
    let vm = host.find(&path.vm)?;
    if call.is_dry() {
        return call::tried(move || host.check_prepare(&vm, &request)).await;
    }
    let spec = TaskSpec::new("vm.prepare", &vm.name())
        .about(&vm.id)
        .cancellable();
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |context| {
        worker.prepare_parent(&vm, &request, context)
    })
    .await
}

/// Keep a child's disks over a power-off, or not
///
/// Possible until its first power-off.
#[utoipa::path(put, path = "/vms/{vm}/persistence", tag = "fork points",
    operation_id = "set_persistence", params(VmPath, DryRunQuery, KeyHeader),
    request_body = PersistenceRequest,
    responses((status = 200, description = "It is so", body = Vm)))]
async fn set_persistence(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let request: PersistenceRequest = body(&bytes)?;
    let vm = host.find(&path.vm)?;
    if call.is_dry() {
        return call::dry_run(move || host.check_persistent(&vm, request.persistent)).await;
    }
    let spec = TaskSpec::new("vm.persist", &vm.name()).about(&vm.id);
    let worker = Arc::clone(&host);
    let work = move |_: &TaskContext| {
        worker.set_persistence(&vm, request.persistent)?;
        Ok(worker.show(&vm))
    };
    call::give(host, call, spec, work, |vm: Vm| Json(vm).into_response()).await
}
