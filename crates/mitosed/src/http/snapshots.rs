//! Endpoints of snapshots, and of suspending to disk.

use std::sync::Arc;

use api_types::{Snapshot, SnapshotRequest, schema};
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Shared;
use super::answer::{Answer, HttpError, blocking, body};
use super::call::{self, Call, CallQuery, DryRunQuery, KeyHeader, MatchHeader, TaskAnswers};
use super::vms::VmPath;
use crate::host::{Host, Operation, TaskSpec};

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(detail, remove))
        .routes(routes!(revert))
        .routes(routes!(suspend))
}

/// Which snapshot of which VM.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct SnapshotPath {
    /// Id or name of the VM, or its name behind those of its folders.
    #[param(schema_with = schema::reference)]
    pub vm: String,
    /// Id or name of the snapshot.
    #[param(schema_with = schema::snapshot)]
    pub snapshot: String,
}

/// Snapshots of a VM
#[utoipa::path(get, path = "/vms/{vm}/snapshots", tag = "snapshots",
    operation_id = "list_snapshots", params(VmPath), responses(
    (status = 200, description = "Its snapshots, oldest first", body = Vec<Snapshot>),
))]
async fn list(State(host): Shared, Path(path): Path<VmPath>) -> Answer<Vec<Snapshot>> {
    blocking(move || {
        let vm = host.find(&path.vm)?;
        let all = host.snapshots_of(&vm);
        Ok(all.iter().map(|s| host.show_snapshot(&vm, s)).collect())
    })
    .await
}

/// Make a snapshot
///
/// The VM stands still as shortly as for a fork; memory is written while it runs on, and the task
/// ends when all of it is durable. The task's result is a `Snapshot`.
#[utoipa::path(post, path = "/vms/{vm}/snapshots", tag = "snapshots",
    operation_id = "create_snapshot", params(VmPath, CallQuery, DryRunQuery, KeyHeader),
    request_body = SnapshotRequest, responses(TaskAnswers))]
async fn create(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
    bytes: Bytes,
) -> Result<Response, HttpError> {
    let request: SnapshotRequest = body(&bytes)?;
    let vm = host.find(&path.vm)?;
    if call.is_dry() {
        return call::tried(move || host.check_snapshot(&vm, &request)).await;
    }
    let spec = TaskSpec::new("snapshot.create", &vm.name()).about(&vm.id);
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |task| {
        worker.create_snapshot(&vm, &request, task)
    })
    .await
}

/// One snapshot
#[utoipa::path(get, path = "/vms/{vm}/snapshots/{snapshot}", tag = "snapshots",
    operation_id = "get_snapshot", params(SnapshotPath), responses(
    (status = 200, description = "All that is known of it", body = Snapshot),
))]
async fn detail(State(host): Shared, Path(path): Path<SnapshotPath>) -> Answer<Snapshot> {
    blocking(move || {
        let vm = host.find(&path.vm)?;
        let snapshot = host.find_snapshot(&vm, &path.snapshot)?;
        Ok(host.show_snapshot(&vm, &snapshot))
    })
    .await
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RemoveQuery {
    /// With all snapshots that continue it; otherwise they continue the one that it continues.
    #[serde(default)]
    children: bool,
}

/// Remove a snapshot
///
/// Its layers stay as long as others use them. The task's result is a `SnapshotsRemoved`.
#[utoipa::path(
    delete,
    path = "/vms/{vm}/snapshots/{snapshot}",
    tag = "snapshots",
    operation_id = "remove_snapshot",
    params(
        SnapshotPath,
        RemoveQuery,
        CallQuery,
        DryRunQuery,
        KeyHeader,
        MatchHeader
    ),
    responses(TaskAnswers)
)]
async fn remove(
    State(host): Shared,
    Path(path): Path<SnapshotPath>,
    Query(query): Query<RemoveQuery>,
    call: Call,
) -> Result<Response, HttpError> {
    let vm = host.find(&path.vm)?;
    let snapshot = host.find_snapshot(&vm, &path.snapshot)?;
    call.check_version(&snapshot)?;
    if call.is_dry() {
        let check = move || {
            host.check_snapshot_removal(&vm, &snapshot.id, query.children)
                .map(drop)
        };
        return call::dry_run(check).await;
    }
    let spec = TaskSpec::new("snapshot.remove", &vm.name()).about(&vm.id);
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |_| {
        let removed = worker.remove_snapshot(&vm, &snapshot.id, query.children)?;
        Ok(api_types::SnapshotsRemoved { removed })
    })
    .await
}

/// Return to a snapshot
///
/// The VM's present state is lost. It runs from the snapshot's instant where the snapshot has
/// memory, otherwise it is powered off. The task's result is a `Vm`.
#[utoipa::path(
    post,
    path = "/vms/{vm}/snapshots/{snapshot}/revert",
    tag = "snapshots",
    operation_id = "revert_snapshot",
    params(SnapshotPath, CallQuery, DryRunQuery, KeyHeader),
    responses(TaskAnswers)
)]
async fn revert(
    State(host): Shared,
    Path(path): Path<SnapshotPath>,
    call: Call,
) -> Result<Response, HttpError> {
    let vm = host.find(&path.vm)?;
    let snapshot = host.find_snapshot(&vm, &path.snapshot)?;
    if call.is_dry() {
        return call::tried(move || host.check_revert(&vm, &snapshot)).await;
    }
    let spec = TaskSpec::new("snapshot.revert", &vm.name()).about(&vm.id);
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |task| {
        worker.revert(&vm, &snapshot.id, task)?;
        Ok(worker.show(&vm))
    })
    .await
}

/// Suspend a VM to disk
///
/// Its memory goes to files and its process ends; starting it lets it go on from there. The task's
/// result is a `Vm`.
#[utoipa::path(
    post,
    path = "/vms/{vm}/suspend",
    tag = "vms",
    operation_id = "suspend_vm",
    params(VmPath, CallQuery, DryRunQuery, KeyHeader),
    responses(TaskAnswers)
)]
async fn suspend(
    State(host): Shared,
    Path(path): Path<VmPath>,
    call: Call,
) -> Result<Response, HttpError> {
    let vm = host.find(&path.vm)?;
    if call.is_dry() {
        return call::tried(move || host.check_power(&vm, Operation::Suspend)).await;
    }
    let spec = TaskSpec::new("vm.suspend", &vm.name()).about(&vm.id);
    let worker = Arc::clone(&host);
    call::run(host, call, spec, move |task| {
        worker.suspend(&vm, task)?;
        Ok(worker.show(&vm))
    })
    .await
}
