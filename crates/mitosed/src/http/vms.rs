//! Endpoints of VMs.

use std::sync::Arc;

use api_types::{
    Cloned, DryRun, ForkRequest, RunReply, RunRequest, StopRequest, Vm, VmDetail, schema,
};
use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{Answer, HttpError, blocking, blocking_empty, body};
use super::{Arrived, Shared, streams};
use crate::error::OpResult;
use crate::host::{self, Host};

pub fn routes() -> OpenApiRouter<Arc<Host>> {
    OpenApiRouter::new()
        .routes(routes!(list, run))
        .routes(routes!(detail, remove))
        .routes(routes!(fork))
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(reset))
        .routes(routes!(streams::log))
}

/// Which VM.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct VmPath {
    /// Its id or name, or its name behind those of its folders.
    #[param(schema_with = schema::reference)]
    pub vm: String,
}

/// VMs
#[utoipa::path(get, path = "/vms", tag = "vms", operation_id = "list_vms", responses(
    (status = 200, description = "All VMs by name", body = Vec<Vm>),
))]
async fn list(State(host): Shared) -> Answer<Vec<Vm>> {
    blocking(move || Ok(host.all().iter().map(|vm| host.show(vm)).collect())).await
}

/// Make a VM and start it
#[utoipa::path(post, path = "/vms", tag = "vms", operation_id = "run_vm",
    params(DryRunQuery), request_body = RunRequest, responses(
    (status = 200, description = "It is there, or with `dry_run` what stands in the way", body = RunAnswer),
))]
async fn run(
    State(host): Shared,
    Extension(Arrived(at)): Extension<Arrived>,
    Query(query): Query<DryRunQuery>,
    bytes: Bytes,
) -> Answer<RunAnswer> {
    let request: RunRequest = body(&bytes)?;
    blocking(move || match query.dry_run {
        true => Ok(RunAnswer::Tried(host.check_run(&request))),
        false => host.run(request, at).map(RunAnswer::Made),
    })
    .await
}

/// Whether a request is only tried out.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DryRunQuery {
    /// Only tell what stands in the way; nothing is made.
    #[serde(default)]
    dry_run: bool,
}

/// A VM that was made, or what a dry run found.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum RunAnswer {
    Made(RunReply),
    Tried(DryRun),
}

/// Clones that were made, or what a dry run found.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum ForkAnswer {
    Made(Cloned),
    Tried(DryRun),
}

/// One VM
#[utoipa::path(get, path = "/vms/{vm}", tag = "vms", operation_id = "get_vm", params(VmPath),
    responses((status = 200, description = "All that is known of it", body = VmDetail)))]
async fn detail(State(host): Shared, Path(path): Path<VmPath>) -> Answer<VmDetail> {
    blocking(move || {
        let vm = host.find(&path.vm)?;
        Ok(host.detail(&vm))
    })
    .await
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct RemoveQuery {
    /// Also where it runs.
    #[serde(default)]
    force: bool,
}

/// Remove a VM
#[utoipa::path(delete, path = "/vms/{vm}", tag = "vms", operation_id = "remove_vm",
    params(VmPath, RemoveQuery), responses((status = 204, description = "It is gone")))]
async fn remove(
    State(host): Shared,
    Path(path): Path<VmPath>,
    Query(query): Query<RemoveQuery>,
) -> Result<StatusCode, HttpError> {
    blocking_empty(move || host.remove(&host.find(&path.vm)?, query.force)).await
}

/// Clone a VM
#[utoipa::path(post, path = "/vms/{vm}/fork", tag = "vms", operation_id = "fork_vm",
    params(VmPath, DryRunQuery), request_body = ForkRequest, responses(
    (status = 200, description = "The clones, each with its result, or with `dry_run` what stands in the way", body = ForkAnswer),
))]
async fn fork(
    State(host): Shared,
    Path(path): Path<VmPath>,
    Extension(Arrived(at)): Extension<Arrived>,
    Query(query): Query<DryRunQuery>,
    bytes: Bytes,
) -> Answer<ForkAnswer> {
    let request: ForkRequest = body(&bytes)?;
    blocking(move || {
        let vm = host.find(&path.vm)?;
        match query.dry_run {
            true => Ok(ForkAnswer::Tried(host.check_fork(&vm, &request))),
            false => host.fork(&vm, &request, at).map(ForkAnswer::Made),
        }
    })
    .await
}

/// Power a VM off
#[utoipa::path(post, path = "/vms/{vm}/stop", tag = "vms", operation_id = "stop_vm",
    params(VmPath), request_body(content = Option<StopRequest>), responses(
    (status = 200, description = "It is off", body = Vm),
))]
async fn stop(State(host): Shared, Path(path): Path<VmPath>, bytes: Bytes) -> Answer<Vm> {
    let request: StopRequest = body(&bytes)?;
    act(host, path, move |host, vm| host.power_off(vm, &request)).await
}

/// Power a VM on
///
/// It boots from its disks.
#[utoipa::path(post, path = "/vms/{vm}/start", tag = "vms", operation_id = "start_vm",
    params(VmPath), responses((status = 200, description = "It runs", body = Vm)))]
async fn start(State(host): Shared, Path(path): Path<VmPath>) -> Answer<Vm> {
    act(host, path, Host::start).await
}

/// Stop a VM's vCPUs
#[utoipa::path(post, path = "/vms/{vm}/pause", tag = "vms", operation_id = "pause_vm",
    params(VmPath), responses((status = 200, description = "It is paused", body = Vm)))]
async fn pause(State(host): Shared, Path(path): Path<VmPath>) -> Answer<Vm> {
    act(host, path, |host, vm| host.pause(vm)).await
}

/// Let a VM's vCPUs run on
#[utoipa::path(post, path = "/vms/{vm}/resume", tag = "vms", operation_id = "resume_vm",
    params(VmPath), responses((status = 200, description = "It runs", body = Vm)))]
async fn resume(State(host): Shared, Path(path): Path<VmPath>) -> Answer<Vm> {
    act(host, path, |host, vm| host.resume(vm)).await
}

/// Reset a VM
#[utoipa::path(post, path = "/vms/{vm}/reset", tag = "vms", operation_id = "reset_vm",
    params(VmPath), responses((status = 200, description = "It starts again", body = Vm)))]
async fn reset(State(host): Shared, Path(path): Path<VmPath>) -> Answer<Vm> {
    act(host, path, Host::reset).await
}

/// Runs an operation on a VM and answers with the VM.
async fn act(
    host: Arc<Host>,
    path: VmPath,
    operation: impl FnOnce(&Arc<Host>, &Arc<host::Vm>) -> OpResult<()> + Send + 'static,
) -> Answer<Vm> {
    blocking(move || {
        let vm = host.find(&path.vm)?;
        operation(&host, &vm)?;
        Ok(host.show(&vm))
    })
    .await
}
